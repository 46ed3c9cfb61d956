"""Executes the documentation: every command of README.md and docs/, against the service that the README's own command starts.

What cannot run here says why in its fence; those reasons are printed. Commands and flags named within lines must exist.
"""
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
sys.path.insert(1, str(pathlib.Path(__file__).parents[1] / "live"))
import pages  # noqa: E402
import service  # noqa: E402
from pages import PAGES, ROOT  # noqa: E402
from service import BIN  # noqa: E402

SHELL = ("sh", "console")
LANGUAGES = {"sh", "console", "python", "yaml", "text", "json"}
PATIENCE = 120
# Files that a page shows are made smaller where the size is a matter of minutes alone.
SMALLER = {
    "job.yaml": [("steps: 30", "steps: 3"), ("prompts_per_step: 64", "prompts_per_step: 8"), ("max_new_tokens: 96", "max_new_tokens: 12"),
                 ("minibatch_size: 32", "minibatch_size: 8")],
}
PROGRAMS = sorted(path.name for path in BIN.iterdir() if path.name.startswith("rlhf") and os.access(path, os.X_OK))
FOLDERS = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")} - {"build"}
HELP = {}


def help_of(words):
    """(subcommands, flags) of a program, by its own --help."""
    key = tuple(words)
    if key not in HELP:
        result = subprocess.run([BIN / words[0], *words[1:], "--help"], capture_output=True, text=True, timeout=PATIENCE)
        if result.returncode != 0:
            raise AssertionError(f"{' '.join(words)} --help: exit {result.returncode}\n{result.stdout}{result.stderr}")
        _, _, listed = result.stdout.partition("Subcommands:")
        HELP[key] = (set(re.findall(r"^  ([\w-]+)", listed, re.M)), set(re.findall(r"(?<![\w-])(--?[a-zA-Z][\w-]*)", result.stdout)))
    return HELP[key]


def problem_with(words):
    """What is wrong with a command of one of our programs as it is written; None when its parser knows every word of it."""
    path, known = [pathlib.Path(words[0]).name], set()
    subcommands, flags = help_of(path)
    known |= flags
    for word in words[1:]:
        word = word.strip("[]")
        if word == "--":
            return None  # the rest is another program's
        if word.startswith("-") and len(word) > 1:
            if word.partition("=")[0] not in known:
                return f"{' '.join(path)} has no flag {word}"
        elif word in subcommands:
            path.append(word)
            subcommands, flags = help_of(path)
            known |= flags
        elif subcommands and re.fullmatch(r"[a-z][a-z-]*", word) and path != ["rlhfctl"]:
            return f"{' '.join(path)} has no command {word}"
    if path == ["rlhfctl"] and len(words) > 1:
        # Values of the global flags come before the command.
        bare = [word for i, word in enumerate(words[1:], 1) if re.match("[a-z]", word) and not words[i - 1].startswith("--")]
        if bare:
            return f"rlhfctl has no command {bare[0]}"
    return None


def our_commands(text):
    """The simple commands of ours in a piece of shell, as lists of words."""
    for line in re.sub(r"\\\n", " ", text).splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>()")
        lexer.whitespace_split, lexer.commenters = True, "#"
        command = []
        for word in [*lexer, ";"]:
            if re.fullmatch(r"[|&;<>()]+", word):
                if command and pathlib.Path(command[0]).name in PROGRAMS:
                    yield command
                command = []
            else:
                command.append(word)


class DocsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.read = {path: pages.read(path) for path in PAGES}

    def blocks(self, *languages):
        return [block for blocks, _ in self.read.values() for block in blocks if block.language in languages]

    def spans(self):
        for path, (_, prose) in self.read.items():
            for line, span in pages.spans(prose):
                yield f"{path.relative_to(ROOT)}:{line}", span

    def test_a_blocks_say_what_they_are(self):
        problems = []
        for block in self.blocks(*{block.language for blocks, _ in self.read.values() for block in blocks}):
            if block.language not in LANGUAGES:
                problems.append(f"{block.where()}: expected one of {sorted(LANGUAGES)}, found {block.language}")
            if unknown := set(block.says) - {"norun", "file", "needs"}:
                problems.append(f"{block.where()}: expected norun, file or needs, found {sorted(unknown)}")
            for named in re.findall(r"\b\w+(?:/\w+)+\.\w+", block.says.get("norun", "")):
                if not (ROOT / named).is_file():
                    problems.append(f"{block.where()}: expected a file {named}, which its reason names, found none")
            if "norun" in block.says and len(block.says["norun"].split()) < 3:
                problems.append(f"{block.where()}: expected a reason that says something, found {block.says['norun']!r}")
        for path, (_, prose) in self.read.items():
            for (_, before), (line, text) in zip(prose, prose[1:]):
                if before == "" and re.match(r" {4,}\S", text):
                    problems.append(f"{path.relative_to(ROOT)}:{line}: expected a fenced block, found an indented one, which no test would execute")
        self.assertEqual(problems, [])

    def test_b_commands_and_flags_exist(self):
        problems, seen = [], 0
        named = [(block.where(), pages.commands(block)) for block in self.blocks(*SHELL)]
        named += [(where, span) for where, span in self.spans() if span.partition(" ")[0] in PROGRAMS]
        for where, text in named:
            for words in our_commands(text.replace("…", "")):
                seen += 1
                if problem := problem_with(words):
                    problems.append(f"{where}: {problem}")
        self.assertGreater(seen, 60)
        manual = subprocess.run([BIN / "rlhfctl", "man"], capture_output=True, text=True, check=True).stdout.replace("\\-", "-")
        everywhere = set(re.findall(r"--[a-z][\w-]*", manual)).union(*(help_of([program])[1] for program in PROGRAMS))
        scripts = "".join(path.read_text(errors="replace") for folder in ("scripts", "bench", "tests", "examples", "cmake")
                          for path in (ROOT / folder).rglob("*") if path.is_file() and path.stat().st_size < 200_000 and path.suffix in ("", ".py", ".sh", ".cc"))
        for where, span in self.spans():
            if re.match(r"--[a-z]", span):
                flag = re.match(r"--[\w-]+", span)[0]
                if flag not in everywhere and f'"{flag}"' not in scripts and f" {flag})" not in scripts:
                    problems.append(f"{where}: no program or script has a flag {flag}")
        self.assertEqual(problems, [])

    def test_c_named_files_exist(self):
        missing = []
        for where, span in self.spans():
            path = span.partition(" ")[0].partition(":")[0].rstrip("/")
            if "/" in path and path.partition("/")[0] in FOLDERS and re.fullmatch(r"[\w./-]+", path):
                if not any((ROOT / path).parent.glob(pathlib.Path(path).name + "*")):
                    missing.append(f"{where}: {path}")
        self.assertEqual(missing, [])

    def test_d_every_command_works(self):
        run = Run()
        try:
            for path, (blocks, _) in self.read.items():
                for block in blocks:
                    run.block(block)
                run.finish_page()
            for where, span in self.spans():
                if span.startswith("kubectl ") and len(span.split()) > 2:
                    run.shell(where, span)
        finally:
            run.close()
        print("\nnot executed here:", *run.left_out, sep="\n  ")
        print("executed by a stand-in: kubectl (tests/docs/kubectl: schemas, and names against deploy/rendered)")
        print(f"executed: {run.executed} blocks")
        self.assertGreater(run.executed, 12)


class Run:
    """A folder that looks like the repository's after a build, with what a reader would have beside it: a model, prompts, comparisons."""

    def __init__(self):
        self.scratch = pathlib.Path(tempfile.mkdtemp(prefix="rlhf-docs-"))
        self.left_out, self.executed, self.groups, self.python = [], 0, [], []
        for name in ("bench", "client", "deploy", "examples", "proto", "scripts"):
            (self.scratch / name).symlink_to(ROOT / name)
        (self.scratch / "build/release").mkdir(parents=True)
        for name in ("bin", "python"):
            (self.scratch / "build/release" / name).symlink_to(BIN.parent / name)
        (self.scratch / "stand-in").mkdir()
        (self.scratch / "stand-in/kubectl").symlink_to(pathlib.Path(__file__).parent.resolve() / "kubectl")
        maker = service.Service.__new__(service.Service)
        maker.scratch = self.scratch
        maker.make_model()
        config = json.loads((self.scratch / "config.json").read_text())
        config["max_position_embeddings"] = 512  # stories260K's
        (self.scratch / "config.json").write_text(json.dumps(config))
        subprocess.run([BIN / "rlhf-model", "init", "--config", "config.json", "--tokenizer", "tok", "--out", "stories260K", "--seed", "1"],
                       cwd=self.scratch, check=True, capture_output=True)
        pair = '{"prompt":"which animal?","chosen":"the dog","rejected":"the cat%d"}\n'
        (self.scratch / "pairs.jsonl").write_text("".join(pair % i for i in range(5)))
        (self.scratch / "more.jsonl").write_text("".join(pair % i for i in range(3, 9)))
        subprocess.run(["gzip", self.scratch / "more.jsonl"], check=True)
        self.environment = {
            **os.environ, "OMP_NUM_THREADS": "1", "RLHF_SOURCE_DIR": str(ROOT), "LC_ALL": "C.UTF-8", "TERM": "dumb",
            "PATH": f"{self.scratch}/stand-in:{BIN}:/usr/bin:{os.environ['PATH']}", "PYTHONPATH": f"{BIN.parent / 'python'}:{os.environ.get('PYTHONPATH', '')}",
        }

    def block(self, block):
        if "norun" in block.says:
            self.left_out.append(f"{block.where()}: {block.says['norun']}")
        elif "needs" in block.says and not self.has(block.says["needs"]):
            self.left_out.append(f"{block.where()}: {block.says['needs']} is not installed")
        elif "file" in block.says:
            text = block.text
            for shown, smaller in SMALLER.get(block.says["file"], []):
                if shown not in text:
                    raise AssertionError(f"{block.where()}: expected {shown!r} in {block.says['file']}, which is made smaller here")
                text = text.replace(shown, smaller)
            (self.scratch / block.says["file"]).write_text(text + "\n")
        elif block.language == "sh":
            self.executed += 1
            self.shell(block.where(), block.text)
        elif block.language == "console":
            self.executed += 1
            for command, shown in pages.dialogue(block):
                printed = self.shell(block.where(), command)
                if not pages.matches(shown, printed):
                    raise AssertionError(f"{block.where()}: {command}\nshown:\n" + "\n".join(shown) + f"\nprinted:\n{printed}")
        elif block.language == "python":
            self.executed += 1
            self.python.append(block)

    def has(self, module):
        return subprocess.run(["/usr/bin/python3", "-c", f"import {module}"], capture_output=True).returncode == 0

    def finish_page(self):
        """A page's Python is one program, in the order of its blocks."""
        if self.python:
            lines = []
            for block in self.python:  # so that an error names the page's line
                lines += [""] * (block.line - len(lines)) + block.text.splitlines()
            page = self.scratch / (self.python[0].page.replace("/", "_") + ".py")
            page.write_text("\n".join(lines) + "\n")
            self.shell(self.python[0].page, f"/usr/bin/python3 {page.name}")
            self.python = []

    def shell(self, where, text):
        output = self.scratch / f"output-{len(self.groups)}.txt"
        started = time.monotonic()
        with open(output, "w") as file:
            # A session of its own: what a block leaves in the background is found, and ended, by its process group.
            process = subprocess.Popen(["bash", "-euo", "pipefail", "-c", text], cwd=self.scratch, env=self.environment, stdin=subprocess.DEVNULL,
                                       stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
            self.groups.append(process.pid)
            try:
                code = process.wait(timeout=PATIENCE)
            except subprocess.TimeoutExpired:
                code = f"none within {PATIENCE} s"
        printed = output.read_text(errors="replace")
        if code != 0:
            raise AssertionError(f"{where}: exit code {code} of\n{text}\nwhich printed:\n{printed}")
        if re.search(r"rlhfctl up\b[^\n]*&", text):
            service.until("the service is ready", 60, (self.scratch / ".rlhf/ready").exists)
        if os.environ.get("RLHF_DOCS_TIMES"):
            print(f"{time.monotonic() - started:6.1f} s  {where}")
        return printed

    def close(self):
        for sign in (signal.SIGTERM, signal.SIGKILL):
            for group in self.groups:
                try:
                    os.killpg(group, sign)
                except ProcessLookupError:
                    pass
            deadline = time.monotonic() + 60
            while sign == signal.SIGTERM and time.monotonic() < deadline and any(map(self.lives, self.groups)):
                time.sleep(0.1)
        shutil.rmtree(self.scratch, ignore_errors=True)

    @staticmethod
    def lives(group):
        try:
            os.killpg(group, 0)
            return True
        except ProcessLookupError:
            return False


if __name__ == "__main__":
    unittest.main()
