"""Writes trl.json: steps of GRPO and RLOO by trl's own trainers, on the tiny llama of family_configs.py.

Only what would be sampled is given: answers, scores, and a reference that is another model. Advantages, the KL, losses, gradients, clipping and AdamW are trl's.
Run on a CPU, in an environment with torch, transformers, datasets, accelerate and trl 1.12:  python generate_trl.py
"""
import json
import pathlib
import tempfile

import datasets
import tokenizers
import torch
import transformers
import trl
from family_configs import IDS, classes, configs, make, values

HERE = pathlib.Path(__file__).resolve().parent
GROUPS, SAMPLES, TEMPERATURE, BETA = 3, 4, 0.8, 0.2
PROMPTS = [IDS[0:3], IDS[3:8], IDS[8:12]]
SCORES = [1.0, 0.25, -0.5, 2.0, 0.5, 0.5, 0.75, 0.0, -1.0, 1.5, 0.1, 0.3]
CHOICES = [(IDS * 2)[12 + 7 * i:12 + 7 * i + 2 + (i * 5) % 6] for i in range(GROUPS * SAMPLES)]
SHARED = dict(per_device_train_batch_size=GROUPS * SAMPLES, num_generations=SAMPLES, num_iterations=2, max_steps=2, temperature=TEMPERATURE, max_completion_length=8, beta=BETA,
              learning_rate=0.004, lr_scheduler_type="constant", adam_beta1=0.9, adam_beta2=0.95, adam_epsilon=1e-2, weight_decay=0.0, max_grad_norm=1.0,
              shuffle_dataset=False, use_cpu=True, bf16=False, gradient_checkpointing=False, report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True,
              model_init_kwargs={"attn_implementation": "eager", "dtype": "float32"})


def rounded(numbers):
    return [float(f"{float(x):.8g}") for x in numbers]


def projections(tensors):
    """Of each parameter's tensor its norm and its product with a fixed direction."""
    out = {}
    for k, name in enumerate(sorted(tensors)):
        flat = tensors[name].detach().double().flatten()
        out[name] = rounded((flat.norm(), (flat * torch.tensor(values(flat.numel(), 1000 + k, 1.0))).sum()))
    return out


def tokenizer():
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({f"w{i}": i for i in range(64)}, unk_token="w3"))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", bos_token="w1", eos_token="w2", unk_token="w3")


def recording(base):
    """The trainer with answers instead of generation, and what it computes written down."""

    class Recording(base):
        def _generate(self, prompts):
            sampled = [list(CHOICES[SAMPLES * int(p[1:]) + i % SAMPLES]) for i, p in enumerate(prompts)]
            asked, text = [PROMPTS[int(p[1:])] for p in prompts], [""] * len(prompts)
            return (asked, sampled, None, text, None, {}, None, None) if base is trl.GRPOTrainer else (asked, sampled, text)

        def _generate_and_score_completions(self, inputs):
            out = super()._generate_and_score_completions(inputs)
            self.record["advantages"] = rounded(out["advantages"])
            return out

        def _get_per_token_logps_and_entropies(self, model, input_ids, attention_mask, logits_to_keep, *rest, **more):
            out = super()._get_per_token_logps_and_entropies(model, input_ids, attention_mask, logits_to_keep, *rest, **more)
            if not torch.is_grad_enabled():
                which = "reference" if model is self.ref_model else "old"
                self.record[which] = [rounded(out[0][i, :len(CHOICES[i])]) for i in range(len(CHOICES))]
            return out

        def training_step(self, model, inputs, num_items_in_batch=None):
            loss = super().training_step(model, inputs, num_items_in_batch)
            self.record["losses"].append(loss.item())
            if self.accelerator.sync_gradients:
                gradients = {name: p.grad for name, p in self.model.named_parameters()}
                norm = torch.sqrt(sum(g.double().square().sum() for g in gradients.values()))
                self.record["updates"].append({"norm": float(f"{norm.item():.8g}"), "gradients": projections(gradients)})
            return loss

        def log(self, *args, **kwargs):
            pass

    return Recording


def run(directory, base, config, **settings):
    model = make(configs()["llama"][0], classes(configs()["llama"][0])[0])
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.save_pretrained(directory)
    data = datasets.Dataset.from_dict({"prompt": [f"w{i}" for i in range(GROUPS)]})
    args = config(output_dir=directory, **{**SHARED, **settings})
    trainer = recording(base)(model=str(directory), args=args, train_dataset=data, processing_class=tokenizer(),
                              reward_funcs=lambda completion_ids, **_: [SCORES[CHOICES.index(list(ids))] for ids in completion_ids])
    with torch.no_grad():
        for k, name in enumerate(sorted(dict(trainer.ref_model.named_parameters()))):
            p = trainer.ref_model.get_parameter(name)
            p.add_(torch.tensor(values(p.numel(), 500 + k, 0.04), dtype=torch.float32).view(p.shape))
    trainer.record = {"losses": [], "updates": []}
    trainer.train()
    record = trainer.record
    record["losses"] = rounded(record["losses"])
    for name in ("kl", "clip_ratio/region_mean", "entropy"):
        record[name] = rounded(trainer._metrics["train"][name])
    record["moved"] = projections({name: p - start[name] for name, p in trainer.model.named_parameters()})
    return record


def main():
    def grpo(directory, **settings):
        # By default trl multiplies the KL by the ratio, which at 1 changes its gradient alone; Shao et al. 2024 do not.
        return run(directory, trl.GRPOTrainer, trl.GRPOConfig, use_bias_correction_kl=False, **settings)

    half = dict(per_device_train_batch_size=GROUPS * SAMPLES // 2, gradient_accumulation_steps=2, steps_per_generation=2)
    with tempfile.TemporaryDirectory() as directory:
        runs = {"grpo": grpo(directory, scale_rewards="group", loss_type="dapo", **half),
                "grpo_no_std": grpo(directory, scale_rewards="none", loss_type="bnpo"),
                "grpo_entropy": grpo(directory, scale_rewards="group", loss_type="bnpo", entropy_coef=0.05),
                "dr_grpo": grpo(directory, scale_rewards="none", loss_type="dr_grpo"),
                "rloo": run(directory, trl.RLOOTrainer, trl.RLOOConfig)}
    keep = ("learning_rate", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "max_completion_length")
    out = {"made_with": {"torch": torch.__version__, "transformers": transformers.__version__, "trl": trl.__version__}, "temperature": TEMPERATURE, "beta": BETA,
           "samples_per_prompt": SAMPLES, "prompts": PROMPTS, "responses": CHOICES, "scores": SCORES, "settings": {k: SHARED[k] for k in keep},
           "old": runs["grpo_no_std"].pop("old"), "reference": runs["grpo_no_std"].pop("reference"), "runs": runs}
    for record in runs.values():
        record.pop("old", None)
        record.pop("reference", None)
    text = json.dumps(out, separators=(",", ":")) + "\n"
    (HERE / "trl.json").write_text(text, encoding="utf-8")
    for name, record in runs.items():
        print(name, {k: v for k, v in record.items() if k not in ("updates", "moved")}, [u["norm"] for u in record["updates"]])
    print(len(text), "bytes")


main()
