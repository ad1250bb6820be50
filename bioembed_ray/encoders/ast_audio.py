"""AST, the Audio Spectrogram Transformer, through transformers: one vector per window.

The network reads exactly 1024 mel frames. A window of 10.24 s gives 1022; the rest is zeros, and
a shorter sound is followed by more of them. They are set before the normalisation, as in training,
and so are louder than silence: a short window must not be padded with samples, it goes in as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bioembed_ray.config import EncoderConfig
from bioembed_ray.encoders import model_folder
from bioembed_ray.encoders.base import Facts
from bioembed_ray.encoders.model_folder import ModelSettings
from bioembed_ray.encoders.model_weights import build
from bioembed_ray.encoders.options import (
    batch_of_stretches,
    check_options,
    highest_layer,
)
from bioembed_ray.encoders.precision import network_precision
from bioembed_ray.encoders.weights import Checkpoint
from bioembed_ray.errors import ConfigError, Reason, RecordingError, WeightsError

if TYPE_CHECKING:
    import torch

MODEL_TYPE = "audio-spectrogram-transformer"
# Kaldi's frames, which AST was trained on (Gong et al. 2021, arXiv:2104.01778, section 2.1).
FRAME_MS, SHIFT_MS = 25, 10
# Lowest cosine to float32 of the pooled output and of layers 6 and 12, rounded down. Measured on
# 10.24 s of a turtle dove and of a frog with untrained weights and CPU autocast, so trained weights
# have yet to be measured.
KEEPS = {"bfloat16": 0.9999, "float16": 0.999999}


def matches(config: EncoderConfig) -> bool:
    """Return whether the model's `config.json` names AST."""
    return model_folder.model_type(config) == MODEL_TYPE


def describe(config: EncoderConfig) -> Facts:
    """Return what is known from the settings alone.

    Raises:
        ConfigError: an option that does not fit the model.
        WeightsError: the settings cannot be read or contradict each other.
    """
    return _facts(config, model_folder.settings(config))


def checkpoint(config: EncoderConfig) -> Checkpoint:
    """Return the pinned weights; see `model_folder.checkpoint`."""
    return model_folder.checkpoint(config)


def architecture(config: EncoderConfig, checkpoint: Checkpoint) -> str:
    """Return the settings as stable JSON."""
    return model_folder.architecture(config, checkpoint)


def _facts(config: EncoderConfig, found: ModelSettings) -> Facts:
    rate_hz = found.preprocessing("sampling_rate", 16_000)
    for name, default in (("num_mel_bins", 128), ("max_length", 1024)):
        wanted, given = found.network(name, default), found.preprocessing(name, default)
        if wanted != given:
            raise WeightsError(
                f"{found.where}: preprocessor_config.json says {name} {given}, config.json {wanted}"
            )
    longest_s = found.network("max_length", 1024) * SHIFT_MS / 1000
    if config.window_s is not None and config.window_s < FRAME_MS / 1000:
        raise ConfigError(
            f"window_s: got {config.window_s}; {config.model} needs at least {FRAME_MS / 1000} s"
        )
    facts = Facts(
        family="ast",
        rate_hz=rate_hz,
        window_s=longest_s,
        hop_s=longest_s,
        grid=None,
        embeds=True,
        pads=False,
        keeps=KEEPS,
        max_window_s=longest_s,
        dim=found.network("hidden_size", 768),
    )
    n_layers = found.network("num_hidden_layers", 12)
    is_on_hub = model_folder.is_on_hub(config)
    return check_options(config, facts, n_layers=n_layers, is_on_hub=is_on_hub)


def load(config: EncoderConfig, checkpoint: Checkpoint, device: str) -> SpectrogramTransformer:
    """Return the encoder on its device.

    Raises:
        ConfigError: an option that does not fit the model.
        WeightsError: missing, foreign or half a checkpoint.
    """
    import transformers

    found = model_folder.settings(config, checkpoint)
    facts = _facts(config, found)
    network = build(
        transformers.ASTModel,
        found,
        checkpoint,
        attention="sdpa",
        encoder=r"(audio_spectrogram_transformer\.)?(encoder|embeddings|layers|layernorm)\.",
    )
    return SpectrogramTransformer(config, facts, network, found, device)


class SpectrogramTransformer:
    """A loaded AST; see `encoders.base.Encoder`."""

    def __init__(
        self, config: EncoderConfig, facts: Facts, network: Any, found: ModelSettings, device: str
    ) -> None:
        import torch

        self.facts = facts
        self.dim = found.network("hidden_size", 768)
        self.batch_size = batch_of_stretches(config, device)
        self._layers = config.layers
        self._precision = config.precision
        self._device = torch.device(device)
        self._front_end = Fbank(found, device)
        highest = highest_layer(config.layers)
        if highest is not None:
            network.layers = network.layers[: max(1, highest)]
        self._network = network.to(device)

    def embed(self, windows: torch.Tensor) -> list[torch.Tensor]:
        """Return one vector per window and layer.

        None is the network's pooled output, the mean of its class and distillation tokens after
        the last norm; layer k is the mean of the same two tokens of hidden_states[k].

        Args:
            windows: (B, N) float32 at `rate_hz`, 400 <= N <= 163,840, unpadded.

        Returns:
            One (B, D) float32 tensor per layer.

        Raises:
            RecordingError: too short for one mel frame, or longer than the network reads.
        """
        n_samples, shortest = windows.shape[-1], self._front_end.frame
        if n_samples < shortest:
            raise RecordingError(Reason.TOO_SHORT, f"{n_samples} samples; ast needs {shortest}")
        longest = self._front_end.n_frames * self._front_end.shift
        if n_samples > longest:
            raise RecordingError(Reason.TOO_LONG, f"{n_samples} samples; ast takes {longest}")
        features = self._front_end(windows)
        with network_precision(self._device, self._precision):
            output = self._network(features, output_hidden_states=self._layers != (None,))
        return [
            (
                output.pooler_output
                if layer is None
                else (output.hidden_states[layer][:, 0] + output.hidden_states[layer][:, 1]) / 2
            ).float()
            for layer in self._layers
        ]

    def frames(self, waves: torch.Tensor) -> list[torch.Tensor]:
        """Refuse: AST's patches see the whole window and have no frames of their own."""
        raise NotImplementedError("ast gives one vector per window and no frames")


class Fbank:
    """Kaldi's log mel filter bank for a batch, on any device; equal to ASTFeatureExtractor.

    That one calls torchaudio.compliance.kaldi.fbank (window hanning, no dither) sound by sound;
    here are the same steps for all rows at once.
    """

    def __init__(self, found: ModelSettings, device: str) -> None:
        import torch
        from torchaudio.compliance.kaldi import get_mel_banks

        rate_hz = found.preprocessing("sampling_rate", 16_000)
        n_mels = found.preprocessing("num_mel_bins", 128)
        self.frame = rate_hz * FRAME_MS // 1000
        self.shift = rate_hz * SHIFT_MS // 1000
        self.n_frames = found.preprocessing("max_length", 1024)
        self._n_fft = 1 << (self.frame - 1).bit_length()
        self._window = torch.hann_window(self.frame, periodic=False, device=device)
        banks, _ = get_mel_banks(n_mels, self._n_fft, float(rate_hz), 20.0, 0.0, 100.0, -500.0, 1.0)
        # The filters leave out the last bin of the spectrum.
        self._banks = torch.nn.functional.pad(banks, (0, 1)).T.to(device)  # (bins, mels)
        self._normalises = found.preprocessing("do_normalize", True)
        self._mean = found.preprocessing("mean", -4.2677393)
        self._std = found.preprocessing("std", 4.5689974)

    def __call__(self, waves: torch.Tensor) -> torch.Tensor:
        """Return normalised log mel energies, with zeros after the sound.

        Args:
            waves: (B, N) float32, N >= `frame`.

        Returns:
            (B, n_frames, mels) float32.
        """
        import torch

        pad = torch.nn.functional.pad
        frames = waves.unfold(-1, self.frame, self.shift)  # (B, m, frame)
        frames = frames - frames.mean(dim=-1, keepdim=True)
        frames = frames - 0.97 * pad(frames, (1, 0), mode="replicate")[..., :-1]
        frames = pad(frames * self._window, (0, self._n_fft - self.frame))
        power = torch.fft.rfft(frames).abs().square()  # (B, m, bins)
        floor = torch.finfo(torch.float32).eps
        log_mel = (power @ self._banks).clamp(min=floor).log()  # (B, m, mels)
        log_mel = pad(log_mel, (0, 0, 0, self.n_frames - log_mel.shape[1]))
        return (log_mel - self._mean) / (self._std * 2) if self._normalises else log_mel
