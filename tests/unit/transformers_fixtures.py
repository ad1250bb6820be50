"""Tiny networks of the real architectures, saved as transformers saves them, and sounds for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers

from bioembed_ray.config import EncoderConfig
from bioembed_ray.encoders import registry
from bioembed_ray.encoders.base import Encoder

SPEECH = {
    "wav2vec2": (transformers.Wav2Vec2Config, transformers.Wav2Vec2Model),
    "hubert": (transformers.HubertConfig, transformers.HubertModel),
    "wavlm": (transformers.WavLMConfig, transformers.WavLMModel),
}


def speech_folder(
    folder: Path,
    model_type: str = "wav2vec2",
    *,
    layer_norm: bool = False,
    do_normalize: bool = True,
    model_class: Any = None,
    seed: int = 0,
    **changed: Any,
) -> Path:
    """Save a wav2vec 2.0, HuBERT or WavLM of 4 blocks and 32 features; `layer_norm` is the large kind."""
    config_class, plain = SPEECH[model_type]
    small = {
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "conv_dim": (16,) * 7,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 4,
        "feat_extract_norm": "layer" if layer_norm else "group",
        "do_stable_layer_norm": layer_norm,
        "conv_bias": layer_norm,
    }
    torch.manual_seed(seed)
    (model_class or plain)(config_class(**(small | changed))).save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(
        do_normalize=do_normalize, return_attention_mask=layer_norm
    ).save_pretrained(folder)
    return folder


def whisper_folder(folder: Path, *, longest_s: int = 3, seed: int = 0) -> Path:
    """Save a whole Whisper, with decoder, of 3 blocks and 32 features that reads `longest_s`."""
    config = transformers.WhisperConfig(
        d_model=32, encoder_layers=3, encoder_attention_heads=4, encoder_ffn_dim=64,
        decoder_layers=1, decoder_attention_heads=4, decoder_ffn_dim=64,
        max_source_positions=50 * longest_s, max_target_positions=8, vocab_size=20,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    torch.manual_seed(seed)
    transformers.WhisperForConditionalGeneration(config).save_pretrained(folder)
    transformers.WhisperFeatureExtractor(chunk_length=longest_s).save_pretrained(folder)
    return folder


def ast_folder(folder: Path, *, seed: int = 0, **changed: Any) -> Path:
    """Save an AST with its classifier, 3 blocks, 32 features, that reads 128 frames of 64 bands."""
    shape = {"max_length": 128, "num_mel_bins": 64}
    config = transformers.ASTConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64, **shape
    )
    torch.manual_seed(seed)
    network = transformers.ASTForAudioClassification(config)
    # Untrained tokens and positions are zeros; trained ones are not.
    for tensor in network.audio_spectrogram_transformer.embeddings.parameters():
        torch.nn.init.normal_(tensor, std=0.2)
    network.save_pretrained(folder)
    transformers.ASTFeatureExtractor(**(shape | changed)).save_pretrained(folder)
    return folder


def edit_json(path: Path, **changed: Any) -> None:
    """Change keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def opened(folder: Path, **options: Any) -> Encoder:
    """Load a folder as a run does: describe, pin, load."""
    config = EncoderConfig(model=str(folder), **options)
    return registry.load("e", config, registry.checkpoint("e", config), "cpu")


def sounds(n_rows: int, n_samples: int, seed: int = 0) -> torch.Tensor:
    """Return (B, N) float32 at 16 kHz: chirps in noise, each row at a level of its own, with DC."""
    draw = torch.Generator().manual_seed(seed)
    time = torch.arange(n_samples) / 16_000
    start = 300 + 3000 * torch.rand(n_rows, 1, generator=draw)
    chirp = torch.sin(2 * torch.pi * (start * time + 400 * time**2))
    noise = torch.randn(n_rows, n_samples, generator=draw)
    level = 10 ** (-2 * torch.rand(n_rows, 1, generator=draw))
    return level * (0.5 * chirp + 0.1 * noise) + 0.01
