"""A whole service of real processes, as `rlhfctl up` starts it, in a folder of its own."""
import json
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import time

ROOT = pathlib.Path(os.environ.get("RLHF_SOURCE_DIR", pathlib.Path(__file__).resolve().parents[2]))
BIN = pathlib.Path(os.environ.get("RLHF_BIN_DIR", ROOT / "build/release/bin"))


def until(what, patience, condition):
    """Waits for another process: there is nothing to wait on but the clock."""
    deadline = time.monotonic() + patience
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {patience} s in vain until {what}")
        time.sleep(0.1)


class Service:
    def __init__(self, *up, environment=None, prepare=None):
        """up: more of `rlhfctl up`; prepare(service) runs before anything starts. Leaves nothing behind when it raises."""
        self.scratch = pathlib.Path(tempfile.mkdtemp(prefix="rlhf-live-"))
        self.dir = self.scratch / "cluster"
        self.undo = []  # what `prepare` did, newest last: called when every process has ended, before the folder goes
        self.process = None
        try:
            if prepare:
                prepare(self)
            environment = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
            command = [BIN / "rlhfctl", "up", "--dir", self.dir, "--slots", "32", *up]
            with open(self.scratch / "up.log", "w") as log:
                self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
            until("the service is ready", 60, self.ready)
        except BaseException:
            self.close()
            raise

    def ready(self):
        if self.process.poll() is not None:
            raise AssertionError(f"rlhfctl up ended with {self.process.returncode}: {(self.scratch / 'up.log').read_text()}")
        return (self.dir / "ready").exists()

    def close(self):
        try:
            if self.process and self.process.poll() is None:
                self.process.send_signal(signal.SIGTERM)
                self.process.wait(timeout=90)
        finally:
            if self.process and self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            while self.undo:
                self.undo.pop()()
            shutil.rmtree(self.scratch, ignore_errors=True)

    def ports(self):
        """Bound ports by process: {"learner-0": {"http": …}, …}."""
        return {path.stem: json.loads(path.read_text()) for path in (self.dir / "ports").glob("*.json")}

    def token(self, role):
        return (self.dir / "tokens" / role).read_text().strip()

    def ctl(self, *arguments, context="client", check=True):
        command = [BIN / "rlhfctl", "--context", self.dir / f"{context}.json", *map(str, arguments)]
        result = subprocess.run(command, capture_output=True, text=True)
        if check and result.returncode != 0:
            raise AssertionError(f"{' '.join(map(str, command))}: exit {result.returncode}\n{result.stdout}{result.stderr}")
        return result

    def job(self, name):
        return json.loads(self.ctl("--output", "json", "get", name).stdout)

    def make_model(self):
        """A model of a few thousand parameters and its data, beside the cluster's folder."""
        (self.scratch / "text.txt").write_text("the cat sat on the mat and the dog sat on the log\n" * 40)
        with open(self.scratch / "prompts.jsonl", "w") as prompts:
            for i in range(40):
                animal = "cat" if i % 2 else "dog"
                line = {"prompt": f"the {animal} number {i}", "category": f"{animal}s", "tags": {"size": "small" if i % 3 else "large"}}
                prompts.write(json.dumps(line) + "\n")
        config = json.loads((ROOT / "tests/golden/model.json").read_text())["models"]["llama"]["config"]
        config["vocab_size"] = 280
        (self.scratch / "config.json").write_text(json.dumps(config))
        tool, out = BIN / "rlhf-model", self.scratch
        for command in (
            [tool, "train-tokenizer", "--vocab-size", "280", "--out", out / "tok", out / "text.txt"],
            [tool, "init", "--config", out / "config.json", "--tokenizer", out / "tok", "--out", out / "model", "--seed", "1"],
        ):
            subprocess.run(command, check=True, capture_output=True)

    def write_pipeline(self, steps):
        """An evaluation, PPO with a gold score and a monitor that raises alarms only, an evaluation, and a gate that waits for an overseer."""
        graders = "{components: [{name: letter_t, regex: {pattern: t}}]}"
        path = self.scratch / "pipeline.yaml"
        path.write_text(f"""name: live
seed: 3
learners: {{ranks: 2}}
pipeline:
  stages:
    - name: before
      evaluate: {{model: "file:model", suite: "file:prompts.jsonl", sampling: {{temperature: 1, max_new_tokens: 8}}, graders: {graders}}}
    - name: ppo
      ppo:
        policy: file:model
        prompts: file:prompts.jsonl
        scorer: {graders}
        gold: {{components: [{{name: letter_a, regex: {{pattern: a}}}}]}}
        monitor: {{action: MONITOR_ALERT, max_kl: 1e-9, max_repetition: 1e-9}}
        steps: {steps}
        prompts_per_step: 8
        samples_per_prompt: 2
        sampling: {{max_new_tokens: 16}}
        max_policy_lag: 1
        epochs: 1
        checkpoint_every: 3
        policy_optimizer: {{learning_rate: 1e-3}}
    - name: after
      evaluate: {{model: "stage:ppo", suite: "file:prompts.jsonl", sampling: {{temperature: 1, max_new_tokens: 8}}, graders: {graders},
                 against: "stage:before"}}
      gate: {{required_approvals: 1}}
""")
        return path
