"""Real avex architectures, small, saved in the real formats; and avex's own answer to compare with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import save_file

TINY_BEATS = {
    "encoder_layers": 3,
    "encoder_embed_dim": 64,
    "encoder_ffn_embed_dim": 128,
    "encoder_attention_heads": 4,
    "embed_dim": 32,
    "conv_pos": 16,
    "conv_pos_groups": 4,
    "deep_norm": True,
    "finetuned_model": True,
    "encoder_layerdrop": 0.05,
    "layer_wise_gradient_decay_ratio": 0.6,
    "predictor_class": 5,
}
EFFICIENTNET_AUDIO = {
    "sample_rate": 16000,
    "n_fft": 800,
    "hop_length": 160,
    "win_length": 800,
    "window": "hann",
    "n_mels": 128,
    "representation": "mel_spectrogram",
    "normalize": True,
    "target_length_seconds": 10,
}


def beats_spec(rate_hz: int = 16000, trained_s: int = 10, **network: Any) -> dict[str, Any]:
    """Return the model_spec of a BEATs of 150 thousand parameters."""
    return {
        "name": "beats",
        "pretrained": False,
        "device": "cuda",
        "init_config": {**TINY_BEATS, **network},
        "audio_config": {
            "sample_rate": rate_hz,
            "representation": "raw",
            "normalize": False,
            "target_length_seconds": trained_s,
        },
    }


def efficientnet_spec() -> dict[str, Any]:
    """Return the model_spec of avex's EfficientNet-B0; its YAML has no size to make smaller."""
    return {
        "name": "efficientnet",
        "efficientnet_variant": "b0",
        "device": "cuda",
        "audio_config": EFFICIENTNET_AUDIO,
    }


def avex_network(spec: dict[str, Any], seed: int = 0) -> torch.nn.Module:
    """Return avex's network in eval mode with every parameter and statistic moved off its default.

    Fresh networks have zero biases and unit norms, with which a loader that skips them looks right.
    """
    from avex.configs import ModelSpec
    from avex.models.utils.factory import build_model_from_spec

    torch.manual_seed(seed)
    network = build_model_from_spec(
        ModelSpec(**{**spec, "device": "cpu"}), "cpu", pretrained=False, return_features_only=True
    )
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if "fbank" in name or not tensor.is_floating_point():
                continue
            if name.endswith("running_var"):
                tensor.mul_(torch.rand_like(tensor) + 0.5)
            else:
                tensor.add_(0.05 * torch.randn_like(tensor))
    return network.eval()


def state_of(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return copies of all tensors; safetensors refuses those that share memory."""
    return {k: v.detach().clone().contiguous() for k, v in network.state_dict().items()}


def write_model(
    folder: Path, spec: dict[str, Any], name: str = "tiny", seed: int = 0
) -> tuple[Path, Path]:
    """Write `<name>.yml` with a relative checkpoint_path, and the weights; return both paths."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / f"{name}.safetensors"
    save_file(state_of(avex_network(spec, seed)), weights)
    config = folder / f"{name}.yml"
    config.write_text(yaml.safe_dump({"checkpoint_path": weights.name, "model_spec": spec}))
    return config, weights


def reference(config: Path, weights: Path) -> torch.nn.Module:
    """Return the model as avex's own loader gives it, in eval mode."""
    from avex import load_model
    from avex.models.utils.load import _load_checkpoint

    spec = yaml.safe_load(config.read_text())["model_spec"]
    if spec["name"] != "beats":
        # avex's load_model would download ImageNet weights first; this is the rest of it.
        network = avex_network(spec, seed=99)
        _load_checkpoint(network, str(weights), "cpu", keep_classifier=False)
        return network.eval()
    return load_model(
        str(config), device="cpu", checkpoint_path=str(weights), return_features_only=True
    ).eval()


def sounds(n_windows: int, n_samples: int, rate_hz: int = 16000) -> torch.Tensor:
    """Return windows as unlike as archives hold: chirps, noise, clicks, silence; (B, N) float32."""
    rng = np.random.default_rng(7)
    time = np.arange(n_samples) / rate_hz
    kinds = [
        0.5 * np.sin(2 * np.pi * (500 + 3000 * time) * time),
        0.1 * rng.standard_normal(n_samples),
        np.zeros(n_samples),
        (rng.random(n_samples) < 0.001) * 0.9,
        0.001 * rng.standard_normal(n_samples),
        np.sign(np.sin(2 * np.pi * 440 * time)),
        0.3 * np.sin(2 * np.pi * 6000 * time) * (time % 0.2 < 0.05),
    ]
    rows = [kinds[k % len(kinds)] * (1 + k // len(kinds)) for k in range(n_windows)]
    return torch.from_numpy(np.stack(rows).astype(np.float32))


def relative(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """Return the largest row-wise distance, relative to the length of the wanted row."""
    got, wanted = got.reshape(got.shape[0], -1), wanted.reshape(wanted.shape[0], -1)
    return float(((got - wanted).norm(dim=1) / wanted.norm(dim=1).clamp(min=1e-12)).max())
