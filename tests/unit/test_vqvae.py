"""The VQ-VAE's front end, networks, training and files, against librosa, plain torch and scikit-learn's kind of sums."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bioembed_ray import apply
from bioembed_ray.audio.spans import Track
from bioembed_ray.codebooks import blocks
from bioembed_ray.codebooks.blocks import SampleInfo
from bioembed_ray.codebooks.card import Codebook
from bioembed_ray.codebooks.frame_parts import Rows
from bioembed_ray.config import EncoderConfig, LocalWeights, RandomWeights, TrainingConfig
from bioembed_ray.encode import encode
from bioembed_ray.encoders import registry
from bioembed_ray.errors import BioembedError, ConfigError, InputError, WeightsError
from bioembed_ray.vqvae.card import make_card, restore, silent_share
from bioembed_ray.vqvae.course import (
    Place,
    read_state,
    run_course,
    state_key,
)
from bioembed_ray.vqvae.learning import VqVae, batch_rows
from bioembed_ray.vqvae.material import Material, group_sums, read_share, statistics
from bioembed_ray.vqvae.mel import filter_bank, log_mel, mel_rule
from bioembed_ray.vqvae.model_file import About, model_bytes
from bioembed_ray.vqvae.network import PatchDecoder, PatchEncoder, Size, filled_up
from bioembed_ray.vqvae.wanted import Training
from bioembed_ray.vqvae_training import _as_ours, plan_workers
from bioembed_ray.windows import Clock, WindowRule

RATE_HZ = 8000
TINY = TrainingConfig(
    n_mels=16, hidden=8, dim=8, codes=16, batch_size=8, max_steps=30, evaluate_steps=10, patience=9
)


def chirps(n_samples: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    t = np.arange(n_samples) / RATE_HZ
    pitch = rng.uniform(300, 3000)
    return (
        0.3 * np.sin(2 * np.pi * pitch * t * (1 + t)) + 0.01 * rng.standard_normal(n_samples)
    ).astype(np.float32)


@pytest.mark.parametrize(
    ("rate_hz", "changed", "seconds"),
    [
        (48_000, {}, 1.0),
        (48_000, {}, 0.337),
        (16_000, {"n_mels": 40, "n_fft": 512, "hop": 160, "fmin_hz": 50.0, "fmax_hz": 7000.0}, 2.0),
        (192_000, {"n_mels": 64, "hop": 1000}, 0.5),
        (44_100, {"hop": 512}, 1.0),
    ],
)
def test_log_mel_is_librosas(rate_hz: int, changed: dict[str, Any], seconds: float) -> None:
    rule = mel_rule(TrainingConfig(**changed), rate_hz)
    rng = np.random.default_rng(1)
    waves = rng.standard_normal((2, int(rate_hz * seconds))).astype(np.float32) * [[0.3], [0.001]]
    waves = waves.astype(np.float32)
    found = log_mel(torch.from_numpy(waves), rule, filter_bank(rule)).numpy()
    power = librosa.feature.melspectrogram(
        y=waves,
        sr=rate_hz,
        n_fft=rule.n_fft,
        hop_length=rule.hop,
        n_mels=rule.n_mels,
        fmin=rule.fmin_hz,
        fmax=rule.fmax_hz,
        center=True,
        pad_mode="reflect",
    )
    wanted = librosa.power_to_db(power, ref=1.0, amin=1e-10, top_db=None)
    n_frames = waves.shape[1] // rule.hop
    assert found.shape == (2, n_frames, rule.n_mels)
    np.testing.assert_allclose(found, wanted[:, :, :n_frames].transpose(0, 2, 1), atol=2e-3)


def test_silence_clipping_and_shortest_stretches_have_finite_decibels() -> None:
    rule = mel_rule(TINY, RATE_HZ)
    bank = filter_bank(rule)
    assert (log_mel(torch.zeros(1, RATE_HZ), rule, bank) == -100).all()
    square = torch.sign(torch.sin(torch.arange(RATE_HZ)))[None] * 32
    assert torch.isfinite(log_mel(square, rule, bank)).all()
    for n_samples in (rule.hop, rule.hop + 1, rule.n_fft // 2, rule.n_fft // 2 + 1):
        found = log_mel(torch.ones(3, n_samples), rule, bank)
        assert found.shape == (3, n_samples // rule.hop, 16)
        assert torch.isfinite(found).all()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"n_mels": 30}, "multiple of 4"),
        ({"n_mels": 512, "n_fft": 256}, "narrower than a bin"),
        ({"fmin_hz": 5000.0}, "fmax_hz"),
        ({"fmax_hz": 24_000.0}, "half of"),
        ({"hop": 9000}, "patch_s"),
    ],
)
def test_bands_and_lengths_that_cannot_be_are_named(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        filter_bank(mel_rule(TrainingConfig(**changed), RATE_HZ))


@pytest.mark.parametrize(("n_frames", "n_bands"), [(1, 4), (3, 5), (8, 8), (93, 16), (375, 7)])
def test_any_patch_size_goes_through_and_comes_back(n_frames: int, n_bands: int) -> None:
    torch.manual_seed(0)
    patches = torch.randn(2, n_frames, n_bands)
    filled = filled_up(patches)
    assert torch.equal(filled[:, :n_frames, :n_bands], patches)
    assert (filled[:, n_frames:, :n_bands] == patches[:, -1:]).all()
    latents = PatchEncoder(Size(8, 4))(patches)
    assert latents.shape == (2, -(-n_frames // 4), -(-n_bands // 4), 4)
    model = VqVae(TINY, 100, is_shared=False)
    decoded, codes, _ = model(patches)
    assert decoded.shape == patches.shape
    assert codes.shape == latents.shape[:3]


@given(
    n_rows=st.integers(1, 60),
    batch=st.integers(1, 70),
    epoch=st.integers(0, 4),
    seed=st.integers(0, 3),
)
@settings(max_examples=60, deadline=None)
def test_an_epoch_has_every_row_at_most_once_and_all_that_fill_batches(
    n_rows: int, batch: int, epoch: int, seed: int
) -> None:
    size = min(batch, n_rows)
    per_epoch = n_rows // size
    steps = range(epoch * per_epoch, (epoch + 1) * per_epoch)
    rows = np.concatenate([batch_rows(n_rows, batch, step, seed) for step in steps])
    assert len(rows) == len(set(rows.tolist())) == per_epoch * size
    assert set(rows.tolist()) <= set(range(n_rows))


def sample(folder: Path, n_rows: int = 96, n_held: int = 24, group_rows: int = 40) -> Material:
    """Put a sample of mel patches of chirps in a folder, as `gather_sample` leaves it."""
    rule = mel_rule(TINY, RATE_HZ)
    waves = torch.from_numpy(np.stack([chirps(RATE_HZ, seed) for seed in range(n_rows + n_held)]))
    mels = log_mel(waves, rule, filter_bank(rule)).numpy()
    flat = mels.reshape(len(mels), -1)

    def rows(part: slice) -> Rows:
        vectors = flat[part]
        count = len(vectors)
        index = np.arange(count)
        return Rows(
            ("a.wav",),
            np.zeros(count, np.int64),
            np.zeros(count, np.int16),
            index * 1_000_000,
            np.zeros(count, np.int16),
            index.astype(np.uint64),
            vectors,
        )

    info = SampleInfo(n_rows, n_held, flat.shape[1], group_rows, "d", "r", n_rows + n_held, {})
    for group in range(info.n_groups):
        first = group * group_rows
        blocks.put_rows(
            str(folder),
            blocks.group_name(group),
            rows(slice(first, min(first + group_rows, n_rows))),
        )
    blocks.put_rows(str(folder), blocks.HELD_OUT, rows(slice(n_rows, None)))
    mean, std = statistics([group_sums(str(folder), group) for group in range(info.n_groups)])
    assert mean == pytest.approx(flat[:n_rows].mean(dtype=np.float64))
    assert std == pytest.approx(flat[:n_rows].std(dtype=np.float64), rel=1e-6)
    return Material(str(folder), info, mean, std, mels.shape[1], mels.shape[2])


def test_shares_of_workers_are_the_sample_once(tmp_path: Path) -> None:
    material = sample(tmp_path)
    names = [blocks.group_name(group) for group in range(material.info.n_groups)]
    whole = read_share(material, names, 0, 1)
    assert whole.shape == (96, material.n_frames, 16)
    for n_workers in (2, 3, 5):
        shares = [read_share(material, names, rank, n_workers) for rank in range(n_workers)]
        for rank, share in enumerate(shares):
            np.testing.assert_array_equal(share, whole[rank::n_workers])


def course(
    material: Material, uri: str, training: TrainingConfig = TINY, stop_at: int | None = None
) -> list[dict[str, float]]:
    looks: list[dict[str, float]] = []

    def tell(entry: dict[str, float]) -> None:
        assert entry.pop("patches_per_s") > 0
        looks.append(entry)
        if stop_at is not None and len(looks) == stop_at:
            raise InterruptedError

    run_course(training, material, Place(), uri, lambda model: model, tell)
    return looks


def test_training_is_repeatable_and_goes_on_from_any_look_with_the_same_bits(
    tmp_path: Path,
) -> None:
    material = sample(tmp_path / "s")
    key = state_key(TINY, material)
    first = course(material, str(tmp_path / "a.pt"))
    assert course(material, str(tmp_path / "b.pt")) == first
    assert [entry["step"] for entry in first] == [10, 20, 30]
    assert first[-1]["held_out_error"] < first[0]["held_out_error"]
    for stop_at in (1, 2):
        uri = str(tmp_path / f"c{stop_at}.pt")
        with pytest.raises(InterruptedError):
            course(material, uri, stop_at=stop_at)
        assert course(material, uri) == first[stop_at:]
        whole, resumed = read_state(str(tmp_path / "a.pt"), key), read_state(uri, key)
        assert whole is not None and resumed is not None
        assert all(torch.equal(whole.model[name], resumed.model[name]) for name in whole.model)
        assert (resumed.step, resumed.ended, resumed.curve) == (30, "max_steps", first)
    # A finished state is left alone; one of another training is not taken up.
    assert course(material, str(tmp_path / "a.pt")) == []
    assert read_state(str(tmp_path / "a.pt"), "other") is None
    (tmp_path / "broken.pt").write_bytes(b"not a state")
    assert read_state(str(tmp_path / "broken.pt"), key) is None


def test_training_learns_to_keep_patches_it_never_saw_with_all_its_codes(tmp_path: Path) -> None:
    material = sample(tmp_path / "s", n_rows=200, n_held=40, group_rows=100)
    training = TINY.model_copy(update={"hidden": 32, "max_steps": 300, "evaluate_steps": 100})
    last = course(material, str(tmp_path / "a.pt"), training)[-1]
    assert last["held_out_error"] < 0.35
    assert last["codes_used"] >= 14
    assert last["perplexity"] > 8


def test_training_stops_where_nothing_gets_better(tmp_path: Path) -> None:
    material = sample(tmp_path / "s")
    still = TINY.model_copy(
        update={"learning_rate": 1e-9, "max_steps": 500, "patience": 2, "evaluate_steps": 2}
    )
    looks = course(material, str(tmp_path / "a.pt"), still)
    assert looks[-1]["step"] < 60
    state = read_state(str(tmp_path / "a.pt"), state_key(still, material))
    assert state is not None and state.ended is not None and "2 looks" in state.ended


def test_silence_alone_cannot_be_trained_on_and_bad_values_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="alike"):
        statistics([(100, -10_000.0, 1_000_000.0)])
    rows = Rows(
        ("a",),
        np.zeros(1, np.int64),
        np.zeros(1, np.int16),
        np.zeros(1, np.int64),
        np.zeros(1, np.int16),
        np.zeros(1, np.uint64),
        np.full((1, 4), np.nan, np.float32),
    )
    blocks.put_rows(str(tmp_path), blocks.group_name(0), rows)
    with pytest.raises(InputError, match="NaN"):
        group_sums(str(tmp_path), 0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], bytes]:
    """A tiny model, trained, and put in a folder as the run puts it."""
    folder = tmp_path_factory.mktemp("model")
    material = sample(folder / "sample")
    course(material, str(folder / "state.pt"))
    state = read_state(str(folder / "state.pt"), state_key(TINY, material))
    assert state is not None
    about = About(mel_rule(TINY, RATE_HZ), 1, material.mean, material.std, 8, 8, 16)
    centroids = state.best["quantiser._codebook.embed"][0].numpy()
    model = restore(about, state.best, Codebook("v", "1", "v", "1", "euclidean", centroids))
    card, picture = make_card(model, material, TINY, state, {})
    (folder / "model.safetensors").write_bytes(model_bytes(about, model.tensors()))
    np.save(folder / "centroids.npy", centroids)
    return folder, card, picture


def test_the_card_says_what_the_codes_keep_of_held_out_patches(
    trained: tuple[Path, dict[str, Any], bytes],
) -> None:
    folder, card, picture = trained
    model = VqVae(TINY, 100, is_shared=False)
    state = torch.load(folder / "state.pt", weights_only=True)
    model.load_state_dict(state["best"])
    model.eval()
    rows = blocks.read_vectors(str(folder / "sample"), blocks.HELD_OUT)
    patches = torch.from_numpy((rows - card["front_end"]["mean_db"]) / card["front_end"]["std_db"])
    patches = patches.reshape(len(rows), -1, 16).half().float()
    with torch.inference_mode():
        decoded, codes, _ = model(patches)
    assert card["held_out"]["error"] == pytest.approx(F.mse_loss(decoded, patches).item(), rel=1e-4)
    assert card["held_out"]["used"] == len(np.unique(codes))
    assert card["grid"] == [25, 4]
    assert json.loads(json.dumps(card))["clusters"] == 16
    with Image.open(io.BytesIO(picture)) as image:
        assert image.width > 800 and image.height > 400
        assert len(np.unique(np.asarray(image.convert("L")))) > 50


@pytest.mark.parametrize("share", [0.0, 0.375, 1.0])
def test_the_card_tells_silence_from_faint_sound(share: float) -> None:
    decibels = np.full((4, 8, 8), -98.5, np.float32)
    decibels.reshape(-1)[: round(share * decibels.size)] = -100.0
    info = SampleInfo(4, 0, 64, 4, "", "", 4, {})
    material = Material("", info, -65.0, 36.0, 8, 8)
    patches = ((decibels + 65.0) / 36.0).astype(np.float16)
    assert silent_share(patches, material) == pytest.approx(share)


def encoder(folder: Path, **changed: Any) -> Any:
    config = EncoderConfig(model="vqvae", weights=LocalWeights(path=str(folder)), **changed)
    return registry.load("v", config, registry.checkpoint("v", config), "cpu")


def test_latents_are_those_of_plain_convolutions_on_librosas_mel(
    trained: tuple[Path, dict[str, Any], bytes],
) -> None:
    folder, card, _ = trained
    from safetensors.torch import load_file

    weights = load_file(folder / "model.safetensors")
    wave = chirps(RATE_HZ, 77)
    found = encoder(folder).frames(torch.from_numpy(wave)[None])[0][0]
    front = card["front_end"]
    power = librosa.feature.melspectrogram(
        y=wave,
        sr=RATE_HZ,
        n_fft=front["n_fft"],
        hop_length=front["hop"],
        n_mels=16,
        pad_mode="reflect",
    )
    mel = librosa.power_to_db(power, ref=1.0, top_db=None)[:, :100].T
    x = torch.from_numpy((mel - front["mean_db"]) / front["std_db"]).float()[None, None]
    for layer, stride, padding in (("0", 2, 1), ("2", 2, 1), ("4", 1, 0)):
        x = F.conv2d(
            x,
            weights[f"encoder.layers.{layer}.weight"],
            weights[f"encoder.layers.{layer}.bias"],
            stride=stride,
            padding=padding,
        )
        x = x if layer == "4" else x.relu()
    x = x[0].permute(1, 2, 0)  # (T/4, F/4, D)
    wanted = (x - x.mean(-1, keepdim=True)) / (
        x.var(-1, unbiased=False, keepdim=True) + 1e-5
    ).sqrt()
    assert found.shape == (25 * 4, 8)
    torch.testing.assert_close(found, wanted.flatten(0, 1), atol=2e-3, rtol=1e-3)


def test_a_patchs_latents_do_not_depend_on_its_batch(
    trained: tuple[Path, dict[str, Any], bytes],
) -> None:
    loaded = encoder(trained[0])
    waves = torch.from_numpy(np.stack([chirps(RATE_HZ, seed) for seed in range(24)]))
    alone = torch.cat([loaded.frames(wave[None])[0] for wave in waves])
    for size in (2, 5, 8, 24):
        batched = torch.cat([loaded.frames(part)[0] for part in waves.split(size)])
        torch.testing.assert_close(batched, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("n_samples", [80, 81, 319, 320, 321, 400, 3999, 7999])
def test_a_short_patch_has_a_step_for_every_mel_frame(
    trained: tuple[Path, dict[str, Any], bytes], n_samples: int
) -> None:
    loaded = encoder(trained[0])
    grid = loaded.facts.grid
    assert (grid.stride, grid.receptive, grid.per_step) == (320, 80, 4)
    found = loaded.frames(torch.from_numpy(chirps(n_samples))[None])[0]
    n_steps = (n_samples - grid.receptive) // grid.stride + 1
    assert n_steps == -(-(n_samples // 80) // 4)
    assert found.shape == (1, n_steps * 4, 8)
    assert torch.isfinite(found).all()


def test_wrong_settings_and_damaged_models_are_one_line(
    trained: tuple[Path, dict[str, Any], bytes], tmp_path: Path
) -> None:
    folder = trained[0]
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"weights": RandomWeights()}, "trained on the archive"),
        ({"block_s": 20}, "training.patch_s"),
        ({"layer": 3}, "layer"),
        ({"weights": LocalWeights(path=str(folder)), "training": TINY}, "trained already"),
        ({"weights": LocalWeights(path=str(folder)), "rate_hz": 48_000}, "hears 8000 Hz only"),
    ]
    for changed, message in wrong:
        with pytest.raises(ConfigError, match=message):
            registry.describe("v", EncoderConfig(model="vqvae", **changed))
    with pytest.raises(ConfigError, match="only vqvae is"):
        registry.describe("b", EncoderConfig(model="esp_aves2_sl_beats_all", training=TINY))
    with pytest.raises(WeightsError, match="no such file"):
        registry.describe(
            "v", EncoderConfig(model="vqvae", weights=LocalWeights(path=str(tmp_path)))
        )
    (tmp_path / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    with pytest.raises(WeightsError, match="not a VQ-VAE"):
        registry.describe(
            "v", EncoderConfig(model="vqvae", weights=LocalWeights(path=str(tmp_path)))
        )
    body = (folder / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(body[:-40])
    with pytest.raises(BioembedError, match="damaged"):
        encoder(tmp_path)
    config = EncoderConfig(model="vqvae")
    checkpoint = registry.checkpoint("v", config)
    with pytest.raises(WeightsError, match="not trained yet"):
        registry.load("v", config, checkpoint, "cpu")


def test_the_decoder_gives_patches_of_multiples_of_four() -> None:
    assert PatchDecoder(Size(8, 4))(torch.zeros(2, 3, 5, 4)).shape == (2, 12, 20)


def test_a_last_patch_without_a_mel_frame_takes_no_window_with_it(
    trained: tuple[Path, dict[str, Any], bytes],
) -> None:
    network = encoder(trained[0])
    rule = WindowRule(RATE_HZ, RATE_HZ // 2, "pad")

    def windows(n_samples: int) -> apply.Windows:
        wave = chirps(2 * RATE_HZ + 30, 5)[:n_samples]
        place = apply.Place(0, Clock(RATE_HZ, RATE_HZ), 0, None, n_samples, Track(0, 0, wave))
        return encode(network, rule, [place], "cpu", 1, False)[0]

    whole, longer = windows(2 * RATE_HZ), windows(2 * RATE_HZ + 30)
    assert longer.start.tolist() == whole.start.tolist() == [0, 4000, 8000, 12_000]
    np.testing.assert_array_equal(longer.vectors[0], whole.vectors[0])
    assert [entry.start for entry in longer.lost] == [16_000]


@pytest.mark.parametrize(
    ("asked", "resources", "wanted"),
    [
        ("auto", {"CPU": 2.0}, (2, 0.0)),
        ("auto", {"CPU": 16.0}, (4, 0.0)),
        ("auto", {"CPU": 16.0, "GPU": 3.0}, (3, 1.0)),
        (2, {"CPU": 16.0, "GPU": 3.0}, (2, 1.0)),
        (0, {"CPU": 16.0, "GPU": 3.0}, (0, 0.0)),
    ],
)
def test_workers_are_as_many_as_asked_for_or_as_the_cluster_has_room_for(
    asked: int | str, resources: dict[str, float], wanted: tuple[int, float]
) -> None:
    config = TrainingConfig.model_validate({"workers": asked})
    training = Training("v", "1", "", config, mel_rule(config, 48_000))
    assert plan_workers(training, resources) == wanted


def test_more_workers_than_there_are_gpus_are_an_error_with_both_numbers() -> None:
    config = TrainingConfig(workers=5)
    training = Training("v", "1", "", config, mel_rule(config, 48_000))
    with pytest.raises(ConfigError, match=r"training.workers: got 5; the cluster has 3 GPUs"):
        plan_workers(training, {"CPU": 16.0, "GPU": 3.0})


def test_a_training_that_fails_says_why_in_one_line() -> None:
    of_worker = RuntimeError("a worker failed")
    of_worker.worker_failures = {0: RuntimeError("frame\n" * 200 + "ValueError: no room")}  # type: ignore[attr-defined]
    of_ray = RuntimeError("The actor died\n" + "its worker's exit detail\n" * 200)
    said = [str(_as_ours(error)) for error in (of_worker, of_ray)]
    assert said[0].endswith("ValueError: no room); run again to go on")
    assert said[1].startswith("training failed (The actor died its worker's")
    assert all("\n" not in line and len(line) < 360 for line in said)
