"""Whole runs: what stands afterwards, against models called directly."""

from __future__ import annotations

import csv
import json
import math
import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import soxr
import torch
import yaml

from bioembed_ray.cli import commands
from bioembed_ray.synthetic import write_tones
from bioembed_ray.verify import verify
from tests import oracles, tiny
from tests.commands import bioembed, embed, tiny_encoder, without_ray
from tests.unit.encoder_fixtures import efficientnet_spec, reference, write_model
from tests.unit.transformers_fixtures import speech_folder

RATE_HZ = 16_000
WINDOW, HOP = 16_000, 8_000


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A TorchScript file and a wav2vec 2.0 folder."""
    folder = tmp_path_factory.mktemp("models")
    return {
        "energy": tiny.torchscript(folder / "energy.pt"),
        "speech": speech_folder(folder / "speech"),
    }


@pytest.fixture(scope="module")
def both(models: dict[str, Path]) -> dict[str, Any]:
    """A window encoder and a frame encoder."""
    return {
        "energy": tiny_encoder(models["energy"]),
        "speech": {"model": str(models["speech"]), "frames": "all"},
    }


@pytest.fixture(scope="module")
def tones(
    ray_cluster: None, both: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """The twelve tones, embedded by both encoders."""
    folder = tmp_path_factory.mktemp("tones")
    write_tones(folder / "in")
    result = embed(folder / "in", folder / "out", both, frame_dtype="float32")
    assert result.exit_code == 0
    return {"input": folder / "in", "output": folder / "out", "result": result}


def samples_of(path: Path) -> np.ndarray:
    samples, rate_hz = soundfile.read(path, dtype="float32")
    assert rate_hz == RATE_HZ
    return samples


@pytest.mark.ray
def test_twelve_tones_give_72_windows_each_the_vector_of_the_model_called_on_it_alone(
    tones: dict[str, Any],
) -> None:
    rows = oracles.windows(tones["output"], "energy")
    assert len(rows) == 72
    assert {start for _, _, start in rows} == {0.0, 0.5, 1.0, 1.5, 2.0, 2.5}
    for (name, channel, start_s), vector in rows.items():
        assert channel == 0
        window = oracles.cut(samples_of(tones["input"] / name), int(start_s * RATE_HZ), WINDOW)
        assert oracles.relative(vector, tiny.alone(window)) <= 1e-5


@pytest.mark.ray
def test_frames_of_a_short_recording_are_those_of_the_model_on_the_whole_of_it(
    tones: dict[str, Any], models: dict[str, Path]
) -> None:
    import transformers

    network = transformers.Wav2Vec2Model.from_pretrained(models["speech"]).eval()
    extract = transformers.Wav2Vec2FeatureExtractor.from_pretrained(models["speech"])
    rows = oracles.frames(tones["output"], "speech")
    windows = oracles.windows(tones["output"], "speech")
    for path in sorted(tones["input"].glob("*.wav"))[::5]:
        inputs = extract(samples_of(path), sampling_rate=RATE_HZ, return_tensors="pt")
        with torch.inference_mode():
            wanted = network(inputs.input_values).last_hidden_state[0].numpy()  # (T, D)
        got = [rows[path.name, 0, 320 * t] for t in range(len(wanted))]
        assert len(wanted) == 149
        np.testing.assert_allclose(np.stack(got), wanted, rtol=1e-4, atol=1e-5)
        centres = 320 * np.arange(len(wanted)) + 200
        for start in oracles.window_starts(3 * RATE_HZ, WINDOW, HOP):
            inside = (centres >= start) & (centres < start + WINDOW)
            mean = wanted[inside].mean(axis=0)
            assert oracles.relative(windows[path.name, 0, start / RATE_HZ], mean) <= 1e-4
    assert len(rows) == 12 * 149 and len(windows) == 72


@pytest.mark.ray
def test_a_second_run_computes_nothing_touches_no_part_and_needs_no_ray(
    tones: dict[str, Any], models: dict[str, Path]
) -> None:
    before = oracles.parts(tones["output"])
    settings = ["energy.rate_hz=16000", "energy.window_s=1.0", "energy.hop_s=0.5"]
    settings += [f"energy.model={models['energy']}", f"speech.model={models['speech']}"]
    done = bioembed(
        "run", "--input", str(tones["input"]), "--output", str(tones["output"]),
        *(word for one in settings for word in ("--set", f"encoders.{one}")),
        "--set", "encoders.speech.frames=all", "--set", "frame_dtype=float32",
        timeout=60,
        # Whoever asks for Ray is told so here, in an error.
        RAY_ADDRESS="127.0.0.1:1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "nothing to do: all 2 shards stand" in done.stdout
    assert "72 windows; 36.000 s = 36.000 embedded" in done.stdout
    assert oracles.parts(tones["output"]) == before
    first, second = oracles.run_records(tones["output"])[:2]
    assert (first["parts"], second["parts"]) == (6, 0)


@pytest.mark.ray
def test_verify_finds_nothing_wrong_with_a_run_and_names_what_is_broken(
    tones: dict[str, Any], tmp_path: Path
) -> None:
    assert list(verify(str(tones["output"]))) == []
    copy = shutil.copytree(tones["output"], tmp_path / "out")
    first, second = sorted((copy / "embeddings").rglob("encoder=energy/*/*.parquet"))
    table = pq.read_table(first)
    pq.write_table(table.slice(1), first)
    second.write_bytes(second.read_bytes()[:-40])
    problems = "\n".join(verify(str(copy)))
    assert f"{first.name}: {table['recording'][0]} channel 0: 5 windows, 6 expected" in problems
    assert f"{second}: cannot be read" in problems
    second.unlink()
    assert "the ledger has it, the store does not" in "\n".join(verify(str(copy)))


@pytest.mark.ray
@pytest.mark.parametrize("pool", ["mean", "max", "concat"])
def test_export_pools_the_windows_of_each_recording(
    tones: dict[str, Any], tmp_path: Path, pool: str
) -> None:
    commands.main(
        ["export", "--output", str(tones["output"]), "--encoder", "energy", "--level", "recording",
         "--pool", pool, "--format", "npy,pt", "--to", str(tmp_path)],
        standalone_mode=False,
    )  # fmt: skip
    vectors = np.load(tmp_path / f"energy_recording_{pool}.npy")
    assert vectors.shape == (12, 6 * tiny.DIM if pool == "concat" else tiny.DIM)
    tensor = torch.load(tmp_path / f"energy_recording_{pool}.pt", weights_only=True)
    np.testing.assert_array_equal(tensor.numpy(), vectors)
    with open(tmp_path / f"energy_recording_{pool}.csv", newline="") as file:
        index = list(csv.DictReader(file))
    rows = oracles.windows(tones["output"], "energy")
    for line, vector in zip(index, vectors, strict=True):
        own = np.stack([rows[line["recording"], 0, start / 2] for start in range(6)])
        pooled = {"mean": own.mean(axis=0), "max": own.max(axis=0), "concat": own.reshape(-1)}
        np.testing.assert_allclose(vector, pooled[pool], rtol=1e-6)
    assert [line["recording"] for line in index] == sorted(
        path.name for path in tones["input"].iterdir()
    )


@pytest.mark.ray
def test_a_part_says_where_it_comes_from(tones: dict[str, Any]) -> None:
    for path in (tones["output"] / "embeddings").rglob("*.parquet"):
        metadata = pq.read_schema(path).metadata
        assert metadata[b"bioembed.shard"].decode() == path.stem
        assert metadata[b"bioembed.version"].decode() == path.parent.name.partition("=")[2]
    current = json.loads((tones["output"] / "current.json").read_text())["encoders"]
    for name in ("energy", "speech"):
        [folder] = (tones["output"] / f"embeddings/encoder={name}").iterdir()
        assert folder.name == f"version={current[name]['embeddings']}"
    assert set(oracles.recordings(tones["output"])) == {
        path.name for path in tones["input"].iterdir()
    }


def wandering_sound(seed: int, seconds: float, rate_hz: int, channels: int = 1) -> np.ndarray:
    """Return sweeps in noise, (N, channels), so that no two seconds are alike."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate_hz)) / rate_hz
    sweep = np.sin(2 * np.pi * (40 + 1500 / seconds * time) * time)
    return np.stack(
        [0.3 * sweep + 0.1 * rng.standard_normal(len(time)) for _ in range(channels)], axis=1
    ).astype(np.float32)


@pytest.mark.parametrize(
    ("seconds", "rate_hz", "channels", "expansion"),
    [(131.37, 44_100, 1, 1), (7.77, 192_000, 2, 10)],
    ids=["44 kHz", "ultrasound in stereo"],
)
def test_a_recording_gives_the_same_rows_as_one_segment_and_as_many(
    both: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seconds: float,
    rate_hz: int,
    channels: int,
    expansion: int,
) -> None:
    without_ray(monkeypatch)
    (tmp_path / "in").mkdir()
    sound = wandering_sound(1, seconds, rate_hz, channels)
    soundfile.write(tmp_path / "in/long.wav", sound, rate_hz, subtype="FLOAT")
    about = {"input": {"channels": "each", "time_expansion": expansion}}
    for name, segment_s, minutes in (("one", 300, 30), ("many", 20, 0.5)):
        result = embed(
            tmp_path / "in", tmp_path / name, both, segment_s=segment_s, shard_minutes=minutes,
            frame_dtype="float32", **{"input": dict(about["input"])},
        )  # fmt: skip
        assert result.exit_code == 0
        assert list(verify(str(tmp_path / name))) == []
    [one] = (tmp_path / "one/embeddings/encoder=energy").rglob("*.parquet")
    many = list((tmp_path / "many/embeddings/encoder=energy").rglob("*.parquet"))
    assert one and len(many) >= 4
    for encoder in ("energy", "speech"):
        oracles.assert_same(
            oracles.windows(tmp_path / "many", encoder),
            oracles.windows(tmp_path / "one", encoder),
        )
    rows = oracles.frames(tmp_path / "one", "speech")
    oracles.assert_same(oracles.frames(tmp_path / "many", "speech"), rows)
    heard = [
        soxr.resample(sound[:, c], rate_hz / expansion, RATE_HZ, quality="HQ")
        for c in range(channels)
    ]
    n_heard = math.ceil(len(sound) * expansion * RATE_HZ / rate_hz)
    assert len(rows) == channels * ((n_heard - 400) // 320 + 1)
    windows = oracles.windows(tmp_path / "many", "energy")
    starts = oracles.window_starts(n_heard, WINDOW, HOP)
    assert len(windows) == channels * len(starts)
    for (_, channel, start_s), vector in windows.items():
        start = round(start_s * RATE_HZ * expansion)
        assert start_s == oracles.seconds(start, RATE_HZ * expansion)
        wanted = tiny.alone(oracles.cut(heard[channel], start, WINDOW))
        assert oracles.relative(vector, wanted) <= 1e-4


@pytest.fixture(scope="module")
def mixed(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Good, odd and bad files, embedded under each rule for tails."""
    folder = tmp_path_factory.mktemp("mixed")
    source = folder / "in"
    source.mkdir()
    lengths = {"whole.wav": 48_000, "rest.wav": 43_211, "short.wav": 7_001, "just.wav": 16_000}
    for seed, (name, length) in enumerate(lengths.items()):
        sound = wandering_sound(seed, 4.0, RATE_HZ)[:length]
        soundfile.write(source / name, sound, RATE_HZ, subtype="PCM_16")
    soundfile.write(source / "silent.wav", np.zeros(24_000), RATE_HZ)
    holes = wandering_sound(9, 2.0, RATE_HZ)
    holes[5000:5010] = np.nan
    soundfile.write(source / "holes.wav", holes, RATE_HZ, subtype="FLOAT")
    soundfile.write(source / "cut.flac", wandering_sound(8, 20.0, RATE_HZ), RATE_HZ)
    body = (source / "cut.flac").read_bytes()
    (source / "cut.flac").write_bytes(body[: len(body) // 2])
    soundfile.write(source / "cut.wav", wandering_sound(7, 6.0, RATE_HZ), RATE_HZ)
    body = (source / "cut.wav").read_bytes()
    (source / "cut.wav").write_bytes(body[: 44 + 2 * 50_000])
    soundfile.write(source / "header.wav", np.zeros(0), RATE_HZ)
    (source / "nothing.wav").write_bytes(b"")
    (source / "notes.wav").write_bytes(b"New batteries on Monday. " * 40)
    (source / "scrambled.flac").write_bytes(b"fLaC" + bytes(range(256)) * 20)
    (source / "._ghost.wav").write_bytes(b"x")
    encoders = {
        tail: tiny_encoder(models["energy"], tail=tail) for tail in ("pad", "drop", "shift")
    }
    with pytest.MonkeyPatch.context() as patch:
        without_ray(patch)
        result = embed(source, folder / "out", encoders, max_failed_fraction=0.0)
    return {"input": source, "output": folder / "out", "result": result, "lengths": lengths}


@pytest.mark.parametrize("tail", ["pad", "drop", "shift"])
def test_coverage_adds_up_to_the_sample_under_every_rule_for_tails(
    mixed: dict[str, Any], tail: str
) -> None:
    found = oracles.coverage(mixed["output"], tail)
    lengths = {**mixed["lengths"], "silent.wav": 24_000, "holes.wav": 32_000}
    rows = oracles.windows(mixed["output"], tail)
    for name, length in lengths.items():
        assert found[name] == {"failed": 0, **oracles.covered(length, WINDOW, HOP, tail)}, name
        starts = oracles.window_starts(length, WINDOW, HOP, tail)
        assert sorted(at for one, _, at in rows if one == name) == [s / RATE_HZ for s in starts]
    # Of a truncated recording, what came is embedded, and the rest of the promise is lost.
    cut = oracles.covered(50_000, WINDOW, HOP, tail)
    assert found["cut.wav"] == {"failed": 46_000, **cut}
    assert sum(found["cut.flac"].values()) == 320_000
    assert 0 < found["cut.flac"]["embedded"] < 200_000
    assert list(verify(str(mixed["output"]))) == []


def test_every_bad_file_has_its_row_in_failures_with_the_right_reason(
    mixed: dict[str, Any],
) -> None:
    assert mixed["result"].exit_code == 3
    reasons = {(row["recording"], row["reason"]) for row in oracles.failures(mixed["output"])}
    assert reasons == {
        ("cut.flac", "truncated"),
        ("cut.wav", "truncated"),
        ("header.wav", "empty"),
        ("nothing.wav", "empty"),
        ("notes.wav", "unsupported"),
        ("scrambled.flac", "damaged"),
    }
    table = oracles.recordings(mixed["output"])
    assert {name: row["status"] for name, row in table.items() if row["status"] != "embedded"} == {
        "cut.flac": "partial",
        "cut.wav": "partial",
        "header.wav": "failed",
        "nothing.wav": "failed",
        "notes.wav": "failed",
        "scrambled.flac": "failed",
    }
    assert table["holes.wav"]["n_nonfinite"] == 10
    assert "._ghost.wav" not in table
    assert mixed["result"].plan.listing.left_out.count() == 1
    assert oracles.run_records(mixed["output"])[-1]["exit_code"] == 3


def test_non_finite_samples_are_heard_as_zeros(mixed: dict[str, Any]) -> None:
    sound, _ = soundfile.read(mixed["input"] / "holes.wav", dtype="float32")
    sound = np.nan_to_num(sound)
    for (name, _, start_s), vector in oracles.windows(mixed["output"], "pad").items():
        if name == "holes.wav":
            window = oracles.cut(sound, round(start_s * RATE_HZ), WINDOW)
            assert oracles.relative(vector, tiny.alone(window)) <= 1e-5


@pytest.mark.ray
@pytest.mark.slow
def test_beats_and_efficientnet_at_full_size_give_what_avex_gives_for_each_window_alone(
    ray_cluster: None, tmp_path: Path
) -> None:
    write_tones(tmp_path / "in")
    # An untrained EfficientNet answers 1e-14 to everything; this one has statistics to scale with.
    saved = write_model(tmp_path / "saved", efficientnet_spec(), seed=5)
    encoders = {
        "beats": {"model": "esp_aves2_sl_beats_all", "weights": "random:5"},
        "efficientnet": {"model": "esp_aves2_effnetb0_all", "weights": str(saved[1])},
    }
    result = embed(tmp_path / "in", tmp_path / "out", encoders)
    assert result.exit_code == 0
    for name, dim, axes, network in (
        ("beats", 768, 1, untrained_avex("esp_aves2_sl_beats_all", seed=5)),
        ("efficientnet", 1280, (2, 3), reference(*saved)),
    ):
        rows = oracles.windows(tmp_path / "out", name)
        assert np.stack(list(rows.values())).shape == (72, dim)
        for (recording, _, start_s), vector in rows.items():
            samples = samples_of(tmp_path / "in" / recording)
            window = oracles.cut(samples, int(start_s * RATE_HZ), WINDOW)
            with torch.inference_mode():
                wanted = network(torch.from_numpy(window)[None]).mean(axes)[0].numpy()
            assert oracles.relative(vector, wanted) <= 1e-5
        for pool, width in (("mean", dim), ("max", dim), ("concat", 6 * dim)):
            commands.main(
                ["export", "--output", str(tmp_path / "out"), "--encoder", name, "--level",
                 "recording", "--pool", pool, "--format", "npy,pt", "--to", str(tmp_path / "to")],
                standalone_mode=False,
            )  # fmt: skip
            path = tmp_path / f"to/{name}_recording_{pool}"
            assert np.load(f"{path}.npy").shape == (12, width)
            assert torch.load(f"{path}.pt", weights_only=True).shape == (12, width)


def untrained_avex(name: str, seed: int) -> torch.nn.Module:
    """Return avex's own network of a registry name, as avex initialises it after this seed."""
    from avex.configs import ModelSpec
    from avex.models.utils.factory import build_model_from_spec

    folder = files("avex") / "api" / "configs" / "official_models"
    spec = yaml.safe_load((folder / f"{name}.yml").read_text())["model_spec"]
    torch.manual_seed(seed)
    network: torch.nn.Module = build_model_from_spec(
        ModelSpec(**{**spec, "device": "cpu", "pretrained": False}),
        "cpu",
        pretrained=False,
        return_features_only=True,
    )
    return network.eval()
