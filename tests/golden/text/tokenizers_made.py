"""Builds tokenizers with the `tokenizers` library: every component that ours supports, and the configurations of model families, trained on make_text's text.

make(name, corpus) gives a tokenizers.Tokenizer; NAMES lists them.
"""
import base64
import json
import struct

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

GPT4 = r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
QWEN = GPT4.replace(r"\p{N}{1,3}", r"\p{N}")
O200K = r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
BYTES = ["<0x%02X>" % b for b in range(256)]
SCALE = 1.0  # of the vocabularies: less for the recorded files


def bpe(corpus, pre, norm=None, size=1500, special=("<|endoftext|>",), byte_level=True, **model):
    t = Tokenizer(models.BPE(**model))
    if norm is not None:
        t.normalizer = norm
    if pre is not None:
        t.pre_tokenizer = pre
    kept = {k: v for k, v in model.items() if k in ("continuing_subword_prefix", "end_of_word_suffix")}
    t.train_from_iterator(corpus if byte_level else frequent(corpus, int(300 * SCALE)), trainers.BpeTrainer(vocab_size=int(size * SCALE), special_tokens=list(special), show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if byte_level else [], **kept))
    return t


def edit(tokenizer, change):
    data = json.loads(tokenizer.to_str())
    change(data)
    return Tokenizer.from_str(json.dumps(data))


def gpt2(corpus):
    t = bpe(corpus, pre_tokenizers.ByteLevel(add_prefix_space=False))
    t.decoder = decoders.ByteLevel()
    t.post_processor = processors.ByteLevel(trim_offsets=False)
    return t


def pythia(corpus):
    t = bpe(corpus, pre_tokenizers.ByteLevel(add_prefix_space=False), normalizers.NFC(), special=("<|endoftext|>", "<|padding|>"))
    t.decoder = decoders.ByteLevel()
    t.add_tokens([AddedToken(" " * n, normalized=True) for n in range(24, 1, -1)])
    return t


def roberta(corpus):
    t = bpe(corpus, pre_tokenizers.ByteLevel(add_prefix_space=True), special=("<s>", "<pad>", "</s>", "<unk>"))
    t.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True)])
    t.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    t.decoder = decoders.ByteLevel()
    return t


def llama3(corpus):
    pre = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(GPT4), "isolated", False), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t = bpe(corpus, pre, special=())
    t = edit(t, lambda d: (d["model"].update(ignore_merges=True), d["model"]["vocab"].update({"ĠAnthropology": len(d["model"]["vocab"]), "hahaha": len(d["model"]["vocab"]) + 1})))
    t.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|im_end|>"])
    t.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), processors.TemplateProcessing(single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", t.token_to_id("<|begin_of_text|>"))])])
    t.decoder = decoders.ByteLevel()
    return t


def qwen2(corpus):
    pre = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(QWEN), "isolated", False), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t = bpe(corpus, pre, normalizers.NFC(), special=())
    t.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    t.add_tokens([AddedToken("<tool_call>", normalized=False), AddedToken("<|user|>", normalized=False)])
    t.decoder = decoders.ByteLevel()
    return t


def o200k(corpus):
    pre = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(O200K), "removed", True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t = bpe(corpus, pre)
    t.decoder = decoders.ByteLevel()
    return t


def sentencepiece_bpe(corpus, norm, pre, size=1200, symbols=("<unk>", "<s>", "</s>"), keep=None):
    """Trained on words, then without a pre-tokenizer and with bytes to fall back on, as the converters make it."""
    t = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    t.normalizer = norm
    t.pre_tokenizer = pre
    t.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=int(size * SCALE), special_tokens=list(symbols) + BYTES, show_progress=False, limit_alphabet=int(300 * SCALE)))
    d = json.loads(t.to_str())
    d["pre_tokenizer"] = keep
    d["added_tokens"] = [a for a in d["added_tokens"] if a["content"] in symbols]
    return Tokenizer.from_str(json.dumps(d))


def llama2(corpus):
    t = sentencepiece_bpe(corpus, normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]), pre_tokenizers.Split("▁", "merged_with_next", False))
    t.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return t


def llama2_first(corpus):
    """The newer conversion: Metaspace prepends only at the text's beginning."""
    t = llama2(corpus)
    d = json.loads(t.to_str())
    d["normalizer"] = None
    d["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    return Tokenizer.from_str(json.dumps(d))


def gemma(corpus):
    t = sentencepiece_bpe(corpus, normalizers.Replace(" ", "▁"), pre_tokenizers.Split("▁", "merged_with_next", False), symbols=("<pad>", "<eos>", "<bos>", "<unk>"))
    d = json.loads(t.to_str())
    d["pre_tokenizer"] = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    t = Tokenizer.from_str(json.dumps(d))
    t.add_special_tokens(["<start_of_turn>", "<end_of_turn>"])
    t.add_tokens([AddedToken("\n" * n, normalized=False) for n in range(2, 6)])
    t.post_processor = processors.TemplateProcessing(single="<bos> $A <eos>", special_tokens=[("<bos>", 2), ("<eos>", 1)])
    t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return t


def phi3(corpus):
    t = llama2(corpus)
    t.add_special_tokens([AddedToken("<|user|>", rstrip=True, special=True), AddedToken("<|im_end|>", rstrip=True, special=True), AddedToken("<|endoftext|>", special=True)])
    return t


def mistral_metaspace(corpus):
    t = sentencepiece_bpe(corpus, normalizers.Replace("\u200b", ""), pre_tokenizers.Metaspace(prepend_scheme="always"), keep={"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True})
    t.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="always")])
    return t


def wordpiece(corpus, norm, pre=None, **flags):
    t = Tokenizer(models.WordPiece(unk_token="[UNK]", **flags))
    t.normalizer = norm
    t.pre_tokenizer = pre or pre_tokenizers.BertPreTokenizer()
    t.train_from_iterator(corpus, trainers.WordPieceTrainer(vocab_size=int(1200 * SCALE), special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], show_progress=False, limit_alphabet=int(300 * SCALE)))
    t.decoder = decoders.WordPiece()
    return t


def bert_uncased(corpus):
    t = wordpiece(corpus, normalizers.BertNormalizer(lowercase=True))
    t.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return t


def bert_cased(corpus):
    t = wordpiece(corpus, normalizers.BertNormalizer(clean_text=False, handle_chinese_chars=True, strip_accents=True, lowercase=False))
    t.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    t.decoder = decoders.WordPiece(cleanup=False)
    return t


def wordpiece_short(corpus):
    t = wordpiece(corpus, normalizers.Sequence([normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase(), normalizers.Strip()]), pre_tokenizers.Whitespace())
    return edit(t, lambda d: d["model"].update(max_input_chars_per_word=7))


def frequent(corpus, count):
    """The texts with their most frequent characters only: what a small vocabulary can hold."""
    counts = {}
    for text in corpus:
        for char in text:
            counts[char] = counts.get(char, 0) + 1
    kept = set(sorted(counts, key=lambda c: (-counts[c], c))[:count])
    return ["".join(c for c in text if c in kept) for text in corpus]


def unigram(corpus, norm, pre, **flags):
    t = Tokenizer(models.Unigram())
    t.normalizer = norm
    t.pre_tokenizer = pre
    t.train_from_iterator(frequent(corpus[:1500], int(300 * SCALE)), trainers.UnigramTrainer(vocab_size=int(900 * SCALE), special_tokens=["<unk>", "<s>", "</s>", "<pad>"], unk_token="<unk>", show_progress=False, max_piece_length=12))
    t.decoder = decoders.Metaspace()
    return t


def charsmap(pairs):
    """SentencePiece's precompiled map of {text: replacement}: a darts-clone double array, built the plain way."""
    blob = b""
    offsets = {}
    for _, to in pairs:
        if to not in offsets:
            offsets[to] = len(blob)
            blob += to.encode() + b"\0"
    trie = {}
    for key, to in pairs:
        node = trie
        for byte in key.encode():
            node = node.setdefault(byte, {})
        node[None] = offsets[to]
    units = {}

    def place(node, at):
        labels = sorted(b for b in node if b is not None) + ([0] if None in node else [])
        base = 1
        # A unit's offset is XORed with its own place; both must land on free places.
        while any((base ^ label) in units for label in labels) or base == at:
            base += 1
        for label in labels:
            units[base ^ label] = None
        for label in labels:
            if label == 0 and None in node:
                units[base] = node[None] | (1 << 31)
        for label in labels:
            if label != 0:
                child = base ^ label
                offset = place(node[label], child)
                units[child] = label | ((1 << 8) if None in node[label] else 0) | ((offset ^ child) << 10)
        return base

    units[0] = None
    root = place(trie, 0)
    units[0] = root << 10
    size = max(units) + 1
    size += -size % 256
    data = b"".join(struct.pack("<I", (units.get(i) or 0) & 0xFFFFFFFF) for i in range(size))
    return struct.pack("<I", len(data)) + data + blob


NMT_LIKE = [("\t", " "), ("\n", " "), ("\r", " "), ("\u00a0", " "), ("\u3000", " "), ("\u200b", ""), ("\ufb01", "fi"), ("\uff01", "!"), ("\uff21", "A"), ("\u2460", "1"), ("\u2026", "..."), ("A\u0301", "Á"),
            ("e\u0301", "é"), ("e\u0300", "è"), ("\u0041\u030a", "Å"), ("\u3349", "ミリ"), ("\u00bd", "1/2"), ("\u0085", ""), ("\u2028", " "), ("\ufeff", ""), ("\U0001F600", ":)")]


def t5(corpus):
    norm = normalizers.Sequence([normalizers.Precompiled(charsmap(NMT_LIKE)), normalizers.Strip(left=False, right=True), normalizers.Replace(Regex(" {2,}"), "▁")])
    t = unigram(corpus, norm, pre_tokenizers.Metaspace(prepend_scheme="always"))
    t.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    t.add_special_tokens(["<extra_id_0>"])
    return t


def xlnet(corpus):
    norm = normalizers.Sequence([normalizers.Replace("``", '"'), normalizers.Replace("''", '"'), normalizers.NFKD(), normalizers.StripAccents(), normalizers.Replace(Regex(" {2,}"), " "), normalizers.Strip()])
    t = unigram(corpus, norm, pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="first")]))
    t.post_processor = processors.TemplateProcessing(single="$A <s> </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    return t


def unigram_bytes(corpus):
    t = unigram(corpus, normalizers.NFKC(), pre_tokenizers.Metaspace(prepend_scheme="never"))
    d = json.loads(t.to_str())
    d["pre_tokenizer"]["split"] = False
    d["model"]["vocab"] += [[b, -20.0] for b in BYTES]
    d["model"]["byte_fallback"] = True
    t = Tokenizer.from_str(json.dumps(d))
    t.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="never")])
    return t


def clip(corpus):
    pre = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"), "removed", True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    t = bpe(corpus, pre, normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]), end_of_word_suffix="</w>", unk_token="<|endoftext|>")
    t.decoder = decoders.BPEDecoder("</w>")
    return t


def prefixed(corpus):
    t = bpe(corpus, pre_tokenizers.Whitespace(), normalizers.NFD(), byte_level=False, special=("<unk>",), continuing_subword_prefix="##", unk_token="<unk>", size=1200)
    t.decoder = decoders.WordPiece()
    return edit(t, lambda d: d["model"].update(fuse_unk=False))


def no_unknown(corpus):
    """Characters that the vocabulary lacks leave no id."""
    return bpe(corpus[:40], pre_tokenizers.Digits(individual_digits=True), byte_level=False, special=(), size=400)


def unknown_and_bytes(corpus):
    """An unknown token that waits while bytes pass it."""
    t = bpe(corpus[:40], None, byte_level=False, special=("<unk>",) + tuple(BYTES[:160]), size=500, unk_token="<unk>", byte_fallback=True)
    t.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return t


def flags(corpus):
    t = bpe(corpus, pre_tokenizers.Sequence([pre_tokenizers.Punctuation("merged_with_previous"), pre_tokenizers.Digits(individual_digits=False), pre_tokenizers.ByteLevel(add_prefix_space=True)]), normalizers.Lowercase())
    t.add_special_tokens([AddedToken("<mask>", lstrip=True, rstrip=True, special=True), AddedToken("[MASK]", single_word=True, special=True), AddedToken("<S>", normalized=True, special=True)])
    t.add_tokens([AddedToken("the", single_word=True), AddedToken("The ", normalized=True), AddedToken("water", rstrip=True), AddedToken("first", lstrip=True, normalized=False), AddedToken("fi", normalized=False), AddedToken("ha"), AddedToken("hahaha")])
    t.decoder = decoders.ByteLevel()
    return t


def split_maker(behavior, invert, pattern):
    def make(corpus):
        return bpe(corpus[:300], pre_tokenizers.Split(pattern, behavior, invert), byte_level=False, special=("<unk>",), size=700, unk_token="<unk>", fuse_unk=True)
    return make


def punctuation_maker(behavior):
    def make(corpus):
        return bpe(corpus[:300], pre_tokenizers.Sequence([pre_tokenizers.Punctuation(behavior), pre_tokenizers.CharDelimiterSplit("e")]), byte_level=False, special=("<unk>",), size=700, unk_token="<unk>")
    return make


MAKERS = {f.__name__: f for f in [gpt2, pythia, roberta, llama3, qwen2, o200k, llama2, llama2_first, gemma, phi3, mistral_metaspace, bert_uncased, bert_cased, wordpiece_short, t5, xlnet, unigram_bytes, clip, prefixed,
                                  no_unknown, unknown_and_bytes, flags]}
for _behavior in ["removed", "isolated", "merged_with_previous", "merged_with_next", "contiguous"]:
    MAKERS["split_" + _behavior] = split_maker(_behavior, False, Regex(r"\s|\b\d|[aeiou]{2}|\w+(?=ing)"))
    MAKERS["split_text_" + _behavior + "_inverted"] = split_maker(_behavior, True, " ")
    MAKERS["punctuation_" + _behavior] = punctuation_maker(_behavior)
NAMES = list(MAKERS)


def make(name, corpus):
    return MAKERS[name](corpus)
