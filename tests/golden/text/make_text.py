"""Varied text for comparing tokenizers, the same bytes on every machine: standard library only, integer arithmetic only.

    python make_text.py SEED BYTES > text        lines of a JSON string each: valid UTF-8
    python make_text.py --invalid SEED BYTES     lines of hexadecimal bytes each: most are not UTF-8

Characters are of Unicode 12 or older: what the libraries' tables agree on.
"""
import json
import sys

M64 = (1 << 64) - 1


class Random:
    """SplitMix64."""

    def __init__(self, seed):
        self.state = seed & M64

    def next(self):
        self.state = (self.state + 0x9E3779B97F4A7C15) & M64
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & M64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & M64
        return z ^ (z >> 31)

    def below(self, n):
        return self.next() % n

    def pick(self, items):
        return items[self.below(len(items))]


def chars(*ranges):
    """Characters of the ranges that were assigned by Unicode 12 (Python's own table may be newer, never older here)."""
    return [chr(c) for low, high in ranges for c in range(low, high + 1)]


WHITESPACE = [chr(c) for c in [9, 10, 11, 12, 13, 32, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000]]
INVISIBLE = [chr(c) for c in [0xAD, 0x180E, 0x200B, 0x200C, 0x200D, 0x200E, 0x200F, 0x202A, 0x202E, 0x2060, 0xFEFF, 0xFE0F, 0xFFFD]]
CONTROL = [chr(c) for c in [*range(0, 32), *range(0x7F, 0xA0)]]
MARKS = chars((0x300, 0x33F), (0x591, 0x5A5), (0x64B, 0x652), (0x93E, 0x94C), (0x1AB0, 0x1ABD), (0x20D0, 0x20DC), (0x3099, 0x309A))
LATIN = chars((0x41, 0x5A), (0x61, 0x7A), (0xC0, 0xD6), (0xD8, 0xF6), (0xF8, 0x17F), (0x1E00, 0x1E95))
COMPAT = chars((0xFB00, 0xFB06), (0xFF01, 0xFF5E), (0x2460, 0x24E9), (0x2150, 0x2188), (0x3300, 0x3357), (0x2070, 0x2071), (0x2074, 0x208E), (0x1D400, 0x1D454), (0x2100, 0x214F), (0xFF61, 0xFF9F))
COMPOSED = chars((0xAC00, 0xAC80), (0x1100, 0x1112), (0x1161, 0x1175), (0x1F70, 0x1F7D), (0xF900, 0xF920), (0x958, 0x95F), (0x30AC, 0x30C2))
GREEK = chars((0x391, 0x3A1), (0x3A3, 0x3C9))
CYRILLIC = chars((0x410, 0x44F))
HEBREW = chars((0x5D0, 0x5EA))
ARABIC = chars((0x621, 0x63A), (0x641, 0x64A), (0x660, 0x669))
HINDI = chars((0x905, 0x939), (0x93E, 0x94D), (0x966, 0x96F))
THAI = chars((0xE01, 0xE3A), (0xE40, 0xE4E))
HANGUL = chars((0xAC00, 0xD7A3))
KANA = chars((0x3041, 0x3096), (0x30A1, 0x30FA), (0x30FC, 0x30FE))
HAN = chars((0x4E00, 0x6000), (0x3400, 0x3410), (0x20000, 0x20010))
EMOJI = chars((0x1F300, 0x1F6D2), (0x1F900, 0x1F93E), (0x2600, 0x26FF)) + ["\U0001F468\u200D\U0001F469\u200D\U0001F467", "\U0001F44D\U0001F3FD", "\U0001F1E9\U0001F1EA", "\u2764\uFE0F", "1\uFE0F\u20E3"]
PUNCTUATION = list("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~") + ["\u2026", "\u2014", "\u00AB", "\u00BB", "\u3002", "\uFF0C", "\u00A7", "\u20AC", "\u201C", "\u201D", "\u2019", "\u00BF", "\u2581", "\u0120"]
WORDS = """the of and to in a is that it was for on are as with his they at be this have from or one had by word but not what all were we when your can said
there use an each which she do how their if will up other about out many then them these so some her would make like him into time has look two more write
go see number no way could people my than first water been call who oil its now find long down day did get come made may part over new sound take only little
work know place year live me back give most very after thing our just name good sentence man think say great where help through much before line right too
Anthropology Straßenbahn naïveté déjà-vu co-operate e.g. U.S.A. O'Neill rock'n'roll COVID-19 GPT4o iPhone15 McDonald's ISO8601 UTF-8 TCP/IP""".split()
CONTRACTIONS = ["I'm", "you're", "we've", "they'll", "he'd", "it's", "don't", "DON'T", "I'M", "WE'VE", "it’s", "'tis", "y'all'd've", "'S", "can't've"]
IDENTIFIERS = ["i", "x", "self", "value", "getHTTPResponse", "snake_case_name", "MAX_SIZE", "__init__", "kBuffer", "std::vector<int>", "tmp1", "foo", "bar", "n", "result"]
KEYWORDS = ["for", "while", "if", "else", "return", "def", "class", "const", "auto", "int", "import", "lambda", "struct", "template"]
SPECIALS = ["<s>", "</s>", "<unk>", "<pad>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "[CLS]", "[SEP]", "[MASK]", "[UNK]", "<bos>", "<eos>", "<extra_id_0>", "<|user|>", "  <mask>  ", "a<mask>b"]


def run(rng, letters, low, high):
    return "".join(rng.pick(letters) for _ in range(low + rng.below(high - low + 1)))


def english(rng):
    words = [rng.pick(CONTRACTIONS) if rng.below(12) == 0 else rng.pick(WORDS) for _ in range(4 + rng.below(16))]
    words = [w.capitalize() if rng.below(9) == 0 else w.upper() if rng.below(25) == 0 else w for w in words]
    gaps = [" " if rng.below(12) else rng.pick(["  ", ", ", "; ", " - ", "... ", "\n", "\t"]) for _ in words]
    return "".join(w + g for w, g in zip(words, gaps)).rstrip(" ") + rng.pick([".", "!", "?", "", "?!", "…"])


def number(rng):
    return rng.pick([lambda: str(rng.next()), lambda: "%d.%02d" % (rng.below(100000), rng.below(100)), lambda: "{:,}".format(rng.below(10**9)), lambda: "0x%X" % rng.below(1 << 40),
                     lambda: "%d/%d/%d" % (rng.below(31), rng.below(12), 1900 + rng.below(200)), lambda: "%de-%d" % (rng.below(10), rng.below(300)), lambda: run(rng, chars((0x660, 0x669), (0x966, 0x96F), (0xBC, 0xBE), (0xB2, 0xB3), (0x2160, 0x216B)), 1, 6)])()


def code(rng):
    lines = []
    indent = 0
    for _ in range(2 + rng.below(6)):
        a, b, c = (rng.pick(IDENTIFIERS) for _ in range(3))
        text = rng.pick(["%s = %s(%s)", "%s += %s[%s]", "%s->%s(%s, 0);", "// %s %s %s", "# %s: %s, %s", "%s == %s && !%s", "\"%s\\n%s\\t%s\"", "%s.%s.%s", "{%s: '%s', %s}", "%s(%s)  /* %s */"]) % (a, b, c)
        lines.append(rng.pick(["    ", "\t", "  "]) * indent + (rng.pick(KEYWORDS) + " " if rng.below(2) else "") + text + rng.pick(["", ";", " {", ":", ","]))
        indent = max(0, min(6, indent + rng.below(3) - 1))
    return rng.pick(["\n", "\r\n", "\n\n"]).join(lines)


def script(rng):
    letters = rng.pick([GREEK, CYRILLIC, HEBREW, ARABIC, HINDI, THAI, HANGUL, KANA, HAN, LATIN, COMPOSED])
    gap = rng.pick([" ", " ", "", "\u3000", "、", "، "])
    return gap.join(run(rng, letters, 1, 9) for _ in range(1 + rng.below(10)))


def marked(rng):
    return "".join(rng.pick(LATIN + GREEK + KANA) + run(rng, MARKS, 0, 3) for _ in range(3 + rng.below(12)))


def soup(rng):
    pools = [WHITESPACE, INVISIBLE, CONTROL, MARKS, LATIN, COMPAT, HAN, EMOJI, PUNCTUATION, list("0123456789"), HANGUL, SPECIALS]
    return "".join(rng.pick(rng.pick(pools)) for _ in range(1 + rng.below(30)))


def spaces(rng):
    return "".join(rng.pick(WORDS + ["1", ".", ""]) + rng.pick(WHITESPACE + [" ", "\n"]) * (1 + rng.below(5)) for _ in range(2 + rng.below(6)))


def emoji(rng):
    return "".join(rng.pick(EMOJI) + rng.pick(["", " ", "!", " wow "]) for _ in range(1 + rng.below(8)))


def special(rng):
    return "".join(rng.pick([rng.pick(WORDS), " ", "  ", rng.pick(SPECIALS), rng.pick(SPECIALS), "\n", "x"]) for _ in range(2 + rng.below(8)))


def compat(rng):
    return "".join(rng.pick(COMPAT) if rng.below(3) else rng.pick(WORDS) + " " for _ in range(2 + rng.below(12)))


def repeat(rng):
    return rng.pick(["a", "ab", "-", "=", "0", "的", " ", "\n", "é", "!?", "haha", "\u0301", "<", "▁"]) * (1 + rng.below(70))


KINDS = [english] * 7 + [code] * 4 + [number, script, script, script, marked, soup, soup, spaces, emoji, special, compat, repeat]


def chunks(seed, size):
    """Texts of one to six parts until their UTF-8 has `size` bytes."""
    rng = Random(seed)
    total = 0
    while total < size:
        parts = [rng.pick(KINDS)(rng) for _ in range(1 + rng.below(6))]
        text = rng.pick(["", " ", "\n", "\n\n"]).join(parts)
        if rng.below(8) == 0:
            text = rng.pick(WHITESPACE) + text
        total += len(text.encode())
        yield text


def invalid(seed, size):
    """Bytes: valid text with bytes cut, changed or put in."""
    rng = Random(seed)
    total = 0
    while total < size:
        data = bytearray(rng.pick(KINDS)(rng).encode()[: 200])
        for _ in range(1 + rng.below(6)):
            at = rng.below(len(data) + 1)
            what = rng.below(3)
            if what == 0:
                data[at:at] = bytes(rng.pick([[0x80], [0xC3], [0xE2, 0x82], [0xF0, 0x9F, 0x98], [0xED, 0xA0, 0x80], [0xF4, 0x90, 0x80, 0x80], [0xC0, 0xAF], [0xFF], [0xE0, 0x80, 0x80], [0xF8, 0x88, 0x80, 0x80, 0x80]]))
            elif what == 1 and at < len(data):
                data[at] = rng.below(256)
            else:
                del data[at:at + 1]
        total += len(data)
        yield bytes(data)


def main(arguments):
    if arguments[0] == "--invalid":
        for data in invalid(int(arguments[1]), int(arguments[2])):
            print(data.hex())
        return
    for text in chunks(int(arguments[0]), int(arguments[1])):
        sys.stdout.write(json.dumps(text) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
