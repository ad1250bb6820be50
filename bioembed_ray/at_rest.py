"""The ledger's table as columns: recordings that nothing happens to never become objects.

A million recordings as objects take 3 GB and minutes; as columns a tenth of both. Whatever planning
asks of all recordings is answered here with arrays. `entries.py` makes objects of the few rows that
something happens to, and `ledger.py` adds both up.
"""

from __future__ import annotations

import bisect
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from bioembed_ray import schema
from bioembed_ray.datasets import Dataset
from bioembed_ray.inputs import Recording, Source
from bioembed_ray.known import Known, Piece
from bioembed_ray.metadata import Metadata
from bioembed_ray.outcomes import SpanOutcome
from bioembed_ray.probe import Header
from bioembed_ray.segments import place_stamp
from bioembed_ray.windows import Coverage

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

BATCH = 1 << 16
# ISO 8601 as `datetime.isoformat` writes it.
ISO_TIME = r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{6})?([+-]\d\d:\d\d(:\d\d(\.\d{6})?)?)?$"
# Columns of few different texts, which are kept once each.
REPEATED = (
    *(f"outcomes.list.element.{name}" for name in ("shard", "table", "encoder", "version")),
    "spans.list.element.shard",
    "header",
    "container",
    "subtype",
    "status",
)


@dataclass(frozen=True, slots=True)
class PieceColumns:
    """Every piece of every row, in the order of rows and starts.

    Attributes:
        row: (P,) row of the recording.
        shard: (P,) index into `Rows.shards`.
        start: (P,) first native sample.
        stop: (P,) one past the last; -1 to the end.
    """

    row: Ints
    shard: Ints
    start: Ints
    stop: Ints


@dataclass(frozen=True, slots=True)
class OutcomeColumns:
    """Every outcome of every row.

    Attributes:
        row: (O,) row of the recording.
        shard: (O,) index into `Rows.shards`.
        dataset: (O,) index into `Rows.datasets`.
        values: All fields, as they stand in the table.
    """

    row: Ints
    shard: Ints
    dataset: Ints
    values: pa.StructArray


class Rows:
    """Rows of recordings/ in name order, with what planning asks for as arrays.

    Attributes:
        table: All columns.
        names: (N,) names, ascending.
        labels: Titles of the manifest's columns.
        rate_hz, channels: (N,) of the header, 0 where it could not be read.
        n_samples: (N,) samples that the header says, -1 where it does not.
        n_promised: (N,) samples that a whole file would have, -1 where nobody knows.
        shards: Ids of all shards.
        datasets: All partitions that have an outcome.
        pieces: Where pieces lie.
        outcomes: What became of them.
    """

    def __init__(self, table: pa.Table) -> None:
        """Take up a table of recordings/.

        Raises:
            ValueError, KeyError, TypeError: a table of another layout.
        """
        names = table.column("recording").combine_chunks()
        if len(names) > 1 and not pc.all(pc.less(names[:-1], names[1:])).as_py():
            raise ValueError("recordings are not in name order")
        self.table = pa.table(
            [column.combine_chunks() for column in table.columns], schema=table.schema
        )
        self.names = names
        self.labels = [title for title in table.schema.names if title not in schema.RECORDINGS.names]
        self.rate_hz = self._ints("rate_hz", 0)
        self.channels = self._ints("channels", 0)
        self.n_samples = self._ints("n_samples_header", -1)
        self.n_promised = self._ints("n_samples_promised", -1)
        header = _codes(self.table.column("header").combine_chunks())
        self._header = header[0]
        self._header_facts = [_header_facts(text) for text in header[1]]
        _check_times(self.table.column("recorded_at"))
        _read_metadata_of_one(self)
        spans, outcomes = (self.table.column(key).combine_chunks() for key in ("spans", "outcomes"))
        self.pieces, self.outcomes, self.shards, self.datasets = _columns(spans, outcomes)
        self._shard_index = {shard: index for index, shard in enumerate(self.shards)}

    def __len__(self) -> int:
        return len(self.names)

    def _ints(self, key: str, missing: int) -> Ints:
        return _ints(self.table.column(key).combine_chunks(), missing)

    def find(self, name: str) -> int | None:
        """Return the row of a recording, None where it has none."""
        row = bisect.bisect_left(self.names, name, key=lambda value: value.as_py())
        return row if row < len(self.names) and self.names[row].as_py() == name else None

    def find_all(self, names: Iterable[str]) -> Ints:
        """Return the row of every name, -1 where it has none."""
        asked = pa.array(names if isinstance(names, list) else list(names), pa.string())
        return _ints(pc.index_in(asked, value_set=self.names), -1)

    def stamps(self, wanted: Mask) -> Iterator[tuple[str, str]]:
        """Yield (name, stamp of the sound) of rows, in name order."""
        keys = ["recording", "stamp", "offset", "row", "column"]
        for first in range(0, len(self), BATCH):
            part = self.table.select(keys).slice(first, BATCH)
            part = part.filter(pa.array(wanted[first : first + BATCH]))
            for name, *place in zip(*(part.column(key).to_pylist() for key in keys), strict=True):
                yield name, place_stamp(*place)

    def indices_of(self, shards: Iterable[str]) -> Ints:
        """Return the indices of those shards that have any, ascending."""
        found = (self._shard_index.get(shard) for shard in shards)
        return np.array(sorted(index for index in found if index is not None), np.int64)

    def rows_of(self, shards: Iterable[str]) -> Ints:
        """Return the rows with a piece or an outcome in one of these shards, ascending."""
        is_asked = np.zeros(len(self.shards), bool)
        is_asked[self.indices_of(shards)] = True
        rows = [
            columns.row[is_asked[columns.shard]] for columns in (self.pieces, self.outcomes)
        ]
        return np.unique(np.concatenate(rows))

    def unplaced(self) -> Ints:
        """Return the rows with a header whose pieces do not lie end to end from 0 to the end."""
        at = self.pieces
        is_first = np.diff(at.row, prepend=-1) != 0
        is_last = np.diff(at.row, append=-1) != 0
        expected = np.where(is_first, 0, np.roll(at.stop, 1))
        is_wrong = (at.start != expected) | (is_last != (at.stop == -1))
        is_placed = np.zeros(len(self), bool)
        is_placed[at.row] = True
        is_placed[at.row[is_wrong]] = False
        return np.flatnonzero(~is_placed & (self.rate_hz > 0))

    def accounted(self, wanted: Mask) -> Iterator[tuple[Dataset, str]]:
        """Yield the parts whose outcome stands in one of these rows."""
        at, n_shards = self.outcomes, max(1, len(self.shards))
        is_there = np.zeros(len(self.datasets) * n_shards, bool)
        is_there[(at.dataset * n_shards + at.shard)[wanted[at.row]]] = True
        for place in np.flatnonzero(is_there).tolist():
            yield self.datasets[place // n_shards], self.shards[place % n_shards]

    def promised(self) -> Ints:
        """Return (P,) the native samples that headers promise for every piece."""
        at = self.pieces
        whole = np.where(self.n_promised > 0, self.n_promised, np.maximum(self.n_samples, 0))
        end = np.where(at.stop == -1, whole[at.row], at.stop)
        return np.maximum(0, end - at.start)

    def headers(self, rows: Ints) -> list[Header | None]:
        """Return the headers of rows."""
        kinds = (self.table.column(key).take(rows).to_pylist() for key in ("container", "subtype"))
        found: list[Header | None] = []
        for row, container, subtype in zip(rows.tolist(), *kinds, strict=True):
            facts = self._header_facts[self._header[row]] if self._header[row] >= 0 else None
            if facts is None:
                found.append(None)
                continue
            lengths = (int(self.n_samples[row]), int(self.n_promised[row]))
            n_samples, n_promised = (None if length < 0 else length for length in lengths)
            found.append(
                Header(
                    container=container,
                    subtype=subtype,
                    rate_hz=int(self.rate_hz[row]),
                    channels=int(self.channels[row]),
                    n_samples=n_samples,
                    n_promised=n_promised,
                    **facts,
                )
            )
        return found

    def recordings(self, rows: Ints) -> list[Recording]:
        """Return name, source and labels of rows."""
        keys = ["recording", "uri", "stamp", "size_bytes", "offset", "row", "column"]
        found = self.table.select([*keys, *self.labels]).take(rows).to_pylist()
        return [
            Recording(
                row["recording"],
                Source(*(row[key] for key in keys[1:])),
                {schema.label_of(title): row[title] for title in self.labels},
            )
            for row in found
        ]

    def known(self, rows: Ints) -> Iterator[Known]:
        """Yield rows as objects."""
        for first in range(0, len(rows), BATCH):
            part = rows[first : first + BATCH]
            found = zip(
                self.recordings(part),
                self.headers(part),
                self.table.select(METADATA).take(part).to_pylist(),
                self.table.column("spans").take(part).to_pylist(),
                self.table.column("outcomes").take(part).to_pylist(),
                strict=True,
            )
            for recording, header, about, spans, outcomes in found:
                yield Known(
                    recording,
                    header,
                    None if header is None else _metadata(about),
                    None,
                    [Piece(**span) for span in spans or []],
                    dict(_outcome(recording.name, one) for one in outcomes or []),
                )


METADATA = ["recorded_at", "device", "site", "latitude", "longitude", "time_expansion"]


def _metadata(about: dict[str, Any]) -> Metadata:
    at = about["recorded_at"]
    return Metadata(**{**about, "recorded_at": None if at is None else datetime.fromisoformat(at)})


def _outcome(name: str, one: dict[str, Any]) -> tuple[tuple[Dataset, str], SpanOutcome]:
    sums = Coverage(one["embedded"], one["padded"], one["failed"], one["skipped"])
    dataset = Dataset(one["table"], one["encoder"], one["version"])
    found = SpanOutcome(name, one["n_decoded"], one["n_nonfinite"], one["n_rows"], sums)
    return (dataset, one["shard"]), found


def _columns(
    spans: pa.ListArray, outcomes: pa.ListArray
) -> tuple[PieceColumns, OutcomeColumns, list[str], list[Dataset]]:
    span, outcome = spans.flatten(), outcomes.flatten()
    span_shard, span_ids = _codes(span.field("shard"))
    outcome_shard, outcome_ids = _codes(outcome.field("shard"))
    shards = list(dict.fromkeys([*span_ids, *outcome_ids]))
    index = {shard: place for place, shard in enumerate(shards)}
    at_outcome = np.array([index[shard] for shard in outcome_ids], np.int64)
    pieces = PieceColumns(
        _row_of(spans), span_shard, _ints(span.field("start")), _ints(span.field("stop"), -1)
    )
    # Three short texts become one number: digits in a base per column.
    codes = [_codes(outcome.field(key)) for key in ("table", "encoder", "version")]
    mixed = np.zeros(len(outcome), np.int64)
    for code, texts in codes:
        mixed = mixed * max(1, len(texts)) + code
    found, first, dataset = np.unique(mixed, return_index=True, return_inverse=True)
    datasets = [Dataset(*(texts[code[place]] for code, texts in codes)) for place in first.tolist()]
    columns = OutcomeColumns(
        _row_of(outcomes), at_outcome[outcome_shard], dataset.reshape(-1), outcome
    )
    return pieces, columns, shards, datasets


def _row_of(lists: pa.ListArray) -> Ints:
    return np.repeat(np.arange(len(lists)), _ints(pc.list_value_length(lists), 0))


def _codes(texts: pa.Array) -> tuple[Ints, list[str]]:
    """Return (index into the distinct texts, -1 for null; these texts)."""
    coded = texts if pa.types.is_dictionary(texts.type) else texts.dictionary_encode()
    return _ints(coded.indices, -1), coded.dictionary.to_pylist()


def _ints(array: pa.Array, missing: int = 0) -> Ints:
    found: Ints = pc.fill_null(array.cast(pa.int64()), missing).to_numpy(zero_copy_only=False)
    return found


def _header_facts(text: str) -> dict[str, Any]:
    facts = json.loads(text)
    facts["patches"] = tuple((offset, bytes.fromhex(body)) for offset, body in facts["patches"])
    # Raises here, not when somebody asks, where a layout has other fields.
    Header("", "", 1, 1, None, **facts)
    return dict(facts)


def _check_times(texts: pa.ChunkedArray) -> None:
    is_time = pc.match_substring_regex(texts, ISO_TIME)
    if pc.any(pc.invert(is_time)).as_py():
        raise ValueError("recorded_at holds what is no time")


def _read_metadata_of_one(rows: Rows) -> None:
    """Make an object of the first row, so that a layout of other columns is found on loading."""
    for _ in rows.known(np.arange(min(1, len(rows)))):
        pass
