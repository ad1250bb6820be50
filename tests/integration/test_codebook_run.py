"""Codebooks and tokens of whole runs, against the model called directly and scipy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
import soundfile
import torch
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans

from bioembed_ray.codebooks.card import read_card, read_codebook
from bioembed_ray.job_file import load_job
from bioembed_ray.run import run_job
from bioembed_ray.verify import verify
from tests.commands import ROOT, embed, tiny_encoder, without_ray
from tests.tiny import torchscript
from tests.unit.transformers_fixtures import speech_folder

pytestmark = pytest.mark.ray
RATE_HZ = 16_000


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return speech_folder(tmp_path_factory.mktemp("model") / "tiny")


def write(folder: Path, names: list[str], seconds: float) -> None:
    folder.mkdir(exist_ok=True)
    for name in names:
        rng = np.random.default_rng([*name.encode()])
        t = np.arange(int(RATE_HZ * seconds)) / RATE_HZ
        tone = 0.3 * np.sin(2 * np.pi * rng.integers(200, 6000) * t * (1 + 0.2 * np.sin(2 * t)))
        wave = tone + 0.05 * rng.standard_normal(len(t))
        soundfile.write(folder / name, wave.astype(np.float32), RATE_HZ, subtype="FLOAT")


def job(model: Path, script: Path, **changed: Any) -> dict[str, Any]:
    return {
        "encoders": {"w": {"model": str(model), "layer": 2}, "t": tiny_encoder(script)},
        "codebooks": {
            "w-8": {"encoder": "w", "clusters": 8, "fit_frames": 300},
            "t-4": {"encoder": "t", "clusters": 4},
        },
        "shard_minutes": 0.5,
        **changed,
    }


def tokens(output: Path, codebook: str) -> dict[str, list[int | None]]:
    """Return the tokens of every recording, its rows joined, read by DuckDB."""
    version = json.loads((output / "current.json").read_text())["codebooks"][codebook]["tokens"]
    rows = duckdb.sql(
        f"SELECT recording, start_s, tokens FROM '{output}/tokens/codebook={codebook}/version={version}/*.parquet' "
        "ORDER BY recording, start_s"
    ).fetchall()
    found: dict[str, list[int | None]] = {}
    for recording, _, row in rows:
        found.setdefault(recording, []).extend(row)
    return found


def centroids(output: Path, codebook: str) -> np.ndarray:
    version = json.loads((output / "current.json").read_text())["codebooks"][codebook]["codebook"]
    return read_codebook(str(output / "codebooks" / codebook / f"version={version}")).centroids


def frames_alone(model: Path, path: Path, layer: int = 2) -> np.ndarray:
    """Return a layer of a recording shorter than a block, from transformers called directly."""
    from transformers import AutoModel

    network = AutoModel.from_pretrained(model).eval()
    wave = torch.from_numpy(soundfile.read(path, dtype="float32")[0])[None]
    wave = (wave - wave.mean()) / torch.sqrt(wave.var(unbiased=False) + 1e-7)
    with torch.no_grad():
        return network(wave, output_hidden_states=True).hidden_states[layer][0].numpy()


@pytest.fixture(scope="module")
def done(
    model: Path, tmp_path_factory: pytest.TempPathFactory, ray_cluster: None
) -> tuple[Path, Path, dict[str, Any]]:
    """An archive of six short recordings and one of 70 s, embedded, fitted and named."""
    folder = tmp_path_factory.mktemp("tokens")
    write(folder / "audio", [f"{i}.wav" for i in range(6)], 7.3)
    write(folder / "audio", ["long.wav"], 70)
    settings = job(model, torchscript(folder / "t.pt"))
    assert embed(folder / "audio", folder / "out", **settings).exit_code == 0
    return folder, folder / "out", settings


def test_tokens_are_the_nearest_centroids_of_frames_from_the_model_called_directly(
    done: tuple[Path, Path, dict[str, Any]], model: Path
) -> None:
    folder, output, _ = done
    found, centres = tokens(output, "w-8"), centroids(output, "w-8").astype(np.float64)
    for name in ("0.wav", "3.wav", "5.wav"):
        frames = frames_alone(model, folder / "audio" / name).astype(np.float64)
        assert found[name] == cdist(frames, centres).argmin(1).tolist()
    assert len(found["long.wav"]) == (70 * RATE_HZ - 400) // 320 + 1


def test_nothing_is_left_of_the_fit_and_all_promises_hold(
    done: tuple[Path, Path, dict[str, Any]],
) -> None:
    _, output, _ = done
    assert list(verify(str(output))) == []
    assert not list(output.glob("fit_frames/**/*.parquet"))
    card = read_card(str(next((output / "codebooks" / "w-8").iterdir())))
    n_tokens = sum(len(row) for row in tokens(output, "w-8").values())
    assert card["archive"]["frames"] == n_tokens
    counts = np.bincount(np.concatenate(list(tokens(output, "w-8").values())), minlength=8)
    share = counts[counts > 0] / n_tokens
    assert card["archive"]["perplexity"] == pytest.approx(
        2 ** -(share * np.log2(share)).sum(), 1e-4
    )


def test_a_run_with_nothing_new_names_nothing_and_new_recordings_only_themselves(
    done: tuple[Path, Path, dict[str, Any]], model: Path
) -> None:
    folder, output, settings = done
    before = {path: path.stat().st_mtime_ns for path in output.glob("tokens/**/*.parquet")}
    again = embed(folder / "audio", output, **settings)
    assert (again.exit_code, again.tally.n_parts) == (0, 0)
    write(folder / "audio", ["new.wav"], 5.0)
    assert embed(folder / "audio", output, **settings).exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    # The new recording's tokens were assigned in the encoder's actor; the first ones from stored frames.
    frames = frames_alone(model, folder / "audio" / "new.wav").astype(np.float64)
    wanted = cdist(frames, centroids(output, "w-8").astype(np.float64)).argmin(1)
    assert tokens(output, "w-8")["new.wav"] == wanted.tolist()


def test_tokens_named_from_standing_vectors_alone_are_in_the_ledger(
    done: tuple[Path, Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With every shard drawn for the fit, nothing is left to encode afterwards."""
    without_ray(monkeypatch)
    folder, _, settings = done
    only = {**settings, "encoders": {"t": settings["encoders"]["t"]}}
    only["codebooks"] = {"t-4": settings["codebooks"]["t-4"]}
    assert embed(folder / "audio", tmp_path / "out", **only).exit_code == 0
    assert list(verify(str(tmp_path / "out"))) == []


def test_the_recipe_of_128_clusters_on_128_clips_is_one_job_file(
    model: Path, tmp_path: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a notebook does it: transformers on every clip, scikit-learn on all frames at once."""
    without_ray(monkeypatch)
    names = [f"{i:03d}.wav" for i in range(128)]
    write(tmp_path / "clips", names, 0.7)
    table = "".join(f"{name},{'ab'[i % 2]}\n" for i, name in enumerate(names))
    (tmp_path / "annotations.csv").write_text(f"uri,call\n{table}")
    changed = {
        "input.uri": tmp_path / "clips",
        "input.manifest": tmp_path / "annotations.csv",
        "output": tmp_path / "out",
        "encoders.wav2vec2.model": model,
    }
    recipe = load_job(
        str(ROOT / "jobs/examples/wav2vec_tokens.yaml"),
        tuple(f"{key}={value}" for key, value in changed.items()),
    )
    assert run_job(recipe, lambda text: None).exit_code == 0
    frames = {name: frames_alone(model, tmp_path / "clips" / name, -1) for name in names}
    matrix = np.concatenate(list(frames.values())).astype(np.float64)
    centres = centroids(tmp_path / "out", "wav2vec2-128").astype(np.float64)
    assert tokens(tmp_path / "out", "wav2vec2-128") == {
        name: cdist(one.astype(np.float64), centres).argmin(1).tolist()
        for name, one in frames.items()
    }
    theirs = KMeans(128, n_init=1, random_state=0).fit(matrix).inertia_
    ours = (cdist(matrix, centres).min(1) ** 2).sum()
    assert ours < 1.02 * theirs


def test_one_segment_or_many_give_the_same_tokens(
    done: tuple[Path, Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, output, settings = done
    # The same codebooks, standing before the run; so every token is assigned while encoding.
    (tmp_path / "out").mkdir()
    (output / "codebooks").rename(tmp_path / "out" / "codebooks")
    try:
        cut = {**settings, "segment_s": 20, "shard_minutes": 0.3}
        assert embed(folder / "audio", tmp_path / "out", **cut).exit_code == 0
        for codebook in ("w-8", "t-4"):
            assert tokens(tmp_path / "out", codebook) == tokens(output, codebook)
    finally:
        (tmp_path / "out" / "codebooks").rename(output / "codebooks")
