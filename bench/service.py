"""`rlhfctl up` in a folder of its own, and one PPO job on it, both of one precision."""
import json
import pathlib
import signal
import subprocess
import tempfile
import time
import urllib.request

import report
from harness import ToolError


class Service:
    STEPS, SAMPLES, NEW_TOKENS, EPOCHS = 5, 64, 64, 4

    def __init__(self, bench, precision="float32"):
        self.bench, self.precision, self.dir = bench, precision, pathlib.Path(tempfile.mkdtemp(prefix="cluster-", dir=bench.scratch))

    def __enter__(self):
        self.log = open(self.bench.scratch / "up.log", "w", encoding="utf-8")
        self.process = subprocess.Popen([self.bench.flags.bin / "rlhfctl", "up", "--dir", self.dir, "--rollout-workers", "1", "--reward-servers", "1", "--learners", "1",
                                         "--slots", "64", "--threads", str(self.bench.flags.threads), "--rollout-precision", self.precision], stdout=self.log, stderr=self.log, env=self.bench.environment)
        deadline = time.monotonic() + 120
        while not (self.dir / "ready").exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                raise ToolError("the service did not start: " + (self.bench.scratch / "up.log").read_text(encoding="utf-8")[-2000:])
            time.sleep(0.1)
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.log.close()

    def ctl(self, *arguments):
        return self.bench.tool("rlhfctl", "--context", self.dir / "client.json", *arguments)

    def metrics(self, role):
        """Of the first process of a role; empty while it does not answer."""
        for path in sorted((self.dir / "ports").glob(f"{role}*.json")):
            try:
                port = json.loads(path.read_text(encoding="utf-8"))["http"]
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                    return report.samples(answer.read().decode())
            except (OSError, ValueError):
                return {}
        return {}

    def run_ppo(self, model, reward, prompts, policy_lag=1):
        """Returns what was seen of it: `seen` [(seconds, steps committed)], the metrics of `learner` and `rollout`, and the `trace`'s events."""
        job = self.bench.scratch / "job.yaml"
        job.write_text(f"""name: bench
learners: {{ranks: 1}}
ppo:
  policy: file:{model}
  prompts: file:{prompts}
  scorer: {{components: [{{name: model, reward_model: {{model: "file:{reward}"}}}}]}}
  steps: {self.STEPS}
  prompts_per_step: {self.SAMPLES}
  sampling: {{temperature: 1, max_new_tokens: {self.NEW_TOKENS}}}
  epochs: {self.EPOCHS}
  max_policy_lag: {policy_lag}
  precision: {self.precision.upper()}
  policy_optimizer: {{learning_rate: 1e-6}}
""", encoding="utf-8")
        self.ctl("submit", job)
        seen, learner, rollout = [], {}, {}
        deadline = time.monotonic() + self.bench.flags.ppo_seconds
        asked = time.monotonic()
        while time.monotonic() < deadline:
            learner, rollout = self.metrics("learner") or learner, self.metrics("rollout") or rollout
            seen.append((time.monotonic(), report.total(learner, "rlhf_learner_steps_total", outcome="committed")))
            # A program that is started takes 20 ms of a core: it is asked seldom, that it does not take what is measured.
            if seen[-1][1] >= self.STEPS or time.monotonic() - asked > 5:
                found, asked = json.loads(self.ctl("--output", "json", "get", "bench")), time.monotonic()
                if found["state"] in ("FAILED", "CANCELLED"):
                    raise ToolError(f"the PPO job ended as {found['state']}: {found.get('reason', '')}")
                if found["state"] == "SUCCEEDED":
                    break
            time.sleep(0.2)
        trace = self.bench.scratch / "trace.json"
        self.ctl("trace", "bench", "--out", trace)
        return {"seen": seen, "learner": learner, "rollout": rollout, "trace": json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]}
