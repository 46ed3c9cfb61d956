"""Writes story openings for PPO on a story model: prompts.jsonl (to train on) and heldout.jsonl (other names, places and things).

Usage: generate.py --out DIR [--seed N] [--count N]
"""
import argparse
import itertools
import json
import pathlib
import random

NAMES = ["Lily", "Tom", "Mia", "Ben", "Sara", "Max", "Anna", "Sam", "Lucy", "Tim", "Amy", "Jack"]
HELD_OUT_NAMES = ["Sue", "Bob", "Ella", "Leo", "Emma", "Zoe", "Oscar", "Nina"]
PLACES = ["park", "garden", "forest", "house", "beach", "school"]
HELD_OUT_PLACES = ["farm", "yard"]
THINGS = ["ball", "book", "cake", "box", "hat", "tree", "car", "toy"]
HELD_OUT_THINGS = ["flower", "kite", "spoon", "drum"]
OPENINGS = [
    "Once upon a time, {name} went to the {place} with a {thing}.",
    "One day, {name} found a {thing} in the {place}.",
    "{name} was playing in the {place}.",
    "There was a little girl named {name}. She had a {thing}.",
    "{name} and Mom went to the {place} to look for a {thing}.",
]


def openings(names, places, things, rng, count):
    texts = sorted({t.format(name=n, place=p, thing=o) for t, n, p, o in itertools.product(OPENINGS, names, places, things)})
    rng.shuffle(texts)
    return texts[:count]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=1200)
    parser.add_argument("--held-out", type=int, default=240)
    flags = parser.parse_args()
    rng = random.Random(f"stories-{flags.seed}")
    out = pathlib.Path(flags.out)
    out.mkdir(parents=True, exist_ok=True)
    for file, texts in (("prompts.jsonl", openings(NAMES, PLACES, THINGS, rng, flags.count)),
                        ("heldout.jsonl", openings(HELD_OUT_NAMES, HELD_OUT_PLACES, HELD_OUT_THINGS, rng, flags.held_out))):
        with open(out / file, "w", encoding="utf-8") as f:
            for i, text in enumerate(texts):
                f.write(json.dumps({"id": f"{file[:4]}-{i:04d}", "prompt": text, "category": "story"}) + "\n")


main()
