"""rlhf-bench on a tiny model: what its figures are of."""
import json
import os
import pathlib
import subprocess
import tempfile
import unittest

BIN = pathlib.Path(os.environ["RLHF_BIN_DIR"])
CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
          "num_key_value_heads": 4, "max_position_embeddings": 256, "tie_word_embeddings": True, "rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def run(*command):
    return subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True).stdout


class EngineTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.scratch = tempfile.TemporaryDirectory()
        here = pathlib.Path(cls.scratch.name)
        (here / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
        (here / "text.txt").write_text("the cat sat on the mat\n" * 40, encoding="utf-8")
        run(BIN / "rlhf-model", "train-tokenizer", "--vocab-size", 300, "--out", here / "tokenizer", here / "text.txt")
        cls.model = here / "model"
        run(BIN / "rlhf-model", "init", "--config", here / "config.json", "--tokenizer", here / "tokenizer", "--out", cls.model)

    @classmethod
    def tearDownClass(cls):
        cls.scratch.cleanup()

    def test_weights(self):
        found = json.loads(run(BIN / "rlhf-bench", "weights", "--model", self.model, "--rounds", 1))
        header = (self.model / "model.safetensors").read_bytes()
        tensors = json.loads(header[8:8 + int.from_bytes(header[:8], "little")])
        self.assertEqual(found["bytes"], max(tensor["data_offsets"][1] for name, tensor in tensors.items() if name != "__metadata__"))
        for name in ("memcpy", "bare_stream", "fetch", "fetch_tls", "fetch_and_apply", "delta_encode", "delta_apply"):
            self.assertGreater(found[name], 0, name)
        self.assertGreater(found["delta_share"], 0)
        self.assertLess(found["delta_share"], 0.1)

    def test_generate(self):
        found = json.loads(run(BIN / "rlhf-bench", "generate", "--model", self.model, "--requests", 5, "--slots", 2, "--prompt-tokens", 8, "--new-tokens", 4))
        self.assertLessEqual(found["generated_tokens"], 5 * 4)
        self.assertGreaterEqual(found["generated_tokens"], 5)
        self.assertAlmostEqual(found["tokens_per_second"], found["generated_tokens"] / found["seconds"], places=3)


unittest.main()
