"""Writes the seeds that fuzzing starts from into a folder, one folder a target:  make_seeds.py OUT"""
import json
import pathlib
import struct
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"


def small_tokenizers():
    bpe = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "▁": 3, "<0x41>": 4, "<unk>": 5, "Ġ": 6}, "merges": ["a b"], "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True}
    unigram = {"type": "Unigram", "vocab": [["<unk>", 0.0], ["a", -1.5], ["ab", -2.0], ["▁", -3.0]], "unk_id": 0}
    wordpiece = {"type": "WordPiece", "vocab": {"[UNK]": 0, "a": 1, "##b": 2}, "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 9}
    added = [{"id": 9, "content": "<s>", "single_word": False, "lstrip": True, "rstrip": True, "normalized": False, "special": True}]
    split = {"type": "Split", "pattern": {"Regex": "(?i:'s)|\\p{L}+|\\s+(?!\\S)|\\s"}, "behavior": "Isolated", "invert": False}
    normalizers = [None, {"type": "NFKC"}, {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]}, {"type": "BertNormalizer", "lowercase": True}, {"type": "Strip", "strip_left": True, "strip_right": True}]
    pre = [None, {"type": "ByteLevel", "add_prefix_space": True}, split, {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}, {"type": "BertPreTokenizer"}, {"type": "Digits", "individual_digits": True}]
    post = [None, {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}], "special_tokens": {"<s>": {"id": "<s>", "ids": [9], "tokens": ["<s>"]}}}, {"type": "RobertaProcessing", "sep": ["b", 1], "cls": ["a", 0]}]
    decoders = [None, {"type": "ByteLevel"}, {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}, {"type": "WordPiece", "prefix": "##", "cleanup": True}]
    for i in range(30):
        yield {"added_tokens": added if i % 3 else [], "normalizer": normalizers[i % 5], "pre_tokenizer": pre[i % 6], "post_processor": post[i % 3], "decoder": decoders[i % 4], "model": [bpe, unigram, wordpiece][i % 3]}


def hostile_tokenizers():
    """What once ended the process, filled the machine or took hours: kept, so that mutations begin near it."""
    base = {"added_tokens": [], "normalizer": None, "pre_tokenizer": None, "post_processor": None, "decoder": None, "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}}
    twice = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    step = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    yield {**base, "pre_tokenizer": step, "model": {"type": None, "vocab": {"a": 0}, "merges": []}}
    yield {**base, "normalizer": {"type": "Sequence", "normalizers": [twice] * 60}}
    yield {**base, "pre_tokenizer": {"type": "Sequence", "pretokenizers": [step] * 24}}
    yield {**base, "decoder": {"type": "Sequence", "decoders": [twice] * 20}}
    yield {**base, "normalizer": {"type": "NFC"}}
    yield {**base, "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "[\\s\\S]*(?:x|y)"}, "behavior": "Isolated", "invert": False}}
    special = {"SpecialToken": {"id": "s", "type_id": 0}}
    yield {**base, "post_processor": {"type": "TemplateProcessing", "single": [special] * 100 + [{"Sequence": {"id": "A", "type_id": 0}}], "special_tokens": {"s": {"id": "s", "ids": [0] * 100, "tokens": []}}}}
    yield {**base, "model": {"type": "Unigram", "vocab": [["a", -1.0], ["a" * 2000, -2.0]], "unk_id": 0}}


def safetensors():
    for tensors in ({}, {"a": ("F32", [2, 2], 16)}, {"a": ("BF16", [3], 6), "b": ("I64", [1], 8)}, {"a": ("F32", [0], 0), "__metadata__": None}):
        header, at, data = {}, 0, b""
        for name, info in tensors.items():
            if info is None:
                header[name] = {"format": "pt"}
                continue
            header[name] = {"dtype": info[0], "shape": info[1], "data_offsets": [at, at + info[2]]}
            at += info[2]
            data += bytes(info[2])
        text = json.dumps(header).encode()
        yield struct.pack("<Q", len(text)) + text + data


def configs():
    base = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 32}
    for kind, more in (("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}), ("mistral", {"sliding_window": 8}), ("qwen2", {}), ("qwen3", {"head_dim": 8}), ("gemma2", {"head_dim": 8, "attn_logit_softcapping": 50.0}),
                       ("phi3", {}), ("gpt_neox", {"rotary_pct": 0.25}), ("gpt2", {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32})):
        yield {"model_type": kind, "architectures": [kind.title() + "ForCausalLM"], **base, **more}


def main():
    out = pathlib.Path(sys.argv[1])
    seeds = {
        "tokenizer": [json.dumps(t, ensure_ascii=False).encode() + b"\na ab <s>b \xe2\x82\xac 12" for t in small_tokenizers()]
        + [json.dumps(t).encode() + b"\na" + b"\xcc\x81\xcc\x96" * 1000 for t in hostile_tokenizers()],
        "text": [t.encode() for t in ("a <s> b", "\u00e9e\u0301 \u4f60\u597d \U0001F468\u200d\U0001F469", "  \t\n x's 12345 </s>[MASK]")] + [b"\xff\xe2\x82 \xc0\xaf\xed\xa0\x80"],
        "chat": [p.read_bytes() for p in sorted((GOLDEN / "chat" / "templates").glob("*.jinja"))] + [s["source"].encode() for s in json.loads((GOLDEN / "chat" / "cases.json").read_text(encoding="utf-8"))["snippets"]],
        "safetensors": list(safetensors()),
        "config": [json.dumps(c).encode() for c in configs()],
    }
    for target, files in seeds.items():
        (out / target).mkdir(parents=True, exist_ok=True)
        for i, data in enumerate(files):
            (out / target / f"seed-{i:03d}").write_bytes(data)


main()
