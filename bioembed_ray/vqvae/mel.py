"""The log-mel front end of the VQ-VAE: waveforms to decibels, batched, on their device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bioembed_ray.config import TrainingConfig
from bioembed_ray.errors import ConfigError

if TYPE_CHECKING:
    import torch

# Power below which there is silence: -100 dB, as librosa.power_to_db has it.
SILENCE = 1e-10
# Mel frames per step of the network, which halves time and frequency twice.
STEP = 4


@dataclass(frozen=True, slots=True)
class MelRule:
    """What decides a log-mel spectrogram.

    Attributes:
        rate_hz: Sampling rate.
        n_fft: Samples of the Hann window and of the transform.
        hop: Samples from one mel frame to the next.
        n_mels: F, a multiple of 4.
        fmin_hz, fmax_hz: Edges of the filter bank.
    """

    rate_hz: int
    n_fft: int
    hop: int
    n_mels: int
    fmin_hz: float
    fmax_hz: float


def mel_rule(training: TrainingConfig, rate_hz: int) -> MelRule:
    """Return the settled rule: a window of about 40 ms every 10 ms where nothing else is asked.

    Raises:
        ConfigError: bands or lengths that cannot be.
    """
    n_fft = training.n_fft or 1 << (rate_hz // 25 - 1).bit_length()
    hop = training.hop or max(1, rate_hz // 100)
    top = rate_hz / 2
    fmax_hz = top if training.fmax_hz is None else training.fmax_hz
    if training.n_mels % STEP:
        raise ConfigError(
            f"training.n_mels: got {training.n_mels}; use a multiple of {STEP}, since the network halves it twice"
        )
    if not training.fmin_hz < fmax_hz <= top:
        raise ConfigError(
            f"training.fmax_hz: got {fmax_hz:g}; use more than fmin_hz {training.fmin_hz:g} and at most {top:g}, half of {rate_hz} Hz"
        )
    if hop > training.patch_s * rate_hz or n_fft > training.patch_s * rate_hz:
        raise ConfigError(
            f"training.patch_s: got {training.patch_s}; a patch must hold a window of {n_fft} and a hop of {hop} samples"
        )
    return MelRule(rate_hz, n_fft, hop, training.n_mels, training.fmin_hz, fmax_hz)


def filter_bank(rule: MelRule) -> torch.Tensor:
    """Return the triangular filters, (n_fft // 2 + 1, F) float32: Slaney's scale and norm.

    The same as `librosa.filters.mel` (Slaney 1998, "Auditory Toolbox").

    Raises:
        ConfigError: a band narrower than a bin of the transform, which no sound would ever reach.
    """
    import warnings

    import torchaudio

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about empty bands: an error below
        bank: torch.Tensor = torchaudio.functional.melscale_fbanks(
            n_freqs=rule.n_fft // 2 + 1,
            f_min=rule.fmin_hz,
            f_max=rule.fmax_hz,
            n_mels=rule.n_mels,
            sample_rate=rule.rate_hz,
            norm="slaney",
            mel_scale="slaney",
        )
    n_empty = int((bank.max(dim=0).values == 0).sum())
    if n_empty:
        raise ConfigError(
            f"training.n_mels: got {rule.n_mels}; {n_empty} bands are narrower than a bin of n_fft {rule.n_fft} at {rule.rate_hz} Hz; lower n_mels or raise n_fft"
        )
    return bank


def log_mel(waves: torch.Tensor, rule: MelRule, bank: torch.Tensor) -> torch.Tensor:
    """Return the log-mel spectrogram of equally long stretches, each as if it stood alone.

    Frame t is centred on sample t · hop. Beyond both ends the sound is mirrored; a stretch of half
    a window or less is filled up with zeros first.

    Args:
        waves: (B, N) float32, N >= hop.
        rule: What decides it.
        bank: From `filter_bank`, on the waves' device.

    Returns:
        (B, T, F) float32 decibels relative to 1, -100 at least; T = N // hop.
    """
    import torch
    import torch.nn.functional as F

    n_frames = waves.shape[1] // rule.hop
    least = rule.n_fft // 2 + 1
    if waves.shape[1] < least:
        waves = F.pad(waves, (0, least - waves.shape[1]))
    window = torch.hann_window(rule.n_fft, device=waves.device)
    spectrum = torch.stft(
        waves,
        rule.n_fft,
        rule.hop,
        window=window,
        center=True,
        pad_mode="reflect",
        return_complex=True,
    )
    power = spectrum[:, :, :n_frames].abs().square().transpose(1, 2)  # (B, T, bins)
    return 10.0 * torch.log10((power @ bank).clamp(min=SILENCE))  # (B, T, F)
