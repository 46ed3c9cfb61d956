"""Every family, live: transformers and peft compute, rlhf-model computes from the files they saved, and the numbers are compared.

Run by scripts/parity. Exit code 1 when a comparison fails.
"""
import argparse
import json
import logging
import pathlib
import subprocess
import sys
import tempfile
import warnings

import peft
import torch
import transformers
from safetensors.torch import load_file

from family_configs import IDS, SHORT, classes, configs

LOGITS, GRADIENTS = 2e-5, 2e-4  # relative to the largest number of what is compared
OTHER = IDS[50:61]
NEAR_TIE = 1e-4
failures = []


def check(name, what, ok, detail=""):
    print(f"{'ok  ' if ok else 'FAIL'} {name:22s} {what:46s} {detail}", flush=True)
    if not ok:
        failures.append(f"{name}: {what} {detail}")


def close(name, what, found, expected, bound):
    error = (found.double() - expected.double()).abs().max().item() / max(1e-3, expected.double().abs().max().item())
    check(name, what, found.shape == expected.shape and error <= bound, f"relative error {error:.1e}, bound {bound:.0e}")


def numbers(tool, model_dir, sequences, *flags):
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder)
        (file / "ids.json").write_text(json.dumps(sequences))
        command = [tool, "numbers", "--model", str(model_dir), "--sequences", str(file / "ids.json"), "--out", str(file / "out.safetensors"), *flags]
        subprocess.run(command, check=True)
        return load_file(file / "out.safetensors")


def randomise(model, seed):
    """transformers' own initialisation, widened: at its 0.02 a tiny model says nearly nothing."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() > 1:
                p.normal_(0, 0.15)
            else:
                p.add_(torch.randn_like(p) * 0.05)
    return model.eval()


def build(config, kind, seed=7, **changes):
    config = type(config).from_dict(config.to_dict() | changes)
    config._attn_implementation = "eager"
    return randomise(kind(config), seed)


def padded(model, left):
    rows, masks = [], []
    for row in (IDS[:SHORT], OTHER):
        pad = SHORT - len(row)
        rows.append([0] * pad + row if left else row + [0] * pad)
        masks.append([0] * pad + [1] * len(row) if left else [1] * len(row) + [0] * pad)
    mask = torch.tensor(masks)
    logits = model(torch.tensor(rows), attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0)).logits
    return logits[1, -len(OTHER):] if left else logits[1, :len(OTHER)]


def greedy(model, ids, count):
    """By whole sequences; a near tie ends the comparison there."""
    out = []
    for _ in range(count):
        best = torch.topk(model(torch.tensor([ids + out])).logits[0, -1].float(), 2)
        if (best.values[0] - best.values[1]).item() < NEAR_TIE:
            break
        out.append(best.indices[0].item())
    return out


def causal(tool, name, config, notes, folder):
    kind = classes(config)[0]
    model = build(config, kind)
    dir_ = folder / "causal"
    model.save_pretrained(dir_, max_shard_size="30KB" if name in ("llama", "gemma2", "gpt2") else "1GB")
    bounded = "context" in notes
    short, prompt = IDS[:SHORT], IDS[5:12]
    sequences = [short, OTHER] if bounded else [short, OTHER, IDS]
    with torch.no_grad():
        expected = [build(config, kind)(torch.tensor([ids])).logits[0] for ids in sequences + ([IDS] if bounded else [])]
        tokens = greedy(build(config, kind), prompt, notes["context"] - 8 if bounded else 200)
        left, right = padded(model, True), padded(model, False)
    for mode in ([], ["--deterministic"]):
        label = " (deterministic)" if mode else ""
        out = numbers(tool, dir_, sequences, "--decode", "--gradients", *mode)
        for i, ids in enumerate(sequences):
            close(name, f"logits of {len(ids)} tokens, packed{label}", out[f"logits/{i}"], expected[i], LOGITS)
            close(name, f"logits of {len(ids)} tokens, decoded{label}", out[f"decode/{i}"], expected[i], LOGITS)
        close(name, f"padded left{label}", out["logits/1"], left, LOGITS)
        close(name, f"padded right{label}", out["logits/1"], right, LOGITS)
        if mode:
            same = all(torch.equal(out[f"logits/{i}"], out[f"decode/{i}"]) for i in range(len(sequences)))
            check(name, "packed = decoded, bit for bit", same)
        if bounded:
            long = numbers(tool, dir_, [OTHER, IDS], *mode)
            close(name, f"logits beyond the trained length{label}", long["logits/1"], expected[-1], LOGITS)
        ours = numbers(tool, dir_, [prompt], "--greedy", str(len(tokens)), *mode)["greedy/0"].tolist()
        check(name, f"greedy, {len(tokens)} tokens{label}", ours == tokens)
        model.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(torch.tensor([short])).logits[0, :-1].float(), torch.tensor(short[1:]))
        loss.backward()
        worst, at, names = 0.0, "", 0
        for parameter, p in model.named_parameters():
            ours_name = {"lm_head.weight": "embed_out.weight"}.get(parameter, parameter) if name.startswith("gpt_neox") else parameter
            found = out["grad/" + ours_name]
            error = (found - p.grad).abs().max().item() / max(1e-4, p.grad.abs().max().item())
            names += 1
            if error > worst:
                worst, at = error, parameter
        check(name, f"gradients of {names} parameters{label}", worst <= GRADIENTS, f"relative error {worst:.1e} ({at})")
    with torch.no_grad():
        half = build(config, kind).to(torch.bfloat16)
        rounding = (half(torch.tensor([short])).logits[0].float() - expected[0]).abs().max().item()
    error = (numbers(tool, dir_, [short], "--dtype", "bfloat16")["logits/0"] - expected[0]).abs().max().item()
    check(name, "bf16 logits", error <= 2 * rounding, f"error {error:.2g}, transformers' own rounding {rounding:.2g}")
    return model, dir_


class Warned(logging.Handler):
    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


def saved(tool, name, model, dir_, folder):
    """What rlhf-model writes, transformers loads: no warning, the same bytes, the same generation settings."""
    out = folder / "saved"
    subprocess.run([tool, "merge", "--model", str(dir_), "--out", str(out)], check=True)
    handler = Warned()
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        again = type(model).from_pretrained(out)
    logger.removeHandler(handler)
    said = handler.lines + [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
    check(name, "saved model loads without a warning", not said, "; ".join(said)[:200])
    state = again.state_dict()
    check(name, "saved weights are the same bytes", all(torch.equal(state[k], v) for k, v in model.state_dict().items()))
    if hasattr(again, "generation_config"):
        check(name, "saved generation settings", again.generation_config.to_dict() == type(model).from_pretrained(dir_).generation_config.to_dict())


def reward(tool, name, config, folder):
    kind = classes(config)[1]
    model = build(config, kind, num_labels=1)
    model.save_pretrained(folder / "reward")
    ids = IDS[:SHORT]
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0, 0]
    out = numbers(tool, folder / "reward", [OTHER, ids])["values/1"][-1]
    check(name, "reward", abs(out.item() - expected.item()) <= LOGITS * max(1, abs(expected.item())), f"{out.item():.6f}")
    saved(tool, name + " (reward)", model, folder / "reward", folder / "r")


def adapters(tool, folder):
    for name, targets in (("llama_grouped", ["q_proj", "v_proj", "down_proj"]), ("gpt2", ["c_attn"]), ("gpt_neox", ["query_key_value"]),
                          ("phi3", ["qkv_proj", "gate_up_proj"])):
        config = configs()[name][0]
        base = build(config, classes(config)[0])
        base.save_pretrained(folder / name)
        model = peft.get_peft_model(base, peft.LoraConfig(r=4, lora_alpha=6, target_modules=targets, task_type="CAUSAL_LM",
                                                          fan_in_fan_out=name == "gpt2")).eval()
        with torch.no_grad():
            for n, p in model.named_parameters():
                if "lora_" in n:
                    p.normal_(0, 0.1)
            expected = model(torch.tensor([IDS[:SHORT]])).logits[0]
        model.save_pretrained(folder / (name + "-adapter"))
        out = numbers(tool, folder / name, [IDS[:SHORT]], "--adapter", str(folder / (name + "-adapter")))
        close(name + " (peft)", "logits with adapters", out["logits/0"], expected, LOGITS)
        merged = folder / (name + "-merged")
        subprocess.run([tool, "merge", "--model", str(folder / name), "--adapter", str(folder / (name + "-adapter")), "--out", str(merged)], check=True)
        with torch.no_grad():
            again = type(base).from_pretrained(merged, attn_implementation="eager")(torch.tensor([IDS[:SHORT]])).logits[0]
        close(name + " (peft)", "merged, loaded by transformers", again, expected, LOGITS)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--tool", required=True)
    parser.add_argument("names", nargs="*", help="families; default: all, and the adapters")
    flags = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    print(f"transformers {transformers.__version__}, peft {peft.__version__}, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        for name, (config, notes) in configs().items():
            if flags.names and name not in flags.names:
                continue
            here = pathlib.Path(folder) / name
            model, dir_ = causal(flags.tool, name, config, notes, here)
            saved(flags.tool, name, model, dir_, here)
            reward(flags.tool, name, config, here)
        if not flags.names or "adapters" in flags.names:
            adapters(flags.tool, pathlib.Path(folder) / "adapters")
    print(f"\n{len(failures)} failed")
    for failure in failures:
        print(failure)
    sys.exit(1 if failures else 0)


main()
