"""The encoder of Whisper through transformers: 50 frames per second, read in padded 30 s inputs.

Whisper was trained on inputs of exactly 30 s, shorter ones followed by silence. So a stretch is
padded with silence to 30 s, and only the frames that see sound alone are kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bioembed_ray.config import EncoderConfig
from bioembed_ray.encoders import model_folder
from bioembed_ray.encoders.base import Facts, FrameGrid
from bioembed_ray.encoders.model_folder import ModelSettings
from bioembed_ray.encoders.model_weights import build
from bioembed_ray.encoders.options import (
    batch_of_stretches,
    check_options,
    frame_grid,
    highest_layer,
)
from bioembed_ray.encoders.precision import network_precision
from bioembed_ray.encoders.weights import Checkpoint
from bioembed_ray.errors import ConfigError, Reason, RecordingError, WeightsError

if TYPE_CHECKING:
    import torch

MODEL_TYPE = "whisper"
# Strides of the two convolutions, fixed in the architecture (Radford et al. 2022, section 2.2).
CONVOLUTION_STRIDE = 2
# Lowest cosine to float32 of any frame of layers 3 and 6 of whisper-base, rounded down. Measured on
# 8 s of a turtle dove and of a frog with untrained weights and CPU autocast, so trained weights
# have yet to be measured.
KEEPS = {"bfloat16": 0.9999, "float16": 0.999999}


def matches(config: EncoderConfig) -> bool:
    """Return whether the model's `config.json` names Whisper."""
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
    """Return the facts, with frames placed where they listen.

    Mel frame j is centred on sample 160 j, so frame t of the network is centred on sample 320 t.
    Frame 0 leans on mirrored sound before the start, and is left out: our frame t is Whisper's
    t + 1, centred on 320 t + 320. A receptive field of 640 says just that, and keeps
    N // 320 - 1 frames, none of which is centred within 20 ms of an end.
    """
    rate_hz = found.preprocessing("sampling_rate", 16_000)
    stride = CONVOLUTION_STRIDE * found.preprocessing("hop_length", 160)
    longest_s = found.preprocessing("chunk_length", 30)
    n_positions = found.network("max_source_positions", 1500)
    n_mels = found.preprocessing("feature_size", 80)
    if longest_s * rate_hz != n_positions * stride or n_mels != found.network("num_mel_bins", 80):
        raise WeightsError(
            f"{found.where}: preprocessor_config.json gives {longest_s} s of {n_mels} mel bands, config.json wants {n_positions} positions of {found.network('num_mel_bins', 80)}"
        )
    grid = frame_grid(
        config, rate_hz=rate_hz, stride=stride, receptive=2 * stride, block_s=15, context_s=2
    )
    _check_reach(grid, longest_s, config.model)
    facts = Facts(
        family=MODEL_TYPE,
        rate_hz=rate_hz,
        window_s=1.0,
        hop_s=0.5,
        grid=grid,
        embeds=False,
        keeps=KEEPS,
        dim=found.network("d_model", 384),
    )
    n_layers = found.network("encoder_layers", 4)
    is_on_hub = model_folder.is_on_hub(config)
    return check_options(config, facts, n_layers=n_layers, is_on_hub=is_on_hub)


def _check_reach(grid: FrameGrid, longest_s: int, model: str) -> None:
    """Refuse blocks that with their context, or with a tail that joins them, are too long."""
    if grid.block_s is None:
        return
    inside = grid.block_s + 2 * grid.context_s
    at_end = 1.5 * grid.block_s + grid.context_s
    # One frame more than the block is read, so the limit itself is too long.
    if max(inside, at_end) >= longest_s:
        raise ConfigError(
            f"block_s: got {grid.block_s} with context_s {grid.context_s}; with context, or with a tail of half a block, {model} must read less than {longest_s} s at once"
        )


def load(config: EncoderConfig, checkpoint: Checkpoint, device: str) -> WhisperFrames:
    """Return the encoder on its device.

    Raises:
        ConfigError: an option that does not fit the model.
        WeightsError: missing, foreign or half a checkpoint.
    """
    import transformers

    found = model_folder.settings(config, checkpoint)
    facts = _facts(config, found)
    # Of the classes that read published names this one alone leaves out the decoder.
    network = build(
        transformers.WhisperForAudioClassification,
        found,
        checkpoint,
        attention="sdpa",
        encoder=r"(model\.)?encoder\.",
        may_miss=r"(projector|classifier|layer_weights)\b",
    )
    return WhisperFrames(config, facts, network.encoder, found, device)


class WhisperFrames:
    """A loaded Whisper encoder; see `encoders.base.Encoder`."""

    def __init__(
        self, config: EncoderConfig, facts: Facts, network: Any, found: ModelSettings, device: str
    ) -> None:
        import torch

        self.facts = facts
        self.dim = found.network("d_model", 384)
        self.batch_size = batch_of_stretches(config, device)
        self._layers = config.layers
        self._precision = config.precision
        self._device = torch.device(device)
        self._front_end = LogMel(found, device)
        highest = highest_layer(config.layers)
        if highest is not None and highest < len(network.layers):
            network.layers = network.layers[: max(1, highest)]
            # transformers puts the output after the last norm in the place of the last hidden
            # state, and here the last block is not the network's last.
            network.layer_norm = torch.nn.Identity()
        self._network = network.to(device)

    def embed(self, windows: torch.Tensor) -> list[torch.Tensor]:
        """Refuse: a window's vector is the mean of its frames."""
        raise NotImplementedError("whisper gives frames; windows are their means")

    def frames(self, waves: torch.Tensor) -> list[torch.Tensor]:
        """Return the frames of equally long stretches.

        Layer k is transformers' hidden_states[k]: the last one, like None, is after the last norm.

        Args:
            waves: (B, N) float32 at `rate_hz`, 640 <= N <= 480,000.

        Returns:
            One (B, T, D) float32 tensor per layer, T = N // 320 - 1; frame t is centred on sample
            320 t + 320.

        Raises:
            RecordingError: too short for a frame, or longer than the network reads at once.
        """
        n_samples, longest = waves.shape[-1], self._front_end.n_samples
        grid = self.facts.grid
        if grid is None or n_samples < grid.receptive:
            raise RecordingError(Reason.TOO_SHORT, f"{n_samples} samples hold no frame of whisper")
        if n_samples > longest:
            rate_hz = self.facts.rate_hz
            raise RecordingError(
                Reason.TOO_LONG,
                f"{n_samples / rate_hz:.1f} s; whisper reads at most {longest / rate_hz:.0f} s at once, set block_s: 15",
            )
        features = self._front_end(waves)
        with network_precision(self._device, self._precision):
            output = self._network(features, output_hidden_states=self._layers != (None,))
        kept = slice(1, n_samples // grid.stride)
        return [
            (output.last_hidden_state if k is None else output.hidden_states[k])[:, kept].float()
            for k in self._layers
        ]


class LogMel:
    """Whisper's own front end in torch, on any device; equal to WhisperFeatureExtractor."""

    def __init__(self, found: ModelSettings, device: str) -> None:
        import torch
        from transformers.audio_utils import mel_filter_bank

        rate_hz = found.preprocessing("sampling_rate", 16_000)
        self.n_samples = found.preprocessing("chunk_length", 30) * rate_hz
        self._n_fft = found.preprocessing("n_fft", 400)
        self._hop = found.preprocessing("hop_length", 160)
        self._window = torch.hann_window(self._n_fft, device=device)
        filters = mel_filter_bank(
            num_frequency_bins=1 + self._n_fft // 2,
            num_mel_filters=found.preprocessing("feature_size", 80),
            min_frequency=0.0,
            max_frequency=8000.0,
            sampling_rate=rate_hz,
            norm="slaney",
            mel_scale="slaney",
        )
        self._filters = torch.from_numpy(filters.T).to(device, torch.float32)  # (mels, bins)

    def __call__(self, waves: torch.Tensor) -> torch.Tensor:
        """Return log10 mel power, at most 8 below each row's loudest, as (x + 4) / 4.

        Args:
            waves: (B, N) float32, N <= `n_samples`; silence follows.

        Returns:
            (B, mels, n_samples / hop) float32.
        """
        import torch

        padded = torch.nn.functional.pad(waves, (0, self.n_samples - waves.shape[-1]))
        spectrum = torch.stft(
            padded, self._n_fft, self._hop, window=self._window, return_complex=True
        )
        power = spectrum[..., :-1].abs().square().contiguous()  # (B, bins, frames)
        log_mel = (self._filters @ power).clamp(min=1e-10).log10()
        loudest = log_mel.amax(dim=(1, 2), keepdim=True)
        scaled: torch.Tensor = (log_mel.maximum(loudest - 8.0) + 4.0) / 4.0
        return scaled
