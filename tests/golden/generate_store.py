"""Writes a coordinator's data folder as text, for tests of upgrades: state.sql (SQLite's own dump) and payloads.json
(segment file to base64). Run it for each release whose schema version is new, with that release's binaries (all of them, as
the build leaves them in one folder), and commit what it writes:

  python3 tests/golden/generate_store.py BIN_DIR tests/golden/store_vN

The folder is that of a service that was used: an imported set of comparisons, a collect job with answers, pipelines with a
gate that was approved and one that waits, a quota, a token; and at last a load run whose PPO job is still running, which
goes on after the upgrade.
"""
import base64
import json
import os
import pathlib
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time

SOURCE = pathlib.Path(__file__).resolve().parents[2]
COMPARISONS, ANSWERS = 12, 4
GATED = """name: {name}
seed: 3
pipeline:
  stages:
    - name: sft
      sft: {{model: "file:model", data: "file:sft.jsonl", steps: 2, batch_size: 8}}
    - name: check
      evaluate: {{model: "stage:sft", suite: "file:prompts.jsonl", limit: 4, sampling: {{temperature: 0, max_new_tokens: 4}}}}
      gate: {{required_approvals: 1, approves: sft, publish_as: assistant}}
"""
COLLECT = """name: people
seed: 3
pipeline:
  stages:
    - name: sample
      sample: {model: "file:model", prompts: "file:prompts.jsonl", num_prompts: 4, samples_per_prompt: 2, sampling: {max_new_tokens: 4}}
    - name: collect
      collect: {samples: "stage:sample", comparisons: %d}
""" % ANSWERS


def run(*command, check=True):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if check and done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}: {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def wait(what, condition):
    deadline = time.monotonic() + 120
    while not (found := condition()):
        if time.monotonic() > deadline:
            sys.exit(f"waited in vain for {what}")
        time.sleep(0.1)  # of another process there is nothing to wait on but its answers
    return found


def inputs(tools, work):
    config = json.loads((SOURCE / "tests/golden/model.json").read_text(encoding="utf-8"))["models"]["llama"]["config"]
    config["vocab_size"] = 280
    (work / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (work / "text.txt").write_text("the cat sat on the mat and the dog sat on the log\n" * 40, encoding="utf-8")
    prompts = [{"prompt": f"the cat number {i}", "reference": "sat"} for i in range(12)]
    pairs = [{"prompt": {"text": p["prompt"]}, "first": {"text": " sat"}, "second": {"text": " ran"}, "preference": "FIRST",
              "rater": "carl"} for p in prompts[:COMPARISONS]]
    sft = [{"prompt": p["prompt"], "response": " sat"} for p in prompts]
    for name, lines in (("prompts", prompts), ("rated", pairs), ("sft", sft)):
        (work / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    run(tools / "rlhf-model", "train-tokenizer", "--vocab-size", 280, "--out", work / "tok", work / "text.txt")
    run(tools / "rlhf-model", "init", "--config", work / "config.json", "--tokenizer", work / "tok", "--out", work / "model",
        "--seed", 1)
    (work / "people.yaml").write_text(COLLECT, encoding="utf-8")
    for name in ("approved", "waiting"):
        (work / f"{name}.yaml").write_text(GATED.format(name=name), encoding="utf-8")


def use_a_service(tools, work, folder):
    def ctl(*words, who="client", check=True):
        return run(tools / "rlhfctl", "--context", folder / f"{who}.json", *words, check=check)

    def read(*words, who="client"):
        return json.loads(ctl("--output", "json", *words, who=who) or "{}")

    service = subprocess.Popen([tools / "rlhfctl", "up", "--dir", folder, "--slots", "16"], stdout=subprocess.DEVNULL)
    try:
        wait("the service", (folder / "ready").exists)
        ctl("quota", "set", "--max-jobs", 50, "--max-learners", 8, who="admin")
        ctl("token", "create", "--role", "viewer", "--subject", "watcher", who="admin")
        ctl("feedback", "import", "--set", "rated", work / "rated.jsonl")
        ctl("submit", work / "people.yaml")
        answered = 0
        while answered < ANSWERS:
            tasks = json.loads(ctl("--output", "json", "feedback", "next", "--job", "people", "--limit", 1, who="rater",
                                   check=False) or "{}").get("tasks", [])
            for task in tasks:
                ctl("feedback", "submit", task["id"], "--job", task["job_id"], "--prefer", "first", who="rater")
                answered += 1
        for name in ("approved", "waiting"):
            ctl("submit", work / f"{name}.yaml")
            gate = wait(f"{name}'s gate", lambda: read("gate", "list"))
            if name == "approved":
                report = read("gate", "show", gate[0]["id"], who="overseer")["report_sha256"]
                ctl("gate", "approve", gate[0]["id"], "--report", report, who="overseer")
                wait("approval", lambda: read("get", name)["state"] == "SUCCEEDED")
    finally:
        service.send_signal(signal.SIGTERM)
        service.wait()


def write(data, out):
    out.mkdir(parents=True, exist_ok=True)
    database = sqlite3.connect(data / "state.db")
    version = database.execute("PRAGMA user_version").fetchone()[0]
    lines = [f"PRAGMA user_version={version};", *database.iterdump()]
    (out / "state.sql").write_text("\n".join(lines) + "\n", encoding="utf-8")
    segments = {path.name: base64.b64encode(path.read_bytes()).decode() for path in sorted((data / "payloads").glob("*.seg"))}
    (out / "payloads.json").write_text(json.dumps(segments, indent=1) + "\n", encoding="utf-8")


def main():
    tools, out = pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2])
    with tempfile.TemporaryDirectory() as scratch:
        work, folder = pathlib.Path(scratch), pathlib.Path(scratch, "cluster")
        inputs(tools, work)
        use_a_service(tools, work, folder)
        run(tools / "rlhf-load-generator", "--coordinator", tools / "rlhf-coordinator", "--insecure", "--dir", folder,
            "--workers", 2, "--rate", 40, "--samples-per-lease", 2, "--response-tokens", 4, "--samples-per-step", 8,
            "--checkpoint-every", 2, "--warmup", 0, "--seconds", 1, "--leave-running")
        write(folder / "data", out)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
