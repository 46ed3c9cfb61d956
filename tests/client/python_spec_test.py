"""A job's file means the same to the Python client and to rlhfctl: references to files, also in lists, with their digests."""
import json
import os
import pathlib
import subprocess
import tempfile
import unittest

import grpc
from google.protobuf import json_format

from rlhf.v1 import job_pb2
from rlhf_client import RlhfError, load_spec
from rlhf_client._shared import digest_of, file_references

RLHFCTL = pathlib.Path(os.environ["RLHF_BIN_DIR"]) / "rlhfctl"

JOB = """name: job
sample:
  model: file:base
  prompts: file:prompts.jsonl
  sampling: {max_new_tokens: 4}
  scorer:
    components:
      - {name: one, reward_model: {model: "file:first"}}
      - {name: both, ensemble: {models: ["file:first", an-alias, "file:second"]}}
      - {name: links, abstention: {patterns: ["file:///.*"]}}
"""


class SpecTest(unittest.TestCase):
    def setUp(self):
        self._scratch = tempfile.TemporaryDirectory()
        self.addCleanup(self._scratch.cleanup)
        self.dir = pathlib.Path(self._scratch.name)
        for model in ("base", "first", "second"):
            (self.dir / model / "deep").mkdir(parents=True)
            (self.dir / model / "config.json").write_text(json.dumps({"name": model}))
            (self.dir / model / "deep" / "weights").write_bytes(model.encode() * 1000)
        (self.dir / "prompts.jsonl").write_text('{"prompt":"a"}\n')

    def write(self, text):
        path = self.dir / "job.yaml"
        path.write_text(text)
        return str(path)

    def dry_run(self, path):
        return subprocess.run([RLHFCTL, "--output", "json", "submit", path, "--dry-run"], capture_output=True, text=True, timeout=60)

    def resolved(self, path):
        spec = load_spec(path)
        for reference, replace in file_references(spec):
            replace(digest_of(str(pathlib.Path(path).parent / reference)))
        return spec

    def expect_the_same(self, text):
        path = self.write(text)
        shown = self.dry_run(path)
        self.assertEqual(shown.returncode, 0, shown.stdout + shown.stderr)
        theirs = json_format.Parse(shown.stdout, job_pb2.JobSpec())
        ours = self.resolved(path)
        ours.project = theirs.project  # rlhfctl's comes from its context
        self.assertEqual(ours, theirs)
        return ours

    def test_references_are_found_everywhere_and_have_the_digests_of_rlhfctl(self):
        spec = self.expect_the_same(JOB)
        models = spec.sample.scorer.components[1].ensemble.models
        self.assertEqual(models[1], "an-alias")
        self.assertTrue(models[0].startswith("sha256:") and models[2].startswith("sha256:") and models[0] != models[2], models)
        self.assertEqual(models[0], spec.sample.scorer.components[0].reward_model.model)

    def test_a_file_that_is_not_there_is_named(self):
        path = self.write(JOB.replace("file:second", "file:third"))
        with self.assertRaisesRegex(RlhfError, "third"):
            self.resolved(path)
        shown = self.dry_run(path)
        self.assertNotEqual(shown.returncode, 0)
        self.assertIn("sample.scorer.components[1].ensemble.models[2]", shown.stderr)

    def test_enums_are_named_as_rlhfctl_takes_them(self):
        job = """name: job
reward_model:
  model: a-model
  data: some-data
  batch_size: 8
  precision: {precision}
  optimizer: {{schedule: {schedule}}}
"""
        for precision, schedule in (("bfloat16", "cosine"), ("BFLOAT16", "Cosine"), ("Float32", "LINEAR")):
            spec = self.expect_the_same(job.format(precision=precision, schedule=schedule))
            self.assertEqual(spec.reward_model.precision, job_pb2.Precision.Value(precision.upper()))
            self.assertEqual(spec.reward_model.optimizer.schedule, job_pb2.LearningRateSchedule.Value(schedule.upper()))
        # In lists and by the name in lowerCamelCase.
        spec = self.expect_the_same("""name: job
pipeline:
  stages:
    - name: judged
      collect: {samples: some-samples, comparisons: 5, pairs: pairs_disagreement}
      gate: {onClosed: gate_repeats_round}
""")
        self.assertEqual(spec.pipeline.stages[0].collect.pairs, job_pb2.PAIRS_DISAGREEMENT)
        self.assertEqual(spec.pipeline.stages[0].gate.on_closed, job_pb2.GATE_REPEATS_ROUND)

    def test_other_names_of_enums_are_refused_by_both(self):
        for wrong in ("float16", "1", "precision_unspecified", "[float32]", "true", "null"):
            path = self.write(f"name: job\nreward_model: {{model: a, data: b, batch_size: 8, precision: {wrong}}}\n")
            with self.assertRaises(RlhfError) as refused:
                load_spec(path)
            self.assertIs(refused.exception.code, grpc.StatusCode.INVALID_ARGUMENT)
            shown = self.dry_run(path)
            self.assertNotEqual(shown.returncode, 0, wrong)
            self.assertIn("reward_model.precision", shown.stderr)
            if wrong != "[float32]":
                self.assertIn("reward_model.precision: expected one of float32, bfloat16, found", refused.exception.message)


if __name__ == "__main__":
    unittest.main()
