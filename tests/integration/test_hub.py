"""Weights come from a hub on 127.0.0.1, through huggingface_hub's own download path."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from bioembed_ray.config import EncoderConfig
from bioembed_ray.encoders import registry
from bioembed_ray.encoders.weights import fetch, hub_checkpoint
from bioembed_ray.errors import WeightsError
from tests.hub import Hub, loopback_hub, point_at
from tests.unit.encoder_fixtures import beats_spec, reference, relative, sounds, write_model

ROOT = Path(__file__).parents[2]
REPO = "EarthSpeciesProject/tiny-beats"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with loopback_hub() as running:
        yield running


@pytest.fixture
def here(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    hub.use(monkeypatch, tmp_path / "cache")
    return hub


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def hub_yaml(tmp_path: Path) -> tuple[Path, Path]:
    """Write a tiny model whose YAML names the hub, as avex's own YAML files do."""
    config, weights = write_model(tmp_path, beats_spec())
    text = yaml.safe_load(config.read_text())
    text["checkpoint_path"] = f"hf://{REPO}/tiny.safetensors"
    config.write_text(yaml.safe_dump(text))
    return config, weights


def test_a_model_is_downloaded_and_gives_what_avex_gives(here: Hub, tmp_path: Path) -> None:
    config, weights = hub_yaml(tmp_path)
    commit = here.publish(REPO, {"tiny.safetensors": weights, "label_map.json": b"{}"})
    settings = EncoderConfig(model=str(config))
    pinned = registry.checkpoint("beats", settings)
    assert (pinned.kind, pinned.repo, pinned.commit) == ("hub", REPO, commit)
    assert pinned.files == ("tiny.safetensors",)
    assert not any("/resolve/" in line for line in here.log)
    encoder = registry.load("beats", settings, pinned, "cpu")
    windows = sounds(2, 16000)
    with torch.no_grad():
        assert (
            relative(encoder.embed(windows)[0], reference(config, weights)(windows).mean(1)) < 1e-6
        )
    assert sum(line.startswith("GET") and "/resolve/" in line for line in here.log) == 1
    here.log.clear()
    fetch(pinned)
    assert here.log == []


def test_a_registered_name_asks_for_its_own_repository(here: Hub) -> None:
    with pytest.raises(WeightsError) as caught:
        registry.checkpoint("beats", EncoderConfig(model="esp_aves2_sl_beats_all"))
    assert str(caught.value) == (
        "beats: esp_aves2_sl_beats_all: the hub has no repository "
        "EarthSpeciesProject/esp-aves2-sl-beats-all, or it is private; check the name, or set HF_TOKEN"
    )


def test_a_new_commit_is_seen_when_planned_and_old_pins_keep_their_files(here: Hub) -> None:
    first = here.publish("org/m", {"w.safetensors": b"one"}, branch="v1")
    here.publish("org/m", {"w.safetensors": b"one"})
    before = hub_checkpoint("org/m", None, ["w.safetensors"])
    later = here.publish("org/m", {"w.safetensors": b"two"})
    after = hub_checkpoint("org/m", None, ["w.safetensors"])
    assert after.commit == later
    assert after.digest != before.digest
    assert (fetch(before) / "w.safetensors").read_bytes() == b"one"
    assert (fetch(after) / "w.safetensors").read_bytes() == b"two"
    assert hub_checkpoint("org/m", "v1", ["w.safetensors"]).commit == first
    assert hub_checkpoint("org/m", first, ["w.safetensors"]).commit == first


def test_files_in_folders_and_globs(here: Hub) -> None:
    here.publish("org/m", {"sub/a.json": b"{}", "b.safetensors": b"x", "c.safetensors": b"y"})
    pinned = hub_checkpoint("org/m", None, ["sub/a.json", "*.safetensors", "*.bin"])
    assert pinned.files == ("b.safetensors", "c.safetensors", "sub/a.json")
    folder = fetch(pinned)
    assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.*")) == list(
        pinned.files
    )
    assert fetch(pinned, ["sub/a.json"]) == folder


def test_offline_the_cache_gives_the_same_pin(
    here: Hub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    commit = here.publish("org/m", {"w.safetensors": b"one", "config.json": b"{}"})
    pinned = hub_checkpoint("org/m", None, ["w.safetensors", "config.json"])
    fetch(pinned)
    offline(monkeypatch)
    here.log.clear()
    assert hub_checkpoint("org/m", None, ["w.safetensors", "config.json"]) == pinned
    assert hub_checkpoint("org/m", commit, ["w.safetensors", "config.json"]) == pinned
    assert here.log == []
    assert f"using commit {commit[:8]} of the cache" in caplog.text
    with pytest.raises(WeightsError, match="not in the cache and the hub is unreachable"):
        hub_checkpoint("org/m", "v2", ["w.safetensors"])


def test_a_cache_that_another_program_filled_gives_the_same_pin(
    here: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants, snapshot_download

    here.publish("org/m", {"w.safetensors": b"one", "config.json": b"{}"})
    pinned = hub_checkpoint("org/m", None, ["w.safetensors", "config.json"])
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "other"))
    snapshot_download("org/m")
    offline(monkeypatch)
    assert hub_checkpoint("org/m", None, ["w.safetensors", "config.json"]) == pinned


def test_offline_a_cache_with_half_the_files_is_not_enough(
    here: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    here.publish("org/m", {"w.safetensors": b"one", "config.json": b"{}"})
    fetch(hub_checkpoint("org/m", None, ["config.json"]))
    offline(monkeypatch)
    with pytest.raises(WeightsError, match="not in the cache"):
        hub_checkpoint("org/m", None, ["*.json", "*.safetensors"])


def test_an_unreachable_hub_is_one_quick_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Nothing listens on the discard port.
    point_at(monkeypatch, "http://127.0.0.1:9", tmp_path)
    start = time.monotonic()
    with pytest.raises(WeightsError) as caught:
        registry.checkpoint("beats", EncoderConfig(model="esp_aves2_sl_beats_all"))
    assert time.monotonic() - start < 3
    assert str(caught.value) == (
        "beats: esp_aves2_sl_beats_all: weights are not in the cache and the hub is unreachable; "
        "set weights: /path/to/model, or weights: random for a dry run"
    )


def test_a_hub_that_is_down_counts_as_unreachable(here: Hub) -> None:
    here.publish("org/m", {"w.safetensors": b"one"})
    here.down = True
    with pytest.raises(WeightsError, match="the hub is unreachable"):
        hub_checkpoint("org/m", None, ["w.safetensors"])
    assert len(here.log) == 1


@pytest.mark.parametrize(
    ("repo", "revision", "file", "message"),
    [
        ("org/none", None, "w.safetensors", "the hub has no repository org/none, or it is private"),
        ("org/gated", None, "w.safetensors", "org/gated is gated; accept its terms on the hub"),
        ("org/m", "v9", "w.safetensors", "org/m has no revision 'v9'; use a branch"),
        ("org/m", None, "x.safetensors", r"has no x.safetensors; it has w.safetensors"),
        ("org/m", None, "*.onnx", r"has no \*.onnx; it has w.safetensors"),
        ("a/b/c", None, "w.safetensors", "'a/b/c' is no hub name"),
    ],
)
def test_what_the_hub_refuses_is_one_line(
    here: Hub, repo: str, revision: str | None, file: str, message: str
) -> None:
    here.publish("org/m", {"w.safetensors": b"one"})
    here.publish("org/gated", {"w.safetensors": b"one"}, gated=True)
    with pytest.raises(WeightsError, match=message) as caught:
        hub_checkpoint(repo, revision, [file])
    assert "\n" not in str(caught.value)


def test_a_download_that_no_longer_works_is_one_line(
    here: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    here.publish("org/m", {"w.safetensors": b"one"})
    pinned = hub_checkpoint("org/m", None, ["w.safetensors"])
    offline(monkeypatch)
    with pytest.raises(WeightsError, match=r"org/m: w.safetensors is not in the cache and the hub"):
        fetch(pinned)


def test_an_empty_file_on_the_hub_is_refused(here: Hub, tmp_path: Path) -> None:
    from safetensors.torch import save

    config, _ = hub_yaml(tmp_path)
    here.publish(REPO, {"tiny.safetensors": save({})})
    settings = EncoderConfig(model=str(config))
    with pytest.raises(WeightsError, match="the file holds no tensors"):
        registry.load("b", settings, registry.checkpoint("b", settings), "cpu")


def test_another_process_resolves_from_its_environment(hub: Hub, tmp_path: Path) -> None:
    commit = hub.publish("org/m", {"w.safetensors": b"one"})
    code = (
        "from bioembed_ray.encoders.weights import fetch, hub_checkpoint\n"
        "pinned = hub_checkpoint('org/m', None, ['w.safetensors'])\n"
        "print(pinned.commit, (fetch(pinned) / 'w.safetensors').read_text())\n"
    )
    for offline_mode in ("0", "1"):
        run = subprocess.run(
            [sys.executable, "-c", code],
            env=hub.environment(tmp_path / "cache", HF_HUB_OFFLINE=offline_mode),
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert run.stdout.split() == [commit, "one"]
