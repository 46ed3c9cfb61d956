"""A precompiled header has what its headers say, whatever lay in its place before and however ccache was used meanwhile."""
import os
import pathlib
import shutil
import subprocess
import tempfile
import unittest

ROOT = pathlib.Path(os.environ["RLHF_SOURCE_DIR"])
SLOPPINESS = "pch_defines,time_macros,include_file_mtime,include_file_ctime"  # as CMakeLists.txt has it


class PrecompiledHeader(unittest.TestCase):
    def setUp(self):
        self.dir = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.dir)
        self.assertIn(SLOPPINESS, (ROOT / "CMakeLists.txt").read_text())
        (self.dir / "all.h").write_text('#pragma once\n#include "one.h"\n')
        (self.dir / "all.h.cc").write_text("// The header is included from outside.\n")

    def run_compiler(self, *command):
        environment = {**os.environ, "CCACHE_DIR": str(self.dir / "cache"), "CCACHE_SLOPPINESS": SLOPPINESS,
                       "CCACHE_BASEDIR": str(self.dir)}
        return subprocess.run(command, cwd=self.dir, env=environment, capture_output=True, text=True)

    def build(self, member):
        (self.dir / "one.h").write_text(f"#pragma once\nstruct One {{ int {member}; }};\n")
        made = self.run_compiler(ROOT / "cmake/fresh_pch", os.environ["CCACHE"], os.environ["CXX"], "-O2", "-fpch-preprocess",
                                 "-x", "c++-header", "-include", self.dir / "all.h", "-o", "all.h.gch", "-c", "all.h.cc")
        self.assertEqual(made.returncode, 0, made.stderr)

    def expect(self, member):
        (self.dir / "use.cc").write_text(f"int main() {{ return One().{member}; }}\n")
        used = self.run_compiler(os.environ["CXX"], "-O2", "-Winvalid-pch", "-include", self.dir / "all.h", "-c", "use.cc")
        self.assertEqual(used.returncode, 0, used.stderr)

    def test_is_of_the_headers_as_they_are(self):
        self.build("first")
        first = (self.dir / "all.h.gch").read_bytes()
        self.build("second")
        self.expect("second")
        # Another checkout with the same cache still has the first one, and changes it in another way.
        (self.dir / "all.h.gch").write_bytes(first)
        self.build("third")
        self.expect("third")


if __name__ == "__main__":
    unittest.main()
