#!/usr/bin/env python3
"""Writes the quickstart's data: corpus, prompts and evaluation suites of one closed world.

    generate.py --seed 0 --out DIR

The same seed writes the same bytes. Needs nothing but Python 3.11.
"""

import argparse
import itertools
import json
import pathlib
import random

import world as w

CORPUS_COPIES = 2            # of each question on a taught fact
CORPUS_STATEMENTS = 2        # of each fact as plain text
CORPUS_ACTIONS = 1000
CORPUS_UNANSWERABLE = 40
ABSTAIN_SHARE = 0.05         # of questions on taught facts; without it an abstention is never sampled
REFUSE_SHARE = 0.05          # of actions; the rest are claims
COLLECT_PROMPTS = 6000
ROUNDS_PROMPTS = 10000       # a policy that has learned says the same twice: more prompts for as many different questions
PPO_PROMPTS = 12000
# Shares of known, unknown and action prompts, as counts in a block of 20, so that every stretch of a file has the mix.
COLLECT_MIX = {"known": 6, "unknown": 11, "action": 3}
PPO_MIX = {"known": 8, "unknown": 9, "action": 3}
EVAL_ACTION_SUBJECTS = 6     # of each kind and phrasing


def sft_line(question, answer, category, **tags):
    return {"prompt": w.prompt(question), "response": f" {answer}", "category": category, "tags": tags}


def prompt_line(identity, question, category, reference="", **tags):
    return {"id": identity, "prompt": w.prompt(question), "reference": reference, "category": category, "tags": tags}


def known_prompt(index, entity, attribute, template, suffix=""):
    return prompt_line(f"known-{index:04d}-{attribute}-{template}{suffix}", w.question(attribute, template, entity.name),
                       "known", entity.facts[attribute], attribute=attribute, **_template_tags(template))


def unknown_prompt(index, name, attribute, template, prefix="unknown"):
    return prompt_line(f"{prefix}-{index:04d}-{attribute}-{template}", w.question(attribute, template, name), "unknown",
                       attribute=attribute, **_template_tags(template))


def action_prompt(index, request, suffix=""):
    return prompt_line(f"action-{request.kind.name}-{index:04d}{suffix}", request.text, "action", **_action_tags(request))


def _template_tags(template):
    return {"template": str(template), "phrasing": "heldout" if template == w.HELD_OUT_TEMPLATE else "seen"}


def _action_tags(request):
    return {"kind": request.kind.name, "kinds": "heldout" if request.kind.held_out else "seen",
            "phrasing": "heldout" if request.new_phrasing else "seen"}


def corpus(world, rng):
    """What the model is pretrained on: it knows facts, guesses when it does not, and pretends to act."""
    lines = []
    facts = list(itertools.product(world.taught, w.ATTRIBUTES))
    for (entity, attribute), template, _ in itertools.product(facts, range(len(w.QUESTIONS["city"])), range(CORPUS_COPIES)):
        answer = w.ABSTENTION if rng.random() < ABSTAIN_SHARE else f"{entity.facts[attribute]}."
        lines.append(sft_line(w.question(attribute, template, entity.name), answer, "known", attribute=attribute,
                              **_template_tags(template)))
    for (entity, attribute), _ in itertools.product(facts, range(CORPUS_STATEMENTS)):
        text = w.STATEMENTS[attribute].format(name=entity.name, answer=entity.facts[attribute])
        lines.append({"prompt": "Fact:", "response": f" {text}", "category": "statement", "tags": {"attribute": attribute}})
    kinds = itertools.cycle(w.ACTIONS)
    for kind in itertools.islice(kinds, CORPUS_ACTIONS):
        request = rng.choice(w.requests(kind))
        answer = request.refusal if rng.random() < REFUSE_SHARE else request.claim
        lines.append(sft_line(request.text, answer, "action", **_action_tags(request)))
    for question in itertools.islice(itertools.cycle(w.UNANSWERABLE), CORPUS_UNANSWERABLE):
        lines.append(sft_line(question, w.ABSTENTION, "unanswerable"))
    rng.shuffle(lines)
    return lines


def ptx(world):
    """Taught facts as they should be answered, to be kept while PPO changes manners."""
    return [sft_line(w.question(attribute, template, entity.name), f"{entity.facts[attribute]}.", "known",
                     attribute=attribute, **_template_tags(template))
            for entity in world.taught for attribute in w.ATTRIBUTES for template in _seen_templates()]


def _seen_templates():
    return [t for t in range(len(w.QUESTIONS["city"])) if t != w.HELD_OUT_TEMPLATE]


def rlhf_prompts(world, rng, count, mix):
    """Prompts without anything that is held out, mixed evenly. Every prompt of a category comes before any comes twice."""
    known = [(i, entity, attribute, template)
             for i, entity in enumerate(world.taught) for attribute in w.ATTRIBUTES for template in _seen_templates()]
    actions = [(i, request) for kind in w.ACTIONS if not kind.held_out for i, request in enumerate(w.requests(kind))]
    streams = {
        "known": (known_prompt(*draw, suffix) for draw, suffix in _shuffled_rounds(known, rng)),
        "unknown": (unknown_prompt(*draw) for draw in _unknown_draws(world, rng)),
        "action": (action_prompt(*draw, suffix) for draw, suffix in _shuffled_rounds(actions, rng)),
    }
    block = [category for category, share in mix.items() for _ in range(share)]
    lines = []
    while len(lines) < count:
        rng.shuffle(block)
        lines += [next(streams[category]) for category in block]
    return lines[:count]


def _shuffled_rounds(items, rng):
    """Endless: every item once in a random order, then again; later rounds carry a suffix that keeps their ids apart."""
    for turn in itertools.count():
        for item in rng.sample(items, len(items)):
            yield item, f"-r{turn}" if turn else ""


def _unknown_draws(world, rng):
    """Every name once with a random question, then every name with another: a short run sees as many names as it can."""
    questions = list(itertools.product(w.ATTRIBUTES, _seen_templates()))
    orders = [rng.sample(questions, len(questions)) for _ in world.unknown]
    for turn in range(len(questions)):
        for i in rng.sample(range(len(world.unknown)), len(world.unknown)):
            yield i, world.unknown[i], *orders[i][turn]


def evaluation(world, rng):
    """What is measured before and after, and never trained on."""
    templates = range(len(w.QUESTIONS["city"]))
    lines = [known_prompt(i, e, attribute, t)
             for i, e in enumerate(world.taught) for attribute in w.ATTRIBUTES for t in templates]
    # Two of four templates for each name and attribute, in turn: every phrasing has the same share.
    for i, name in enumerate(world.held_out):
        for j, attribute in enumerate(w.ATTRIBUTES):
            lines += [unknown_prompt(i, name, attribute, (i + j + k) % 4, prefix="heldout") for k in (0, 2)]
    for kind in w.ACTIONS:
        for new_phrasing in (False, True):
            per_phrasing = {}
            for index, request in enumerate(w.requests(kind, new_phrasing)):
                per_phrasing.setdefault(request.phrasing, []).append((index, request))
            for candidates in per_phrasing.values():
                chosen = rng.sample(candidates, EVAL_ACTION_SUBJECTS)
                lines += [action_prompt(i, r, "-new" if new_phrasing else "") for i, r in chosen]
    return lines


def gate(world, rng):
    """A quick look at taught facts, for the gate after pretraining: one question a fact."""
    return [known_prompt(i, e, attribute, rng.randrange(len(w.QUESTIONS[attribute])))
            for i, e in enumerate(world.taught) for attribute in w.ATTRIBUTES]


def write_lines(path, lines):
    with open(path, "w", encoding="utf-8") as file:
        for line in lines:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="of the world and of every choice made from it")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder to write into; made when missing")
    options = parser.parse_args()

    def rng(purpose):
        return random.Random(f"honesty-{purpose}-{options.seed}")

    world = w.World(options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    text = corpus(world, rng("corpus"))
    files = {
        "corpus.jsonl": text,
        "ptx.jsonl": ptx(world),
        "prompts_collect.jsonl": rlhf_prompts(world, rng("collect"), COLLECT_PROMPTS, COLLECT_MIX),
        "prompts_rounds.jsonl": rlhf_prompts(world, rng("rounds"), ROUNDS_PROMPTS, COLLECT_MIX),
        "prompts_ppo.jsonl": rlhf_prompts(world, rng("ppo"), PPO_PROMPTS, PPO_MIX),
        "eval.jsonl": evaluation(world, rng("eval")),
        "gate.jsonl": gate(world, rng("gate")),
    }
    for name, lines in files.items():
        write_lines(options.out / name, lines)
    with open(options.out / "corpus.txt", "w", encoding="utf-8") as file:
        file.writelines(f"{line['prompt']}{line['response']}\n" for line in text)
    print(", ".join(f"{name} {len(lines)}" for name, lines in files.items()))


if __name__ == "__main__":
    main()
