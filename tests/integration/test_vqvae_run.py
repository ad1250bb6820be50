"""A VQ-VAE trained and applied by whole runs, against its weights applied by hand."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import duckdb
import librosa
import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F
from safetensors.numpy import load_file as load_numpy
from safetensors.torch import load_file
from scipy.spatial.distance import cdist

from bioembed_ray.codebooks.card import read_card
from bioembed_ray.verify import verify
from tests.commands import bioembed, embed, started, wait_for
from tests.conftest import Bucket
from tests.processes import named

pytestmark = pytest.mark.ray
RATE_HZ = 8000
# Slow enough to be killed between two looks.
TRAINING = {
    "n_mels": 16,
    "hidden": 64,
    "dim": 8,
    "codes": 16,
    "batch_size": 16,
    "learning_rate": 2e-3,
    "max_steps": 240,
    "evaluate_steps": 10,
    "patience": 99,
    # In the run's own process: the same bits as one worker's.
    "workers": 0,
}
ENCODER = {"model": "vqvae", "rate_hz": RATE_HZ, "training": TRAINING}


def write(folder: Path, name: str, seconds: float) -> None:
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng([*name.encode()])
    t = np.arange(int(RATE_HZ * seconds)) / RATE_HZ
    tone = 0.3 * np.sin(2 * np.pi * rng.uniform(200, 3000) * t * (1 + 0.1 * np.sin(3 * t)))
    wave = tone * (np.sin(5 * t) > 0) + 0.02 * rng.standard_normal(len(t))
    soundfile.write(folder / name, wave.astype(np.float32), RATE_HZ, subtype="FLOAT")


def model_folder(output: Path) -> Path:
    (folder,) = (output / "models" / "v").iterdir()
    return folder


def codes_of(output: Path) -> dict[str, list[tuple[float, float, int, list[int]]]]:
    """Return rows of codes by recording, read by DuckDB."""
    version = json.loads((output / "current.json").read_text())["codebooks"]["v"]["tokens"]
    rows = duckdb.sql(
        "SELECT recording, start_s, hop_s, per_step, tokens FROM "
        f"'{output}/tokens/codebook=v/version={version}/*.parquet' ORDER BY recording, start_s"
    ).fetchall()
    found: dict[str, list[tuple[float, float, int, list[int]]]] = {}
    for recording, *row in rows:
        found.setdefault(recording, []).append(tuple(row))
    return found


def joined(output: Path) -> dict[str, list[int]]:
    return {name: [c for row in rows for c in row[3]] for name, rows in codes_of(output).items()}


def latents_by_hand(folder: Path, wave: np.ndarray) -> np.ndarray:
    """Return the latents of one patch, time-major: librosa's mel and plain convolutions."""
    weights, front = load_file(folder / "model.safetensors"), read_card(str(folder))["front_end"]
    power = librosa.feature.melspectrogram(
        y=wave,
        sr=RATE_HZ,
        n_fft=front["n_fft"],
        hop_length=front["hop"],
        n_mels=16,
        pad_mode="reflect",
    )
    mel = librosa.power_to_db(power, ref=1.0, top_db=None)[:, : len(wave) // front["hop"]].T
    x = torch.from_numpy((mel - front["mean_db"]) / front["std_db"]).float()
    x = torch.cat([x, x[-1:].expand(-len(x) % 4, -1)])[None, None]
    for layer, stride, padding in (("0", 2, 1), ("2", 2, 1), ("4", 1, 0)):
        name = f"encoder.layers.{layer}"
        x = F.conv2d(
            x, weights[f"{name}.weight"], weights[f"{name}.bias"], stride=stride, padding=padding
        )
        x = x if layer == "4" else x.relu()
    x = x[0].permute(1, 2, 0)
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    return x.flatten(0, 1).numpy()


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> tuple[Path, Path]:
    """An archive of twelve recordings of 10 s, one of 47.3 s and one of 0.4 s."""
    folder = tmp_path_factory.mktemp("vqvae")
    for number in range(12):
        write(folder / "audio", f"{number:02d}.wav", 10)
    write(folder / "audio", "long.wav", 47.3)
    write(folder / "audio", "short.wav", 0.4)
    result = embed(folder / "audio", folder / "out", {"v": ENCODER}, shard_minutes=0.5)
    assert result.exit_code == 0
    return folder, folder / "out"


def test_codes_are_the_nearest_of_latents_computed_by_hand(done: tuple[Path, Path]) -> None:
    folder, output = done
    model = model_folder(output)
    codebook = load_numpy(model / "codebook.safetensors")["centroids"].astype(np.float64)
    found = joined(output)
    n_same = n_all = 0
    for name in ("03.wav", "long.wav", "short.wav"):
        wave = soundfile.read(folder / "audio" / name, dtype="float32")[0]
        wanted = []
        for first in range(0, len(wave), RATE_HZ):
            latents = latents_by_hand(model, wave[first : first + RATE_HZ])
            wanted += cdist(latents.astype(np.float64), codebook).argmin(1).tolist()
        assert len(found[name]) == len(wanted)
        n_same += int((np.array(found[name]) == np.array(wanted)).sum())
        n_all += len(wanted)
    # librosa's transform is not torch's to the last bit: a latent between two codes may fall either way.
    assert n_same / n_all > 0.995


def test_codes_come_with_the_shape_and_time_of_their_grid(done: tuple[Path, Path]) -> None:
    _, output = done
    rows = codes_of(output)["long.wav"]
    assert {(row[1], row[2]) for row in rows} == {(0.04, 4)}
    ends = [start + len(codes) / per_step * hop for start, hop, per_step, codes in rows]
    assert [row[0] for row in rows][1:] == pytest.approx(ends[:-1])
    assert sum(len(row[3]) for row in rows) == 4 * (47 * 25 + 8)
    assert len(codes_of(output)["short.wav"][0][3]) == 4 * 10
    assert read_card(str(model_folder(output)))["grid"] == [25, 4]


def test_windows_are_means_of_latents(done: tuple[Path, Path]) -> None:
    folder, output = done
    wave = soundfile.read(folder / "audio" / "05.wav", dtype="float32")[0]
    latents = [
        latents_by_hand(model_folder(output), wave[first : first + RATE_HZ]).reshape(25, 4, 8)
        for first in range(0, len(wave), RATE_HZ)
    ]
    steps = np.concatenate(latents).mean(axis=1)
    centres = np.arange(len(steps)) * 0.04 + 0.005
    rows = duckdb.sql(
        f"SELECT start_s, end_s, embedding FROM '{output}/embeddings/*/*/*.parquet' "
        "WHERE recording = '05.wav' ORDER BY start_s"
    ).fetchall()
    assert len(rows) == 20
    for start, end, vector in rows:
        inside = (centres >= start) & (centres < end)
        np.testing.assert_allclose(vector, steps[inside].mean(axis=0), atol=2e-3)


def test_promises_hold_nothing_is_left_over_and_a_rerun_does_nothing(
    done: tuple[Path, Path],
) -> None:
    folder, output = done
    assert list(verify(str(output))) == []
    assert not list(output.glob("fit_frames/**/*.parquet"))
    names = sorted(path.name for path in model_folder(output).rglob("*") if path.is_file())
    assert names == [
        "card.json",
        "codebook.safetensors",
        "model.safetensors",
        "reconstructions.png",
    ]
    before = {path: path.stat().st_mtime_ns for path in output.glob("*/*/*/*") if path.is_file()}
    again = embed(folder / "audio", output, {"v": ENCODER}, shard_minutes=0.5)
    assert (again.exit_code, again.tally.n_parts) == (0, 0)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_the_card_counts_what_the_archive_uses(done: tuple[Path, Path]) -> None:
    _, output = done
    card = read_card(str(model_folder(output)))
    counts = np.bincount(np.concatenate(list(joined(output).values())), minlength=16)
    assert card["archive"]["frames"] == counts.sum()
    assert card["archive"]["used"] == (counts > 0).sum()
    assert card["sampled"]["seen"] == 12 * 10 + 47
    assert card["held_out"]["error"] < 0.8 * card["curve"]["held_out_error"][0]


def test_one_segment_or_many_and_any_batch_give_the_same_codes(
    done: tuple[Path, Path], tmp_path: Path
) -> None:
    folder, output = done
    trained = {"v": {"model": "vqvae", "weights": str(model_folder(output)), "batch_size": 3}}
    assert embed(folder / "audio", tmp_path / "o", trained, segment_s=7).exit_code == 0
    assert joined(tmp_path / "o") == joined(output)
    assert not (tmp_path / "o" / "models").exists()


def test_two_workers_reach_the_error_of_one_and_a_bucket_holds_what_a_disk_does(
    done: tuple[Path, Path], s3: Bucket
) -> None:
    folder, output = done
    codebooks = {"w-8": {"encoder": "w", "clusters": 8, "fit_frames": 500}}
    two = {**ENCODER, "training": {**TRAINING, "workers": 2}}
    encoders = {"w": {"model": "vqvae", "weights": str(model_folder(output))}, "v": two}
    result = embed(folder / "audio", f"{s3.uri}/o", encoders, codebooks=codebooks)
    assert result.exit_code == 0
    keys = s3.listing()
    for name in ("v", "w", "w-8"):
        assert any(key.startswith(f"o/tokens/codebook={name}/") for key in keys), name
    assert list(verify(f"{s3.uri}/o")) == []
    (key,) = (key for key in keys if key.startswith("o/models/v/") and key.endswith("/card.json"))
    card = json.loads(s3.get(key))
    assert card["training"]["workers_used"] == 2
    one = read_card(str(model_folder(output)))
    assert card["sampled"]["digest"] == one["sampled"]["digest"]
    assert card["held_out"]["error"] == pytest.approx(one["held_out"]["error"], rel=0.25)


def train_command(audio: Path, output: Path) -> list[str]:
    job = {"encoders.v.model": "vqvae", "encoders.v.rate_hz": RATE_HZ, "shard_minutes": 2}
    training = {**TRAINING, "workers": 1}
    job |= {f"encoders.v.training.{name}": one for name, one in training.items()}
    sets = [word for key, value in job.items() for word in ("--set", f"{key}={value}")]
    return ["train-vqvae", "--input", str(audio), "--output", str(output), *sets]


@pytest.mark.slow
def test_a_training_killed_twice_ends_with_the_bits_of_an_undisturbed_one(
    done: tuple[Path, Path], tmp_path: Path
) -> None:
    # In other shards than the other: the sample depends on recordings and places alone.
    folder, output = done
    command = train_command(folder / "audio", tmp_path / "o")

    def step() -> int:
        for path in tmp_path.glob("o/models/v/*/training.pt"):
            found: int = torch.load(path, weights_only=True)["step"]
            return found
        return 0

    with started(*command) as process:
        wait_for(step, "a first state", process)
        workers = named(process.pid, "RayTrainWorker")
        assert workers
        workers[0].kill()
        workers[0].wait(30)
        before = step()
        wait_for(lambda: step() > before, "a state after the worker's death", process)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not list(tmp_path.glob("o/models/v/*/model.safetensors"))
    result = bioembed(*command)
    assert result.returncode == 0, result.stderr
    assert "v: step 10 of" not in result.stderr
    assert f"step {TRAINING['max_steps']} of" in result.stderr
    assert not (tmp_path / "o" / "tokens").exists()
    for name in ("model.safetensors", "codebook.safetensors"):
        one, other = (model_folder(where) / name for where in (tmp_path / "o", output))
        assert one.read_bytes() == other.read_bytes()
