"""What the sources of deploy/ and packaging/ promise beside the objects: commands in comments, units, monitoring, the
Dockerfile."""
import configparser
import os
import re
import shlex
import subprocess
import sys
import tempfile
import unittest

import yaml

from rendered import BIN, FILES, RENDERED, ROOT, pods


class CommentsTest(unittest.TestCase):
    def test_commands_in_comments_are_right(self):
        """Lines of comments that are commands: rlhfctl's parser takes ours, tests/docs/kubectl knows the objects of the others."""
        seen = {}
        for path in sorted((ROOT / "deploy").rglob("*.yaml")):
            if RENDERED in path.parents:
                continue
            for command in re.findall(r"^ *# {2,}((?:rlhfctl|kubectl) .*)$", path.read_text(), re.M):
                seen.setdefault(str(path.relative_to(ROOT / "deploy")), []).append(command)
                ours, _, piped = command.partition(" | ")
                words = shlex.split(ours)
                with tempfile.TemporaryDirectory() as scratch:
                    output = ""
                    if words[0] == "rlhfctl":
                        result = subprocess.run([BIN / "rlhfctl", "--address", "127.0.0.1:1", "--insecure", *words[1:]], cwd=scratch, capture_output=True, text=True)
                        # 2 is a mistake in the command; without a coordinator what asks it ends with 6.
                        self.assertIn(result.returncode, (0, 6), f"{path}: {command}\n{result.stdout}{result.stderr}")
                        output, words = result.stdout, shlex.split(piped)
                    if words and (output or not piped):
                        kubectl = [sys.executable, ROOT / "tests/docs/kubectl", *words[1:]]
                        result = subprocess.run(kubectl, cwd=ROOT, input=output, env={**os.environ, "RLHF_SOURCE_DIR": str(ROOT)}, capture_output=True, text=True)
                        self.assertEqual(result.returncode, 0, f"{path}: {command}\n{result.stdout}{result.stderr}")
        self.assertEqual({where: len(commands) for where, commands in seen.items()}, {
            "base/kustomization.yaml": 2, "components/two-coordinators/kustomization.yaml": 1, **{f"jobs/{job}/kustomization.yaml": 3 for job in ("sft", "ppo", "pipeline")}})


class PackagingTest(unittest.TestCase):
    def test_units_start_again_however_often_they_end(self):
        """By systemd's default five starts within ten seconds are the last: a coordinator with a full disk would not come back."""
        units = sorted((ROOT / "packaging/systemd").glob("*.service"))
        self.assertEqual(len(units), 4)
        for path in units:
            unit = configparser.ConfigParser(strict=False, interpolation=None)
            unit.optionxform = str
            unit.read(path)
            self.assertEqual(unit["Service"]["Restart"], "on-failure", path.name)
            self.assertEqual(unit["Service"]["RestartSec"], "5", path.name)
            self.assertEqual(unit["Unit"].get("StartLimitIntervalSec"), "0", path.name)


class MonitoringTest(unittest.TestCase):
    def test_every_alert_has_a_runbook_section_a_severity_and_a_test(self):
        monitoring = ROOT / "deploy/monitoring"
        rules = [r for g in yaml.safe_load((monitoring / "rules.yml").read_text())["groups"] for r in g["rules"]]
        tested = {t["name"] for t in yaml.safe_load((monitoring / "rules_test.yml").read_text())["tests"]}
        sections = set(re.findall(r"^### (\w+)$", (ROOT / "docs/operations.md").read_text(), re.M))
        names = [rule["alert"] for rule in rules]
        self.assertEqual(set(names), tested)
        self.assertEqual(set(names), sections)
        for rule in rules:
            self.assertIn(rule["labels"]["severity"], ("page", "ticket"))
            self.assertEqual(rule["annotations"]["runbook_url"], f"docs/operations.md#{rule['alert'].lower()}")


    def test_prometheus_scrapes_what_the_packages_start(self):
        started = {re.search(r'http-address\W+\S+?:(\d+)', path.read_text())[1] for path in (ROOT / "packaging/etc").iterdir()}
        scrapes = yaml.safe_load((ROOT / "deploy/monitoring/prometheus.yml").read_text())["scrape_configs"]
        targets = next(s["static_configs"][0]["targets"] for s in scrapes if s["job_name"] == "rlhf")
        self.assertEqual({target.rpartition(":")[2] for target in targets}, started)

    def test_scrapes_give_the_job_that_dashboards_ask_for(self):
        monitoring = ROOT / "deploy/monitoring"
        asked = set(re.findall(r'\bjob=\\?"([^"\\]*)', (monitoring / "dashboards.yaml").read_text() + (monitoring / "rules.yml").read_text()))
        self.assertEqual(asked, {"rlhf"})
        configured = {scrape["job_name"] for scrape in yaml.safe_load((monitoring / "prometheus.yml").read_text())["scrape_configs"]}
        self.assertLessEqual(asked, configured)
        endpoints = [e for documents in FILES.values() for d in documents if d["kind"] == "PodMonitor" for e in d["spec"]["podMetricsEndpoints"]]
        self.assertTrue(endpoints)
        for endpoint in endpoints:
            self.assertIn({"targetLabel": "job", "replacement": "rlhf"}, endpoint.get("relabelings", []), endpoint["port"])


class ImageTest(unittest.TestCase):
    """The Dockerfile names the package of every library that a binary links, and copies what is built."""

    TEXT = (ROOT / "deploy/Dockerfile").read_text()

    def test_runtime_packages(self):
        packages = set(re.findall(r"\b(?:lib|zlib)[a-z0-9+.-]+", self.TEXT)) | {"libc6", "libstdc++6", "libgcc-s1"}
        for binary in ("rlhf-coordinator", "rlhfctl", "rlhf-learner", "rlhf-rollout-worker", "rlhf-reward-server"):
            needed = subprocess.run(["readelf", "-d", BIN / binary], capture_output=True, text=True, check=True).stdout
            if re.search(r"lib(asan|ubsan|tsan)", needed):
                self.skipTest("a sanitizer's build, which links more, goes into no image")
            for library in re.findall(r"NEEDED.*\[(.*)\]", needed):
                if re.match(r"lib(torch|c10|gomp|cudart)", library) or library.startswith("ld-linux"):
                    continue  # of LibTorch, copied from the build
                owner = subprocess.run(["dpkg", "-S", f"*/x86_64-linux-gnu/{library}"], capture_output=True, text=True).stdout.split(":")[0]
                # Debian splits Abseil's and gRPC's libraries over one package each.
                self.assertIn(owner, packages, f"{binary} links {library} of {owner}")

    def test_a_target_for_every_image_that_manifests_use(self):
        targets = set(re.findall(r"^FROM \S+ AS (\S+)$", self.TEXT, re.M))
        for where, _, template in pods():
            for container in template["spec"]["containers"]:
                self.assertIn(container["image"].split("/")[-1].split(":")[0], targets, where)
        self.assertNotIn(":latest", self.TEXT)

    def test_images_run_as_the_manifests_user(self):
        self.assertIn("USER 10001:10001", self.TEXT)


if __name__ == "__main__":
    unittest.main()
