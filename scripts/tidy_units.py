"""clang-tidy over every translation unit of some folders, as many at once as there are processors.

    tidy_units.py build/tidy/compile_commands.json FOLDER…

A unit is what the build compiles: with RLHF_UNITY a file that includes several sources, whose findings are kept because
.clang-tidy's HeaderFilterRegex names their folders. Exits 1 when one has a finding.
"""
import concurrent.futures
import json
import os
import pathlib
import subprocess
import sys


def main():
    database = pathlib.Path(sys.argv[1])
    root = pathlib.Path(__file__).resolve().parent.parent
    build = database.parent.resolve()
    units = []
    for entry in json.loads(database.read_text()):
        path = pathlib.Path(entry["file"])
        place = path.relative_to(build if path.is_relative_to(build) else root)
        if place.parts[0] in sys.argv[2:]:
            units.append(str(path))
    if not units:
        sys.exit(f"{database}: expected units of {' '.join(sys.argv[2:])}, found none")

    def check(unit):
        # What a unit is for is to include sources.
        return unit, subprocess.run(["clang-tidy-14", "-p", str(build), "--quiet", "--warnings-as-errors=*",
                                     "--checks=-bugprone-suspicious-include", unit],
                                    capture_output=True, text=True)

    failed = 0
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for unit, done in pool.map(check, units):
            failed += done.returncode != 0
            print(f"{'ok' if done.returncode == 0 else 'FINDINGS'} {unit}", flush=True)
            if done.returncode != 0:
                print(done.stdout, done.stderr if not done.stdout else "", flush=True)
    print(f"{len(units)} units, {failed} with findings")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
