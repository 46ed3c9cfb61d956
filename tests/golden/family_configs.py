"""Tiny configurations of every family, and weights that both sides make from one formula. Used by generate_families.py and tests/parity."""
import numpy as np
import torch
import transformers

VOCAB = 64
IDS = [int(i) for i in (np.arange(1, 91) * 37 + np.arange(1, 91) ** 2 * 5) % 61 + 3]  # 90 tokens, none special
SHORT = 24  # tokens of the short sequence

_SIZES = dict(vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=256,
              bos_token_id=1, eos_token_id=2, pad_token_id=0)
_GROUPED = dict(_SIZES, num_key_value_heads=2)


def _rope(kind, **values):
    return dict(rope_type=kind, rope_theta=10000.0, **values)


def configs():
    """Name to (configuration, notes). Notes: context, the tokens this service generates up to where that is less than the configuration's."""
    t = transformers
    gemma3_ropes = {"full_attention": _rope("linear", factor=8.0) | {"rope_theta": 1e6}, "sliding_attention": _rope("default")}
    return {
        "gpt2": (t.GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=256, bos_token_id=1, eos_token_id=2, pad_token_id=0), {}),
        "gpt_neox": (t.GPTNeoXConfig(**_SIZES, rope_parameters=_rope("default", partial_rotary_factor=0.5)), {}),
        "gpt_neox_sequential": (t.GPTNeoXConfig(**_SIZES, use_parallel_residual=False, attention_bias=False, hidden_act="gelu_new",
                                                rope_parameters=_rope("default", partial_rotary_factor=1.0)), {}),
        "llama": (t.LlamaConfig(**_SIZES, tie_word_embeddings=True), {}),
        "llama_grouped": (t.LlamaConfig(**_GROUPED, head_dim=12, attention_bias=True, mlp_bias=True), {}),
        "llama_linear": (t.LlamaConfig(**_GROUPED, rope_parameters=_rope("linear", factor=4.0)), {}),
        "llama_dynamic": (t.LlamaConfig(**dict(_GROUPED, max_position_embeddings=48), rope_parameters=_rope("dynamic", factor=2.0)), {"context": 48}),
        "llama_llama3": (t.LlamaConfig(**_GROUPED, rope_parameters=_rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                                                         original_max_position_embeddings=32)), {}),
        "llama_yarn": (t.LlamaConfig(**_GROUPED, rope_parameters=_rope("yarn", factor=8.0, original_max_position_embeddings=32)), {}),
        "mistral": (t.MistralConfig(**_GROUPED, sliding_window=7), {}),
        "qwen2": (t.Qwen2Config(**_GROUPED, tie_word_embeddings=True), {}),
        "qwen2_window": (t.Qwen2Config(**_GROUPED, use_sliding_window=True, sliding_window=9, max_window_layers=1), {}),
        "qwen3": (t.Qwen3Config(**_GROUPED, head_dim=16), {}),
        "gemma2": (t.Gemma2Config(**_GROUPED, head_dim=16, query_pre_attn_scalar=24, sliding_window=8), {}),
        "gemma3": (t.Gemma3TextConfig(**dict(_GROUPED, num_hidden_layers=3), head_dim=16, query_pre_attn_scalar=24, sliding_window=8,
                                      layer_types=["sliding_attention", "full_attention", "sliding_attention"], rope_parameters=gemma3_ropes), {}),
        "phi3": (t.Phi3Config(**_GROUPED, sliding_window=11, rope_parameters=_rope("default", partial_rotary_factor=0.5)), {}),
        "phi3_longrope": (t.Phi3Config(**_GROUPED, original_max_position_embeddings=40,
                                       rope_parameters=_rope("longrope", short_factor=[1.0, 1.1, 1.2, 1.3], long_factor=[1.0, 2.0, 3.0, 4.0],
                                                             original_max_position_embeddings=40)), {"context": 40}),
    }


def classes(config):
    """The causal-LM class and the classification class of a configuration."""
    name = type(config).__name__.removesuffix("Config")
    causal = {"GPT2": "GPT2LMHeadModel", "Gemma3Text": "Gemma3ForCausalLM"}.get(name, name + "ForCausalLM")
    return getattr(transformers, causal), getattr(transformers, name + "ForSequenceClassification")


def values(count, k, scale):
    """Element i of the k-th parameter by name: uniform in ±scale, from 24 bits of a hash of (i, k)."""
    with np.errstate(over="ignore"):
        z = (np.arange(count, dtype=np.uint64) + np.uint64(k * 1000003 + 1)) * np.uint64(0x9E3779B97F4A7C15)
        z ^= z >> np.uint64(32)
        z *= np.uint64(0xD6E8FEB86659FD93)
        z ^= z >> np.uint64(32)
    return ((z >> np.uint64(40)).astype(np.float64) / (1 << 24) - 0.5) * 2 * scale


def is_scale(name):
    return name.endswith("weight") and ("norm" in name or ".ln_" in name)


def fill(model):
    """Matrices ±0.25, embeddings ±0.5, biases ±0.1, norms' scales 1 ± 0.1 (Gemma's: ± 0.1, which are added to 1)."""
    offset = type(model.config).__name__.startswith("Gemma")
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for k, name in enumerate(sorted(parameters)):
            p = parameters[name]
            embedding = any(part in name for part in ("embed", "wte", "wpe", "lm_head"))
            scale = 0.1 if p.dim() == 1 else 0.5 if embedding else 0.25
            v = values(p.numel(), k, scale) + (1.0 if is_scale(name) and not offset else 0.0)
            p.copy_(torch.tensor(v, dtype=torch.float32).view(p.shape))
    return sorted(parameters)


def make(config, kind, dtype=torch.float32):
    config = type(config).from_dict(config.to_dict())
    config._attn_implementation = "eager"
    config.dtype = dtype
    if "Classification" in kind.__name__:
        config.num_labels = 1
    model = kind(config).eval()
    fill(model)
    return model.to(dtype)
