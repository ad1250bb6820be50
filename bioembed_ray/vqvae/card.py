"""What is said of a trained VQ-VAE: its card, and a picture of what its codes keep."""

from __future__ import annotations

import io
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bioembed_ray.codebooks import blocks
from bioembed_ray.codebooks.card import Codebook, usage, verdict
from bioembed_ray.codebooks.frame_parts import POSITIONS_PER_S, Rows
from bioembed_ray.codebooks.nearest import Codes, assign, make_codes
from bioembed_ray.config import TrainingConfig
from bioembed_ray.progress import duration
from bioembed_ray.vqvae.course import EVALUATE_BATCH, State
from bioembed_ray.vqvae.material import Material, Patches, read_share
from bioembed_ray.vqvae.mel import SILENCE, STEP
from bioembed_ray.vqvae.model_file import About
from bioembed_ray.vqvae.network import PatchDecoder, PatchEncoder, Size

PACKAGES = ("bioembed_ray", "numpy", "torch", "ray", "vector-quantize-pytorch", "torchaudio")
# Patches of the training sample that usage is counted on, and patches in the picture.
USAGE_PATCHES, PICTURED = 2000, 6
# Above this share of digital silence, perplexity says more of the recordings than of the codes.
MUCH_SILENCE = 0.2
NOTES = {
    "error": "mean squared difference of standardised log-mel values: 1 is the training sample's variance",
    "perplexity": "2^entropy: as many equally frequent codes would be as uncertain",
    "silent_share": "mel values at the floor, such as bands above a recording's own rate; a lower rate_hz leaves those out",
    "grid": "codes of a whole patch, time steps by bands; tokens are stored time-major",
}


@dataclass(frozen=True, slots=True)
class Trained:
    """A trained model, whole.

    Attributes:
        about: What it is.
        encoder, decoder: Its networks, in eval mode.
        codebook: Its codes.
    """

    about: About
    encoder: PatchEncoder
    decoder: PatchDecoder
    codebook: Codebook

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the weights under the names they are saved by."""
        parts = (("encoder", self.encoder), ("decoder", self.decoder))
        return {
            f"{name}.{key}": tensor
            for name, network in parts
            for key, tensor in network.state_dict().items()
        }


def restore(about: About, tensors: Mapping[str, torch.Tensor], codebook: Codebook) -> Trained:
    """Return the networks with the weights of a state or of a model's file."""
    size = Size(about.hidden, about.dim)
    encoder, decoder = PatchEncoder(size), PatchDecoder(size)
    for name, network in (("encoder", encoder), ("decoder", decoder)):
        own = {
            key.removeprefix(f"{name}."): tensor
            for key, tensor in tensors.items()
            if key.startswith(f"{name}.")
        }
        network.load_state_dict(own)
        network.eval()
    return Trained(about, encoder, decoder, codebook)


def through_codes(
    trained: Trained, codes: Codes, patches: torch.Tensor
) -> tuple[torch.Tensor, npt.NDArray[np.int64]]:
    """Return what codes keep of standardised patches (B, T, F), and the codes (B, T/4, F/4)."""
    with torch.inference_mode():
        latents = trained.encoder(patches)
        labels, _ = assign(latents.flatten(0, 2), codes)
        kept = torch.from_numpy(trained.codebook.centroids[labels]).reshape(latents.shape)
        decoded = trained.decoder(kept)[:, : patches.shape[1], : patches.shape[2]]
    return decoded, labels.reshape(latents.shape[:3])


def make_card(
    trained: Trained,
    material: Material,
    training: TrainingConfig,
    state: State,
    how: Mapping[str, Any],
) -> tuple[dict[str, Any], bytes]:
    """Return the card of a trained model, and its picture as PNG."""
    codes = make_codes(trained.codebook.centroids, "euclidean")
    names = [blocks.group_name(group) for group in range(material.info.n_groups)]
    some: list[Patches] = []
    for name in names:
        some.append(read_share(material, [name], 0, 1))
        if sum(map(len, some)) >= USAGE_PATCHES:
            break
    fitted_on = np.concatenate(some)[:USAGE_PATCHES]
    fitted_error, fitted = _measure(trained, codes, fitted_on)
    silent = silent_share(fitted_on, material)
    held = read_share(material, [blocks.HELD_OUT], 0, 1)
    held_error, held_counts = _measure(trained, codes, held)
    figures = usage(fitted)
    grid = [-(-material.n_frames // STEP), -(-material.n_mels // STEP)]
    book = trained.codebook
    card = {
        "verdict": f"{verdict(figures)}; held-out error {held_error:.4f} of the variance"
        + (f"; {silent:.0%} of the mel values are digital silence" * (silent > MUCH_SILENCE)),
        "name": book.name,
        "version": book.version,
        "encoder": book.encoder,
        "clusters": len(book.centroids),
        "dim": book.centroids.shape[1],
        "metric": book.metric,
        "grid": grid,
        "front_end": {
            **asdict(trained.about.mel),
            "patch_s": trained.about.patch_s,
            "mean_db": trained.about.mean,
            "std_db": trained.about.std,
            "silent_share": silent,
        },
        "training": {
            **training.model_dump(mode="json"),
            **how,
            "ended": state.ended,
            "steps": state.step,
            "parameters": sum(tensor.numel() for tensor in trained.tensors().values()),
        },
        "sampled": {
            "seen": material.info.n_seen,
            "fitted": material.info.n_rows,
            "held_out": material.info.n_held,
            "digest": material.info.digest,
            "by_group": material.info.by_group,
        },
        "error": fitted_error,
        "usage": figures,
        "counts": fitted.tolist(),
        "held_out": {"error": held_error, **usage(held_counts)},
        "curve": {key: [entry[key] for entry in state.curve] for key in state.curve[0]},
        "packages": {name: version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "notes": NOTES,
    }
    places = blocks.read_places(material.folder, blocks.HELD_OUT)
    return card, _picture(trained, codes, material, held[:PICTURED], places)


def _measure(
    trained: Trained, codes: Codes, patches: Patches
) -> tuple[float, npt.NDArray[np.int64]]:
    counts = np.zeros(len(trained.codebook.centroids), np.int64)
    squares = 0.0
    for first in range(0, len(patches), EVALUATE_BATCH):
        batch = torch.from_numpy(patches[first : first + EVALUATE_BATCH]).float()
        decoded, labels = through_codes(trained, codes, batch)
        squares += float((decoded - batch).double().square().sum())
        counts += np.bincount(labels.reshape(-1), minlength=len(counts))
    return squares / max(1, patches.size), counts


def silent_share(patches: Patches, material: Material) -> float:
    """Return the share of mel values at the floor, where there was no sound at all."""
    # Half a decibel above the floor, since patches are float16.
    floor = (10 * np.log10(SILENCE) + 0.5 - material.mean) / material.std
    return float((patches.astype(np.float32) < floor).mean())


def _picture(
    trained: Trained, codes: Codes, material: Material, patches: Patches, places: Rows
) -> bytes:
    """Return held-out patches above what their codes keep of them, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    batch = torch.from_numpy(patches).float()
    decoded, _ = through_codes(trained, codes, batch)
    figure = Figure(figsize=(2.2 * len(batch) + 1, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(batch), squeeze=False, sharex=True, sharey=True)
    rule, patch_s = trained.about.mel, trained.about.patch_s
    for column, (original, kept) in enumerate(zip(batch, decoded, strict=True)):
        low, high = _decibels(original, material).aminmax()
        for row, one in enumerate((original, kept)):
            image = axes[row][column].imshow(
                _decibels(one, material).T.numpy(),
                origin="lower",
                aspect="auto",
                extent=(0, patch_s, 0, rule.n_mels),
                vmin=float(low),
                vmax=float(high),
                cmap="magma",
            )
        error = float((original - kept).square().mean())
        axes[0][column].set_title(_title(places, column), fontsize=7)
        axes[1][column].set_title(f"from codes, error {error:.3f}", fontsize=7)
        axes[1][column].set_xlabel("seconds")
        figure.colorbar(image, ax=axes[:, column], location="bottom", label="dB", shrink=0.8)
    axes[0][0].set_ylabel("mel band")
    axes[1][0].set_ylabel("mel band")
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=120)
    return sink.getvalue()


def _decibels(patch: torch.Tensor, material: Material) -> torch.Tensor:
    return patch * material.std + material.mean


def _title(places: Rows, row: int) -> str:
    name = places.names[int(places.recording[row])]
    shown = name if len(name) <= 32 else f"…{name[-31:]}"
    return f"{shown}\n{places.position[row] / POSITIONS_PER_S:g} s"


def curve_line(label: str, entry: Mapping[str, float], training: TrainingConfig) -> str:
    """Return one look as a line of progress."""
    rate = entry["patches_per_s"]
    left = (training.max_steps - entry["step"]) * training.batch_size / rate
    return (
        f"{label}: step {entry['step']:.0f} of at most {training.max_steps}, error {entry['error']:.4f}, "
        f"held-out {entry['held_out_error']:.4f} of the variance, {entry['codes_used']:.0f} of "
        f"{training.codes} codes, perplexity {entry['perplexity']:.1f}, {rate:,.0f} patches/s, "
        f"at most {duration(left)} left"
    )
