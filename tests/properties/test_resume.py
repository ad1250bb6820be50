"""Whatever happens between and during runs, the next whole run leaves every window exactly once.

Runs go through everything but Ray: shards are worked off by the same functions in this process, so
that hundreds of histories fit in seconds. A kill is an exception at a random write to the store,
before or after it took effect, after which the dead run reaches the store no more.
"""

from __future__ import annotations

import itertools
import json
import math
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bioembed_ray import run
from bioembed_ray.job_file import parse_job
from bioembed_ray.segments import span_stamp
from bioembed_ray.verify import verify
from tests import oracles, tiny
from tests.commands import tiny_encoder, without_ray
from tests.deadly import Killed, Store

RATE_HZ = 16_000


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.torchscript(tmp_path_factory.mktemp("model") / "energy.pt")


@pytest.fixture
def store() -> Iterator[Store]:
    """Take Ray out of the run, note what is encoded, and put the deadly store in."""
    with pytest.MonkeyPatch.context() as patch:
        made = Store(patch, without_ray(patch))
        whole = run.stream.run_stream

        def noted(job: Any, pools: Any, todo: Any, watch: Any) -> Iterator[Any]:
            made.encoded += [span for work in todo for span in work.shard.spans]
            yield from whole(job, pools, todo, watch)

        patch.setattr(run.stream, "run_stream", noted)
        yield made


def _job(source: Path, output: Path, model: Path, **options: Any) -> Any:
    raw = {
        "input": {"uri": str(source)},
        "output": str(output),
        "encoders": {"energy": tiny_encoder(model)},
        "segment_s": 1,
        "shard_minutes": 0.03,
        "max_removed_fraction": 1,
        **options,
    }
    return parse_job(raw, "test")


class History:
    """An archive, its output, and what was done to both."""

    def __init__(self, folder: Path, store: Store, model: Path) -> None:
        self.source, self.output = folder / "in", folder / "out"
        self.source.mkdir()
        self.store, self.model = store, model
        self.seeds = itertools.count()
        for number in range(3):
            self.write(number)

    def write(self, number: int) -> None:
        """Make or change a recording; some are empty or no audio, one never is."""
        seed = next(self.seeds)
        rng = np.random.default_rng(seed)
        path = self.source / f"{number}.wav"
        if number and seed % 7 == 5:
            path.write_bytes(b"not audio %d" % seed)
            return
        n_samples = int(rng.integers(1, 4 * RATE_HZ))
        sound = rng.standard_normal(n_samples) * 10 ** rng.uniform(-3, -1)
        soundfile.write(path, sound, RATE_HZ, subtype="FLOAT")

    def remove(self, number: int) -> None:
        if number:
            (self.source / f"{number}.wav").unlink(missing_ok=True)

    def lose_part(self, number: int) -> None:
        parts = sorted(oracles.parts(self.output))
        if parts:
            (self.output / parts[number % len(parts)]).unlink()

    def lose_ledger(self) -> None:
        for name in ("recordings", "failures"):
            shutil.rmtree(self.output / name, ignore_errors=True)

    def standing(self) -> dict[tuple[str, str], list[float]]:
        """Return (recording, stamp) -> samples at which windows that stand in some part start."""
        found: dict[tuple[str, str], list[float]] = {}
        for name in oracles.parts(self.output):
            table = pq.read_table(self.output / name, columns=["recording", "start_s"])
            stamps = {
                span["recording"]: span["stamp"]
                for span in json.loads(table.schema.metadata[b"bioembed.spans"])
            }
            for row in table.to_pylist():
                key = row["recording"], stamps[row["recording"]]
                found.setdefault(key, []).append(row["start_s"] * RATE_HZ)
        return found

    def run(self, dies_after: int | None) -> None:
        """Run, perhaps to death; of what stands, nothing is encoded."""
        stood = self.standing()
        self._run(dies_after)
        for span in self.store.encoded:
            stop = math.inf if span.stop is None else span.stop
            starts = stood.get((span.recording, span_stamp(span.source)), [])
            assert not [at for at in starts if span.start <= at < stop], span.recording

    def _run(self, dies_after: int | None) -> None:
        self.store.live(dies_after)
        job = _job(self.source, self.output, self.model, max_failed_fraction=1)
        try:
            result = run.run_job(job, lambda text: None)
            assert result.exit_code == 0
        except Killed:
            # The lease of a dead process is taken over at once; this process is only said to be dead.
            (self.output / "lease.json").unlink(missing_ok=True)

    def check(self) -> None:
        """A whole run, then: every window once and right; another run has nothing to do."""
        self.run(None)
        expected = {}
        for path in self.source.iterdir():
            if path.read_bytes()[:4] != b"RIFF":
                continue
            samples, _ = soundfile.read(path, dtype="float32")
            for start in oracles.window_starts(len(samples), RATE_HZ, RATE_HZ // 2):
                window = oracles.cut(samples, start, RATE_HZ)
                expected[path.name, 0, start / RATE_HZ] = tiny.alone(window)
        oracles.assert_same(oracles.windows(self.output, "energy"), expected, within=1e-5)
        assert list(verify(str(self.output))) == []
        unreadable = {p.name for p in self.source.iterdir() if p.read_bytes()[:4] != b"RIFF"}
        assert {row["recording"] for row in oracles.failures(self.output)} == unreadable
        before = oracles.parts(self.output)
        self.run(None)
        assert self.store.counts["parts"] == 0
        assert oracles.parts(self.output) == before
        hidden = [path for path in self.output.rglob(".*") if ".write-check" not in path.name]
        assert not hidden


numbers = st.integers(0, 7)
events = st.one_of(
    st.tuples(st.just("write"), numbers),
    st.tuples(st.just("remove"), numbers),
    st.tuples(st.just("lose_part"), numbers),
    st.tuples(st.just("lose_ledger")),
    st.tuples(st.just("run"), st.one_of(st.none(), st.integers(1, 24))),
)


@settings(
    max_examples=50,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(events, max_size=8))
def test_after_any_history_of_kills_and_changes_every_window_stands_exactly_once(
    store: Store, model: Path, happened: list[tuple[Any, ...]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        history = History(Path(folder), store, model)
        for name, *arguments in happened:
            getattr(history, name)(*arguments)
        history.check()


@pytest.mark.parametrize("is_rerun", [False, True], ids=["first run", "run after a change"])
def test_a_kill_at_any_write_loses_at_most_the_shard_in_flight(
    store: Store, model: Path, tmp_path: Path, is_rerun: bool
) -> None:
    finished = False
    for dies_after in range(1, 40):
        folder = tmp_path / str(dies_after)
        folder.mkdir()
        history = History(folder, store, model)
        if is_rerun:
            history.run(None)
            history.write(1)
            history.write(3)
        history.run(dies_after)
        finished = not store.is_dead
        stood = oracles.parts(history.output)
        store.live(None)
        history.check()
        wanted = oracles.parts(history.output)
        kept = {name for name in wanted if name in stood}
        # Nothing that stood was put again.
        assert {name: wanted[name] for name in kept} == {name: stood[name] for name in kept}
        if finished:
            break
    assert finished
