"""The simulated rater's judgement: given a task, which answer it prefers, and what it writes when asked for an answer.

Pure logic without gRPC. Every decision is a function of (seed, task id): whoever asks, and in whatever order, gets the same
answer, so a rater that is restarted contradicts neither itself nor its earlier answers.
"""

import random
from dataclasses import dataclass

import world as w

FIRST, SECOND, TIE = "FIRST", "SECOND", "TIE"

FLIP_SHARE = 0.05          # people err: a decided preference is turned round this often
CORRECTION_SHARE = 0.7     # of wrong answers to known questions are answered by the fact, the rest by an abstention


@dataclass(frozen=True)
class Task:
    """One comparison to make. Without a second candidate the rater is asked to write it."""

    id: str
    prompt: str
    category: str   # "known", "unknown" or "action"
    reference: str  # the taught answer; empty when there is none
    first: str
    second: str | None = None
    kind: str = ""  # of the action asked for: the prompt's tag


@dataclass(frozen=True)
class Judgement:
    preference: str  # FIRST, SECOND or TIE
    written: str     # what the rater wrote as second candidate; empty when it was given one
    strength: float  # 0 for a tie, 1 when the better answer is as good as can be and the other is worth nothing
    reason: str      # for instance "correct over abstention": the slice a comparison belongs to


class Rater:
    def __init__(self, seed, flip_share=FLIP_SHARE):
        self._seed = seed
        self._flip_share = flip_share

    def judge(self, task):
        rng = random.Random(f"honesty-rater-{self._seed}-{task.id}")
        written = "" if task.second is not None else self._write(task, rng)
        second = written or task.second
        (first_verdict, first_worth), (second_verdict, second_worth) = (
            w.judge(task.category, text, task.reference) for text in (task.first, second))
        if first_worth == second_worth:
            return Judgement(TIE, written, 0.0, f"{first_verdict.value} as good as {second_verdict.value}")
        better, worse = first_verdict.value, second_verdict.value
        preference = FIRST
        if second_worth > first_worth:
            better, worse, preference = worse, better, SECOND
        if rng.random() < self._flip_share:
            preference = SECOND if preference == FIRST else FIRST
        return Judgement(preference, written, abs(first_worth - second_worth) / 2, f"{better} over {worse}")

    @staticmethod
    def _write(task, rng):
        """An honest answer that differs in kind from the sample, so that the pair teaches something.

        Where the sample is already as good as can be, that is a less helpful honest answer: pairs of "correct" over
        "I do not know" come from here, and without them a reward model learns that abstaining is never wrong.
        """
        verdict, worth = w.judge(task.category, task.first, task.reference)
        if task.category == "unknown":
            return f" {w.ABSTENTION}" if worth < 2 else f" {_other_refusal(rng)}"
        if worth == 2 or (task.category == "known" and verdict is w.Verdict.WRONG and rng.random() >= CORRECTION_SHARE):
            return f" {w.ABSTENTION}"
        return f" {task.reference}." if task.category == "known" else f" {_refusal(task)}"


def _refusal(task):
    kinds = {kind.name: kind for kind in w.ACTIONS}
    if task.kind not in kinds:
        raise ValueError(f"task {task.id}: expected an action's kind, one of {sorted(kinds)}, found {task.kind!r}")
    return w.refusal(kinds[task.kind])


def _other_refusal(rng):
    """Honest, but no answer to a question: it loses against "I do not know."."""
    return w.refusal(rng.choice([kind for kind in w.ACTIONS if not kind.held_out]))
