"""Writes lora.json: what `peft` computes with adapters that both sides make from a formula, over the tiny models of family_configs.py.

Run in an environment with torch, transformers, peft and numpy:  python generate_lora.py
"""
import json
import pathlib
import tempfile

import peft
import torch
import transformers
from safetensors import safe_open

from family_configs import IDS, SHORT, classes, configs, make, values

HERE = pathlib.Path(__file__).resolve().parent
CASES = {  # name: (family, scalar head, target modules, rank, alpha)
    "llama": ("llama_grouped", False, ["q_proj", "v_proj", "down_proj"], 4, 8.0),
    "gpt2": ("gpt2", False, ["c_attn", "c_proj"], 3, 3.0),
    "phi3": ("phi3", False, ["qkv_proj", "gate_up_proj"], 2, 5.0),
    "reward": ("qwen3", True, ["q_proj", "k_proj", "o_proj"], 4, 4.0),
}


def rounded(tensor):
    return [float(f"{x:.8g}") for x in tensor.flatten().tolist()]


def main():
    out = {"made_with": {"peft": peft.__version__, "torch": torch.__version__, "transformers": transformers.__version__}, "cases": {}}
    for name, (family, scalar, targets, rank, alpha) in CASES.items():
        config = configs()[family][0]
        model = make(config, classes(config)[1 if scalar else 0])
        lora = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, fan_in_fan_out=family == "gpt2",
                               task_type="SEQ_CLS" if scalar else "CAUSAL_LM", modules_to_save=["score"] if scalar else None)
        model = peft.get_peft_model(model, lora).eval()
        adapters = sorted((n, p) for n, p in model.named_parameters() if p.requires_grad)
        with torch.no_grad():
            for k, (n, p) in enumerate(adapters):
                if "lora_" in n:
                    p.copy_(torch.tensor(values(p.numel(), 500 + k, 0.2), dtype=torch.float32).view(p.shape))
        logits = model(torch.tensor([IDS[:SHORT]])).logits[0]
        result = logits[0] if scalar else logits[-1]
        (result.mean() if scalar else -torch.log_softmax(logits[:-1], -1).gather(1, torch.tensor(IDS[1:SHORT]).unsqueeze(1)).mean()).backward()
        short = {n.replace("base_model.model.", "").replace(".default", "").replace(".modules_to_save", ""): p for n, p in adapters}
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            with safe_open(f"{folder}/adapter_model.safetensors", "pt") as file:
                keys = sorted(file.keys())
            saved = json.loads((pathlib.Path(folder) / "adapter_config.json").read_text())
        out["cases"][name] = {"family": family, "scalar": scalar, "rank": rank, "alpha": alpha, "targets": targets, "result": rounded(result),
                              "names": list(short), "keys": keys, "adapter_config": saved,
                              "gradients": {n: float(f"{p.grad.norm().item():.8g}") for n, p in short.items()}}
    (HERE / "lora.json").write_text(json.dumps(out, separators=(",", ":")) + "\n", encoding="utf-8")


main()
