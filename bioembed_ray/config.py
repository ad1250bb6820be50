"""The job file: YAML and `--set` overrides become one frozen `Job`.

Defaults stand here and nowhere else. A wrong key or value is one line that names the key, the
value got and what is accepted.
"""

from __future__ import annotations

import os
import re
from fractions import Fraction
from typing import Any, Literal

from pydantic import Field, model_validator

from bioembed_ray.encoder_config import (
    EncoderConfig,
    LocalWeights,
    Pretrained,
    RandomWeights,
    Settings,
    TrainingConfig,
    Weights,
)
from bioembed_ray.store.config import StorageConfig, StoreConfig

__all__ = [
    "DEFAULT_MODELS",
    "CodebookConfig",
    "EncoderConfig",
    "InputConfig",
    "Job",
    "LocalWeights",
    "PoolConfig",
    "Pretrained",
    "RandomWeights",
    "StorageConfig",
    "StoreConfig",
    "TrainingConfig",
    "Weights",
    "exact",
    "mask_secrets",
    "title",
]

DEFAULT_MODELS = {
    "beats": "esp_aves2_sl_beats_all",
    "efficientnet": "esp_aves2_effnetb0_all",
    "wav2vec2": "facebook/wav2vec2-base",
    "hubert": "facebook/hubert-base-ls960",
    "ast": "MIT/ast-finetuned-audioset-10-10-0.4593",
    "vqvae": "vqvae",
}
# Names become Hive partition values and folder names.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class InputConfig(Settings):
    """What to read."""

    uri: str | tuple[str, ...] = "."
    """Folder, bucket prefix, glob, one recording, a list of these, or a .txt file that lists them."""
    include: tuple[str, ...] = ()
    """Globs on the path below `uri`, of files, tars and Parquet; the extension's case does not matter. Empty: every audio extension."""
    exclude: tuple[str, ...] = ()
    """Globs to leave out, also of members of tars and Parquet; a folder that `name/**` covers is not opened."""
    manifest: str | None = None
    """CSV or Parquet table with a `uri` column; its other columns ride along into recordings/."""
    channels: Literal["mix", "first", "each"] = "mix"
    """`mix`: mean of all channels; `first`: channel 0; `each`: every channel on its own."""
    time_expansion: int = Field(default=1, ge=1, le=1000)
    """Treat a recording at rate r as r / time_expansion, so that ultrasound is heard."""

    @model_validator(mode="after")
    def _check(self) -> InputConfig:
        # An empty path, such as an unset variable of a shell leaves, would mean the folder one is in.
        if not all([self.uri] if isinstance(self.uri, str) else self.uri):
            raise ValueError("uri: got an empty text; use a folder, prefix, glob or file")
        return self


class CodebookConfig(Settings):
    """One codebook: centroids of an encoder's frames, whose numbers become tokens."""

    encoder: str
    """Whose frames: an encoder, or `hubert.9` where it has several layers. Windows where it has no frames."""
    clusters: int = Field(ge=1, le=1 << 20)
    """Number of centroids, K."""
    fit_frames: int = Field(default=5_000_000, ge=1)
    """Most frames to fit on."""
    metric: Literal["euclidean", "cosine"] = "euclidean"
    """Distance that decides a token."""
    balance: str | None = None
    """Manifest column whose values get equal shares of the sample, so that none owns the codebook."""
    seed: int = Field(default=0, ge=0)
    """Seed of the first centroids."""
    max_iterations: int = Field(default=300, ge=1)
    """Stop after so many."""
    tolerance: float = Field(default=1e-4, ge=0)
    """Stop where centroids move less: scikit-learn's `tol`."""
    held_out: float = Field(default=0.05, ge=0, lt=1)
    """Share of the frames that is never fitted on, to judge by."""
    edition: int = Field(default=1, ge=1)
    """Raise it to fit again on the archive as it now is, from the last centroids, ids kept."""


class PoolConfig(Settings):
    """One pool of actors; each holds every encoder of the pool."""

    actors: int | Literal["auto"] = "auto"
    """How many; `auto` is one per GPU, or one per CPU core where there is no GPU, and grows with the cluster."""
    gpus: float | None = Field(default=None, ge=0)
    """GPUs per actor; null is 1 where the cluster has any, else 0."""
    cpus: float | None = Field(default=None, gt=0)
    """CPU cores per actor that Ray sets aside; null is 1 less a share for decoding."""
    threads: int = Field(default=1, ge=1)
    """Compute threads per actor. Fixed, since another count moves the last bits of a vector."""

    @model_validator(mode="after")
    def _check(self) -> PoolConfig:
        if isinstance(self.actors, int) and self.actors < 1:
            raise ValueError("actors: use 1 or more, or auto")
        return self


class Job(Settings):
    """Everything a run needs to know."""

    input: InputConfig = InputConfig()
    """What to read."""
    output: str = Field(min_length=1)
    """Folder or bucket prefix that receives the tables."""
    storage: StorageConfig = StorageConfig()
    """The object stores of input and output: where they are, who pays, how patient to be."""
    encoders: dict[str, EncoderConfig]
    """Name -> encoder; the six known names bring their model along."""
    codebooks: dict[str, CodebookConfig] = Field(default={})
    """Name -> codebook; missing ones are fitted by the run that needs them."""
    pools: dict[str, PoolConfig] = Field(default={"default": PoolConfig()})
    """Name -> pool of actors."""
    segment_s: int = Field(default=300, ge=1, le=3600)
    """Longest segment in encoder seconds; a multiple of every block."""
    shard_minutes: float = Field(default=30, gt=0, le=600)
    """Audio per shard; a smaller archive gets smaller shards."""
    embedding_dtype: Literal["float32", "float16"] = "float32"
    """Stored type of window vectors."""
    frame_dtype: Literal["float32", "float16"] = "float16"
    """Stored type of frames."""
    max_failed_fraction: float = Field(default=0.01, ge=0, le=1)
    """Share of the input seconds that may fail before the run ends with exit code 3."""
    max_removed_fraction: float = Field(default=0.1, ge=0, le=1)
    """Share of the known recordings that may be gone from the input before a run refuses to drop their rows."""

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, raw: Any) -> Any:
        if not isinstance(raw, dict) or not isinstance(raw.get("encoders"), dict):
            return raw
        encoders = {}
        for name, value in raw["encoders"].items():
            value = {} if value is None else value
            if isinstance(value, dict) and "model" not in value and name in DEFAULT_MODELS:
                value = {"model": DEFAULT_MODELS[name], **value}
            encoders[name] = value
        return {**raw, "encoders": encoders}

    @model_validator(mode="after")
    def _check(self) -> Job:
        if not self.encoders:
            raise ValueError(f"encoders: none given; name one of {', '.join(DEFAULT_MODELS)}")
        for name, encoder in self.encoders.items():
            if not NAME.fullmatch(name):
                raise ValueError(f"encoders.{name}: use letters, digits, '_', '-' and '.'")
            if encoder.pool not in self.pools:
                known = ", ".join(self.pools)
                raise ValueError(
                    f"encoders.{name}.pool: got {encoder.pool!r}; pools has only {known}"
                )
        titles = [
            title(name, encoder, layer)
            for name, encoder in self.encoders.items()
            for layer in encoder.layers
        ]
        for name, codebook in self.codebooks.items():
            if not NAME.fullmatch(name):
                raise ValueError(f"codebooks.{name}: use letters, digits, '_', '-' and '.'")
            if name in self.encoders and self.encoders[name].model == "vqvae":
                raise ValueError(
                    f"codebooks.{name}: the encoder of that name has codes of its own; use another name"
                )
            if codebook.encoder not in titles:
                raise ValueError(
                    f"codebooks.{name}.encoder: got {codebook.encoder!r}; use one of {', '.join(titles)}"
                )
        read = self.input.uri if isinstance(self.input.uri, tuple) else (self.input.uri,)
        manifest = () if self.input.manifest is None else (self.input.manifest,)
        self.storage.check((*read, *manifest), self.output)
        return self


def title(name: str, encoder: EncoderConfig, layer: int | None) -> str:
    """Return the name of one output: the encoder's, with the layer where there are several."""
    return name if len(encoder.layers) == 1 else f"{name}.{layer}"


def exact(seconds: float) -> Fraction:
    """Return the decimal number that was written, not its binary neighbour.

    >>> exact(0.1) * 3 == Fraction(3, 10)
    True
    """
    return Fraction(repr(float(seconds)))


def mask_secrets(text: str) -> str:
    """Return text without credentials that may ride in URIs or come from the environment."""
    text = re.sub(r"(://)[^/@\s]+@", r"\1***@", text)
    # Azure's shared access signatures ride in the query.
    text = re.sub(r"([?&]sig=)[^&\s]+", r"\1***", text)
    for name, value in os.environ.items():
        if len(value) >= 8 and re.search(r"SECRET|TOKEN|PASSWORD|_KEY$", name):
            text = text.replace(value, "***")
    return text
