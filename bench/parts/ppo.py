"""PPO end to end: a job on `rlhfctl up`, all processes on the same cores, against TRL's PPOTrainer with the same model, prompts, lengths, epochs and batch."""
import dataclasses
import shutil

import models
import report
from harness import ToolError
from report import Row
from service import Service

ENDS = 1 / 40  # the probability of the end of text at each token of `ragged`


@dataclasses.dataclass
class Case:
    model: str
    precision: str
    factor: float
    ragged: bool = False

    def what(self):
        responses = ", ragged responses" if self.ragged else ""
        return f"PPO end to end, {self.model}, {self.precision}{responses}, {Service.SAMPLES} samples a step"


CASES = [Case("tiny", "float32", 2.0), Case("llama288", "float32", 1.7), Case("llama288", "bfloat16", 1.5), Case("llama288", "float32", 2.5, ragged=True)]


def policy_and_reward_model(bench, case):
    policy = bench.model(case.model)
    if case.ragged:
        plain, policy = policy, bench.scratch / f"{case.model}-ragged"
        if not policy.exists():
            shutil.copytree(plain, policy)
            models.end_early(policy / "model.safetensors", models.CONFIGS[case.model], ENDS)
    reward = bench.scratch / f"{policy.name}-reward"
    if not reward.exists():
        models.make_reward_model(policy, models.CONFIGS[case.model], reward)
    return policy, reward


def run_job(bench, case, policy_lag=1):
    policy, reward = policy_and_reward_model(bench, case)
    with Service(bench, case.precision) as service:
        return service.run_ppo(policy, reward, models.write_prompts(bench.scratch), policy_lag)


def measure(bench):
    for case in CASES:
        bench.or_why(case.what() + ": ratio to the best peer", lambda case=case: compare(bench, case), unit="×", target=case.factor)
    bench.or_why("service overhead of an update, llama288", lambda: overhead(bench), target=5, unit="%", at_most=True)


def compare(bench, case):
    policy, _ = policy_and_reward_model(bench, case)
    last = {}

    def ours():
        last.update(run_job(bench, case))
        rate = report.rate_of_steps(last["seen"], Service.SAMPLES)
        if rate is None:
            raise ToolError("expected several steps of the PPO job, saw fewer than two within --ppo-seconds")
        return rate

    asked = ("ppo", "--model", policy, "--prompts", models.write_prompts(bench.scratch), "--samples", Service.SAMPLES, "--new-tokens", Service.NEW_TOKENS, "--epochs", Service.EPOCHS,
             "--threads", bench.flags.threads, "--precision", case.precision)
    precision = "pure bfloat16" if case.precision == "bfloat16" else case.precision
    bench.compare(case.what(), "samples/s", ours, {f"trl {precision}": (*asked, "--stop-at-eos") if case.ragged else asked}, factor=case.factor, rounds=bench.flags.ppo_rounds)
    if case.ragged:
        rows_of_lengths(bench, last["rollout"])
    elif case == Case("llama288", "float32", 1.7):
        rows_of_update(bench, last)


def rows_of_lengths(bench, rollout):
    """That responses are ragged indeed."""
    finished = report.total(rollout, "rlhf_rollout_finished_total")
    tokens, stopped = report.total(rollout, "rlhf_rollout_generation_tokens_total"), report.total(rollout, "rlhf_rollout_finished_total", reason="end_of_text")
    bench.rows += [Row("ragged responses: tokens on average, the end of text included", tokens / finished if finished else None, note="" if finished else "no response ended"),
                   Row("ragged responses: share that ends before the most tokens", 100 * stopped / finished if finished else None, "%", note="" if finished else "no response ended")]


def rows_of_update(bench, job):
    """What else a job tells whose generation may overlap the training of the step before."""
    moved = report.total(job["rollout"], "rlhf_weight_sync_bytes_total") + report.total(job["rollout"], "rlhf_weight_sync_mapped_bytes_total")
    seconds = sum(report.total(job["rollout"], "rlhf_weight_sync_seconds_sum", phase=phase) for phase in ("fetch", "apply"))
    bench.rows.append(Row("weights in that job, from the manifest to applied, on one host", moved / seconds / 1e9 if seconds else None, "GB/s",
                          bench.limits.get("loopback_gb_per_second"), "loopback TCP", note="" if seconds else "no weights moved"))
    busy = {phase: report.total(job["learner"], "rlhf_learner_step_seconds_sum", phase=phase) for phase in ("train", "wait_for_samples", "publish")}
    whole = sum(busy.values())
    bench.rows.append(Row("PPO: share of the learner's time in training", 100 * busy["train"] / whole if whole else None, "%", note="" if whole else "no step ended"))
    share = report.idle_share(job["trace"])
    bench.rows.append(Row("PPO: share of time with nothing generating, scoring or training, policy lag 1", None if share is None else 100 * share, "%", note="" if share is not None else "fewer than two updates"))


def overhead(bench):
    """In lock-step (policy lag 0, the default) nothing hides what the service adds between generating, scoring and training. Once: the share is of one
    run's own time, over the updates after the first."""
    share = report.idle_share(run_job(bench, Case("llama288", "float32", 1.7), policy_lag=0)["trace"])
    bench.rows.append(Row("service overhead of an update, llama288, policy lag 0: share of time with nothing generating, scoring or training",
                          None if share is None else 100 * share, "%", target=5, at_most=True, note="" if share is not None else "fewer than two updates"))
