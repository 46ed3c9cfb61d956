"""Builds the client's wheel and tries it against a live service in clean environments: the oldest and the newest grpcio, the
typing of the package by mypy. Fetches packages from PyPI: part of scripts/test --full."""
import pathlib
import subprocess
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from service import ROOT, Service  # noqa: E402

# The stubs in the wheel are made by the oldest protoc that the oldest grpcio goes with: newer ones read them too.
OLDEST = ["grpcio==1.51.1", "protobuf==4.21.12"]
BUILD = ["setuptools<70", "wheel", "grpcio-tools==1.51.1"]


def run(*command, **options):
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)
    if result.returncode != 0:
        raise AssertionError(f"{' '.join(map(str, command))}\n{result.stdout}{result.stderr}")
    return result.stdout


class WheelTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.service = Service()
        cls.service.make_model()
        builder = cls.venv("builder", *BUILD)
        run(builder / "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", cls.service.scratch, ROOT / "client/python")
        cls.wheel = next(cls.service.scratch.glob("rlhf_client-*.whl"))

    @classmethod
    def tearDownClass(cls):
        cls.service.close()

    @classmethod
    def venv(cls, name, *packages):
        path = cls.service.scratch / name
        run("/usr/bin/python3", "-m", "venv", path)
        run(path / "bin/pip", "install", "--quiet", "--disable-pip-version-check", *packages)
        return path / "bin"

    def check(self, bin_dir):
        print(run(bin_dir / "python", ROOT / "tests/live/client_checks.py", self.service.dir / "client.json", self.service.scratch).strip())

    def test_oldest(self):
        self.check(self.venv("oldest", self.wheel, *OLDEST))

    def test_newest(self):
        self.check(self.venv("newest", "--upgrade", self.wheel))

    def test_typed(self):
        bin_dir = self.venv("typed", self.wheel, "mypy", "types-protobuf", "types-PyYAML", "types-grpcio")
        out = run(bin_dir / "mypy", "--ignore-missing-imports", "-p", "rlhf_client", cwd=self.service.scratch)
        self.assertIn("Success", out)


if __name__ == "__main__":
    unittest.main()
