"""How far shards are: told by encoders batch by batch, summed for the progress line."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from bioembed_ray.apply import Place
from bioembed_ray.audio.spans import Track
from bioembed_ray.encode import encode
from bioembed_ray.encoders.base import Facts, FrameGrid
from bioembed_ray.encoders.precision import is_emulated
from bioembed_ray.in_flight import InFlight, UnderWay
from bioembed_ray.windows import Clock, WindowRule

RATE_HZ = 1000


class Counting:
    """Counts the samples it is given; two rows at a time."""

    dim = 1
    batch_size = 2

    def __init__(self, embeds: bool, grid: FrameGrid | None) -> None:
        self.facts = Facts("external", RATE_HZ, 1.0, 0.5, grid, embeds=embeds, dim=1)
        self.n_seen = 0

    def embed(self, windows: torch.Tensor) -> list[torch.Tensor]:
        self.n_seen += windows.numel()
        return [windows.mean(dim=1, keepdim=True)]

    def frames(self, waves: torch.Tensor) -> list[torch.Tensor]:
        self.n_seen += waves.numel()
        n_steps = (waves.shape[1] - 100) // 100 + 1
        return [torch.zeros(len(waves), n_steps, 1)]


GRID = FrameGrid(2, 0, joins_tail=False, stride=100, receptive=100)


@pytest.mark.parametrize(
    ("embeds", "grid", "keep_frames"),
    [(True, None, False), (False, GRID, False), (True, GRID, False), (True, GRID, True)],
)
def test_an_encoder_tells_after_every_batch_what_share_is_done(
    embeds: bool, grid: FrameGrid | None, keep_frames: bool
) -> None:
    encoder = Counting(embeds, grid)
    place = Place(
        0,
        Clock(RATE_HZ, RATE_HZ),
        0,
        None,
        12_000,
        Track(0, 0, np.ones(12_000, np.float32)),
    )
    told: list[tuple[float, int]] = []
    encode(
        encoder,  # type: ignore[arg-type]
        WindowRule(RATE_HZ, RATE_HZ // 2, "pad"),
        [place],
        "cpu",
        1,
        keep_frames,
        told=lambda share: told.append((share, encoder.n_seen)),
    )
    shares = [share for share, _ in told]
    assert shares == sorted(set(shares)) and shares[0] > 0
    assert shares[-1] == pytest.approx(1.0)
    # All rows are equally long here, so what is told is what the network has seen; where it runs
    # twice, each pass is half.
    if not (embeds and keep_frames):
        assert shares == pytest.approx([n_seen / encoder.n_seen for _, n_seen in told])
    else:
        n_windows = told[shares.index(0.5)][1]
        assert n_windows == 24 * RATE_HZ


def test_seconds_under_way_are_those_of_shards_not_done_yet() -> None:
    in_flight = InFlight(3)
    asked: list[list[str]] = []

    is_silent = False

    def ask(done: Sequence[str]) -> dict[str, float] | None:
        asked.append(list(done))
        shares = dict(in_flight.shares(done))
        return None if is_silent else shares

    under_way = UnderWay({"a": 100.0, "b": 60.0, "c": 10.0})
    assert under_way() == 0.0  # nobody to ask yet
    under_way.watch(ask)
    assert under_way() == 0.0
    in_flight.tell("a", 0.25)
    in_flight.tell("b", 0.5)
    assert under_way() == 55.0
    in_flight.tell("a", 0.75)
    under_way.done("b")
    assert under_way() == 75.0
    # Said late by an encoder whose shard is done.
    in_flight.tell("b", 0.9)
    assert under_way() == 75.0
    # Killed and begun anew; the last answer counts while there is no other.
    in_flight.tell("a", 0.1)
    is_silent = True
    assert under_way() == 75.0
    is_silent = False
    assert under_way() == 10.0
    under_way.done("a")
    under_way.done("a")
    under_way.done("c")
    assert under_way() == 0.0
    assert asked == [[], [], ["b"], [], [], [], ["a", "a", "c"]]


def test_attempts_are_counted_by_stage_and_shard() -> None:
    in_flight = InFlight(2)
    assert [in_flight.begin("decode", "a") for _ in range(3)] == [True, True, False]
    assert in_flight.begin("default", "a") and in_flight.begin("decode", "b")


def test_half_precision_is_emulated_where_the_cpu_has_no_wide_vectors_for_it() -> None:
    try:
        with open("/proc/cpuinfo") as file:
            flags = next(set(line.split()) for line in file if line.startswith("flags"))
    except (FileNotFoundError, StopIteration):
        pytest.skip("no x86 Linux")
    assert not is_emulated("float32")
    assert is_emulated("bfloat16") == (not {"avx512vl", "avx512bw", "avx512dq"} <= flags)
    assert is_emulated("float16") == (not flags & {"avx512_fp16", "amx_fp16"})
