"""The rows of one partition, read as far as they are asked for.

Rows come part by part, so that an archive larger than memory can be walked through; only `table`,
`pandas`, `numpy` and `torch` hold it whole.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pad

from bioembed_ray import parts, storage
from bioembed_ray.datasets import Dataset
from bioembed_ray.errors import InputError

if TYPE_CHECKING:
    import pandas
    import torch

# Every table has the first three; frames of one time step differ in `patch`.
ORDER = ("recording", "channel", "start_s", "patch")
# Columns of recordings/ that say how a run accounts for a recording, not what it is.
BOOKKEEPING = {"spans", "outcomes", "header", "stamp", "offset", "row", "column", "inside"}
BATCH_ROWS = 8192


@dataclass(frozen=True)
class Rows:
    """The rows of one partition; nothing is read before a method asks for it.

    Attributes:
        output: Where they stand.
        partition: Table, encoder or codebook, and version.
        recordings: Gives recordings/, when a column of it is asked for.
    """

    output: str
    partition: Dataset
    recordings: Callable[[], pa.Table]

    @property
    def version(self) -> str:
        """Version that the rows are of."""
        return self.partition.version

    @functools.cached_property
    def metadata(self) -> dict[str, str]:
        """What the first part says of its encoder: settings, weights, where windows lie."""
        return parts.read_metadata(self._entries[0])

    @property
    def weights(self) -> str:
        """What is said of the encoder's weights, e.g. that they are random."""
        return self.metadata.get("weights", "")

    @functools.cached_property
    def placement(self) -> dict[str, Any]:
        """What decided where the rows lie: rate, window, hop, tail, channels, time expansion."""
        found: dict[str, Any] = json.loads(self.metadata["placement"])
        return found

    @functools.cached_property
    def _entries(self) -> list[storage.ObjectInfo]:
        listed = parts.list_parts(self.output, self.partition)
        return [entry for _, entry in sorted(listed.items())]

    @functools.cached_property
    def arrow(self) -> pad.Dataset:
        """The parts as an Arrow dataset, for scanners, DuckDB and Polars.

        Raises:
            StorageError: a part cannot be read.
        """
        filesystem, paths = storage.arrow_paths([entry.uri for entry in self._entries])
        found = pad.dataset(paths, format="parquet", filesystem=filesystem)
        # The metadata of one part says nothing of the others.
        return found.replace_schema(found.schema.remove_metadata())

    def count(
        self, *, where: pc.Expression | None = None, among: pc.Expression | None = None
    ) -> int:
        """Return the number of rows; see `batches`."""
        found: int = self.arrow.count_rows(filter=self._filter(where, among))
        return found

    def batches(
        self,
        *,
        columns: Sequence[str] | None = None,
        where: pc.Expression | None = None,
        among: pc.Expression | None = None,
        join: Sequence[str] = (),
        batch_rows: int = BATCH_ROWS,
    ) -> Iterator[pa.RecordBatch]:
        """Yield rows, part by part, in no order that is promised.

        Args:
            columns: Columns of the table; None takes all.
            where: Condition on columns of the table, e.g. `pc.field("start_s") < 60`.
            among: Condition on columns of recordings/, e.g. `pc.field("site") == "marsh"`.
            join: Columns of recordings/ that ride along; one that is called like a column of the
                table comes as `recording_<name>`.
            batch_rows: Most rows of a batch.

        Raises:
            InputError: no such column; names those there are.
            StorageError: a part cannot be read.
        """
        chosen = list(self.arrow.schema.names if columns is None else columns)
        _check_columns(chosen, self.arrow.schema.names, self.partition.prefix)
        joined = self._joinable(join)
        read = chosen if "recording" in chosen or not join else [*chosen, "recording"]
        scanner = self.arrow.scanner(
            columns=read,
            filter=self._filter(where, among),
            batch_size=batch_rows,
            # Arrow's defaults hold 16 batches of 4 parts: gigabytes of vectors.
            batch_readahead=2,
            fragment_readahead=2,
        )
        for batch in scanner.to_batches():
            if batch.num_rows:
                yield _joined(batch, joined, join).select(_titles(chosen, join, self.arrow.schema))

    def table(self, **options: Any) -> pa.Table:
        """Return all rows, sorted by recording, channel and time; options of `batches`."""
        chosen = options.pop("columns", None)
        names = list(self.arrow.schema.names if chosen is None else chosen)
        order = [name for name in ORDER if name in self.arrow.schema.names]
        batches = self.batches(columns=[*names, *(o for o in order if o not in names)], **options)
        first = next(batches, None)
        if first is None:
            empty = self.arrow.schema.empty_table()
            joined = self._joinable(options.get("join", ()))
            return _joined(empty, joined, options.get("join", ())).select(
                _titles(names, options.get("join", ()), self.arrow.schema)
            )
        table = pa.Table.from_batches([first, *batches])
        table = table.take(pc.sort_indices(table, [(name, "ascending") for name in order]))
        return table.select(_titles(names, options.get("join", ()), self.arrow.schema))

    def with_recordings(self, table: pa.Table, join: Sequence[str]) -> pa.Table:
        """Return a table that has a column `recording` with columns of recordings/; see `batches`.

        Raises:
            InputError: no such column; names those there are.
        """
        return _joined(table, self._joinable(join), join)

    def pandas(self, **options: Any) -> pandas.DataFrame:
        """Return all rows as a frame; options of `batches`."""
        frame: pandas.DataFrame = self.table(**options).to_pandas()
        return frame

    def numpy(self, **options: Any) -> tuple[npt.NDArray[np.float32], pa.Table]:
        """Return the vectors (n, D) float32 and the other columns, row by row; options of `batches`.

        Raises:
            InputError: the rows hold tokens, not vectors.
        """
        if "embedding" not in self.arrow.schema.names:
            raise InputError(f"{self.partition.prefix}: holds tokens, no vectors; use table()")
        chosen = options.pop("columns", None) or self.arrow.schema.names
        names = [*(name for name in chosen if name != "embedding"), "embedding"]
        table = self.table(columns=names, **options)
        # A copy, since Arrow's memory is not for writing and torch complains.
        vectors = np.array(vectors_of(table.column("embedding")))
        return vectors, table.drop_columns(["embedding"])

    def torch(self, **options: Any) -> tuple[torch.Tensor, pa.Table]:
        """Return what `numpy` does, the vectors as a tensor."""
        import torch

        vectors, index = self.numpy(**options)
        return torch.from_numpy(vectors), index

    def _filter(
        self, where: pc.Expression | None, among: pc.Expression | None
    ) -> pc.Expression | None:
        if among is None:
            return where
        names = self.recordings().filter(among).column("recording")
        inside = pc.field("recording").isin(names.combine_chunks())
        return inside if where is None else where & inside

    def _joinable(self, names: Sequence[str]) -> pa.Table | None:
        """Return recordings/ with the columns to join, None where none are."""
        if not names:
            return None
        table = self.recordings()
        known = [name for name in table.column_names if name not in BOOKKEEPING]
        _check_columns(names, known, "recordings/")
        return table.select(list(dict.fromkeys(["recording", *names])))


def vectors_of(column: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.float32]:
    """Return the vectors of a fixed-size list column: (n, D) float32.

    What is stored as float32 is not copied, and so is not for writing.
    """
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    flat = array.flatten().to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
    vectors: npt.NDArray[np.float32] = flat.reshape(-1, array.type.list_size)  # (n, D)
    return vectors


def _check_columns(names: Sequence[str], known: Sequence[str], where: str) -> None:
    for name in names:
        if name not in known:
            raise InputError(f"{where}: no column {name!r}; there is {', '.join(known)}")


def _titles(columns: Sequence[str], join: Sequence[str], own: pa.Schema) -> list[str]:
    """Return the columns of what is given out: the table's own, then what was joined."""
    return list(dict.fromkeys([*columns, *(_title(name, own) for name in join)]))


def _title(name: str, own: pa.Schema) -> str:
    is_taken = name in own.names and name != "recording"
    return f"recording_{name}" if is_taken else name


def _joined(
    rows: pa.RecordBatch | pa.Table, recordings: pa.Table | None, join: Sequence[str]
) -> pa.RecordBatch | pa.Table:
    """Return rows with columns of their recordings; null where recordings/ does not know one yet."""
    if recordings is None:
        return rows
    places = pc.index_in(rows.column("recording"), recordings.column("recording").combine_chunks())
    if isinstance(places, pa.ChunkedArray):
        places = places.combine_chunks()
    own = rows.schema
    for name in join:
        if name != "recording":
            values = recordings.column(name).combine_chunks().take(places)
            rows = rows.append_column(_title(name, own), values)
    return rows
