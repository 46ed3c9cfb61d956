"""What the parts of bench/run share: the service's tools, the models, the peers, and the rows."""
import json
import os
import subprocess

import models
import report
from report import Row

# A short call that tells whether a peer works here; what it converts or compiles is kept for those that are timed.
PROBES = {"generate": ("--new-tokens", 8), "ppo": ("--samples", 8, "--new-tokens", 2, "--updates", 1, "--epochs", 1)}


class ToolError(RuntimeError):
    """One of the service's programs failed."""


class Bench:
    def __init__(self, flags, root, scratch):
        self.flags, self.root, self.scratch, self.rows, self.limits, self.installed = flags, root, scratch, [], {}, None
        self.environment = {**os.environ, "OMP_NUM_THREADS": str(flags.threads)}

    def tool(self, name, *arguments):
        command = [self.flags.bin / name, *map(str, arguments)]
        result = subprocess.run(command, capture_output=True, text=True, env=self.environment)
        if result.returncode != 0:
            raise ToolError(f"{' '.join(map(str, command))}: exit {result.returncode}\n{result.stderr.strip()}")
        return result.stdout

    def measured(self, name, *arguments):
        return json.loads(self.tool(name, *arguments).strip())

    def engine(self, *arguments):
        return self.measured("rlhf-bench", "--threads", self.flags.threads, *arguments)

    def generate(self, model, batch, precision, *more):
        """New tokens a second of the rollout worker's engine."""
        return self.engine("generate", "--model", model, "--requests", batch, "--slots", batch, "--precision", precision, *more)["tokens_per_second"]

    def ask_peers(self, *arguments):
        """What peers.py answers; the error's last line where it does not."""
        command = [self.flags.peers / "bin/python", self.root / "bench/peers.py", *map(str, arguments)]
        result = subprocess.run(command, capture_output=True, text=True, env=self.environment)
        if result.returncode != 0:
            raise RuntimeError((result.stderr.strip().splitlines() or ["no output"])[-1])
        return json.loads(result.stdout.strip().splitlines()[-1])

    def peer(self, *arguments):
        """One figure of a peer."""
        return next(iter(self.ask_peers(*arguments).values()))

    def model(self, name):
        out = self.scratch / name
        if not out.exists():
            config, text, tokenizer = self.scratch / f"{name}.json", self.scratch / "text.txt", self.scratch / "tokenizer"
            config.write_text(json.dumps(models.CONFIGS[name]), encoding="utf-8")
            if not tokenizer.exists():
                models.write_text(text)
                self.tool("rlhf-model", "train-tokenizer", "--vocab-size", 320, "--out", tokenizer, text)
            self.tool("rlhf-model", "init", "--config", config, "--tokenizer", tokenizer, "--out", out)
        return out

    def peer_or_why(self, name, arguments):
        """A peer's figure and "", or None and why there is none."""
        if not self.flags.peers:
            return None, "no --peers"
        if self.installed is None:
            self.installed = self.ask_peers("list")
        if not self.installed.get(name.split()[0]):
            return None, "not installed"
        try:
            return self.peer(*arguments), ""
        except RuntimeError as error:
            return None, str(error)

    def with_peers(self, measures, peers):
        """Adds the peers (name -> its arguments) that are installed and work to what alternates; returns why the others are not there."""
        missing = {}
        for name, arguments in peers.items():
            _, why = self.peer_or_why(name, (*arguments, *PROBES.get(arguments[0], ())))
            if why:
                missing[name] = why
            else:
                measures[name] = lambda arguments=arguments: self.peer(*arguments)
        return missing

    def compare(self, what, unit, ours, peers, limit=None, factor=None, rounds=None):
        """A row of ours, one of each peer, and one of the ratio to the best of them, of which `factor` is asked."""
        measures = {"ours": ours}
        missing = self.with_peers(measures, peers)
        median, _ = report.alternate(rounds or self.flags.rounds, measures)
        self.rows.append(Row(what, median["ours"], unit, limit, "products alone"))
        self.rows += report.peer_rows(what, unit, median, missing, list(peers), factor)

    def or_why(self, what, measure, **asked):
        """Runs measure(), which adds rows; where one of the tools fails, a row `what` says why instead."""
        try:
            measure()
        except ToolError as error:
            self.rows.append(Row(what, note=str(error).splitlines()[-1], **asked))

    def token_limit(self, name, passes, precision="float32"):
        """Tokens a second when nothing but the matrix products takes time, at the rate of the largest product."""
        rate = self.limits["gemm_gflops"][precision]["2048x2048x2048"] * 1e9
        return rate / (2 * passes * models.products(models.CONFIGS[name]))
