"""Settings of well-known published models, so that a dry run with random weights needs no hub.

Each entry is what the model's own `config.json` and `preprocessor_config.json` say, as far as it
moves numbers. Pretrained weights never use these: they are read with the files beside them.
"""

from __future__ import annotations

Settings = tuple[dict[str, object], dict[str, object]]


def _speech(model_type: str, *, do_normalize: bool) -> Settings:
    """Return the base network of wav2vec 2.0 (arXiv:2006.11477, section 4.2) and its followers."""
    network: dict[str, object] = {
        "model_type": model_type,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "initializer_range": 0.02,
        "feat_extract_norm": "group",
        "feat_extract_activation": "gelu",
        "conv_bias": False,
        "conv_dim": [512] * 7,
        "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
        "conv_stride": [5, 2, 2, 2, 2, 2, 2],
        "num_conv_pos_embeddings": 128,
        "num_conv_pos_embedding_groups": 16,
        "do_stable_layer_norm": False,
    }
    return network, {"sampling_rate": 16000, "do_normalize": do_normalize}


def _whisper(d_model: int, n_layers: int, n_heads: int) -> Settings:
    """Return one size of Whisper (arXiv:2212.04356, table 1); only its encoder is run."""
    network: dict[str, object] = {
        "model_type": "whisper",
        "d_model": d_model,
        "encoder_layers": n_layers,
        "encoder_attention_heads": n_heads,
        "encoder_ffn_dim": 4 * d_model,
        "num_mel_bins": 80,
        "max_source_positions": 1500,
        "activation_function": "gelu",
        "init_std": 0.02,
        "scale_embedding": False,
    }
    return network, {
        "sampling_rate": 16000,
        "feature_size": 80,
        "n_fft": 400,
        "hop_length": 160,
        "chunk_length": 30,
    }


def _ast() -> Settings:
    """Return AST-base trained on AudioSet (arXiv:2104.01778)."""
    network: dict[str, object] = {
        "model_type": "audio-spectrogram-transformer",
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "hidden_act": "gelu",
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-12,
        "patch_size": 16,
        "qkv_bias": True,
        "frequency_stride": 10,
        "time_stride": 10,
        "max_length": 1024,
        "num_mel_bins": 128,
    }
    return network, {
        "sampling_rate": 16000,
        "num_mel_bins": 128,
        "max_length": 1024,
        "do_normalize": True,
        "mean": -4.2677393,
        "std": 4.5689974,
    }


KNOWN: dict[str, Settings] = {
    "facebook/wav2vec2-base": _speech("wav2vec2", do_normalize=True),
    "facebook/hubert-base-ls960": _speech("hubert", do_normalize=True),
    # Microsoft's WavLM-base was trained on waveforms as they are.
    "microsoft/wavlm-base": _speech("wavlm", do_normalize=False),
    "microsoft/wavlm-base-plus": _speech("wavlm", do_normalize=False),
    "MIT/ast-finetuned-audioset-10-10-0.4593": _ast(),
    "openai/whisper-tiny": _whisper(384, 4, 6),
    "openai/whisper-base": _whisper(512, 6, 8),
    "openai/whisper-small": _whisper(768, 12, 12),
}
