"""The scripts that judge: what they must find is found, and what is in order passes."""
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest
import xml.etree.ElementTree as ElementTree

ROOT = pathlib.Path(os.environ["RLHF_SOURCE_DIR"])
COMPILER = os.environ["CXX"]


def run(*command, **named):
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=120, **named)


class ScriptsTest(unittest.TestCase):
    def setUp(self):
        self.dir = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.dir)

    def write(self, name, text):
        path = self.dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path


class ListSkipsTest(ScriptsTest):
    def listed(self, cases):
        suite = ElementTree.Element("testsuite")
        for name, status, output in cases:
            case = ElementTree.SubElement(suite, "testcase", name=name, status=status)
            ElementTree.SubElement(case, "system-out").text = output
        path = self.dir / "tests.xml"
        ElementTree.ElementTree(suite).write(path)
        done = run(sys.executable, ROOT / "scripts/list_skips.py", path)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout.splitlines()

    def test_cases_of_googletest_and_whole_tests(self):
        self.assertEqual(self.listed([
            ("a_test", "run", "[ RUN      ] One.Two\nx.cc:5: Skipped\nno namespaces\nmay be made\n\n[  SKIPPED ] One.Two (3 ms)\n"
                              "[ RUN      ] One.Three\nx.cc:9: Skipped\n\n[  SKIPPED ] One.Three (0 ms)\n[  SKIPPED ] 2 tests, listed below:\n"),
            ("b_test", "notrun", "SKIP_RETURN_CODE: no\n  PostgreSQL"), ("c_test", "notrun", ""), ("d_test", "run", "all is well"),
        ]), ["a_test: One.Two: no namespaces may be made", "a_test: One.Three: no reason given", "b_test: SKIP_RETURN_CODE: no PostgreSQL", "c_test: no reason given"])

    def test_cases_of_unittest_with_and_without_descriptions(self):
        script = self.write("some_test.py", '''import unittest
class A(unittest.TestCase):
    @unittest.skip("no 'chromium' here")
    def test_one(self): pass
    def test_two(self):
        """What it is for."""
        self.skipTest("no prometheus here")
    def test_three(self):
        """It runs."""
class B(unittest.TestCase):
    @classmethod
    def setUpClass(cls): raise unittest.SkipTest("nothing here")
    def test_four(self): pass
unittest.main()
''')
        output = run(sys.executable, script, "-v").stderr
        self.assertEqual(self.listed([("some_test", "run", output)]),
                         ["some_test: test_one: no 'chromium' here", "some_test: test_two: no prometheus here", "some_test: setUpClass: nothing here"])


class CheckLayoutTest(ScriptsTest):
    def setUp(self):
        super().setUp()
        (self.dir / "scripts").mkdir()
        shutil.copy(ROOT / "scripts/check_layout.py", self.dir / "scripts")
        for name in ("rlhf-coordinator", "rlhfctl"):
            self.link(name)

    def link(self, name, *libraries):
        source = self.write("main.cc", "int main() { return 0; }\n")
        (self.dir / "build/bin").mkdir(parents=True, exist_ok=True)
        made = run(COMPILER, source, "-Wl,--no-as-needed", *libraries, "-o", self.dir / "build/bin" / name)
        self.assertEqual(made.returncode, 0, made.stderr)

    def check(self):
        done = run(sys.executable, self.dir / "scripts/check_layout.py", self.dir / "build")
        return done.returncode, done.stdout.splitlines()

    def test_what_points_one_way_passes(self):
        for name, include in (("common/a.h", "common/b.h"), ("client/cpp/a.cc", "artifact/b.h"), ("model/a.cc", "torch/torch.h"), ("model/tool/main.cc", "learner/b.h"),
                              ("cli/a.cc", "client/cpp/b.h"), ("learner/deep/a.cu", "model/b.h"), ("cli/notes.md", "coordinator/b.h"), ("common/c.cc", "model.h")):
            self.write(name, f'#include "{include}"\n')
        self.assertEqual(self.check(), (0, ["layout: every dependency points one way"]))

    def test_what_points_another_way_is_named(self):
        for name, include, says in (("common/a.h", "coordinator/b.h", "common may include only common"), ("coordinator/a.cc", "cli/b.h", "coordinator may include only"),
                                    ("model/deep/a.cc", "learner/b.h", "model may include only"), ("rollout_worker/a.cu", "learner/b.h", "rollout_worker may include only"),
                                    ("artifact/a.cc", "model/b.h", "artifact may include only"), ("cli/a.h", "torch/torch.h", "cli does without LibTorch"),
                                    ("client/a.cc", "c10/util/x.h", "client does without LibTorch")):
            for line in (f'#include "{include}"\n', f"  # include <{include}>  // why\n"):
                path = self.write(name, "// about\n" + line)
                code, found = self.check()
                self.assertEqual((code, len(found)), (1, 1), found)
                self.assertTrue(found[0].startswith(f"{name} includes {include}: {says}"), found)
                path.unlink()

    def test_programs_do_without_libtorch(self):
        library = self.write("nothing.cc", "int nothing() { return 0; }\n")
        for name in ("libtorch_cpu.so", "libc10.so", "libother.so"):
            self.assertEqual(run(COMPILER, "-shared", "-fPIC", f"-Wl,-soname,{name}", library, "-o", self.dir / name).returncode, 0)
        self.link("rlhfctl", self.dir / "libother.so")
        self.assertEqual(self.check()[0], 0)
        for name in ("libtorch_cpu.so", "libc10.so"):
            self.link("rlhfctl", self.dir / name)
            self.assertEqual(self.check(), (1, [f"rlhfctl links {name}: it must run without LibTorch"]))
        (self.dir / "build/bin/rlhfctl").unlink()
        self.assertEqual(self.check(), (1, [f"{self.dir / 'build/bin/rlhfctl'} is missing: build it first"]))


class SyntaxOnlyTest(ScriptsTest):
    def test_only_what_compiles_and_is_built_passes(self):
        good, bad, forgotten = self.write("good.cc", "int f() { return 1; }\n"), self.write("bad.cc", "int f() { return x; }\n"), self.write("forgotten.cc", "\n")
        # The script looks for clang++, behind a launcher; what it needs of it any compiler has.
        compiler = self.dir / "clang++"
        compiler.symlink_to(shutil.which(COMPILER))
        database = self.write("compile_commands.json", json.dumps([
            {"directory": str(self.dir), "file": str(path), "command": f"launcher {compiler} -o {path}.o -c {path}"} for path in (good, bad)]))

        def check(*files):
            done = run(sys.executable, ROOT / "scripts/syntax_only.py", database, *files, cwd=self.dir)
            return done.returncode, done.stdout.strip()

        self.assertEqual(check("good.cc"), (0, "1 files: no finding"))
        self.assertFalse((self.dir / "good.cc.o").exists())
        code, said = check("good.cc", "bad.cc")
        self.assertEqual(code, 1)
        self.assertIn("bad.cc", said)
        self.assertNotIn("good.cc", said)
        self.assertEqual(check("forgotten.cc"), (1, "forgotten.cc: not in the build; add it to its CMakeLists.txt or remove it"))


if __name__ == "__main__":
    unittest.main()
