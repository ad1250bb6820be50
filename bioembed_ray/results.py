"""What stands in an output, for Python: tables that are read only as far as they are asked for.

    results = bioembed_ray.open("s3://lab/birds")
    vectors, windows = results.windows("beats").numpy(join=["site", "recorded_at"])

Versions are the current ones unless another is named.
"""

from __future__ import annotations

import functools
import io
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bioembed_ray import storage
from bioembed_ray.codebooks.card import Codebook, read_card, read_codebook
from bioembed_ray.current import read_current
from bioembed_ray.datasets import Dataset
from bioembed_ray.errors import InputError, NotFoundError
from bioembed_ray.ledger import ledger_file
from bioembed_ray.partitions import find_dataset, find_tokens, list_datasets
from bioembed_ray.rows import Rows


@dataclass(frozen=True)
class Results:
    """An output, opened for reading.

    Attributes:
        output: Folder or bucket prefix.
    """

    output: str

    @functools.cached_property
    def current(self) -> dict[str, Any]:
        """Versions that are current, as `current.json` said when it was first asked for."""
        return read_current(self.output)

    @property
    def encoders(self) -> list[str]:
        """Names of encoders with window vectors, e.g. `hubert`, or `hubert.9` where layers differ."""
        return sorted({d.encoder for d in list_datasets(self.output, "embeddings")})

    @property
    def codebooks(self) -> list[str]:
        """Names of codebooks with tokens."""
        return sorted({d.encoder for d in list_datasets(self.output, "tokens")})

    def windows(self, encoder: str, version: str | None = None) -> Rows:
        """Return the window vectors of an encoder.

        Raises:
            InputError: no such encoder or version; names what there is.
        """
        return self._rows(find_dataset(self.output, encoder, version))

    def frames(self, encoder: str) -> Rows:
        """Return the frames of an encoder's current version.

        Raises:
            InputError: they are not kept.
        """
        version = self.current.get("encoders", {}).get(encoder, {}).get("frames")
        if version is None:
            raise InputError(
                f"{encoder}: no frames stand; set encoders.{encoder}.frames: all and run again"
            )
        return self._rows(Dataset("frames", encoder, version))

    def tokens(self, codebook: str) -> Rows:
        """Return the tokens of a codebook's current version.

        Raises:
            InputError: no such codebook, or its tokens are not complete yet.
        """
        return self._rows(find_tokens(self.output, codebook))

    def codebook(self, name: str) -> Codebook:
        """Return the centroids (K, D) behind the current tokens.

        Raises:
            InputError: see `tokens`.
            BrokenOutput: not a codebook of ours.
        """
        return read_codebook(self.codebook_folder(name))

    def card(self, name: str) -> dict[str, Any]:
        """Return the card of the codebook behind the current tokens.

        Raises:
            InputError: see `tokens`.
        """
        return read_card(self.codebook_folder(name))

    def codebook_folder(self, name: str) -> str:
        """Return where the codebook behind the current tokens stands.

        Raises:
            InputError: see `tokens`.
        """
        find_tokens(self.output, name)
        version = self.current["codebooks"][name]["codebook"]
        folders = [
            storage.join(self.output, kind, name, f"version={version}")
            for kind in ("codebooks", "models")
        ]
        found = [f for f in folders if storage.exists(storage.join(f, "codebook.safetensors"))]
        if not found:
            raise InputError(f"{name}: its codebook is gone from {folders[0]}; run `bioembed run`")
        return found[0]

    @functools.cached_property
    def _recordings(self) -> pa.Table:
        return _read_ledger(self.output, ledger_file.RECORDINGS_KEY)

    def recordings(self) -> pa.Table:
        """Return recordings/: one row per recording, the manifest's columns last.

        Raises:
            InputError: the output has none.
        """
        return self._recordings

    def failures(self) -> pa.Table:
        """Return failures/: one row per failure, with its reason.

        Raises:
            InputError: the output has none.
        """
        return _read_ledger(self.output, ledger_file.FAILURES_KEY)

    def _rows(self, partition: Dataset) -> Rows:
        return Rows(self.output, partition, self.recordings)


def open_output(output: str) -> Results:
    """Open an output for reading.

    Raises:
        InputError: nothing that a run wrote stands there.
    """
    results = Results(storage.absolute(output))
    if not results.encoders:
        raise InputError(f"{output}: no embeddings; run `bioembed run` first")
    return results


def _read_ledger(output: str, key: str) -> pa.Table:
    try:
        return pq.read_table(io.BytesIO(storage.read(storage.join(output, key))))
    except NotFoundError:
        raise InputError(f"{output}: no {key}; run `bioembed run` first") from None
