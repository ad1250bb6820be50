"""The VQ-VAE against the textbook quantiser, on the same held-out patches, in one process.

The peer is what a first notebook does: the same convolutions, codes begun as small random numbers
and moved by gradients alone, no revival; once on decibels as they are, once on standardised ones.

    python benchmarks/vqvae.py [--audio DIR] [--min-rate 44100] [--steps 600] [--threads 2]

Without --audio it makes the demo's archive. A recording is what libsndfile opens; 1 s patches at
48 kHz, every tenth of them held out. --min-rate leaves out recordings of lower rates, whose upper
bands are digital silence.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
import torch.nn.functional as F
from torch import nn

from bioembed_ray.codebooks import blocks
from bioembed_ray.codebooks.blocks import SampleInfo
from bioembed_ray.codebooks.card import usage
from bioembed_ray.codebooks.frame_parts import Rows
from bioembed_ray.config import TrainingConfig
from bioembed_ray.synthetic import write_archive
from bioembed_ray.vqvae.course import Place, run_course
from bioembed_ray.vqvae.learning import batch_rows
from bioembed_ray.vqvae.material import Material, group_sums, statistics
from bioembed_ray.vqvae.mel import filter_bank, log_mel, mel_rule

RATE_HZ = 48_000
BATCH = 16


def patches_of(folder: Path, training: TrainingConfig, min_rate: int) -> np.ndarray:
    """Return the log-mel patches of the recordings in a folder, (N, T · F) decibels."""
    rule = mel_rule(training, RATE_HZ)
    bank = filter_bank(rule)
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            wave, rate = soundfile.read(path, dtype="float32", always_2d=True)
        except (soundfile.LibsndfileError, OSError):
            continue
        if rate < min_rate:
            continue
        mono = wave.mean(axis=1)
        mono = mono if rate == RATE_HZ else soxr.resample(mono, rate, RATE_HZ)
        n = len(mono) // RATE_HZ
        for first in range(0, n, 64):
            part = mono[first * RATE_HZ : min(n, first + 64) * RATE_HZ].reshape(-1, RATE_HZ)
            found.append(log_mel(torch.from_numpy(part), rule, bank).flatten(1).numpy())
    return np.concatenate(found)


def put_sample(patches: np.ndarray, folder: str, n_mels: int) -> Material:
    """Put patches where training reads them, every tenth held out."""
    order = np.random.default_rng(0).permutation(len(patches))
    n_held = max(1, len(order) // 10)
    for name, rows in (
        (blocks.HELD_OUT, order[:n_held]),
        (blocks.group_name(0), order[n_held:]),
    ):
        n = len(rows)
        zeros = np.zeros(n, np.int16)
        put = Rows(
            ("",), zeros.astype(np.int64), zeros, rows, zeros, rows.astype(np.uint64), patches[rows]
        )
        blocks.put_rows(folder, name, put)
    n_rows = len(order) - n_held
    info = SampleInfo(n_rows, n_held, patches.shape[1], n_rows, "", "", len(order), {})
    mean, std = statistics([group_sums(folder, 0)])
    return Material(folder, info, mean, std, patches.shape[1] // n_mels, n_mels)


class Textbook(nn.Module):
    """Convolutions and a quantiser whose codes are moved by gradients alone."""

    def __init__(self, hidden: int = 128, n_codes: int = 256) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, hidden, 3, 2, 1), nn.ReLU(), nn.Conv2d(hidden, hidden, 3, 2, 1), nn.ReLU()
        )
        self.codes = nn.Parameter(torch.empty(n_codes, hidden).uniform_(-1 / n_codes, 1 / n_codes))
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(hidden, hidden, 4, 2, 1),
            nn.ReLU(),
            nn.ConvTranspose2d(hidden, 1, 4, 2, 1),
        )

    def forward(self, patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return reconstruction, codes and the quantiser's loss."""
        latents = self.encoder(patches[:, None]).permute(0, 2, 3, 1)
        flat = latents.flatten(0, 2)
        codes = torch.cdist(flat.detach(), self.codes.detach()).argmin(1)
        chosen = self.codes[codes].reshape(latents.shape)
        loss = F.mse_loss(chosen, latents.detach()) + 0.25 * F.mse_loss(latents, chosen.detach())
        passed = latents + (chosen - latents).detach()
        return self.decoder(passed.permute(0, 3, 1, 2))[:, 0], codes, loss


def train_textbook(train: torch.Tensor, held: torch.Tensor, steps: int) -> dict[str, float]:
    """Return held-out error as a share of the variance, codes used and perplexity."""
    torch.manual_seed(0)
    model = Textbook()
    optimiser = torch.optim.Adam(model.parameters(), 1e-3)
    for step in range(steps):
        batch = train[batch_rows(len(train), BATCH, step, 0)]
        decoded, _, loss = model(batch)
        optimiser.zero_grad()
        (F.mse_loss(decoded, batch) + loss).backward()
        optimiser.step()
    with torch.inference_mode():
        outputs = [model(part) for part in held.split(BATCH)]
    error = F.mse_loss(torch.cat([decoded for decoded, _, _ in outputs]), held).item()
    codes = torch.cat([found for _, found, _ in outputs])
    figures = usage(np.bincount(codes.numpy(), minlength=256))
    return {
        "held_out_error": error / train.var().item(),
        "codes_used": figures["used"],
        "perplexity": figures["perplexity"],
    }


def main() -> None:
    """Train all three and print what held-out patches say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--audio", type=Path)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--mels", type=int, default=128)
    parser.add_argument("--min-rate", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    training = TrainingConfig(
        n_mels=options.mels,
        max_steps=options.steps,
        batch_size=BATCH,
        evaluate_steps=100,
        patience=99,
    )
    with tempfile.TemporaryDirectory() as folder:
        audio = options.audio
        if audio is None:
            audio = Path(folder) / "audio"
            write_archive(audio)
        patches = patches_of(audio, training, options.min_rate)
        material = put_sample(patches, f"{folder}/sample", options.mels)
        print(f"{len(patches)} patches of 1 s, {material.info.n_held} held out")
        print(
            "quantiser                     held-out error  codes of 256  perplexity  CPU s",
            flush=True,
        )
        started = time.process_time()
        looks: list[dict[str, float]] = []

        def tell(look: dict[str, float]) -> None:
            looks.append(look)
            line = f"  ours at step {look['step']}"
            report(line, look, time.process_time() - started)

        run_course(training, material, Place(), f"{folder}/state.pt", lambda model: model, tell)
        rows = {
            name: torch.from_numpy(blocks.read_vectors(material.folder, name)).reshape(
                -1, material.n_frames, material.n_mels
            )
            for name in (blocks.group_name(0), blocks.HELD_OUT)
        }
        for name, mean, std in (
            ("textbook, decibels", 0.0, 1.0),
            ("textbook, standardised", material.mean, material.std),
        ):
            train, held = ((one - mean) / std for one in rows.values())
            started = time.process_time()
            found = train_textbook(train, held, options.steps)
            report(name, found, time.process_time() - started)


def report(name: str, look: dict[str, float], seconds: float) -> None:
    print(
        f"{name:<28} {look['held_out_error']:>15.4f} {look['codes_used']:>13.0f} "
        f"{look['perplexity']:>11.1f} {seconds:>6.0f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
