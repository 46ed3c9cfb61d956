"""Alerts from live faults: real processes, a real Prometheus with the shipped rules, and what breaks. Each fires, and clears.

Durations are shortened, expressions are not: `for` at most five seconds, windows a twentieth, and the three thresholds of
THRESHOLDS, which are durations themselves.
"""
import concurrent.futures
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from live_test import MONITORING, Prometheus, rules  # noqa: E402
from service import BIN, Service, until  # noqa: E402

import grpc  # noqa: E402
import yaml  # noqa: E402

sys.path.insert(0, str(BIN.parent / "python"))
from rlhf.v1 import reward_service_pb2, reward_service_pb2_grpc  # noqa: E402

FAULTS_BIN = pathlib.Path(os.environ.get("RLHF_FAULTS_BIN_DIR", BIN.parent / "bin-faults"))
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
THRESHOLDS = {"NoProgress": ("> 900", "> 8"), "CheckpointStale": ("> 3600", "> 15"), "GateWaiting": ("> 86400", "> 4")}

def seconds(duration):
    return int(duration[:-1]) * SECONDS[duration[-1]]


def shortened():
    groups = yaml.safe_load((MONITORING / "rules.yml").read_text())
    for rule in groups["groups"][0]["rules"]:
        if "for" in rule:
            rule["for"] = f"{min(5, max(1, seconds(rule['for']) // 60))}s"
        if threshold := THRESHOLDS.get(rule["alert"]):
            assert threshold[0] in rule["expr"], f"{rule['alert']}: expected {threshold[0]} in {rule['expr']}"
            rule["expr"] = rule["expr"].replace(*threshold)
        rule["expr"] = re.sub(r"\[(\d+[smhd])\]", lambda window: f"[{max(10, seconds(window[1]) // 20)}s]", rule["expr"])
    return yaml.safe_dump(groups)


JOB = """name: long
seed: 3
learners: {ranks: 2}
ppo:
  policy: file:model
  prompts: file:prompts.jsonl
  scorer: {components: [{name: letter_t, regex: {pattern: t}}]}
  steps: 100000
  prompts_per_step: 8
  samples_per_prompt: 2
  sampling: {max_new_tokens: 16}
  max_policy_lag: 1
  epochs: 1
  checkpoint_every: 5
  policy_optimizer: {learning_rate: 1e-5}
"""
GATE = """name: gated
pipeline:
  stages:
    - name: look
      evaluate: {model: "file:model", suite: "file:prompts.jsonl", sampling: {temperature: 1, max_new_tokens: 8}, graders: {components: [{name: letter_t, regex: {pattern: t}}]}}
      gate: {required_approvals: 1}
"""
# A policy that follows its score wherever it leads: no penalty, no monitor, an absurd learning rate, and samples that may be old.
RUNAWAY = """name: runaway
seed: 3
ppo:
  policy: file:model
  prompts: file:prompts.jsonl
  scorer: {{components: [{{name: judge, external: {{address: "{judge}", plaintext: true}}}}]}}
  gold: {{components: [{{name: gold, external: {{address: "{judge}", plaintext: true}}}}]}}
  steps: 100000
  prompts_per_step: 8
  samples_per_prompt: 2
  sampling: {{max_new_tokens: 16}}
  max_policy_lag: 6
  max_first_minibatch_ratio_error: 1000
  kl: {{coefficient: 0}}
  policy_optimizer: {{learning_rate: 2e-2}}
"""
SANE = """name: sane
seed: 3
ppo:
  policy: file:model
  prompts: file:prompts.jsonl
  scorer: {components: [{name: letter_t, regex: {pattern: t}}]}
  steps: 100000
  prompts_per_step: 8
  sampling: {max_new_tokens: 16}
  max_policy_lag: 1
  epochs: 1
  policy_optimizer: {learning_rate: 1e-5}
"""
GRADED = """name: graded
evaluate: {{model: "file:model", suite: "file:prompts.jsonl", sampling: {{temperature: 1, max_new_tokens: 8}}, graders: {{components: [{{name: grader, external: {{address: "{judge}", plaintext: true}}}}]}}}}
"""


class Judge(reward_service_pb2_grpc.ExternalRewardServiceServicer):
    """A user's own reward service, which breaks. A component's score is its level plus up to 0.2 for uses of one letter: what
    the policy learns to write. `unfair` holds the categories that the grader marks down."""

    def __init__(self):
        self.levels = {"judge": 1.0, "gold": 1.0, "grader": 1.0}
        self.unfair = ()
        self.server = grpc.server(concurrent.futures.ThreadPoolExecutor(2))
        reward_service_pb2_grpc.add_ExternalRewardServiceServicer_to_server(self, self.server)
        self.address = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        self.server.start()

    def ScoreTexts(self, request, context):
        level = self.levels[request.component]
        if request.component == "grader":
            return reward_service_pb2.ScoreTextsResponse(values=[level / 2 if text.category in self.unfair else level for text in request.texts])
        return reward_service_pb2.ScoreTextsResponse(values=[level + 0.2 * min(1, text.response.count("t") / 8) for text in request.texts])


class Alerts(unittest.TestCase):
    provoked = set()
    mounted = False

    @classmethod
    def watch(cls):
        short = cls.service.scratch / "rules.yml"
        short.write_text(shortened())
        cls.prometheus = Prometheus(cls.service, short, "1s")

    @classmethod
    def submit(cls, name, text):
        path = cls.service.scratch / f"{name}.yaml"
        path.write_text(text)
        cls.service.ctl("submit", path)

    @classmethod
    def tearDownClass(cls):
        if hasattr(cls, "prometheus"):
            cls.prometheus.close()
        if hasattr(cls, "service"):
            cls.service.close()

    def firing(self):
        return {alert["labels"]["alertname"] for alert in self.prometheus.get("alerts")["alerts"] if alert["state"] == "firing"}

    def fires(self, alert, patience=60, meanwhile=lambda: None):
        def seen():
            meanwhile()
            return alert in self.firing()

        until(f"{alert} fires", patience, seen)
        self.provoked.add(alert)

    def quiet(self, *alerts):
        until(f"{', '.join(alerts)} is quiet before its fault", 90, lambda: not set(alerts) & self.firing())

    def clears(self, *alerts):
        until(f"{', '.join(alerts)} clears", 90, lambda: not set(alerts) & self.firing())


class FaultsOfProcessesTest(Alerts):
    @classmethod
    def setUpClass(cls):
        if not shutil.which("prometheus"):
            raise unittest.SkipTest("no prometheus here")
        cls.failpoints = pathlib.Path(tempfile.mkdtemp(prefix="rlhf-alerts-"))
        try:
            # 200 GB of room that can be taken away (memory is used for what is written only).
            cls.service = Service(
                "--bin-dir", FAULTS_BIN, "--heartbeat-ms", "500", "--restart-seconds", "0.2", "--restart-seconds-most", "1",
                environment={"RLHF_FAILPOINTS_DIR": str(cls.failpoints)}, prepare=cls.mount)
            cls.service.make_model()
            until("every process says its ports", 30, lambda: len(cls.service.ports()) == 6)
            cls.watch()
            cls.submit("long", JOB)
            until("the job has a checkpoint", 90, lambda: int(cls.service.job("long").get("step", 0)) >= 6)
        except BaseException:
            cls.tearDownClass()
            raise

    @classmethod
    def mount(cls, service):
        service.dir.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", "size=200G", "tmpfs", service.dir]
        Alerts.mounted = subprocess.run(command, capture_output=True).returncode == 0
        if Alerts.mounted:
            service.undo.append(lambda: subprocess.run(["umount", service.dir], check=True))

    @classmethod
    def tearDownClass(cls):
        super().tearDownClass()
        shutil.rmtree(cls.failpoints, ignore_errors=True)

    def step(self):
        return int(self.service.job("long").get("step", 0))

    def pid(self, instance):
        return self.service.ports()[instance]["pid"]

    def arm(self, instance, name, action):
        point = self.failpoints / instance / name
        point.parent.mkdir(exist_ok=True)
        written = point.with_suffix(".new")
        written.write_text(action)
        written.rename(point)  # armed at once, whole
        return point

    def clears(self, *alerts):
        super().clears(*alerts)
        step = self.step()
        until("the job goes on", 60, lambda: self.step() > step)

    def stopped_while(self, instances, body):
        pids = [self.pid(instance) for instance in instances]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            body()
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

    def test_a_coordinator_that_hangs(self):
        self.quiet("CoordinatorDown")
        self.stopped_while(["coordinator"], lambda: self.fires("CoordinatorDown"))
        self.clears("CoordinatorDown")

    def test_b_reward_server_that_hangs(self):
        self.quiet("NoProgress", "CheckpointStale")

        def both():
            self.fires("NoProgress")
            self.fires("CheckpointStale")

        self.stopped_while(["reward-0"], both)
        self.clears("NoProgress", "CheckpointStale")

    def test_c_step_that_is_not_finite(self):
        self.quiet("StepRejected")
        self.arm("learner-1", "learner.nan_loss", "error")
        self.fires("StepRejected")
        self.clears("StepRejected")

    def test_d_rollout_workers_that_hang_again_and_again(self):
        self.quiet("LeaseExpiryHigh")
        # Three missed heartbeats end a session and its leases.
        self.fires("LeaseExpiryHigh", 120, lambda: self.stopped_while(["rollout-0", "rollout-1"], lambda: time.sleep(2.5)))
        self.clears("LeaseExpiryHigh")

    def test_e_learner_that_dies_again_and_again(self):
        self.quiet("LearnerGroupDegraded")

        def kill():
            killed = self.pid("learner-1")
            os.kill(killed, signal.SIGKILL)
            # Steps that were on their way may be seen behind the kill.
            until("it is there again", 60, lambda: self.pid("learner-1") != killed)
            step = self.step()
            until("the group forms anew", 60, lambda: self.step() > step)

        self.fires("LearnerGroupDegraded", 180, kill)
        self.clears("LearnerGroupDegraded")

    def test_f_store_that_stalls(self):
        self.quiet("StoreSlow")

        def stall():
            # So short a time between two stops that more than one commit in a hundred is caught by one.
            self.stopped_while(["coordinator"], lambda: time.sleep(0.8))
            time.sleep(0.05)

        self.fires("StoreSlow", 90, stall)
        self.clears("StoreSlow")

    def test_g_gate_that_nobody_decides(self):
        self.quiet("GateWaiting")
        self.submit("gated", GATE)
        self.fires("GateWaiting", 90)
        gates = yaml.safe_load(self.service.ctl("--output", "json", "gate", "list").stdout)
        self.assertEqual(len(gates), 1)
        self.service.ctl("gate", "approve", gates[0]["id"], "--report", gates[0]["report_sha256"], context="overseer")
        self.clears("GateWaiting")

    def test_h_certificate_that_ends_soon(self):
        self.quiet("CertExpiry")
        pki, other = self.service.dir / "pki", self.service.scratch / "short-lived"
        subprocess.run([BIN / "rlhfctl", "pki", "init", "--dir", other, "--days", "3"], check=True, capture_output=True)
        names = ("coordinator.pem", "coordinator.key")
        before = {name: (pki / name).read_bytes() for name in names}
        try:
            for name in names:
                (pki / name).write_bytes((other / name).read_bytes())
            self.fires("CertExpiry")
        finally:
            for name in names:
                (pki / name).write_bytes(before[name])
        # The other certificate's CA is not ours: until the coordinator has read its own again, it answers nobody.
        until("the coordinator reads its certificate", 30, lambda: self.service.ctl("get", "long", check=False).returncode == 0)
        self.clears("CertExpiry")

    def test_h2_admin_whose_token_ends_soon(self):
        self.quiet("AdminTokenExpiry")

        def admin(context, name, days):
            """A token that is admin of all projects, made with a context, as a context of its own."""
            made = self.service.ctl("--project", "*", "--output", "json", "token", "create", "--subject", name, "--role", "admin",
                                    "--days", days, context=context)
            made = json.loads(made.stdout)
            (self.service.dir / f"{name}.token").write_text(made["secret"])
            other = json.loads((self.service.dir / "admin.json").read_text())
            (self.service.dir / f"{name}.json").write_text(json.dumps({**other, "token_file": f"{name}.token"}))
            return made["token"]["id"]

        admin("admin", "short", 3)
        listed = self.service.ctl("token", "list", context="short").stdout
        first = next(line.split()[0] for line in listed.splitlines() if line.split()[1] == "admin")
        self.service.ctl("token", "revoke", first, context="short")
        self.fires("AdminTokenExpiry")
        admin("short", "long", 365)
        self.clears("AdminTokenExpiry")

    def test_i_disk_that_fills(self):
        if not self.mounted:
            self.skipTest("no file system may be mounted here (DiskWillFill)")
        self.quiet("DiskWillFill")
        try:
            subprocess.run(["mount", "-o", "remount,size=2G", self.service.dir], check=True)
            self.fires("DiskWillFill")
        finally:
            subprocess.run(["mount", "-o", "remount,size=200G", self.service.dir], check=True)
        self.clears("DiskWillFill")

    def test_j_calls_that_fail(self):
        self.quiet("GrpcErrors")
        point = self.arm("reward-0", "reward.before_score", "error*")
        try:
            self.fires("GrpcErrors")
        finally:
            point.unlink()
        self.clears("GrpcErrors")


class FaultsOfLearningTest(Alerts):
    """What a policy learns, and scorers that break: one job that runs away, on a service of its own."""

    @classmethod
    def setUpClass(cls):
        if not shutil.which("prometheus"):
            raise unittest.SkipTest("no prometheus here")
        cls.judge = Judge()
        try:
            cls.service = Service("--learners", "1", "--rollout-workers", "1")
            cls.service.make_model()
            until("every process says its ports", 30, lambda: len(cls.service.ports()) == 4)
            cls.watch()
            cls.submit("runaway", RUNAWAY.format(judge=cls.judge.address))
        except BaseException:
            cls.tearDownClass()
            raise

    @classmethod
    def tearDownClass(cls):
        super().tearDownClass()
        cls.judge.server.stop(0)

    def grade(self):
        """An evaluation from its submission to its end."""
        path = self.service.scratch / "graded.yaml"
        path.write_text(GRADED.format(judge=self.judge.address))
        self.service.ctl("submit", "--follow", path)  # its exit code is the job's

    def test_a_policy_that_runs_away_on_old_samples(self):
        # No bound stops it, so neither alert clears before the job is another one: test_e.
        self.fires("PolicyLagHigh", 90)
        self.fires("KLRunaway", 90)

    def fires_while_judged(self, alert, level):
        self.quiet(alert)
        self.judge.levels["judge"] = level
        self.fires(alert)
        self.judge.levels["judge"] = 1.0
        self.clears(alert)

    def test_b_score_that_rises_while_the_gold_score_does_not(self):
        self.fires_while_judged("RewardHackingSuspected", 1.7)

    def test_c_scorer_that_breaks(self):
        self.fires_while_judged("RewardCollapse", 0.2)

    def test_d_grader_that_is_unfair_to_a_category(self):
        self.quiet("SliceDisparity")
        self.judge.unfair = ("dogs",)
        self.grade()
        self.fires("SliceDisparity")
        self.judge.unfair = ()
        self.grade()
        self.clears("SliceDisparity")

    def test_e_job_that_is_cancelled_for_a_sane_one(self):
        # The evaluations may have held up generation for so long that no sample was old.
        self.fires("KLRunaway")
        self.fires("PolicyLagHigh")
        self.service.ctl("cancel", "runaway")
        self.submit("sane", SANE)
        self.clears("KLRunaway", "PolicyLagHigh")


class WholeListTest(unittest.TestCase):
    def test_every_alert_is_provoked(self):
        # A volume that hangs is hanging_volume_test's, and its rule rules_test.yml's.
        provoked = Alerts.provoked | {"VolumeHangs"} | (set() if Alerts.mounted else {"DiskWillFill"})
        # An alert may have two rules: of RewardHackingSuspected the monitor's own is live_test's.
        self.assertEqual(sorted(provoked), sorted({rule["alert"] for rule in rules()}))


if __name__ == "__main__":
    unittest.main()
