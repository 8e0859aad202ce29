"""Speech models of every kind with random weights, and a sound, for tests."""

import numpy as np
import torch
import transformers as tf

from braintune_nb.model.backbone import load_speech_backbone

RATE, LAYERS = 16000, 3
SMALL = dict(
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    conv_dim=[8] * 7,
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=2,
)  # of wav2vec2, HuBERT and WavLM
STABLE = dict(do_stable_layer_norm=True, feat_extract_norm="layer", conv_bias=True)
MODELS = {
    "wav2vec2": ("wav2vec2", {}),
    "wav2vec2 stable": ("wav2vec2", STABLE),
    "wav2vec2 stable adapter": ("wav2vec2", STABLE | dict(adapter_attn_dim=8)),
    "wav2vec2 biased": ("wav2vec2", dict(conv_bias=True)),
    "hubert": ("hubert", {}),
    "hubert stable": ("hubert", STABLE),
    "hubert no norm": ("hubert", dict(feat_proj_layer_norm=False)),
    "wavlm": ("wavlm", {}),
    "wavlm stable": ("wavlm", STABLE),
    "whisper": ("whisper", {}),
}


def whisper_settings(layers=2, positions=100):
    "Settings of a small Whisper, its decoder as small as it can be."
    return dict(
        d_model=16,
        encoder_layers=layers,
        encoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=32,
        vocab_size=20,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        num_mel_bins=80,
        max_source_positions=positions,
    )


def config(kind, **more):
    if kind == "whisper":
        return tf.WhisperConfig(**whisper_settings(LAYERS))
    Config = dict(wav2vec2=tf.Wav2Vec2Config, hubert=tf.HubertConfig, wavlm=tf.WavLMConfig)[kind]
    return Config(**SMALL | dict(num_hidden_layers=LAYERS) | more)


def model(name, **options):
    "A random model whose biases and norms are random too: defaults of zero and one hide mistakes."
    kind, more = MODELS[name]
    backbone = load_speech_backbone(config(kind, **more), random_weights=True, seed=4, **options)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for key, value in backbone.model.named_parameters():
            if value.ndim == 1:
                value += 0.3 * torch.randn(value.shape, generator=generator)
            elif "layers" in key:
                value += 0.2 * torch.randn(value.shape, generator=generator)
    return backbone


def sound(seconds, seed=0):
    t = np.arange(round(seconds * RATE)) / RATE
    return (
        0.3 * np.sin(2 * np.pi * (200 + 150 * np.sin(7 * t)) * t) * np.abs(np.sin(4 * t))
        + 0.03 * np.random.default_rng(seed).standard_normal(len(t))
    ).astype(np.float32)
