"""Runs the compiler's front end only over files of a compilation database: the analyses without the code generation.

Usage: syntax_only.py COMPILE_COMMANDS FILE...
"""
import concurrent.futures
import json
import os
import shlex
import subprocess
import sys

database = {os.path.relpath(entry["file"], os.getcwd()): entry for entry in json.load(open(sys.argv[1], encoding="utf-8"))}


def check(path: str) -> str:
    entry = database.get(path)
    if entry is None:
        return f"{path}: not in the build; add it to its CMakeLists.txt or remove it\n"
    words = shlex.split(entry["command"])
    start = next(i for i, word in enumerate(words) if "clang++" in os.path.basename(word))
    command = [word for word in words[start:]]
    out = command.index("-o")
    del command[out:out + 2]
    command = [word for word in command if word != "-c"] + ["-fsyntax-only"]
    done = subprocess.run(command, cwd=entry["directory"], capture_output=True, text=True, check=False)
    return done.stderr if done.returncode else ""


with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
    outputs = [output for output in pool.map(check, sys.argv[2:]) if output]
print("".join(outputs) or f"{len(sys.argv) - 2} files: no finding")
sys.exit(1 if outputs else 0)
