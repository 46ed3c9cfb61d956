"""Every program says one version and one protocol: those that CMake, the client, the packages and the images carry."""
import os
import pathlib
import re
import subprocess
import unittest

import yaml

ROOT = pathlib.Path(os.environ.get("RLHF_SOURCE_DIR", pathlib.Path(__file__).resolve().parents[2]))
BIN = pathlib.Path(os.environ.get("RLHF_BIN_DIR", ROOT / "build/release/bin"))
PROGRAMS = ["rlhf-coordinator", "rlhf-learner", "rlhf-model", "rlhf-replay", "rlhf-reward-server", "rlhf-rollout-worker", "rlhfctl"]


def found_in(file, pattern):
    match = re.search(pattern, (ROOT / file).read_text(), re.M)
    assert match, f"{file}: expected a line that matches {pattern}"
    return match.group(1)


VERSION = found_in("CMakeLists.txt", r"^project\(rlhf VERSION ([\d.]+)")
PROTOCOL = found_in("common/process.h", r"kProtocolVersion = (\d+);")


class VersionsTest(unittest.TestCase):
    def test_every_program_says_the_projects_version_and_its_own_build(self):
        for program in PROGRAMS:
            with self.subTest(program=program):
                # No other argument: a flag that is required elsewhere must not be in the way.
                result = subprocess.run([BIN / program, "--version"], capture_output=True, text=True, timeout=60)
                self.assertEqual((result.returncode, result.stderr), (0, ""))
                notes = subprocess.run(["readelf", "-n", BIN / program], capture_output=True, text=True, check=True).stdout
                build = re.search(r"Build ID: ([0-9a-f]+)", notes).group(1)
                self.assertEqual(result.stdout, f"{program} {VERSION}+{build}, protocol {PROTOCOL}\n")

    def test_every_program_ends_with_2_on_a_usage_error(self):
        for program in PROGRAMS:
            with self.subTest(program=program):
                result = subprocess.run([BIN / program, "--no-such-flag"], capture_output=True, text=True, timeout=60)
                self.assertEqual(result.returncode, 2, result.stderr)

    def test_the_python_client_has_the_same(self):
        self.assertEqual(found_in("client/python/pyproject.toml", r'^version = "([^"]+)"'), VERSION)
        self.assertEqual(found_in("client/python/rlhf_client/__init__.py", r'^__version__ = "([^"]+)"'), VERSION)

    def test_manifests_name_images_of_the_same(self):
        tags = {
            (str(file.relative_to(ROOT)), image["newTag"])
            for file in (ROOT / "deploy").rglob("kustomization.yaml")
            for image in yaml.safe_load(file.read_text()).get("images", [])
        }
        self.assertTrue(tags)
        self.assertEqual(sorted(tag for tag in tags if not tag[1].startswith(f"{VERSION}-")), [])


if __name__ == "__main__":
    unittest.main()
