"""Writes families.json: what `transformers` computes for a tiny model of every family, whose weights both sides make from a formula.

Run in an environment with torch, transformers and numpy:  python generate_families.py
"""
import json
import pathlib

import torch
import transformers

from family_configs import IDS, SHORT, classes, configs, make, values

HERE = pathlib.Path(__file__).resolve().parent
NEAR_TIE = 2e-4  # greedy choices closer than this are avoided: rounding may turn them
DROPPED = ("transformers_version", "architectures", "id2label", "label2id", "dtype", "use_cache", "initializer_range")


def rounded(tensor):
    return [float(f"{x:.8g}") for x in tensor.flatten().tolist()]


def log_probs(model, ids):
    logits = model(torch.tensor([ids])).logits[0].float()
    return logits, torch.log_softmax(logits[:-1], -1).gather(1, torch.tensor(ids[1:]).unsqueeze(1)).squeeze(1)


def check_padding(model, alone):
    """The library itself: padded left and right beside another sequence, with the mask, equals alone."""
    ids, other = IDS[:SHORT], IDS[30:34]
    for left in (False, True):
        rows, masks = [], []
        for row in (ids, other):
            pad = [0] * (len(ids) - len(row))
            rows.append(pad + row if left else row + pad)
            masks.append([0] * len(pad) + [1] * len(row) if left else [1] * len(row) + [0] * len(pad))
        mask = torch.tensor(masks)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        logits = model(torch.tensor(rows), attention_mask=mask, position_ids=positions).logits
        short = model(torch.tensor([other])).logits[0]
        at = slice(len(ids) - len(other), None) if left else slice(0, len(other))
        assert torch.allclose(logits[0], alone, atol=1e-5) and torch.allclose(logits[1, at], short, atol=1e-5)


def greedy(model, count):
    """Tokens after a prompt, by the whole sequence each time: no cache takes part. Prompts with a near tie are passed over."""
    for start in range(40):
        ids = IDS[start:start + 5]
        out, safe = [], True
        for _ in range(count):
            logits = model(torch.tensor([ids + out])).logits[0, -1].float()
            best = torch.topk(logits, 2)
            safe = safe and (best.values[0] - best.values[1]).item() > NEAR_TIE
            if not safe:
                break
            out.append(best.indices[0].item())
        if safe:
            return ids, out
    raise RuntimeError("every prompt meets a near tie")


def gradients(model, ids):
    """Per parameter: the gradient's norm and its product with a fixed direction. The loss is the mean over predicted tokens."""
    model.zero_grad()
    loss = -log_probs(model, ids)[1].mean()
    loss.backward()
    out = {}
    for k, (name, p) in enumerate(sorted(model.named_parameters())):
        direction = torch.tensor(values(p.numel(), 1000 + k, 1.0))
        grad = torch.zeros(p.numel(), dtype=torch.float64) if p.grad is None else p.grad.double().flatten()
        out[name] = [float(f"{x:.8g}") for x in (grad.norm().item(), (grad * direction).sum().item())]
    return float(f"{loss.item():.8g}"), out


def main():
    out = {"made_with": {"torch": torch.__version__, "transformers": transformers.__version__}, "ids": IDS, "short": SHORT, "models": {}}
    for name, (config, notes) in configs().items():
        causal, classifier = classes(config)
        model = make(config, causal)
        short = IDS[:SHORT]
        with torch.no_grad():
            logits, short_log_probs = log_probs(model, short)
            check_padding(model, logits)
            row = {"last_logits": rounded(logits[-1]), "log_probs": rounded(short_log_probs)}
            # Beyond what the model was trained for, or would see in a window. A fresh model: ropes keep what was before.
            row["long_log_probs"] = rounded(log_probs(make(config, causal), IDS)[1][-12:])
            half = make(config, causal, torch.bfloat16)
            row["bf16_error"] = float(f"{(log_probs(half, short)[0] - logits).abs().max().item():.4g}")
            prompt, tokens = greedy(make(config, causal), notes.get("context", 256) - 5 if "context" in notes else 200)
            row["prompt"], row["greedy"] = prompt, tokens
            reward = make(config, classifier)
            row["reward"] = float(f"{reward(torch.tensor([short])).logits[0, 0].item():.8g}")
        row["loss"], row["gradients"] = gradients(model, short)
        saved = {k: v for k, v in json.loads(model.config.to_json_string(use_diff=False)).items() if k not in DROPPED}
        saved["architectures"] = [causal.__name__]
        row["config"] = saved
        row["context"] = notes.get("context", 0)
        out["models"][name] = row
        print(name, "bf16 error", row["bf16_error"], "loss", row["loss"], flush=True)
    text = json.dumps(out, separators=(",", ":")) + "\n"
    (HERE / "families.json").write_text(text, encoding="utf-8")
    print(len(text), "bytes")


main()
