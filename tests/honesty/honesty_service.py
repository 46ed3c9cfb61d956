"""What the tests of the honesty example share: its world and model in a folder, and a whole service of real processes beside them."""
import pathlib
import signal
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = ROOT / "build/release/bin"
sys.path.insert(0, str(ROOT / "examples/honesty"))

import grpc  # noqa: E402
from rlhf.v1 import state_pb2  # noqa: E402
from rlhf_client import Client, RlhfError  # noqa: E402
import rate  # noqa: E402


def make_world(scratch, seed):
    """Data and a freshly initialised model, at scratch/data and scratch/model."""
    data = scratch / "data"
    for command in (
            ["/usr/bin/python3", ROOT / "examples/honesty/generate.py", "--seed", str(seed), "--out", data],
            [BIN / "rlhf-model", "train-tokenizer", "--vocab-size", "512", "--out", scratch / "tokenizer", data / "corpus.txt"],
            [BIN / "rlhf-model", "init", "--config", ROOT / "examples/honesty/model.json", "--tokenizer", scratch / "tokenizer",
             "--out", scratch / "model", "--seed", str(seed)]):
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return data


class Service:
    def __init__(self, scratch):
        self.dir = scratch / "cluster"
        self.log = open(scratch / "up.log", "w")
        self.process = subprocess.Popen(
            [BIN / "rlhfctl", "up", "--dir", self.dir, "--rollout-workers", "2", "--reward-servers", "1", "--learners", "2"],
            stdout=self.log, stderr=self.log)
        deadline = time.monotonic() + 60
        while not (self.dir / "ready").exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.process.kill()
                raise SystemExit(f"the service did not start: {(scratch / 'up.log').read_text()[-2000:]}")
            time.sleep(0.1)
        self.client = Client.from_context(str(self.dir / "client.json"))

    def submit(self, path, **settings):
        words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        subprocess.run([BIN / "rlhfctl", "--context", self.dir / "client.json", "submit", path, *words], check=True, stdout=subprocess.DEVNULL)

    def wait(self, name):
        try:
            self.client.wait(name)
        except RlhfError:
            pass  # a job that failed is what may be looked for
        return self.client.get(name)

    def run_with_rater(self, path, name, person, overseer=None, **settings):
        """Submits a pipeline, answers its questions as `person` does, and returns the job when it has ended.

        Where its gates wait, `overseer` reads their reports: GateRow to (approve, comment).
        """
        self.submit(path, **settings)
        ended = threading.Event()
        oversight = threading.Thread(target=self._decide, args=(name, overseer, ended), daemon=True)
        if overseer is not None:
            oversight.start()
        with Client.from_context(str(self.dir / "rater.json")) as rating:
            # A daemon: a pipeline that fails before it collects leaves the rater waiting.
            rater = threading.Thread(target=self._answer, args=(rating, name, person), daemon=True)
            rater.start()
            job = self.wait(name)
            ended.set()
            rater.join(timeout=30)
        if overseer is not None:
            oversight.join(timeout=60)
        return job

    def _decide(self, name, overseer, ended):
        """As somebody who did not submit the pipeline, by a token of their own."""
        try:
            with Client.from_context(str(self.dir / "overseer.json")) as client:
                while not ended.wait(1):
                    try:
                        pipeline = client.get(name).id
                        for gate in client.gates([state_pb2.GATE_WAITING]):
                            if gate.job_id == pipeline:
                                approve, comment = overseer(gate)
                                decided = client.decide_gate(gate.id, approve, gate.report_sha256, comment)
                                print(f"{gate.id}: {state_pb2.GateState.Name(decided.state)}: {comment}", flush=True)
                    except RlhfError as error:
                        if error.code != grpc.StatusCode.UNAVAILABLE:
                            raise
        except Exception as error:  # whatever it is, nobody decides any more
            print(f"the overseer of {name} stopped: {error!r}", file=sys.stderr, flush=True)
            self._cancel(name)

    def _answer(self, rating, name, person):
        try:
            rate.rate(rating, name, person, 3600)
        except Exception as error:  # whatever it is, nobody answers any more
            print(f"the rater of {name} stopped: {error!r}", file=sys.stderr, flush=True)
            self._cancel(name)

    def _cancel(self, name):
        """A job that would wait for people for ever."""
        try:
            self.client.cancel(name)
        except RlhfError:
            pass  # it has ended

    def close(self):
        self.client.close()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=60)
