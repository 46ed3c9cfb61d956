"""The models of bench/run: what is changed in a checkpoint, and how it is laid out for llama.cpp."""
import math
import os
import pathlib
import struct
import sys
import tempfile
import unittest

ROOT = pathlib.Path(os.environ.get("RLHF_SOURCE_DIR", pathlib.Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(ROOT / "bench"))
import gguf_model  # noqa: E402
import models  # noqa: E402


def write(path, tensors):
    """tensors: name -> (shape, values)."""
    header, data = {}, b""
    for name, (shape, values) in tensors.items():
        raw = struct.pack(f"<{len(values)}f", *values)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    models.write_safetensors(path, header, data)


def read(path, name):
    header, data = models.read_safetensors(path)
    begin, end = header[name]["data_offsets"]
    return list(struct.unpack(f"<{(end - begin) // 4}f", data[begin:end]))


class CheckpointTest(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.file = pathlib.Path(scratch.name) / "model.safetensors"

    def test_appends_a_tensor(self):
        write(self.file, {"a": ([1], [3.0])})
        models.append_tensor(self.file, "score.weight", [1.0, -2.0])
        header, data = models.read_safetensors(self.file)
        self.assertEqual(header["score.weight"], {"dtype": "F32", "shape": [1, 2], "data_offsets": [4, 12]})
        self.assertEqual(struct.unpack("<3f", data), (3.0, 1.0, -2.0))
        self.assertEqual((len(self.file.read_bytes()) - len(data)) % 8, 0)

    def test_the_end_of_text_gets_its_probability(self):
        config = models.llama(16, 1, 1, 4, 8)
        norms = [f"model.layers.0.{norm}.weight" for norm in ("input_layernorm", "post_attention_layernorm")]
        write(self.file, {"model.embed_tokens.weight": ([8, 16], [0.25] * 128), **{name: ([16], [1.0] * 16) for name in norms}, "model.norm.weight": ([16], [1.0] * 16)})
        models.end_early(self.file, config, 0.1)
        embeddings = read(self.file, "model.embed_tokens.weight")
        self.assertEqual({embeddings[i] for i in range(0, 128, 16) if i != models.EOS * 16}, {models.CONSTANT})
        self.assertEqual(embeddings[1:16], [0.25] * 15)
        for name in norms:
            self.assertEqual(read(self.file, name), [0.0] + [1.0] * 15)
        self.assertEqual(read(self.file, "model.norm.weight"), [1.0] * 16)
        # Were the layers' output nothing: the last norm of an embedding, times every embedding.
        hidden = embeddings[:16]
        norm = math.sqrt(sum(x * x for x in hidden) / 16)
        logits = [sum(embeddings[token * 16 + i] * hidden[i] / norm for i in range(16)) for token in range(8)]
        highest = max(logits)
        odds = [math.exp(logit - highest) for logit in logits]
        self.assertAlmostEqual(odds[models.EOS] / sum(odds), 0.1, places=3)

    def test_another_dtype_is_refused(self):
        models.write_safetensors(self.file, {"model.embed_tokens.weight": {"dtype": "BF16", "shape": [8, 16], "data_offsets": [0, 256]}}, bytes(256))
        with self.assertRaisesRegex(ValueError, "expected model.embed_tokens.weight in F32, found BF16"):
            models.end_early(self.file, models.llama(16, 1, 1, 4, 8), 0.1)


class CostTest(unittest.TestCase):
    def test_products(self):
        self.assertEqual(models.products(models.llama(8, 2, 4, 16, 32)), 2 * (4 * 64 + 3 * 8 * 16) + 32 * 8)
        self.assertEqual(models.products(models.llama(8, 2, 4, 16, 32, 2)), 2 * (3 * 64 + 3 * 8 * 16) + 32 * 8)
        self.assertEqual(models.products(models.GPT2S) + 1024 * 768, 124_318_464)  # without biases and norms

    def test_decode_bytes(self):
        config = models.llama(8, 2, 4, 16, 32, 2)
        self.assertEqual(models.decode_bytes(config, 0, 100, 2), 2 * models.products(config))
        self.assertEqual(models.decode_bytes(config, 3, 5, 2) - models.decode_bytes(config, 0, 5, 2), 3 * 5 * 2 * 2 * 4 * 2)  # rows, tokens, layers, K and V, values, bytes


class GgufTest(unittest.TestCase):
    def test_rope_order(self):
        self.assertEqual(gguf_model.rope_order(8, 2), [0, 2, 1, 3, 4, 6, 5, 7])
        self.assertEqual(gguf_model.rope_order(6, 1), [0, 3, 1, 4, 2, 5])
        with self.assertRaises(ValueError):
            gguf_model.rope_order(6, 2)

    def test_rotations_are_the_same(self):
        """Rotating neighbours of the permuted rows is rotating halves of the rows, permuted."""
        heads, size, position = 2, 6, 5
        rows = [math.sin(i + 1) for i in range(heads * size)]
        angle = [position * 10000 ** (-2 * pair / size) for pair in range(size // 2)]

        def rotate(values, first, second):
            out = list(values)
            for head in range(heads):
                for pair in range(size // 2):
                    a, b = head * size + first(pair), head * size + second(pair)
                    out[a] = values[a] * math.cos(angle[pair]) - values[b] * math.sin(angle[pair])
                    out[b] = values[b] * math.cos(angle[pair]) + values[a] * math.sin(angle[pair])
            return out

        order = gguf_model.rope_order(heads * size, heads)
        halves = rotate(rows, lambda pair: pair, lambda pair: pair + size // 2)
        neighbours = rotate([rows[i] for i in order], lambda pair: 2 * pair, lambda pair: 2 * pair + 1)
        for ours, theirs in zip(neighbours, (halves[i] for i in order)):
            self.assertAlmostEqual(ours, theirs)

    def test_tensor_names(self):
        names = gguf_model.tensor_names("gpt2", 2)
        self.assertEqual((names["blk.1.attn_qkv"], names["position_embd"], len(names)), ("h.1.attn.c_attn", "wpe", 4 + 2 * 6))
        self.assertEqual(gguf_model.tensor_names("llama", 1)["blk.0.ffn_gate"], "model.layers.0.mlp.gate_proj")
        with self.assertRaisesRegex(ValueError, "found qwen2"):
            gguf_model.tensor_names("qwen2", 1)


unittest.main()
