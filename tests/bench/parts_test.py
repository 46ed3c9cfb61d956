"""The rows of bench/run: that each share and each ratio is of what it says, with tools and peers that only pretend."""
import os
import pathlib
import sys
import types
import unittest

ROOT = pathlib.Path(os.environ.get("RLHF_SOURCE_DIR", pathlib.Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(ROOT / "bench"))
import harness  # noqa: E402
import models  # noqa: E402
from parts import coordinator, generate, gpu, ppo, train, weights  # noqa: E402

RATES = {"float32": 100.0, "bfloat16": 300.0, "int8": 500.0}
PEERS = {("transformers", "float32"): 10.0, ("ctranslate2", "float32"): 50.0, ("llama.cpp", "float32"): 20.0, ("transformers", "bfloat16"): 30.0, ("llama.cpp", "bfloat16"): 40.0,
         ("ctranslate2", "int8"): 200.0, ("llama.cpp", "int8"): 250.0}


class Fake(harness.Bench):
    """Answers as the tools do, with figures that differ in what was asked."""

    def __init__(self, device="cpu"):
        flags = types.SimpleNamespace(threads=2, rounds=1, ppo_rounds=1, seconds=5, peers=pathlib.Path("peers"), device=device)
        super().__init__(flags, ROOT, pathlib.Path("scratch"))
        self.limits = {"gemm_gflops": {"float32": {"2048x2048x2048": 50.0}, "bfloat16": {"2048x2048x2048": 200.0}}, "loopback_gb_per_second": 4.0, "read_gb_per_second": 4000.0}
        self.asked = []

    def model(self, name):
        return name

    def measured(self, name, *arguments):
        given = [str(argument) for argument in arguments]
        options = {word: given[i + 1] if i + 1 < len(given) else "" for i, word in enumerate(given) if word.startswith("--")}
        self.asked.append(given)
        if name == "rlhf-load-generator":
            return {"leases_per_second": 2100.0, "samples_per_second": 1900.0, "data_mb_per_second": 30.0, "limits": {"disk_append_mb_per_second": 60.0},
                    "calls": {"LeasePrompts": {"p99_ms": 7.0}, "SubmitSamples": {"p99_ms": 120.0}}}
        if name == "rlhf-model" and given[0] == "bench":
            rate = 3.0 if options.get("--precision") == "bfloat16" else 2.0
            return {"training_tokens_per_second": rate, "training_peak_bytes": 2e9 if "--gradient-checkpointing" in options else 5e9}
        if name == "rlhf-model":
            return {"load_gb_per_second": 6.0, "save_gb_per_second": 5.5, "memcpy_gb_per_second": 10.0}
        if "weights" in given:
            return {"bytes": 500e6, "bare_stream": 2.0, "fetch": 1.5, "fetch_tls": 1.0, "fetch_and_apply": 0.5, "memcpy": 10.0, "map": 6.0, "map_and_apply": 3.0, "delta_share": 0.02,
                    "delta_encode": 5.0, "delta_apply": 2.5}
        if "--least-new-tokens" in options:
            return {"tokens_per_second": 60.0 if "--fixed-batches" in options else 90.0}
        if "--requests" in options and "--precision" not in options:
            return {"tokens_per_second": 80.0}
        rate = RATES[options["--precision"]] * int(options["--requests"])
        return {"tokens_per_second": rate / 4 if "--no-cuda-graphs" in options else rate}

    def ask_peers(self, *arguments):
        given = [str(argument) for argument in arguments]
        options = {word: given[i + 1] if i + 1 < len(given) else "" for i, word in enumerate(given) if word.startswith("--")}
        if given[0] == "list":
            return {"transformers": "1", "ctranslate2": "1", "llama.cpp": "1", "trl": "1"}
        if given[0] == "memory":
            return {"peak_bytes": 10e9}
        if given[0] == "train":
            return {"tokens_per_second": 1.5 if "--compiled" in options else 1.0}
        return {"tokens_per_second": PEERS[options.get("--peer", "transformers"), options["--precision"]] * int(options["--batch"])}

    def row(self, what):
        found = [row for row in self.rows if row.what == what]
        if len(found) != 1:
            raise AssertionError(f"{what}: {len(found)} rows of {[row.what for row in self.rows]}")
        return found[0]


class PartsTest(unittest.TestCase):
    def figures(self, bench, expected):
        for what, figure in expected.items():
            self.assertAlmostEqual(bench.row(what).figure, figure, msg=what)

    def test_token_limit(self):
        bench = Fake()
        self.assertAlmostEqual(bench.token_limit("tiny", 3), 50e9 / (2 * 3 * models.products(models.CONFIGS["tiny"])))
        self.assertAlmostEqual(bench.token_limit("tiny", 1, "bfloat16"), 200e9 / (2 * models.products(models.CONFIGS["tiny"])))

    def test_generation_is_compared_with_the_best_peer_of_its_precision(self):
        bench = Fake()
        generate.measure(bench)
        best = "ratio to the best peer"
        self.figures(bench, {
            f"generation, tiny, batch 1, float32: {best}": 2.0, f"generation, tiny, batch 64, float32: {best}": 2.0,
            f"generation, llama288, batch 64, float32: {best}": 2.0, "generation, llama288, batch 64, bfloat16": 300.0 * 64,
            f"generation, llama288, batch 64, bfloat16: {best}": 6.0, f"generation, llama288, batch 64, int8: {best}": 2.0, f"generation, llama288, batch 1, int8: {best}": 2.0,
            f"generation, gpt2s, batch 32, bfloat16: {best}": 7.5,
            "int8, batch 64: ratio to float32": 5.0, "int8, batch 64: ratio to bfloat16": 5 / 3, "int8, batch 1: ratio to float32": 5.0, "int8, batch 1: ratio to bfloat16": 5 / 3,
            "ragged: ratio to the same engine in fixed batches, where rows that ended cost nothing": 1.5,
            # Rows of 8 to 128 tokens are 68 on average, and 80 tokens a second are computed.
            "ragged: ratio to the same engine in fixed batches, every row computed to the longest": 90 / (80 * 68 / 128)})
        self.assertEqual(bench.row(f"generation, llama288, batch 64, bfloat16: {best}").note, "to ctranslate2 float32")
        self.assertAlmostEqual(bench.row("generation, llama288, batch 64, bfloat16").target, 0.35 * bench.token_limit("llama288", 1, "bfloat16"))
        self.assertAlmostEqual(bench.row("generation, gpt2s, batch 32, bfloat16").share(), 9600 / bench.token_limit("gpt2s", 1, "bfloat16"))
        self.assertIsNone(bench.row("generation, llama288, batch 64, int8").limit)

    def test_training(self):
        bench = Fake()
        train.measure(bench)
        what = "learner's step, gpt2s (50,257 tokens of vocabulary), 8 × 256, float32"
        self.figures(bench, {"training, tiny, 8 × 256, float32: ratio to the best peer": 2.0, "training, llama288, 8 × 256, bfloat16: ratio to the best peer": 2.0,
                             f"{what}: peak memory": 5.0, f"{what}, gradient checkpointing: peak memory": 2.0, f"{what}: peak memory of transformers eager": 10.0,
                             f"{what}: peak memory against PyTorch eager's": 50.0, f"{what}, gradient checkpointing: peak memory against PyTorch eager's": 20.0})
        self.assertAlmostEqual(bench.row("training, llama288, 8 × 256, bfloat16").limit, bench.token_limit("llama288", 3, "bfloat16"))
        self.assertAlmostEqual(bench.row("training, tiny, 8 × 256, float32").limit, bench.token_limit("tiny", 3))

    def test_weights(self):
        bench = Fake()
        weights.measure(bench)
        weights.measure_files(bench)
        for what, share, target in (("a bare gRPC stream of the same messages", 0.5, None), ("fetched whole and checked", 0.75, 1.8), ("fetched whole and checked, against TCP", 0.375, 3.0),
                                    ("fetched whole and checked, TLS", 0.5, None), ("fetched whole, checked and applied", 0.25, None),
                                    ("same host by shared memory, checked", 0.6, 5.0), ("same host by shared memory, checked and applied", 0.3, None)):
            row = bench.row(f"weights of 500 MB, {what}")
            self.assertAlmostEqual(row.share(), share, msg=what)
            self.assertEqual(row.target, target, what)
        self.figures(bench, {"weights, delta in bfloat16 after an update at 1e-6: share of the bytes": 2.0, "weights, delta: encoding, a core": 5.0, "weights, delta: applying, a core": 2.5,
                             "model load from the page cache": 6.0, "model save without fsync": 5.5})
        self.assertEqual(bench.row("weights, delta: applying, a core").verdict(), "missed by 38%")
        self.assertEqual(bench.row("model load from the page cache").target, 8.0)

    def test_the_coordinator(self):
        bench = Fake()
        coordinator.measure(bench)
        self.assertEqual([bench.row(f"coordinator, {what}").verdict() for what in ("leases of one sample", "samples of 200 tokens", "LeasePrompts, p99", "SubmitSamples, p99")],
                         ["reached", "missed by 3%", "reached", "missed: 1.20 × what is allowed"])
        self.assertEqual({bench.row(f"coordinator, {what}").target for what in ("leases of one sample", "samples of 200 tokens")}, {1960.0})
        self.assertAlmostEqual(bench.row("coordinator, samples of 2000 tokens").share(), 0.5)

    def test_a_gpu(self):
        bench = Fake("cuda:0")
        gpu.generate(bench)
        what = "generation on cuda:0, llama1024, batch 256, bfloat16"
        self.figures(bench, {what: 300.0 * 256, f"{what}: ratio to kernels launched one by one": 4.0, f"{what}: ratio to the best peer": 10.0})
        read = models.decode_bytes(models.CONFIGS["llama1024"], 256, 128, 2)
        self.assertAlmostEqual(bench.row(what).limit, 256 * 4e12 / read)
        self.assertAlmostEqual(bench.row(what).target, 0.6 * bench.row(what).limit)
        self.assertAlmostEqual(bench.row("generation on cuda:0, llama288, batch 1, float32").limit, 4e12 / models.decode_bytes(models.CONFIGS["llama288"], 1, 128, 4))
        self.assertTrue(all(asked[2:4] == ["--device", "cuda:0"] for asked in bench.asked), bench.asked)

    def test_what_a_ppo_job_tells(self):
        def series(name, value, **labels):
            return (name, tuple(sorted(labels.items()))), value

        rollout = dict([series("rlhf_weight_sync_bytes_total", 3e9), series("rlhf_weight_sync_mapped_bytes_total", 5e9), series("rlhf_weight_sync_seconds_sum", 1.0, phase="fetch"),
                        series("rlhf_weight_sync_seconds_sum", 3.0, phase="apply"), series("rlhf_weight_sync_seconds_sum", 100.0, phase="other"),
                        series("rlhf_rollout_finished_total", 30, reason="end_of_text"), series("rlhf_rollout_finished_total", 10, reason="length"),
                        series("rlhf_rollout_generation_tokens_total", 1200)])
        learner = dict(series("rlhf_learner_step_seconds_sum", seconds, phase=phase) for phase, seconds in (("train", 6.0), ("wait_for_samples", 3.0), ("publish", 1.0), ("other", 50.0)))
        bench = Fake()
        ppo.rows_of_update(bench, {"rollout": rollout, "learner": learner, "trace": []})
        ppo.rows_of_lengths(bench, rollout)
        self.figures(bench, {"weights in that job, from the manifest to applied, on one host": 2.0, "PPO: share of the learner's time in training": 60.0,
                             "ragged responses: tokens on average, the end of text included": 30.0, "ragged responses: share that ends before the most tokens": 75.0})
        self.assertAlmostEqual(bench.row("weights in that job, from the manifest to applied, on one host").share(), 0.5)
        self.assertEqual(bench.row("PPO: share of time with nothing generating, scoring or training, policy lag 1").verdict(), "not measured: fewer than two updates")
        empty = Fake()
        ppo.rows_of_update(empty, {"rollout": {}, "learner": {}, "trace": []})
        ppo.rows_of_lengths(empty, {})
        self.assertEqual({row.figure for row in empty.rows}, {None})

    def test_a_peer_that_fails_is_said(self):
        bench = Fake()

        def fail(*arguments):
            if arguments[0] == "list":
                return {"trl": "1"}
            raise RuntimeError("no memory")

        bench.ask_peers = fail
        self.assertEqual(bench.peer_or_why("transformers float32", ("generate",)), (None, "not installed"))
        self.assertEqual(bench.peer_or_why("trl float32", ("ppo",)), (None, "no memory"))
        bench.flags.peers = None
        self.assertEqual(bench.peer_or_why("trl float32", ("ppo",)), (None, "no --peers"))


unittest.main()
