"""Times the import of a million comparisons: transcripts as in the HH-RLHF data, 1 in 1000 a duplicate and 1 in 10000 a bad line.

    bench/import_comparisons.py [--count 1000000] [--bin build/release/bin] [--gzip]
"""
import argparse
import gzip
import json
import pathlib
import random
import resource
import subprocess
import sys
import tempfile
import time

WORDS = "the a of what when how why you me city river answer question make tell know think people water light stone paper always never".split()


def write(path, count, compressed):
    rng = random.Random(0)
    opened = gzip.open(path, "wt", compresslevel=1) if compressed else open(path, "w")
    with opened as file:
        line = ""
        for i in range(count):
            if i % 10_000 == 9_999:
                file.write("{\"chosen\": 3}\n")
            elif i % 1000 == 999:
                file.write(line)
            else:
                prompt = f"\n\nHuman: {i} " + " ".join(rng.choices(WORDS, k=20)) + "?\n\nAssistant:"
                chosen, rejected = (prompt + " " + " ".join(rng.choices(WORDS, k=25)) + end for end in (".", "!"))
                line = json.dumps({"chosen": chosen, "rejected": rejected}) + "\n"
                file.write(line)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--bin", type=pathlib.Path, default=pathlib.Path("build/release/bin"))
    parser.add_argument("--gzip", action="store_true")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rlhf-import-") as name:
        scratch = pathlib.Path(name)
        data = scratch / ("pairs.jsonl.gz" if flags.gzip else "pairs.jsonl")
        write(data, flags.count, flags.gzip)
        ports = scratch / "ports.json"
        coordinator = subprocess.Popen(
            [flags.bin / "rlhf-coordinator", "--insecure", "--data-dir", scratch / "data", "--ports-file", ports],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while not ports.exists():
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
        if result.returncode != 0:
            print(result.stderr[-2000:], file=sys.stderr)
            return 1
        client = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        print(f"{flags.count} lines, {data.stat().st_size / 1e6:.0f} MB, in {seconds:.1f} s: {flags.count / seconds:.0f} a second; "
              f"coordinator at most {peak / 1024:.0f} MB, the largest child {client / 1024:.0f} MB")
        print(f"first of {result.stderr.count(chr(10))} problems: {result.stderr.splitlines()[0] if result.stderr else 'none'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
