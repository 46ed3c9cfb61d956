"""Writes learner.json: reference values of the learner's formulas.

masked_mean and masked_whiten are trl's own functions, AdamW, clipping and gradients PyTorch's; GAE and the clipped losses are copies of
trl.experimental.ppo.ppo_trainer's lines, which are not functions there, Bradley-Terry of its reward trainer's. What trl's trainers of GRPO and RLOO
compute themselves is in trl.json (generate_trl.py); `groups` only restates the estimators' formulas.
Run in an environment with torch and trl 1.12:  python generate_learner.py
"""
import json
import pathlib

import torch
import torch.nn.functional as F
import trl
from trl.experimental.ppo.ppo_trainer import masked_mean, masked_whiten

HERE = pathlib.Path(__file__).resolve().parent
torch.manual_seed(7)


def flat(t):
    return [float(x) for x in t.detach().reshape(-1)]


def gae():
    """Three responses of 5, 3 and 1 tokens, right-padded to 5."""
    counts, gamma, lam = [5, 3, 1], 0.97, 0.9
    rewards, values = torch.randn(3, 5), torch.randn(3, 5)
    mask = torch.arange(5)[None, :] < torch.tensor(counts)[:, None]
    rewards, values = rewards * mask, values * mask
    last, reversed_advantages = 0, []
    for t in reversed(range(5)):
        next_values = values[:, t + 1] if t < 4 else 0.0
        delta = rewards[:, t] + gamma * next_values - values[:, t]
        last = delta + gamma * lam * last
        reversed_advantages.append(last)
    advantages = torch.stack(reversed_advantages[::-1], axis=1)
    returns = advantages + values
    whitened = masked_whiten(advantages, mask)
    unshifted = masked_whiten(advantages, mask, shift_mean=False)
    return {"counts": counts, "gamma": gamma, "lambda": lam, "rewards": flat(rewards[mask]), "values": flat(values[mask]),
            "advantages": flat(advantages[mask]), "returns": flat(returns[mask]), "whitened": flat(whitened[mask]), "whitened_keeping_mean": flat(unshifted[mask])}


def ppo():
    n = 12
    new, old = (0.3 * torch.randn(n) - 2).requires_grad_(), 0.3 * torch.randn(n) - 2
    advantages, values, old_values, returns = torch.randn(n), torch.randn(n).requires_grad_(), torch.randn(n), torch.randn(n)
    mask = torch.ones(n, dtype=torch.bool)
    clipped = torch.clamp(values, old_values - 0.2, old_values + 0.2)
    v1, v2 = torch.square(values - returns), torch.square(clipped - returns)
    value_loss = 0.5 * masked_mean(torch.max(v1, v2), mask)
    ratio = torch.exp(new - old)
    p1, p2 = -advantages * ratio, -advantages * torch.clamp(ratio, 0.8, 1.2)
    policy_loss = masked_mean(torch.max(p1, p2), mask)
    (policy_loss + value_loss).backward()
    return {"new": flat(new), "old": flat(old), "advantages": flat(advantages), "values": flat(values), "old_values": flat(old_values), "returns": flat(returns),
            "policy_loss": policy_loss.item(), "policy_gradient": flat(new.grad), "policy_clipped": int((p2 > p1).sum()),
            "value_loss": value_loss.item(), "value_gradient": flat(values.grad), "value_clipped": int((v2 > v1).sum())}


def bradley_terry():
    chosen, rejected, margin = torch.randn(6).requires_grad_(), torch.randn(6).requires_grad_(), torch.tensor([0, 0.5, 0, 1.0, 0, 0])
    losses = -F.logsigmoid(chosen - rejected - margin)
    losses.sum().backward()
    return {"chosen": flat(chosen), "rejected": flat(rejected), "margins": flat(margin), "losses": flat(losses), "gradient": flat(chosen.grad)}


def adamw():
    """Three steps on a matrix (with decay) and a vector (without)."""
    matrix, vector = torch.randn(3, 4).requires_grad_(), torch.randn(5).requires_grad_()
    out = {"matrix": flat(matrix), "vector": flat(vector), "steps": []}
    optimizer = torch.optim.AdamW([{"params": [matrix], "weight_decay": 0.1}, {"params": [vector], "weight_decay": 0.0}], lr=0.01, betas=(0.9, 0.95), eps=1e-8)
    for _ in range(3):
        matrix.grad, vector.grad = torch.randn(3, 4), torch.randn(5)
        step = {"matrix_gradient": flat(matrix.grad), "vector_gradient": flat(vector.grad)}
        optimizer.step()
        step.update(matrix=flat(matrix), vector=flat(vector))
        out["steps"].append(step)
    return out


def groups():
    returns = torch.randn(3, 4)
    rloo = returns - (returns.sum(1, keepdim=True) - returns) / 3
    centered = returns - returns.mean(1, keepdim=True)
    return {"samples_per_prompt": 4, "returns": flat(returns), "rloo": flat(rloo), "grpo": flat(centered / (returns.std(1, keepdim=True) + 1e-4)),
            "grpo_no_std": flat(centered), "reinforce_baseline": flat(returns - returns.mean())}


def loss_curve():
    """Five steps of SFT-like training of a bigram table: logits = table[token]; AdamW without decay; gradients clipped at norm 1."""
    tokens = [1, 4, 2, 5, 3, 1, 2, 2, 4, 0, 5, 3]
    index = torch.arange(36, dtype=torch.float64)
    table = (0.5 * torch.sin(0.9 * index)).float().view(6, 6).requires_grad_()
    optimizer = torch.optim.AdamW([table], lr=0.05, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = F.cross_entropy(table[torch.tensor(tokens[:-1])], torch.tensor(tokens[1:]))
        loss.backward()
        torch.nn.utils.clip_grad_norm_([table], 1.0)
        optimizer.step()
        losses.append(loss.item())
    return {"tokens": tokens, "losses": losses}


out = {"made_with": {"torch": torch.__version__, "trl": trl.__version__}, "gae": gae(), "ppo": ppo(), "bradley_terry": bradley_terry(), "adamw": adamw(),
       "groups": groups(), "loss_curve": loss_curve()}
(HERE / "learner.json").write_text(json.dumps(out, separators=(",", ":")) + "\n", encoding="utf-8")
