"""Times the import of a million comparisons: transcripts as in the HH-RLHF data, 1 in 1000 a duplicate and 1 in 10000 a bad line.

    bench/import_comparisons.py [--count 1000000] [--limit 60] [--bin build/release/bin] [--gzip]

Checks what came of them: every good line once, duplicates found by digest, bad lines named with number and reason. Fails where that is
wrong, or where the import takes longer than --limit seconds.
"""
import argparse
import gzip
import json
import pathlib
import random
import re
import resource
import subprocess
import sys
import tempfile
import time

WORDS = "the a of what when how why you me city river answer question make tell know think people water light stone paper always never".split()
BAD = ['{"chosen": 3}', '{"chosen": "a", "reject', '["a", "b"]', '{"prompt": "Q", "chosen": "same", "rejected": "same"}']


def write(path, count, compressed):
    """Returns (good lines, duplicates, numbers of the bad lines, from 1)."""
    rng = random.Random(0)
    duplicates, bad = 0, []
    with gzip.open(path, "wt", compresslevel=1) if compressed else open(path, "w") as file:
        line = ""
        for i in range(count):
            if i % 10_000 == 9_999:
                file.write(BAD[len(bad) % len(BAD)] + "\n")
                bad.append(i + 1)
            elif i % 1000 == 999:
                file.write(line)
                duplicates += 1
            else:
                prompt = f"\n\nHuman: {i} " + " ".join(rng.choices(WORDS, k=20)) + "?\n\nAssistant:"
                chosen, rejected = (prompt + " " + " ".join(rng.choices(WORDS, k=25)) + end for end in (".", "!"))
                line = json.dumps({"chosen": chosen, "rejected": rejected}) + "\n"
                file.write(line)
    return count - duplicates - len(bad), duplicates, bad


def wrong(result, good, duplicates, bad):
    """What the import's own account gets wrong, in words; nothing when it is right."""
    counts = re.search(r": (\d+) imported, (\d+) duplicates, (\d+) rejected", result.stdout)
    found = tuple(map(int, counts.groups())) if counts else result.stdout.strip()
    problems = []
    if found != (good, duplicates, len(bad)):
        problems.append(f"expected {good} imported, {duplicates} duplicates, {len(bad)} rejected, found {found}")
    named = {int(line): reason for line, reason in re.findall(r"pairs\.jsonl(?:\.gz)?:(\d+): (.+)", result.stderr)}
    if sorted(named) != bad[:20]:
        problems.append(f"expected the bad lines {bad[:5]} …, found {sorted(named)[:5]} …")
    return problems


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--limit", type=float, default=60, help="seconds the import may take; 0: any time")
    parser.add_argument("--bin", type=pathlib.Path, default=pathlib.Path("build/release/bin"))
    parser.add_argument("--gzip", action="store_true")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rlhf-import-") as name:
        scratch = pathlib.Path(name)
        data = scratch / ("pairs.jsonl.gz" if flags.gzip else "pairs.jsonl")
        good, duplicates, bad = write(data, flags.count, flags.gzip)
        ports = scratch / "ports.json"
        with open(scratch / "coordinator.log", "w") as log:
            coordinator = subprocess.Popen(
                [flags.bin / "rlhf-coordinator", "--insecure", "--data-dir", scratch / "data", "--ports-file", ports], stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 60
            while not ports.exists():
                if coordinator.poll() is not None or time.monotonic() > deadline:
                    print("import_comparisons.py: the coordinator did not start:", (scratch / "coordinator.log").read_text()[-2000:], file=sys.stderr)
                    return 1
                time.sleep(0.05)
            address = f"127.0.0.1:{json.loads(ports.read_text())['api']}"
            command = [flags.bin / "rlhfctl", "--insecure", "--address", address, "feedback", "import", "--set", "million", data]
            started = time.monotonic()
            result = subprocess.run(command, capture_output=True, text=True)
            seconds = time.monotonic() - started
            peak = int(next(line.split()[1] for line in open(f"/proc/{coordinator.pid}/status") if line.startswith("VmHWM")))
        finally:
            coordinator.terminate()
            coordinator.wait(timeout=60)
        print(result.stdout.strip())
        if result.returncode != (1 if bad else 0):
            print(result.stderr[-2000:], file=sys.stderr)
            return 1
        client = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        print(f"{flags.count} lines, {data.stat().st_size / 1e6:.0f} MB, in {seconds:.1f} s: {flags.count / seconds:.0f} a second; "
              f"coordinator at most {peak / 1024:.0f} MB, the largest child {client / 1024:.0f} MB")
        print(f"first of {len(bad)} problems: {result.stderr.splitlines()[0] if result.stderr else 'none'}")
    problems = wrong(result, good, duplicates, bad)
    if flags.limit and seconds > flags.limit:
        problems.append(f"expected at most {flags.limit:g} s, found {seconds:.1f}")
    for problem in problems:
        print(f"import_comparisons.py: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
