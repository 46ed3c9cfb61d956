"""The table of bench/run, and what it reads from the service's metrics."""
import json
import os
import pathlib
import subprocess
import sys
import unittest

ROOT = pathlib.Path(os.environ.get("RLHF_SOURCE_DIR", pathlib.Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(ROOT / "bench"))
import report  # noqa: E402
from report import Row  # noqa: E402

EXPOSITION = """# HELP rlhf_learner_steps_total Steps.
# TYPE rlhf_learner_steps_total counter
rlhf_learner_steps_total{outcome="committed"} 4
rlhf_learner_steps_total{outcome="refused"} 1
rlhf_learner_step_seconds_sum{phase="train",rlhf_job="a, b"} 2.5
rlhf_up 1e+01
"""


class ReportTest(unittest.TestCase):
    def test_verdicts(self):
        self.assertEqual(Row("a", 10, target=10).verdict(), "reached")
        self.assertEqual(Row("a", 8, target=10).verdict(), "missed by 20%")
        self.assertEqual(Row("a", 80, target=100, at_most=True).verdict(), "reached")
        self.assertEqual(Row("a", 186, target=100, at_most=True).verdict(), "missed: 1.86 × what is allowed")
        self.assertEqual(Row("a", note="no GPU").verdict(), "not measured: no GPU")
        self.assertEqual(Row("a", 3, note="no peer").verdict(), "no peer")

    def test_table(self):
        lines = report.table([Row("load", 8.2, "GB/s", 9.2, "memcpy", 7.36), Row("p99", 186, "ms", target=100, at_most=True), Row("delta", note="not there")]).splitlines()
        self.assertEqual(lines[2], "| load | 8.2 GB/s | 9.2 (memcpy) | 89% | ≥ 7.36 | reached |")
        self.assertEqual(lines[3], "| p99 | 186 ms | – | – | ≤ 100 | missed: 1.86 × what is allowed |")
        self.assertEqual(lines[4], "| delta | – | – | – | – | not measured: not there |")
        self.assertEqual({line.count("|") for line in lines}, {7})

    def test_json_has_share_and_verdict(self):
        row = json.loads(json.dumps(Row("load", 8.0, "GB/s", 10.0, "memcpy", 9.0).as_json()))
        self.assertEqual((row["share_of_limit"], row["verdict"]), (0.8, "missed by 11%"))

    def test_peers(self):
        rows = report.peer_rows("x", "/s", {"ours": 12.0, "a": 4.0, "b": 8.0}, {"c": "not installed"}, ["a", "b", "c"], 2.0)
        self.assertEqual([row.verdict() for row in rows], ["", "", "not measured: not installed", "missed by 25%"])
        self.assertEqual((rows[-1].figure, rows[-1].note), (1.5, "to b"))
        self.assertEqual(report.peer_rows("x", "/s", {"ours": 1.0}, {"a": "no --peers"}, ["a"])[-1].verdict(), "not measured: no peer")
        self.assertEqual(report.peer_rows("x", "/s", {"a": 1.0}, {}, ["a"])[-1].verdict(), "not measured: no figure of ours")

    def test_peers_whose_rows_are_elsewhere(self):
        rows = report.peer_rows("x", "/s", {"ours": 12.0, "a": 4.0, "b": 8.0}, {}, ["a"], 1.0, ["b"])
        self.assertEqual([row.figure for row in rows], [4.0, 1.5])

    def test_union_of_intervals(self):
        self.assertEqual(report.union([(5, 6), (0, 2), (1, 3), (3, 4), (0, 1), (7, 7)]), [(0, 4), (5, 6)])
        self.assertEqual(report.union([(0, 10), (1, 2), (3, 12)]), [(0, 12)])
        self.assertEqual(report.union([(0, 10), (1, 2)]), [(0, 10)])
        self.assertEqual(report.union([]), [])

    def test_idle_share(self):
        def span(category, name, begin, end):
            return {"ph": "X", "cat": category, "name": name, "ts": begin, "dur": end - begin}

        first, last = span("learner", "update 1", 0, 100), span("learner", "update 2", 250, 300)
        # Of 200 between the ends of the updates: generating 40, of which 10 twice, scoring 20, updating 50; waiting, committing and what came before do not count.
        trace = [{"ph": "M", "name": "thread_name"}, last, first, span("generation", "1/0/0", 90, 130), span("generation", "1/1/0", 120, 140), span("scoring", "1/0/0", 150, 170),
                 span("learner", "wait for samples", 100, 250), span("learner", "commit", 300, 320), span("occupancy", "busy", 0, 300)]
        self.assertAlmostEqual(report.idle_share(trace), 1 - (40 + 20 + 50) / 200)
        self.assertIsNone(report.idle_share([first, span("generation", "1/0/0", 0, 100)]))

    def test_alternates(self):
        order, figures = [], iter([1.0, 10.0, 3.0, 30.0, 2.0, 20.0])

        def measure(name):
            order.append(name)
            return next(figures)

        median, results = report.alternate(3, {"a": lambda: measure("a"), "b": lambda: measure("b")})
        self.assertEqual(order, ["a", "b"] * 3)
        self.assertEqual(median, {"a": 2.0, "b": 20.0})
        self.assertEqual(results["b"], [10.0, 30.0, 20.0])

    def test_metrics(self):
        metrics = report.samples(EXPOSITION)
        self.assertEqual(report.total(metrics, "rlhf_learner_steps_total", outcome="committed"), 4)
        self.assertEqual(report.total(metrics, "rlhf_learner_steps_total"), 5)
        self.assertEqual(report.total(metrics, "rlhf_learner_step_seconds_sum", phase="train", rlhf_job="a, b"), 2.5)
        self.assertEqual(report.total(metrics, "rlhf_up"), 10)
        self.assertEqual(report.total(metrics, "absent"), 0)

    def test_rate_counts_from_the_first_commit(self):
        seen = [(0, 0), (50, 0), (60, 1), (61, 1), (70, 2), (90, 4), (100, 4)]
        self.assertEqual(report.rate_of_steps(seen, 64), 3 * 64 / 30)
        self.assertIsNone(report.rate_of_steps([(0, 0), (1, 1)], 64))

    def test_wrong_flags_are_named(self):
        run = subprocess.run([sys.executable, ROOT / "bench/run", "--only", "limits,nothing"], capture_output=True, text=True)
        self.assertEqual(run.returncode, 2)
        self.assertIn("found nothing", run.stderr)


unittest.main()
