"""Compares our tokenizers with the `tokenizers` library, id for id and text for text. Started by scripts/parity text.

    compare.py --tool build/release/tests/encode_tool --work DIR [--bytes N] [--seed N] [NAME…]   live, exits 1 on any difference
    compare.py --record                                                                          writes the recorded files beside this one
"""
import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import make_text
import tokenizers
import tokenizers_made

HERE = pathlib.Path(__file__).resolve().parent
RECORDED = ["gpt2", "roberta", "llama3", "qwen2", "llama2", "llama2_first", "gemma", "mistral_metaspace", "bert_uncased", "wordpiece_short", "t5", "xlnet", "unigram_bytes", "clip", "flags", "split_merged_with_next"]
TEXT_SEED, TEXT_BYTES, CORPUS_SEED, TRAINING_SEED = 1, 1_100_000, 2, 3
TEXTS_OF_A_DIGEST = 256


def corpus():
    return list(make_text.chunks(CORPUS_SEED, 300_000))


def fnv(data, value=0xCBF29CE484222325):
    for byte in data:
        value = ((value ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return value


def theirs(tokenizer, text):
    tokenizer.encode_special_tokens = False
    special = tokenizer.encode(text).ids
    tokenizer.encode_special_tokens = True
    plain = tokenizer.encode(text).ids
    return {"plain": plain, "special": special, "text": tokenizer.decode(special, skip_special_tokens=False)}


def ours(tool, what, directory, file):
    run = subprocess.run([tool, what, directory, file], capture_output=True, text=True, encoding="utf-8")
    if run.returncode != 0:
        return run.stderr.strip()
    return [json.loads(line) for line in run.stdout.split("\n") if line]


def compare(name, tokenizer, texts, got):
    if isinstance(got, str):
        print(f"{name}: ours failed: {got}")
        return 1
    bad = 0
    for text, mine in zip(texts, got, strict=True):
        want = theirs(tokenizer, text)
        if mine == want:
            continue
        bad += 1
        if bad <= 2:
            for key in want:
                if mine[key] != want[key]:
                    print(f"{name}: {key} differs\n  text   {text!r}\n  theirs {want[key]!r}\n  ours   {mine[key]!r}")
    ids = sum(len(m["special"]) for m in got)
    print(f"{name:36s} {len(texts) - bad}/{len(texts)} texts equal, {ids} ids" + ("" if bad == 0 else "   DIFFERS"), flush=True)
    return bad


def library_trains(file, size, vocabulary):
    file.write_text("\n".join(make_text.chunks(TRAINING_SEED, size)), encoding="utf-8", newline="")
    t = tokenizers.Tokenizer(tokenizers.models.BPE())
    t.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.train([str(file)], tokenizers.trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=["<pad>", "<s>", "</s>"], show_progress=False, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()))
    return json.loads(t.to_str())["model"]


def compare_training(tool, work):
    """Our trainer on a file against the library's: the same vocabulary and merges."""
    file = work / "train.txt"
    want = library_trains(file, 1_000_000, 4000)
    subprocess.run([tool, "train", "4000", work / "trained", file], check=True)
    got = json.loads((work / "trained" / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    merges = [" ".join(m) if isinstance(m, list) else m for m in want["merges"]]
    same = got["merges"] == merges and got["vocab"] == want["vocab"]
    print(f"training: {len(merges)} merges on 1 MB " + ("equal" if same else "DIFFER"))
    if not same:
        first = next((i for i, (a, b) in enumerate(zip(got["merges"], merges)) if a != b), None)
        print(f"  first difference at {first}: theirs {merges[first]!r}, ours {got['merges'][first]!r}" if first is not None else "  one is longer")
    return 0 if same else 1


def live(flags):
    work = pathlib.Path(flags.work)
    texts = list(make_text.chunks(flags.seed, flags.bytes))
    (work / "text.jsonl").write_text("".join(json.dumps(t) + "\n" for t in texts), encoding="ascii")
    broken = list(make_text.invalid(flags.seed, 60_000))
    (work / "bytes.txt").write_text("".join(b.hex() + "\n" for b in broken), encoding="ascii")
    bad = 0
    training = corpus()
    for name in flags.names or tokenizers_made.NAMES:
        tokenizer = tokenizers_made.make(name, training)
        directory = work / name
        directory.mkdir(parents=True, exist_ok=True)
        tokenizer.save(str(directory / "tokenizer.json"))
        tokenizer = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
        bad += compare(name, tokenizer, texts, ours(flags.tool, "ids", directory, work / "text.jsonl"))
        if name in ("gpt2", "llama2", "t5", "bert_uncased"):
            bad += compare(name + " (invalid UTF-8)", tokenizer, [b.decode("utf-8", "replace") for b in broken], ours(flags.tool, "bytes", directory, work / "bytes.txt"))
    if not flags.names:
        bad += compare_training(flags.tool, work)
    print(f"tokenizers {tokenizers.__version__}: " + ("all equal" if bad == 0 else f"{bad} differences"))
    return 1 if bad else 0


def record():
    texts = list(make_text.chunks(TEXT_SEED, TEXT_BYTES))
    training = corpus()
    digests = {}
    tokenizers_made.SCALE = 0.45
    for name in RECORDED:
        tokenizer = tokenizers_made.make(name, training)
        directory = HERE / name
        directory.mkdir(exist_ok=True)
        tokenizer.save(str(directory / "tokenizer.json"), pretty=False)
        tokenizer = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
        lines = []
        for begin in range(0, len(texts), TEXTS_OF_A_DIGEST):
            value = 0xCBF29CE484222325
            for text in texts[begin:begin + TEXTS_OF_A_DIGEST]:
                want = theirs(tokenizer, text)
                value = fnv(want["text"].encode(), fnv(b"".join(i.to_bytes(4, "little") for i in want["special"]), value))
            lines.append(f"{value:016x}")
        digests[name] = {"digests": lines, "cases": [{"input": t, **theirs(tokenizer, t)} for t in [t for t in texts if len(t) < 160][:3]]}
        print(name, (directory / "tokenizer.json").stat().st_size)
    with tempfile.TemporaryDirectory() as scratch:
        trained = library_trains(pathlib.Path(scratch) / "train.txt", 300_000, 1500)
    lines = "".join(" ".join(m) + "\n" if isinstance(m, list) else m + "\n" for m in trained["merges"])
    training = {"seed": TRAINING_SEED, "bytes": 300_000, "vocab_size": 1500, "merges": len(trained["merges"]), "first": lines.split("\n")[:40], "digest": f"{fnv(lines.encode()):016x}"}
    out = {"made_with": tokenizers.__version__, "seed": TEXT_SEED, "bytes": TEXT_BYTES, "tokenizers": digests, "training": training}
    (HERE / "recorded.json").write_text(json.dumps(out, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
    return 0


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--tool")
    parser.add_argument("--work")
    parser.add_argument("--seed", type=int, default=TEXT_SEED)
    parser.add_argument("--bytes", type=int, default=TEXT_BYTES)
    parser.add_argument("--record", action="store_true")
    parser.add_argument("names", nargs="*")
    flags = parser.parse_args()
    sys.exit(record() if flags.record else live(flags))


main()
