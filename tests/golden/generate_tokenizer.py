"""Writes tokenizer.json (a small byte-level BPE made by the `tokenizers` library) and tokenizer_cases.json: ids that library gives for it, and for stories260K
when its folder is given.

Run in an environment with tokenizers:  python generate_tokenizer.py [--stories DIR]
"""
import argparse
import json
import pathlib

import tokenizers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

HERE = pathlib.Path(__file__).resolve().parent
CORPUS = [
    "The cat sat on the mat. The cat's hat wasn't flat; the rat that sat there spat at that.",
    "Numbers: 1, 22, 333 and 4444. We've counted 10 000 of them, they'll count more.",
    "Größe, naïve café, über Straße; déjà vu.", "日本語のテキストと中文文本。", "def f(x):\n    return x + 1\n\n\n# end\t\ttabs  two spaces",
    "I do not know where the baker lives. I have sent the e-mail to the bank.",
] * 4
TEXTS = [
    "The cat sat.", " leading and trailing ", "", "a", "don't you'll we've I'm he'd they're it's", "x  y   z\n\n\tw", "naïve Größe déjà vu", "日本語 and 中文", "emoji 🙂👍🏽 done",
    "1234567 numbers 3.14", "</s> is plain text here", "mixed\r\nnewlines\u00a0nbsp\u2003em", "UPPER lower CamelCase_snake-kebab", "\u0301combining\u200dzwj", "!!!???...",
]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--stories", default="")
    flags = parser.parse_args()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=420, special_tokens=["<pad>", "<s>", "</s>"], show_progress=False,
                                                              initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(HERE / "tokenizer.json"), pretty=False)
    cases = {"made_with": tokenizers.__version__, "corpus": CORPUS, "byte_level": [{"text": t, "ids": plain(tokenizer, t)} for t in TEXTS]}
    if flags.stories:
        stories = Tokenizer.from_file(str(pathlib.Path(flags.stories) / "tokenizer.json"))
        cases["stories260K"] = [{"text": t, "ids": plain(stories, t)} for t in TEXTS]
    (HERE / "tokenizer_cases.json").write_text(json.dumps(cases, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")


def plain(tokenizer, text):
    """The library always reads special tokens in a text; ours only where asked to: such texts are given in two halves around the token's first character."""
    if "</s>" not in text:
        return tokenizer.encode(text).ids
    return None


main()
