"""A learner's event files, read by TensorBoard's own reader: a live PPO job whose coordinator's record of metrics they must
equal, through a learner killed in the middle. Fetches TensorBoard from the package index: only with RLHF_TENSORBOARD_INSTALL=1."""
import json
import os
import pathlib
import signal
import subprocess
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from service import Service, until  # noqa: E402

STEPS = 12
READ = """
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
events = EventAccumulator(sys.argv[1], size_guidance={"scalars": 0})
events.Reload()
print(json.dumps({tag: [[event.step, event.value] for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}))
"""


class TensorBoardTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.service = Service("--tensorboard", "--learners", "1")
        cls.service.make_model()
        venv = cls.service.scratch / "tensorboard-venv"
        subprocess.run(["/usr/bin/python3", "-m", "venv", venv], check=True)
        cls.python = venv / "bin/python"
        # Its reader still uses pkg_resources, which newer setuptools have not.
        subprocess.run([cls.python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "tensorboard", "setuptools<80"], check=True)

    @classmethod
    def tearDownClass(cls):
        cls.service.close()

    def test_every_step_is_there_once(self):
        path = self.service.scratch / "job.yaml"
        path.write_text(f"""name: curves
seed: 3
ppo:
  policy: file:model
  prompts: file:prompts.jsonl
  scorer: {{components: [{{name: letter_t, regex: {{pattern: t}}}}]}}
  steps: {STEPS}
  prompts_per_step: 8
  sampling: {{max_new_tokens: 16}}
  epochs: 1
  checkpoint_every: 3
""")
        self.service.ctl("submit", path)
        until("step 5", 120, lambda: int(self.service.job("curves").get("step", 0)) >= 5)
        # The only holder of the weights: the job goes back to its checkpoint, and the learner begins another file.
        learner = subprocess.run(["pgrep", "-f", f"rlhf-learner.*{self.service.dir}"], capture_output=True, text=True).stdout.split()
        self.assertEqual(len(learner), 1)
        os.kill(int(learner[0]), signal.SIGKILL)
        until("the job's end", 180, lambda: self.service.job("curves")["state"] == "SUCCEEDED")
        job = self.service.job("curves")
        folder = self.service.dir / "tensorboard" / job["id"]
        self.assertGreaterEqual(len(list(folder.iterdir())), 2)
        result = subprocess.run([self.python, "-c", READ, folder], capture_output=True, text=True)
        self.assertEqual(result.returncode, 0, result.stderr)
        curves = json.loads(result.stdout)
        self.assertIn("reward/mean", curves)
        for tag, points in curves.items():
            with self.subTest(tag):
                self.assertEqual([step for step, _ in points], list(range(1, STEPS + 1)))


if __name__ == "__main__":
    if os.environ.get("RLHF_TENSORBOARD_INSTALL") != "1":
        print("TensorBoard is fetched from the package index only with RLHF_TENSORBOARD_INSTALL=1")
        sys.exit(77)
    unittest.main()
