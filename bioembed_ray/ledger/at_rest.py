"""The ledger's table as columns: recordings that nothing happens to never become objects.

A million recordings as objects take gigabytes and minutes. Whatever planning asks of all of them is
answered here with arrays. `entries.py` makes objects of the few rows that something happens to, and
`ledger.py` adds both up. The table stays the compressed file it was, a tenth of its columns.
"""

from __future__ import annotations

import bisect
import json
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bioembed_ray import schema
from bioembed_ray.audio.metadata import Metadata
from bioembed_ray.audio.probe import Header
from bioembed_ray.coverage import Coverage
from bioembed_ray.datasets import Dataset
from bioembed_ray.inputs.listing import Recording, Source
from bioembed_ray.ledger.columns import (
    Ints,
    Mask,
    OutcomeColumns,
    PieceColumns,
    codes_of,
    datasets_of,
    ints_of,
    list_rows,
)
from bioembed_ray.ledger.known import Known, Piece
from bioembed_ray.outcomes import SpanOutcome
from bioembed_ray.segments import place_stamp

BATCH = 1 << 16
# ISO 8601 as `datetime.isoformat` writes it.
ISO_TIME = r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{6})?([+-]\d\d:\d\d(:\d\d(\.\d{6})?)?)?$"
# Columns of few different texts, which are kept once each.
OUTCOME_KEYS = ("shard", "table", "encoder", "version")
WANTED_KEY = b"bioembed.wanted"
METADATA = ["recorded_at", "device", "site", "latitude", "longitude", "time_expansion"]
REPEATED = (
    *(f"outcomes.list.element.{key}" for key in OUTCOME_KEYS),
    "spans.list.element.shard",
    "header",
    "container",
    "subtype",
    "status",
    "inside",
)


class AtRest:
    """Rows of recordings/ in name order, with what planning asks for as arrays.

    Attributes:
        titles: All columns.
        names: (N,) names, ascending.
        labels: Titles of the manifest's columns.
        wanted: Partitions that the column `status` judges by.
        rate_hz, channels: (N,) of the header, 0 where it could not be read.
        n_samples: (N,) samples that the header says, -1 where it does not.
        n_promised: (N,) samples that are lost if they do not come, -1 without a promise.
        shards: Ids of all shards.
        datasets: All partitions that have an outcome.
        pieces: Where pieces lie.
        outcomes: What became of them.
    """

    def __init__(self, body: bytes) -> None:
        """Take up a file of recordings/.

        Raises:
            ValueError, KeyError, TypeError, OSError: torn, or of another layout.
        """
        self._file = pq.ParquetFile(pa.BufferReader(body), read_dictionary=list(REPEATED))
        self._kept: dict[str, pa.Array] = {}
        self.titles: list[str] = self._file.schema_arrow.names
        missing = set(schema.RECORDINGS.names) - set(self.titles)
        if missing:
            raise KeyError(f"recordings/ lacks {', '.join(sorted(missing))}")
        about = (self._file.schema_arrow.metadata or {}).get(WANTED_KEY, b"[]")
        self.wanted = tuple(Dataset(*one) for one in json.loads(about))
        self.labels = [title for title in self.titles if title not in schema.RECORDINGS.names]
        self.names = self.read("recording")
        if len(self.names) > 1 and not pc.all(pc.less(self.names[:-1], self.names[1:])).as_py():
            raise ValueError("recordings are not in name order")
        self.rate_hz = ints_of(self.read("rate_hz"))
        self.channels = ints_of(self.read("channels"))
        self.n_samples = ints_of(self.read("n_samples_header"), -1)
        self.n_promised = ints_of(self.read("n_samples_promised"), -1)
        self._header, texts = codes_of(self.read("header"))
        self._header_facts = [_header_facts(text) for text in texts]
        _check_times(self.read("recorded_at"))
        self._take_pieces_up()

    def _take_pieces_up(self) -> None:
        spans = self.read("spans")
        span = spans.flatten()
        span_shard, span_ids = codes_of(span.field("shard"))
        lists = {key: self.read(f"outcomes.list.element.{key}") for key in OUTCOME_KEYS}
        codes = {key: codes_of(lists[key].flatten().field(key)) for key in OUTCOME_KEYS}
        outcome_shard, outcome_ids = codes.pop("shard")
        self.shards = list(dict.fromkeys([*span_ids, *outcome_ids]))
        self._shard_index = {shard: index for index, shard in enumerate(self.shards)}
        here = np.array([self._shard_index[shard] for shard in outcome_ids], np.int32)
        start, stop = ints_of(span.field("start")), ints_of(span.field("stop"), -1)
        self.pieces = PieceColumns(list_rows(spans), span_shard, start, stop)
        self.datasets, dataset = datasets_of(list(codes.values()))
        row = list_rows(lists["shard"])
        self.outcomes = OutcomeColumns(row, here[outcome_shard], dataset)

    def __len__(self) -> int:
        return len(self.names)

    def read(self, key: str) -> pa.Array:
        """Return a column, (N,), or what one field of a nested one leaves of it."""
        # One thread: several decode a million rows no sooner, into several times the memory.
        column = self._file.read(columns=[key], use_threads=False).column(0)
        return column.unify_dictionaries().combine_chunks()

    def outcome_values(self, key: str) -> Ints:
        """Return (O,) one number of every outcome, e.g. its `n_decoded`."""
        return ints_of(self.read(f"outcomes.list.element.{key}").flatten().field(key))

    def _take(self, keys: list[str], rows: Ints) -> list[dict[str, Any]]:
        """Return some columns of some rows; a column that was asked for once is kept."""
        for key in keys:
            if key not in self._kept:
                self._kept[key] = self.names if key == "recording" else self.read(key)
        taken = {key: self._kept[key].take(pa.array(rows)) for key in keys}
        found: list[dict[str, Any]] = pa.table(taken).to_pylist()
        return found

    def find(self, name: str) -> int | None:
        """Return the row of a recording, None where it has none."""
        row = bisect.bisect_left(self.names, name, key=lambda value: value.as_py())
        return row if row < len(self.names) and self.names[row].as_py() == name else None

    def find_all(self, names: Iterable[str]) -> Ints:
        """Return the row of every name, -1 where it has none."""
        asked = pa.array(names if isinstance(names, list) else list(names), pa.string())
        return ints_of(pc.index_in(asked, value_set=self.names), -1)

    def stamps(self, wanted: Mask) -> Iterator[tuple[str, str]]:
        """Yield (name, stamp of the sound) of rows, in name order."""
        place = [self.read(key) for key in ("stamp", "offset", "row", "column")]
        for first in range(0, len(self), BATCH):
            asked = pa.array(wanted[first : first + BATCH])
            columns = (column.slice(first, BATCH).filter(asked) for column in (self.names, *place))
            for name, *at in zip(*(column.to_pylist() for column in columns), strict=True):
                yield name, place_stamp(*at)

    def indices_of(self, shards: Iterable[str]) -> Ints:
        """Return the indices of those shards that have any, ascending."""
        found = (self._shard_index.get(shard) for shard in shards)
        return np.array(sorted(index for index in found if index is not None), np.int64)

    def rows_of(self, shards: Iterable[str]) -> Ints:
        """Return the rows with a piece or an outcome in one of these shards, ascending."""
        is_asked = np.zeros(len(self.shards), bool)
        is_asked[self.indices_of(shards)] = True
        rows = [columns.row[is_asked[columns.shard]] for columns in (self.pieces, self.outcomes)]
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
        place = at.dataset.astype(np.int64) * n_shards + at.shard
        is_there[place[wanted[at.row]]] = True
        for found in np.flatnonzero(is_there).tolist():
            yield self.datasets[found // n_shards], self.shards[found % n_shards]

    def planned(self) -> Ints:
        """Return (P,) the native samples that are expected of every piece."""
        at = self.pieces
        end = np.where(at.stop == -1, np.maximum(self.n_samples, 0)[at.row], at.stop)
        return np.maximum(0, end - at.start)

    def headers(self, rows: Ints) -> list[Header | None]:
        """Return the headers of rows."""
        found: list[Header | None] = []
        for row, kind in zip(
            rows.tolist(), self._take(["container", "subtype"], rows), strict=True
        ):
            facts = self._header_facts[self._header[row]] if self._header[row] >= 0 else None
            if facts is None:
                found.append(None)
                continue
            lengths = (int(self.n_samples[row]), int(self.n_promised[row]))
            n_samples, n_promised = (None if length < 0 else length for length in lengths)
            found.append(
                Header(
                    **kind,
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
        found = self._take([*keys, "inside", *self.labels], rows)
        # One text for all members of a container.
        inside: dict[str | None, str | None] = {}
        return [
            Recording(
                row["recording"],
                Source(*(row[key] for key in keys[1:])),
                {schema.label_of(title): row[title] for title in self.labels},
                inside.setdefault(row["inside"], row["inside"]),
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
                self._take(METADATA, part),
                self._take(["spans", "outcomes"], part),
                strict=True,
            )
            for recording, header, about, nested in found:
                yield Known(
                    recording,
                    header,
                    None if header is None else _metadata(about),
                    None,
                    [Piece(**span) for span in nested["spans"] or []],
                    dict(_outcome(recording.name, one) for one in nested["outcomes"] or []),
                )


def _metadata(about: dict[str, Any]) -> Metadata:
    at = about["recorded_at"]
    return Metadata(**{**about, "recorded_at": None if at is None else datetime.fromisoformat(at)})


def _outcome(name: str, one: dict[str, Any]) -> tuple[tuple[Dataset, str], SpanOutcome]:
    sums = Coverage(one["embedded"], one["padded"], one["failed"], one["skipped"])
    dataset = Dataset(one["table"], one["encoder"], one["version"])
    counts = (one["n_decoded"], one["n_extent"], one["n_nonfinite"], one["n_rows"])
    found = SpanOutcome(name, *counts, sums)
    return (dataset, one["shard"]), found


def _header_facts(text: str) -> dict[str, Any]:
    facts = json.loads(text)
    facts["patches"] = tuple((offset, bytes.fromhex(body)) for offset, body in facts["patches"])
    # Raises here, not when somebody asks, where a layout has other fields.
    Header("", "", 1, 1, None, **facts)
    return dict(facts)


def _check_times(texts: pa.Array) -> None:
    is_time = pc.match_substring_regex(texts, ISO_TIME)
    if pc.any(pc.invert(is_time)).as_py():
        raise ValueError("recorded_at holds what is no time")
