"""A ledger whose rows stay columns answers as one of objects does, whatever happens to it."""

from __future__ import annotations

import tempfile
from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from bioembed_ray import summary
from bioembed_ray.audio.metadata import Metadata
from bioembed_ray.audio.probe import Header
from bioembed_ray.coverage import Coverage
from bioembed_ray.datasets import Dataset
from bioembed_ray.errors import Reason
from bioembed_ray.inputs.listing import Recording, Source
from bioembed_ray.ledger import ledger_file
from bioembed_ray.ledger.known import Known, Piece
from bioembed_ray.ledger.ledger import Ledger
from bioembed_ray.ledger.states import state_of
from bioembed_ray.outcomes import Failure, PartOutcome, SpanOutcome
from bioembed_ray.segments import Span, cut_gaps, span_stamp

DATASETS = [
    Dataset("embeddings", "beats", "v1"),
    Dataset("embeddings", "hubert", "v1"),
    Dataset("tokens", "hubert", "v2"),
]
SHARDS = [f"s{number}" for number in range(4)]

lengths = st.one_of(st.none(), st.integers(0, 400_000))
headers = st.builds(
    Header,
    container=st.sampled_from(["WAV", "FLAC"]),
    subtype=st.just("PCM_16"),
    rate_hz=st.sampled_from([8000, 48_000, 384_000]),
    channels=st.integers(1, 3),
    n_samples=lengths,
    n_promised=lengths,
    seekable=st.booleans(),
    decoder=st.sampled_from(["soundfile", "pyav"]),
    patches=st.sampled_from([(), ((4, b"\x00\xff"), (40, b"ab"))]),
    slack=st.integers(0, 5000),
    flaw=st.none() | st.just("ends inside a page"),
)
lengths = st.integers(0, 90_000)
coverages = st.builds(Coverage, *[st.integers(0, 90_000)] * 4)


@st.composite
def pieces(draw: Any) -> list[Piece]:
    """Pieces end to end in shards of their own, of which some may be missing."""
    shards = draw(st.lists(st.sampled_from(SHARDS), unique=True, max_size=3))
    edges = sorted(draw(st.sets(st.integers(1, 90_000), min_size=3, max_size=3)))
    starts = [0, *edges][: len(shards)]
    stops: list[int | None] = [*starts[1:], None][: len(shards)]
    whole = [Piece(*one) for one in zip(shards, starts, stops, strict=True)]
    return [piece for piece in whole if draw(st.integers(0, 5))]


@st.composite
def ledgers(draw: Any) -> Ledger:
    """A ledger as runs leave it, some recordings unreadable, unplaced or done in part."""
    ledger = Ledger(wanted=draw(st.lists(st.sampled_from(DATASETS), unique=True)))
    for number in range(draw(st.integers(0, 6))):
        name = f"ä/{number}.wav"
        place = draw(st.sampled_from([(0, None, None), (512, None, None), (0, 7, "audio.bytes")]))
        source = Source(f"/archive/{name}", f"etag-{number}", draw(st.integers(0, 10**10)), *place)
        entry = Known(Recording(name, source, inside=draw(st.sampled_from([None, "{}", "{1}"]))))
        if draw(st.integers(0, 4)) == 0:
            reason = draw(st.sampled_from([Reason.STORAGE, Reason.UNSUPPORTED]))
            entry.failure = Failure(name, reason, "made up")
        else:
            entry.header, entry.metadata = draw(headers), Metadata(site="reef")
            entry.pieces = draw(pieces())
            for piece in entry.pieces:
                for dataset in draw(st.lists(st.sampled_from(DATASETS), unique=True)):
                    found = SpanOutcome(name, draw(lengths), draw(lengths), 0, 3, draw(coverages))
                    entry.outcomes[dataset, piece.shard] = found
        ledger.known[name] = entry
    return ledger


def at_rest(ledger: Ledger) -> Ledger:
    """Return the ledger as it is read back."""
    with tempfile.TemporaryDirectory() as folder:
        ledger_file.save(folder, ledger)
        found = ledger_file.load(folder)
    assert found is not None
    assert set(found.known.active) == {failure.recording for failure in ledger.unopened()}
    return found


def windows_by_loop(ledger: Ledger) -> list[tuple[str, int, int, int]]:
    """Return every piece as (shard, promised, rate, channels), object by object."""
    return sorted(
        (piece.shard, span.planned, entry.header.rate_hz, entry.header.channels)
        for name, entry in ledger.known.active.items()
        if entry.header is not None
        for piece in entry.pieces
        if (span := Span(name, entry.recording.source, entry.header, piece.start, piece.stop))
    )


def same(resting: Ledger, objects: Ledger) -> None:
    """Compare all answers, without making objects of the rows before the end."""
    awake = set(resting.known.active)
    assert len(resting.known) == len(objects.known)
    assert sorted(resting.known.stamps()) == [
        (name, span_stamp(entry.recording.source)) for name, entry in objects.known.items()
    ]
    assert resting.accounted() == {k for e in objects.known.values() for k in e.outcomes}
    shards: dict[str, list[tuple[str, int, int | None]]] = {}
    for name, entry in objects.known.items():
        for piece in entry.pieces:
            shards.setdefault(piece.shard, []).append((name, piece.start, piece.stop))
    found = resting.shards()
    assert len(found) == len(shards)
    assert {
        shard: [(span.recording, span.start, span.stop) for span in found[shard].spans]
        for shard in found
    } == shards
    assert dict(found) == dict(objects.shards())
    spans = resting.spans()
    columns = (spans.planned, spans.rate_hz, spans.channels)
    shard_of = [spans.shards[index] for index in spans.shard.tolist()]
    listed = zip(shard_of, *(column.tolist() for column in columns), strict=True)
    assert sorted(listed) == windows_by_loop(objects)
    assert sorted(zip(*(one.tolist() for one in resting.lengths()), strict=True)) == sorted(
        (e.header.n_samples or 0, e.header.rate_hz) for e in objects.known.values() if e.header
    )
    assert resting.in_pieces() == [n for n, e in objects.known.items() if len(e.pieces) > 1]
    for wanted in ([], DATASETS[:1], DATASETS, [Dataset("embeddings", "beats", "new")]):
        states = Counter(state_of(entry, wanted) for entry in objects.known.values())
        before = resting.wanted
        resting.want(wanted)
        assert resting.states() == states
        resting.wanted = before
    for dataset in DATASETS:
        for channels in ("mix", "each"):
            sums = summary.dataset_seconds(resting, dataset, channels)
            wanted = summary.Seconds()
            for entry in objects.known.values():
                summary._add(wanted, entry, dataset, channels)
            for key in ("total", "embedded", "padded", "skipped", "failed", "pending", "n_rows"):
                assert abs(getattr(sums, key) - getattr(wanted, key)) < 1e-6, key
    assert set(resting.known.active) == awake
    again = ledger_file.recordings_table(resting)
    assert again.equals(ledger_file.recordings_table(objects))
    assert set(resting.known.active) == awake


@settings(deadline=None)
@given(ledgers())
def test_rows_answer_as_objects_do(objects: Ledger) -> None:
    resting = at_rest(objects)
    same(resting, objects)
    names = [*(f"ä/{number}.wav" for number in range(8)), "b.wav"]
    assert resting.known.absent(names) == [name for name in names if name not in objects.known]
    gaps = [
        name
        for name, entry in objects.known.items()
        if entry.header is not None
        and cut_gaps([(0, None)], [(piece.start, piece.stop) for piece in entry.pieces])
    ]
    unplaced = {entry.recording.name for entry in resting.unplaced()}
    assert unplaced >= set(gaps)
    # No more become objects than lack a place, or never opened.
    assert unplaced - {f.recording for f in objects.unopened()} == set(gaps)
    assert resting == objects


changes = st.one_of(
    st.tuples(st.just("leave"), st.sets(st.integers(0, 6))),
    st.tuples(
        st.just("forget"),
        st.sets(st.tuples(st.sampled_from(DATASETS), st.sampled_from(SHARDS)), max_size=3),
    ),
    st.tuples(st.just("absorb"), st.tuples(st.sampled_from(DATASETS), st.sampled_from(SHARDS))),
    st.tuples(st.just("remove"), st.integers(0, 6)),
    st.tuples(st.just("look"), st.integers(0, 6)),
)


@settings(deadline=None)
@given(ledgers(), st.lists(changes, max_size=5))
def test_rows_that_something_happens_to_are_changed_as_objects_are(
    objects: Ledger, happened: list[tuple[str, Any]]
) -> None:
    resting = at_rest(objects)
    for what, about in happened:
        for ledger in (resting, objects):
            name = f"ä/{about}.wav"
            if what == "leave":
                names = (f"ä/{number}.wav" for number in sorted(about))
                ledger.leave([name for name in names if name in ledger.known])
            elif what == "forget":
                ledger.forget(about)
            elif what == "remove" and name in ledger.known:
                del ledger.known[name]
            elif what == "look" and name in ledger.known:
                assert ledger.known[name].recording.name == name
            elif what == "absorb" and about[1] in (shards := ledger.shards()):
                spans = [
                    SpanOutcome(span.recording, 5, 5, 0, 1, Coverage(failed=5))
                    for span in shards[about[1]].spans
                ]
                failures = (Failure(spans[0].recording, Reason.TRUNCATED, "x", shard=about[1]),)
                ledger.absorb(PartOutcome(*about, tuple(spans), failures))
    same(resting, objects)
    assert resting == objects
