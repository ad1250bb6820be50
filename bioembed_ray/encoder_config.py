"""What a job file says of an encoder: its model, its weights, how it cuts, how it is trained."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


class Settings(BaseModel):
    """Frozen settings: unknown keys are errors."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )


class Pretrained(Settings):
    """Weights as published: from the Hugging Face hub, or inside `model` where that is a path."""

    kind: Literal["pretrained"] = "pretrained"


class LocalWeights(Settings):
    """Weights from a file or folder of the caller's."""

    kind: Literal["local"] = "local"
    path: str
    """Checkpoint file or model folder."""


class RandomWeights(Settings):
    """Untrained weights, for dry runs; everything made with them is stamped so."""

    kind: Literal["random"] = "random"
    seed: int = 0
    """Seed of the initialisation."""


Weights = Pretrained | LocalWeights | RandomWeights


def _parse_weights(value: object) -> object:
    if isinstance(value, Pretrained | LocalWeights | RandomWeights):
        return value
    if value == "pretrained":
        return Pretrained()
    if value == "random":
        return RandomWeights()
    # As a run's record spells it.
    if isinstance(value, dict) and value.get("kind") in {"pretrained", "local", "random"}:
        return value
    if isinstance(value, str) and re.fullmatch(r"random:\d+", value):
        return RandomWeights(seed=int(value.partition(":")[2]))
    if isinstance(value, str) and value:
        return LocalWeights(path=str(Path(value).expanduser().absolute()))
    raise ValueError('use "pretrained", "random", "random:SEED" or a path')


class TrainingConfig(Settings):
    """How a VQ-VAE is trained on the archive, and what it hears."""

    patch_s: int = Field(default=1, ge=1, le=60)
    """Encoder seconds of a patch: what is encoded as one image, each on its own."""
    n_mels: int = Field(default=128, ge=4, le=1024)
    """Mel bands, F; a multiple of 4."""
    n_fft: int | None = Field(default=None, ge=16, le=1 << 20)
    """Samples of a mel frame; null is the power of two from 40 ms upwards."""
    hop: int | None = Field(default=None, ge=1)
    """Samples from one mel frame to the next; null is 10 ms."""
    fmin_hz: float = Field(default=0.0, ge=0)
    """Lower edge of the mel bands."""
    fmax_hz: float | None = Field(default=None, gt=0)
    """Upper edge of the mel bands; null is half the rate."""
    hidden: int = Field(default=128, ge=2, le=4096, multiple_of=2)
    """Channels of the inner layers."""
    dim: int = Field(default=64, ge=2, le=4096)
    """Features of a latent, D."""
    codes: int = Field(default=256, ge=2, le=1 << 16)
    """Number of codes, K."""
    patches: int = Field(default=20_000, ge=1)
    """Most patches to train on, taken from the whole archive by their hashes."""
    held_out: float = Field(default=0.1, gt=0, lt=1)
    """Share of the patches that is never trained on, to judge by."""
    balance: str | None = None
    """Manifest column whose values get equal shares of the patches."""
    batch_size: int = Field(default=16, ge=1, le=65_536)
    """Patches per step, all workers together."""
    learning_rate: float = Field(default=1e-3, gt=0, le=1)
    """Of AdamW, after warming up; it falls to a tenth along a cosine."""
    max_steps: int = Field(default=2000, ge=1)
    """Stop after so many steps."""
    evaluate_steps: int = Field(default=100, ge=1)
    """Steps between looks at the held-out patches; the state is saved there."""
    patience: int = Field(default=5, ge=1)
    """Stop after so many looks without the held-out error falling by 1 %."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Autocast precision of the networks; codes and losses stay float32."""
    seed: int = Field(default=0, ge=0)
    """Seed of weights, batches and revived codes."""
    workers: int | Literal["auto"] = "auto"
    """How many train together; `auto` is one per GPU, or one per CPU core up to 4. 0 trains in the run's own
    process (local mode of Ray Train): the same as 1, without the time that starting workers takes."""
    edition: int = Field(default=1, ge=1)
    """Raise it to train again on the archive as it now is."""

    @model_validator(mode="after")
    def _check(self) -> TrainingConfig:
        if isinstance(self.workers, int) and self.workers < 0:
            raise ValueError("workers: use 1 or more, 0 for the run's own process, or auto")
        return self


class EncoderConfig(Settings):
    """One encoder. Only `model` decides what the rest means; see `bioembed init` for examples."""

    model: str
    """avex registry name or YAML file, Hugging Face name or folder, .pt (TorchScript), .onnx, module:factory, or vqvae."""
    weights: Annotated[Weights, BeforeValidator(_parse_weights)] = Pretrained()
    """`pretrained`, `random` (or `random:SEED`), or a path to a checkpoint."""
    revision: str | None = None
    """Hub branch, tag or commit; null is the newest commit, resolved and pinned when the run is planned."""
    layer: int | tuple[int, ...] | None = None
    """Transformer layer, 0 = before the first block; several give one output each; null is the model's own output."""
    window_s: float | None = Field(default=None, gt=0)
    """Window length in encoder seconds; null is the encoder's default."""
    hop_s: float | None = Field(default=None, gt=0)
    """Distance of window starts in encoder seconds; null is the encoder's default."""
    tail: Literal["pad", "drop", "shift"] = "pad"
    """Last windows: zero-pad, leave out, or move the last full one back to end at the end."""
    pad: Literal["end", "cover", "center"] = "end"
    """What `tail: pad` pads: all windows that start inside the recording, at their end (`end`); only the first that
    reaches the end, none begins after it (`cover`, as BirdNET-Analyzer); or only the window of a recording shorter
    than one, its sound in the middle (`center`, as perch-hoplite)."""
    min_valid_s: float | None = Field(default=None, gt=0)
    """Windows with less sound than these encoder seconds are not made; null makes all. BirdNET-Analyzer's `minlen`,
    perch-hoplite's `min_audio_len_s`."""
    block_s: int | Literal["whole"] | None = None
    """Seconds a frame encoder reads at once on a grid fixed per recording; `whole` for short recordings."""
    context_s: int | None = Field(default=None, ge=0)
    """Seconds read on both sides of a block and thrown away."""
    frames: Literal["none", "all"] = "none"
    """Write every frame to frames/: 276 MB per audio-hour and layer at 768 dimensions in float16."""
    frame_unit: Literal["step", "patch"] = "step"
    """BEATs: one frame per time step (mean of its 8 frequency patches) or one per patch."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Autocast precision of the network; front ends and outputs stay float32."""
    batch_size: int | None = Field(default=None, ge=1, le=4096)
    """Windows or blocks per forward pass; null suits the device."""
    rate_hz: int | None = Field(default=None, ge=1000, le=1_000_000)
    """Input rate; needed for .pt and .onnx, 48,000 for `vqvae` unless set, fixed by the model elsewhere."""
    training: TrainingConfig | None = None
    """How `model: vqvae` is trained; a run trains it where it is missing."""
    pool: str = "default"
    """Which pool of actors holds this encoder."""

    @property
    def layers(self) -> tuple[int | None, ...]:
        """The layers asked for, in order; (None,) is the model's own output."""
        return self.layer if isinstance(self.layer, tuple) else (self.layer,)

    @model_validator(mode="after")
    def _check(self) -> EncoderConfig:
        if isinstance(self.layer, tuple) and (
            not self.layer or len(set(self.layer)) != len(self.layer)
        ):
            raise ValueError("layer: name each layer once")
        if any(layer is not None and layer < 0 for layer in self.layers):
            raise ValueError("layer: use 0 or more; null is the model's own output")
        if self.pad != "end" and self.tail != "pad":
            raise ValueError(f"pad: got {self.pad!r}; is for tail: pad, not for tail: {self.tail}")
        if isinstance(self.block_s, int) and self.block_s < 1:
            raise ValueError("block_s: use whole seconds, 1 or more, or whole")
        return self
