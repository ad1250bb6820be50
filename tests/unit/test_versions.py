"""A version moves when the numbers do, and only then."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bioembed_ray import versions
from bioembed_ray.encoders.base import Facts, FrameGrid
from bioembed_ray.errors import ConfigError
from bioembed_ray.versions import PlannedEncoder, digest, plan_encoder, reach_s
from tests.unit.references import FakeRegistry, job_of

GRID = FrameGrid(20, 2, joins_tail=True, stride=320, receptive=400)
FACTS = Facts("fake", 16_000, 1.0, 0.5, GRID, embeds=False, max_window_s=30.0)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> FakeRegistry:
    fake = FakeRegistry({"fake": FACTS})
    monkeypatch.setattr(versions, "registry", fake)
    return fake


def plan(**values: Any) -> PlannedEncoder:
    return plan_encoder("fake", job_of(**{"output": "/out", "encoder_frames": "all", **values}))


def both(planned: PlannedEncoder) -> tuple[str, str]:
    (output,) = planned.outputs
    assert output.frames is not None
    return output.embeddings.version, output.frames.version


@pytest.mark.parametrize(
    "values",
    [
        {"encoder_layer": 6},
        {"encoder_layer": 0},
        {"encoder_precision": "bfloat16"},
        {"encoder_weights": "random"},
        {"encoder_weights": "random:1"},
        {"input": {"channels": "first"}},
        {"input": {"channels": "each"}},
        {"input": {"time_expansion": 10}},
    ],
    ids=str,
)
def test_what_moves_frames_moves_both_versions(
    registry: FakeRegistry, values: dict[str, Any]
) -> None:
    old, new = both(plan()), both(plan(**values))
    assert old[0] != new[0]
    assert old[1] != new[1]


@pytest.mark.parametrize(
    "values",
    [
        {"encoder_window_s": 2.0, "encoder_hop_s": 0.5},
        {"encoder_hop_s": 0.25},
        {"encoder_tail": "drop"},
        {"encoder_tail": "shift"},
        {"embedding_dtype": "float16"},
    ],
    ids=str,
)
def test_what_only_windows_know_leaves_frames_alone(
    registry: FakeRegistry, values: dict[str, Any]
) -> None:
    old, new = both(plan()), both(plan(**values))
    assert old[0] != new[0]
    assert old[1] == new[1]


def test_the_stored_type_of_frames_leaves_windows_alone(registry: FakeRegistry) -> None:
    old, new = both(plan()), both(plan(frame_dtype="float32"))
    assert old[0] == new[0]
    assert old[1] != new[1]


@pytest.mark.parametrize(
    "values",
    [
        {"encoder_batch_size": 7},
        {"encoder_pool": "own", "pools": {"own": {"gpus": 0, "threads": 4, "actors": 2}}},
        {"pools": {"default": {"threads": 2}}},
        {"segment_s": 600},
        {"shard_minutes": 5},
        {"max_failed_fraction": 0.5},
        {"max_removed_fraction": 0.5},
        {"output": "s3://elsewhere"},
        {"input": {"uri": "/other", "include": ["*.wav"], "exclude": ["b*"]}},
        {"encoder_window_s": 1.0},
        {"encoder_hop_s": 0.5, "encoder_tail": "pad", "encoder_precision": "float32"},
    ],
    ids=str,
)
def test_what_moves_no_number_moves_no_version(
    registry: FakeRegistry, values: dict[str, Any]
) -> None:
    assert both(plan()) == both(plan(**values))


def test_keeping_frames_does_not_move_the_windows(registry: FakeRegistry) -> None:
    kept, none = plan(), plan(encoder_frames="none")
    assert none.outputs[0].frames is None
    assert none.outputs[0].embeddings == kept.outputs[0].embeddings
    assert none.datasets == (kept.outputs[0].embeddings,)
    # Frames are put first: the embeddings part says that a shard is done.
    assert [dataset.table for dataset in kept.datasets] == ["frames", "embeddings"]


def test_weights_and_architecture_move_both(registry: FakeRegistry) -> None:
    old = both(plan())
    registry.digests["fake"] = "w1"
    weights = both(plan())
    registry.digests["fake"] = "w0"
    registry.shapes["fake"] = '{"layers": 3}'
    shape = both(plan())
    assert len({old, weights, shape}) == 3
    assert all(a != b for a, b in zip(old, weights, strict=True))


@pytest.mark.parametrize(
    "change",
    [
        {"block_s": 10},
        {"context_s": 3},
        {"joins_tail": False},
        {"stride": 160},
        {"receptive": 480},
        {"per_step": 8},
    ],
    ids=str,
)
def test_every_side_of_the_grid_moves_both(registry: FakeRegistry, change: dict[str, Any]) -> None:
    old = both(plan())
    registry.facts["fake"] = replace(FACTS, grid=replace(GRID, **change))
    new = both(plan())
    assert all(a != b for a, b in zip(old, new, strict=True))


@pytest.mark.parametrize("constant", ["PREPROCESS_VERSION", "PIECE_S"])
def test_a_change_in_preprocessing_moves_both(
    registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch, constant: str
) -> None:
    old = both(plan())
    monkeypatch.setattr(versions, constant, 20)
    assert all(a != b for a, b in zip(old, both(plan()), strict=True))


def test_the_reader_s_version_moves_none(
    registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = both(plan())
    monkeypatch.setattr(versions, "READER_VERSION", 99)
    assert both(plan()) == old


def test_layers_are_outputs_of_their_own(registry: FakeRegistry) -> None:
    planned = plan(encoder_layer=[6, 9])
    assert [output.name for output in planned.outputs] == ["fake.6", "fake.9"]
    assert planned.outputs[0].embeddings.version != planned.outputs[1].embeddings.version
    alone = plan(encoder_layer=6)
    # Layer 6 is layer 6, whatever is asked for beside it.
    assert planned.outputs[0].embeddings.version == alone.outputs[0].embeddings.version
    assert alone.outputs[0].name == "fake"


def test_windows_are_settled_in_samples(registry: FakeRegistry) -> None:
    rule = plan(encoder_window_s=0.3, encoder_hop_s=0.1).rule
    assert (rule.window, rule.hop) == (4800, 1600)


def test_a_window_set_alone_keeps_the_overlap(registry: FakeRegistry) -> None:
    rule = plan(encoder_window_s=5.0).rule
    assert (rule.window, rule.hop) == (80_000, 40_000)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (
            {"encoder_hop_s": 0.00003},
            "encoders.fake.hop_s: got 3e-05, not a whole number of samples at 16000 Hz; use 6.25e-05",
        ),
        (
            {"encoder_hop_s": 0.33333},
            "encoders.fake.hop_s: got 0.33333, not a whole number of samples at 16000 Hz; use 0.3333125",
        ),
        (
            {"encoder_window_s": 31},
            "encoders.fake.window_s: got 31; fake takes at most 30 s",
        ),
        (
            {"encoder_window_s": 0.02, "encoder_hop_s": 0.01},
            "encoders.fake.window_s: got 0.02; fake needs 0.025 s or more",
        ),
        (
            {"segment_s": 310},
            "segment_s: got 310; must be a multiple of encoders.fake's block of 20 s",
        ),
    ],
)
def test_a_setting_that_the_encoder_cannot_take_is_one_line(
    registry: FakeRegistry, values: dict[str, Any], text: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(**values)
    assert str(caught.value) == text


@pytest.mark.parametrize("rate_hz", [16_000, 22_050, 44_100, 48_000, 250_000])
@pytest.mark.parametrize("hop_s", [1e-6, 0.1234567, 0.33333, 0.98765])
def test_the_advice_is_itself_accepted(registry: FakeRegistry, rate_hz: int, hop_s: float) -> None:
    registry.facts["fake"] = replace(FACTS, rate_hz=rate_hz, grid=None, embeds=True)
    values = {"encoder_frames": "none", "encoder_window_s": 1.0}
    with pytest.raises(ConfigError) as caught:
        plan(**values, encoder_hop_s=hop_s)
    advice = float(str(caught.value).rpartition("use ")[2])
    assert plan(**values, encoder_hop_s=advice).rule.hop == round(advice * rate_hz)
    assert abs(advice - hop_s) <= 0.02


def test_windows_and_hops_beyond_reason_are_refused(registry: FakeRegistry) -> None:
    registry.facts["fake"] = replace(FACTS, max_window_s=None)
    longest = plan(encoder_window_s=3600.0, encoder_hop_s=86_400.0)
    assert (longest.rule.window, longest.rule.hop) == (3600 * 16_000, 86_400 * 16_000)
    for values, text in (
        ({"encoder_window_s": 3601.0}, "window_s: got 3601; use at most 3600 s"),
        ({"encoder_window_s": 1e6}, "window_s: got 1e+06; use at most 3600 s"),
        ({"encoder_hop_s": 1e300}, "hop_s: got 1e+300; use at most 86400 s"),
    ):
        with pytest.raises(ConfigError) as caught:
            plan(**values)
        assert str(caught.value) == f"encoders.fake.{text}"


def test_frames_of_an_encoder_without_frames_are_refused(registry: FakeRegistry) -> None:
    registry.facts["fake"] = replace(FACTS, grid=None, embeds=True)
    with pytest.raises(ConfigError) as caught:
        plan()
    assert str(caught.value) == (
        "encoders.fake.frames: got 'all'; fake has no frames, use \"none\""
    )


def test_a_digest_does_not_depend_on_the_order_of_keys() -> None:
    assert digest({"a": 1, "b": [2, None]}) == digest({"b": [2, None], "a": 1})
    # Written down: outputs that stand keep their versions with the next release.
    assert digest({"a": 1, "b": "å"}) == "8a9bf828a129"


def test_random_weights_are_known_as_such(registry: FakeRegistry) -> None:
    assert plan(encoder_weights="random").is_random
    assert not plan().is_random


def test_window_encoders_read_a_window_ahead_and_nothing_behind(registry: FakeRegistry) -> None:
    registry.facts["fake"] = replace(FACTS, embeds=True)
    assert reach_s((plan(encoder_frames="none"),)) == (0.0, 1.0)


def test_frame_encoders_read_what_their_blocks_need(registry: FakeRegistry) -> None:
    before, after = reach_s((plan(),))
    assert before >= 30 + 2
    assert after >= 1 + 30 + 2


def test_a_dataset_is_a_folder_that_hive_readers_know(registry: FakeRegistry) -> None:
    dataset = plan().outputs[0].embeddings
    assert dataset.prefix == f"embeddings/encoder=fake/version={dataset.version}"
    assert len(dataset.version) == 12
    assert Path(dataset.prefix).parts[1:] == ("encoder=fake", f"version={dataset.version}")
