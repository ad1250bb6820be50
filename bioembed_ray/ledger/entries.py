"""Recording -> what is known of it: objects where something happens, rows of columns elsewhere."""

from __future__ import annotations

from collections.abc import ItemsView, Iterable, Iterator, Mapping, MutableMapping, ValuesView

import numpy as np

from bioembed_ray.inputs.listing import Recording
from bioembed_ray.ledger.at_rest import AtRest
from bioembed_ray.ledger.columns import Ints
from bioembed_ray.ledger.known import Known
from bioembed_ray.segments import Shard, Span, span_stamp


class Entries(MutableMapping[str, Known]):
    """All recordings of a ledger, in name order.

    Asking for one makes an object of its row, which then is the truth about it; so asking for all
    costs what a million objects cost. What is asked of all recordings has methods of its own, here
    and in `Ledger`, that leave rows alone.

    Attributes:
        active: Recordings that are objects.
        rows: The table that was read; None where there was none.
        rests: (N,) rows that stand as they were read.
        listed: What the input says of recordings; it may have other URIs and labels than the rows.
    """

    def __init__(
        self, active: Mapping[str, Known] | None = None, rows: AtRest | None = None
    ) -> None:
        self.active = dict(active or {})
        self.rows = rows
        self.rests = np.ones(0 if rows is None else len(rows), bool)
        self.listed: Mapping[str, Recording] = {}

    def __getitem__(self, name: str) -> Known:
        if name not in self.active:
            row = self._resting(name)
            if row is None:
                raise KeyError(name)
            self._wake(np.array([row]))
        return self.active[name]

    def __setitem__(self, name: str, entry: Known) -> None:
        row = None if name in self.active else self._resting(name)
        if row is not None:
            self.rests[row] = False
        self.active[name] = entry

    def __delitem__(self, name: str) -> None:
        if name in self.active:
            del self.active[name]
            return
        row = self._resting(name)
        if row is None:
            raise KeyError(name)
        self.rests[row] = False

    def __len__(self) -> int:
        return len(self.active) + int(self.rests.sum())

    def __contains__(self, name: object) -> bool:
        return name in self.active or (isinstance(name, str) and self._resting(name) is not None)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted([*self.active, *self.resting_names()]))

    def items(self) -> ItemsView[str, Known]:
        """Return all as objects; at once, since one by one takes ten times as long."""
        self._wake(np.flatnonzero(self.rests))
        return super().items()

    def values(self) -> ValuesView[Known]:
        """Return all as objects; see `items`."""
        self._wake(np.flatnonzero(self.rests))
        return super().values()

    def resting_names(self) -> list[str]:
        """Return the names of rows that stand as they were read, ascending."""
        if self.rows is None:
            return []
        names: list[str] = self.rows.names.filter(self.rests).to_pylist()
        return names

    def wake(self, names: Iterable[str]) -> None:
        """Make objects of some recordings at once."""
        if self.rows is not None:
            found = self.rows.find_all(names)
            self._wake(found[found >= 0])

    def wake_shards(self, shards: Iterable[str]) -> None:
        """Make objects of all recordings that have something in one of these shards."""
        if self.rows is not None:
            self._wake(self.rows.rows_of(shards))

    def _wake(self, rows: Ints) -> None:
        if self.rows is None:
            return
        rows = rows[self.rests[rows]]
        for entry in self.rows.known(rows):
            name = entry.recording.name
            entry.recording = self.listed.get(name, entry.recording)
            self.active[name] = entry
        self.rests[rows] = False

    def _resting(self, name: str) -> int | None:
        row = None if self.rows is None else self.rows.find(name)
        return row if row is not None and self.rests[row] else None

    def stamps(self) -> Iterator[tuple[str, str]]:
        """Yield (name, stamp of the sound) of every recording."""
        for name, entry in self.active.items():
            yield name, span_stamp(entry.recording.source)
        if self.rows is not None:
            yield from self.rows.stamps(self.rests)

    def absent(self, names: list[str]) -> list[str]:
        """Return those of these names that nothing is known of."""
        if self.rows is None:
            return [name for name in names if name not in self.active]
        rows = self.rows.find_all(names)
        is_resting = rows >= 0
        is_resting[is_resting] = self.rests[rows[is_resting]]
        return [names[i] for i in np.flatnonzero(~is_resting) if names[i] not in self.active]

    def follow(self, listed: Mapping[str, Recording]) -> None:
        """Take URIs and labels from the input: they may change without the sound."""
        self.listed = listed
        for name, entry in self.active.items():
            entry.recording = listed.get(name, entry.recording)

    def recordings(self) -> Iterator[Recording]:
        """Yield every recording in name order, without making objects of rows."""
        if self.rows is None or self.listed:
            for name in self:
                yield self.listed[name] if name in self.listed else self.active[name].recording
            return
        resting = self.rows.recordings(np.flatnonzero(self.rests))
        active = (entry.recording for entry in self.active.values())
        yield from sorted([*active, *resting], key=lambda recording: recording.name)


class Shards(Mapping[str, Shard]):
    """Shard id -> shard, as the pieces lay when it was made; a shard is built when it is asked for."""

    def __init__(self, known: Entries) -> None:
        self._rows = known.rows
        self._listed = known.listed
        self._spans: dict[str, list[Span]] = {}
        for name, entry in known.active.items():
            if entry.header is None:
                continue
            for piece in entry.pieces:
                span = Span(name, entry.recording.source, entry.header, piece.start, piece.stop)
                self._spans.setdefault(piece.shard, []).append(span)
        self._pieces: Ints = np.zeros(0, np.int64)
        self._bounds: dict[str, tuple[int, int]] = {}
        if self._rows is None:
            return
        at = self._rows.pieces
        pieces = np.flatnonzero(known.rests[at.row] & (self._rows.rate_hz[at.row] > 0))
        # Stable, so that pieces stay in the order of names and starts.
        self._pieces = pieces[np.argsort(at.shard[pieces], kind="stable")]
        found, first = np.unique(at.shard[self._pieces], return_index=True)
        edges = [*first.tolist(), len(self._pieces)]
        for place, shard in enumerate(found.tolist()):
            self._bounds[self._rows.shards[shard]] = (edges[place], edges[place + 1])

    def __getitem__(self, shard: str) -> Shard:
        spans = self._spans.get(shard, [])
        if shard in self._bounds:
            spans = [*spans, *self._resting(*self._bounds[shard])]
        elif not spans:
            raise KeyError(shard)
        return Shard(tuple(sorted(spans, key=lambda span: (span.recording, span.start))))

    def __iter__(self) -> Iterator[str]:
        yield from self._bounds
        yield from (shard for shard in self._spans if shard not in self._bounds)

    def __len__(self) -> int:
        return len(self._bounds.keys() | self._spans.keys())

    def __contains__(self, shard: object) -> bool:
        return shard in self._bounds or shard in self._spans

    def _resting(self, first: int, stop: int) -> Iterator[Span]:
        if self._rows is None:
            return
        pieces = self._pieces[first:stop]
        at = self._rows.pieces
        rows = at.row[pieces]
        found = zip(
            self._rows.recordings(rows),
            self._rows.headers(rows),
            at.start[pieces].tolist(),
            at.stop[pieces].tolist(),
            strict=True,
        )
        for recording, header, start, end in found:
            if header is not None:
                now = self._listed.get(recording.name, recording)
                yield Span(now.name, now.source, header, start, None if end == -1 else end)
