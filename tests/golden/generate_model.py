"""Writes model.json: what `transformers` computes for tiny models whose weights both sides make from a formula, and for stories260K when its folder is given.

Run in an environment with torch, transformers and numpy:  python generate_model.py [--stories DIR]
"""
import argparse
import json
import pathlib

import numpy as np
import torch
import transformers

HERE = pathlib.Path(__file__).resolve().parent
IDS = [3, 17, 5, 29, 11, 2, 38, 7, 19, 23, 31]


def fill(model):
    """Element i of the k-th parameter by name: 0.08 sin(0.7 i + k), and 1 more for the scale of a norm."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for k, name in enumerate(sorted(parameters)):
            p = parameters[name]
            values = 0.08 * np.sin(0.7 * np.arange(p.numel(), dtype=np.float64) + k)
            if ("norm" in name or ".ln_" in name) and name.endswith("weight"):
                values = values + 1.0
            p.copy_(torch.tensor(values, dtype=torch.float32).view(p.shape))
    return sorted(parameters)


def llama(**kwargs):
    return transformers.LlamaConfig(vocab_size=40, hidden_size=16, intermediate_size=44, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64,
                                    rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2, pad_token_id=0, attn_implementation="eager", **kwargs)


CONFIGS = {
    "llama": (transformers.LlamaForCausalLM, llama(num_key_value_heads=4, tie_word_embeddings=True)),
    "llama_grouped_untied": (transformers.LlamaForCausalLM, llama(num_key_value_heads=2, tie_word_embeddings=False)),
    "gpt2": (transformers.GPT2LMHeadModel, transformers.GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2,
                                                                   attn_implementation="eager")),
}


def values_of(model, ids):
    model.eval()
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].float()
    log_probs = torch.log_softmax(logits, -1)
    return logits, [log_probs[t, ids[t + 1]].item() for t in range(len(ids) - 1)]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--stories", default="")
    flags = parser.parse_args()
    out = {"made_with": {"torch": torch.__version__, "transformers": transformers.__version__}, "ids": IDS, "models": {}}
    for name, (kind, config) in CONFIGS.items():
        model = kind(config)
        names = fill(model)
        config.architectures = [kind.__name__]
        logits, log_probs = values_of(model, IDS)
        out["models"][name] = {"config": json.loads(config.to_json_string(use_diff=False)), "names": names,
                               "last_logits": logits[-1].tolist(), "log_probs": log_probs}
    if flags.stories:
        model = transformers.AutoModelForCausalLM.from_pretrained(flags.stories)
        tokenizer = transformers.AutoTokenizer.from_pretrained(flags.stories)
        text = "Once upon a time, there was a little dog named Max. He liked to play in the park."
        ids = tokenizer(text)["input_ids"]
        logits, log_probs = values_of(model, ids)
        out["stories260K"] = {"text": text, "ids": ids, "last_logits": logits[-1].tolist(), "log_probs": log_probs}
    (HERE / "model.json").write_text(json.dumps(out, separators=(",", ":")) + "\n", encoding="utf-8")


main()
