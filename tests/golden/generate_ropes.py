"""Writes ropes.json: what `transformers` makes of the rotary positions and windows of a config.json, for settings written by hand and for random ones.

Run in an environment with torch and transformers:  python generate_ropes.py
"""
import importlib
import json
import pathlib
import random

import torch
import transformers

HERE = pathlib.Path(__file__).resolve().parent
CASES = 300  # random ones
BASE = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
            max_position_embeddings=256)
FAMILIES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3", "gemma2": "Gemma2", "gemma3_text": "Gemma3", "phi3": "Phi3",
            "gpt_neox": "GPTNeoX"}
HEADS = ("qwen3", "gemma2", "gemma3_text")  # whose head_dim does not follow from the width
FOUR, TWO = [1.0, 1.1, 1.2, 1.3], [1.0, 1.5]
LAYERS = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]


def by_hand():
    """Settings of real files, which have to be read. (family, what they say)"""
    long = dict(short_factor=FOUR, long_factor=[1.0, 2.0, 3.0, 4.0])
    llama3 = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)
    return [
        ("llama", {}), ("llama", dict(rope_theta=500000.0, rope_scaling=dict(rope_type="llama3", **llama3))),
        ("llama", dict(rope_scaling=dict(type="linear", factor=4.0))), ("llama", dict(rope_scaling=dict(type="dynamic", factor=2.0), rope_theta=5000.0)),
        ("llama", dict(rope_parameters=dict(rope_type="llama3", rope_theta=500000.0, **llama3))),
        ("llama", dict(rope_parameters=dict(rope_type="longrope", original_max_position_embeddings=40, **long))),
        ("mistral", {}), ("mistral", dict(sliding_window=None, rope_theta=1e6)), ("mistral", dict(sliding_window=8)),
        ("qwen2", {}), ("qwen2", dict(use_sliding_window=True, sliding_window=8, max_window_layers=2, rope_theta=1e6)),
        ("qwen2", dict(use_sliding_window=False, sliding_window=8, max_window_layers=2)),
        ("qwen2", dict(rope_scaling=dict(type="yarn", factor=4.0, original_max_position_embeddings=64))),
        ("qwen2", dict(use_sliding_window=True, sliding_window=8, layer_types=LAYERS)),
        ("qwen3", dict(rope_parameters=dict(rope_type="yarn", rope_theta=1e6, factor=4.0, original_max_position_embeddings=64, beta_fast=16.0))),
        ("gemma2", {}), ("gemma2", dict(sliding_window=8)), ("gemma2", dict(sliding_window=8, layer_types=LAYERS)),
        ("gemma3_text", {}), ("gemma3_text", dict(sliding_window_pattern=2, rope_local_base_freq=5000.0, rope_theta=2e5)),
        ("gemma3_text", dict(sliding_window_pattern=2, rope_scaling=dict(rope_type="linear", factor=8.0))),
        ("gemma3_text", dict(_sliding_window_pattern=6, layer_types=LAYERS,
                             rope_parameters=dict(full_attention=dict(rope_type="linear", factor=8.0, rope_theta=1e6),
                                                  sliding_attention=dict(rope_type="default", rope_theta=10000.0)))),
        ("phi3", {}), ("phi3", dict(partial_rotary_factor=0.5)), ("phi3", dict(original_max_position_embeddings=40, rope_scaling=dict(type="longrope", **long))),
        ("phi3", dict(original_max_position_embeddings=40, rope_scaling=dict(type="su", **long))),
        ("phi3", dict(original_max_position_embeddings=40, partial_rotary_factor=0.5, rope_scaling=dict(type="longrope", short_factor=TWO, long_factor=[2.0, 3.0]))),
        ("phi3", dict(rope_parameters=dict(rope_type="default", partial_rotary_factor=0.5, rope_theta=20000.0))),
        ("gpt_neox", {}), ("gpt_neox", dict(rotary_pct=0.5, rotary_emb_base=20000)), ("gpt_neox", dict(rotary_pct=1.0, rope_scaling=dict(type="linear", factor=2.0))),
        ("gpt_neox", dict(rope_parameters=dict(rope_type="default", partial_rotary_factor=0.5, rope_theta=20000.0))),
    ]


def sizes(family):
    out = {key: value for key, value in BASE.items() if family != "gpt_neox" or key != "num_key_value_heads"}
    return out | ({"head_dim": 8} if family in HEADS else {})


def some(rng, settings, most):
    return {key: rng.choice(values) for key, values in rng.sample(sorted(settings.items()), rng.randint(0, min(most, len(settings))))}


def rope(rng):
    kind = rng.choice(["default", "linear", "dynamic", "llama3", "yarn", "longrope", "su", "axial"])
    out = {rng.choice(["type", "rope_type", "rope_type"]): kind} if rng.random() < 0.95 else {}
    keys = {"default": {}, "linear": {"factor": [4.0]}, "dynamic": {"factor": [2.0]}, "axial": {},
            "llama3": {"factor": [8.0], "low_freq_factor": [1.0], "high_freq_factor": [4.0], "original_max_position_embeddings": [32]},
            "yarn": {"factor": [4.0, 8], "original_max_position_embeddings": [64]},
            "longrope": {"short_factor": [FOUR, TWO], "long_factor": [[1.0, 2.0, 3.0, 4.0], [2.0, 3.0]]}}
    keys["su"] = keys["longrope"]
    for key, values in keys[kind].items():
        if rng.random() < 0.93:
            out[key] = rng.choice(values)
    extra = {"rope_theta": [20000.0, 300000], "partial_rotary_factor": [0.5, 1.0]}
    if kind in ("yarn", "longrope", "su"):
        extra |= {"attention_factor": [1.5], "factor": [2.0, None], "original_max_position_embeddings": [40, 64]}
    if kind == "yarn":
        extra |= {"beta_fast": [16.0], "beta_slow": [2], "mscale": [0.7, 1.0], "mscale_all_dim": [0.5, 1.0], "truncate": [False, True]}
    return out | some(rng, extra, 3)


def by_chance(rng):
    family = rng.choice(sorted(FAMILIES))
    settings = {"rope_theta": [5000.0, 10000, 500000.0], "partial_rotary_factor": [0.5, 1.0]}
    if family in ("qwen2", "qwen3"):
        settings |= {"use_sliding_window": [True, True, False], "sliding_window": [8, None], "max_window_layers": [0, 2, 28], "layer_types": [LAYERS]}
    if family == "mistral":
        settings |= {"sliding_window": [8, None]}
    if family in ("gemma2", "gemma3_text"):
        settings |= {"sliding_window": [8], "layer_types": [LAYERS]}
    if family == "gemma3_text":
        settings |= {"sliding_window_pattern": [2, 3], "_sliding_window_pattern": [2, 3], "rope_local_base_freq": [5000.0, 20000.0]}
    if family == "phi3":
        settings |= {"original_max_position_embeddings": [40, 64], "sliding_window": [8, None]}
    if family == "gpt_neox":
        settings |= {"rotary_pct": [0.5, 1.0], "rotary_emb_base": [20000, 10000]}
    said = some(rng, settings, 4)
    for key, often in (("rope_scaling", 0.4), ("rope_parameters", 0.4)):
        if rng.random() < often:
            one = rope(rng)
            if family == "gemma3_text" and key == "rope_parameters" and rng.random() < 0.8:
                one = {kind: rope(rng) for kind in ("full_attention", "sliding_attention") if rng.random() < 0.9}
            said[key] = one
    return family, said


def numbers(tensor):
    return [float(f"{x:.9g}") for x in tensor.tolist()]


def of_one(config, module, kind, names):
    """Frequencies and the factor of cos and sin, as a fresh model has them, and of a sequence that is too long for those."""
    scale = getattr(module, f"{kind}_attention_scaling") if kind else module.attention_scaling
    out = {"inv_freq": numbers(getattr(module, f"{kind}_inv_freq") if kind else module.inv_freq), "scale": float(scale)}
    settings = config.rope_parameters[kind] if kind else config.rope_parameters
    if settings["rope_type"] in ("longrope", "dynamic"):
        length = settings["original_max_position_embeddings"] + 1 if settings["rope_type"] == "longrope" else config.max_position_embeddings + 16
        long, _ = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS[settings["rope_type"]](config, seq_len=length, **names)
        out |= {"long_length": length, "long_inv_freq": numbers(long)}
    return out


def computed(family, said):
    """None where transformers does not take it."""
    name = FAMILIES[family]
    try:
        kind = getattr(transformers, name + ("TextConfig" if name == "Gemma3" else "Config"))
        said = json.loads(json.dumps(said))
        for rope_said in (said.get("rope_scaling"), said.get("rope_parameters")):
            # transformers 5 renames the older "su", but has forgotten its trained length by then; 4 read it.
            if family == "phi3" and rope_said and rope_said.get("rope_type", rope_said.get("type")) == "su":
                rope_said.pop("type", None)
                rope_said["rope_type"] = "longrope"
        config = kind.from_dict(sizes(family) | said)
        folder = family.removesuffix("_text")
        modeling = importlib.import_module(f"transformers.models.{folder}.modeling_{folder}")
        module = getattr(modeling, name + "RotaryEmbedding")(config)
        if family == "gemma3_text":
            ropes = {t: of_one(config, module, t, {"layer_type": t}) for t in sorted(set(config.layer_types))}
        else:
            ropes = {"full_attention": of_one(config, module, "", {})}
        # The rotary module and attention must fit one another.
        width = 2 * len(ropes["full_attention"]["inv_freq"]) if "full_attention" in ropes else 8
        if family not in ("phi3", "gpt_neox") and width != 8:
            return None
        types = getattr(config, "layer_types", None)
        window = getattr(config, "sliding_window", None)
        windowed = [t == "sliding_attention" for t in types] if types else [window is not None] * config.num_hidden_layers
        if any(windowed) and window is None:
            return None
        return {"ropes": ropes, "windowed": windowed, "sliding_window": window if any(windowed) else 0}
    except Exception:  # noqa: BLE001  whatever it is, such a file has no numbers
        return None


def main():
    transformers.logging.set_verbosity_error()
    rng = random.Random(7)
    cases = [dict(family=family, config=said, must=True) for family, said in by_hand()]
    cases += [dict(family=family, config=said, must=False) for family, said in (by_chance(rng) for _ in range(CASES))]
    for case in cases:
        case["expected"] = computed(case["family"], case["config"])
        assert case["expected"] or not case["must"], case
    # Of those that transformers does not take, a part.
    refused = [case for case in cases if not case["expected"]]
    cases = [case for case in cases if case["expected"] or case in refused[:40]]
    bases = {family: {"model_type": family} | sizes(family) for family in FAMILIES}
    out = {"made_with": {"torch": torch.__version__, "transformers": transformers.__version__}, "bases": bases, "cases": cases}
    text = json.dumps(out, separators=(",", ":")) + "\n"
    (HERE / "ropes.json").write_text(text, encoding="utf-8")
    print(len(text), "bytes;", sum(case["expected"] is None for case in cases), "of", len(cases), "cases are refused by transformers")


main()
