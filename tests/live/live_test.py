"""A live run, looked at with a real Prometheus and a real browser: every query of every dashboard and rule, and the pages."""
import http.server
import json
import math
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import unittest
import urllib.parse
import urllib.request

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import chromium  # noqa: E402
from service import BIN, ROOT, Service, until  # noqa: E402

import yaml  # noqa: E402

MONITORING = ROOT / "deploy/monitoring"
STEPS = 60
# Selectors of rules and panels that a run in which nothing breaks has no series for, and why.
NOT_LIVE = {
    'grpc_server_handled_total{grpc_code=~"INTERNAL|UNKNOWN|DATA_LOSS|UNAVAILABLE"}': "a call's code makes its series, and no call fails inside the service here",
}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Exposition(http.server.BaseHTTPRequestHandler):
    """Serves the recorded metrics of NVIDIA's exporter."""

    def do_GET(self):
        body = (pathlib.Path(__file__).parent / "dcgm.prom").read_bytes()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


class Prometheus:
    def __init__(self, service, rules=MONITORING / "rules.yml", interval="2s"):
        self.dcgm = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Exposition)
        threading.Thread(target=self.dcgm.serve_forever, daemon=True).start()
        targets = [f"127.0.0.1:{ports['http']}" for ports in service.ports().values()]
        config = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": interval, "evaluation_interval": interval}
        config["rule_files"] = [str(rules)]
        for scrape in config["scrape_configs"]:
            mine = targets if scrape["job_name"] == "rlhf" else [f"127.0.0.1:{self.dcgm.server_address[1]}"]
            scrape["static_configs"] = [{"targets": mine}]
        file = service.scratch / "prometheus.yml"
        file.write_text(yaml.safe_dump(config))
        self.url = f"http://127.0.0.1:{free_port()}"
        log = open(service.scratch / "prometheus.log", "w")
        self.process = subprocess.Popen(
            [shutil.which("prometheus"), f"--config.file={file}", f"--storage.tsdb.path={service.scratch / 'tsdb'}",
             f"--web.listen-address={self.url.removeprefix('http://')}", f"--web.console.templates={MONITORING / 'consoles'}",
             "--web.console.libraries=/usr/share/doc/prometheus/examples/console_libraries"], stdout=log, stderr=log)
        try:
            until("Prometheus is ready", 30, self.ready)
            # It takes up its targets some seconds later; what happens before is no increase of anything.
            until("every target is scraped", 30, lambda: len(self.get("query", query="up == 1")["result"]) == len(targets) + 1)
        except BaseException:
            self.close()
            raise

    def ready(self):
        try:
            return urllib.request.urlopen(f"{self.url}/-/ready", timeout=2).status == 200
        except OSError:
            return False

    def get(self, path, **parameters):
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=20) as response:
            return json.load(response)["data"]

    def series(self, query):
        """Numbers of the last minute, by series; NaN is no number."""
        now = time.time()
        data = self.get("query_range", query=query, start=now - 60, end=now, step=2)["result"]
        return [s for s in data if any(not math.isnan(float(value)) for _, value in s["values"])]

    def close(self):
        self.process.terminate()
        self.process.wait(timeout=30)
        self.dcgm.shutdown()


def names_in(expression):
    return set(re.findall(r"\b((?:rlhf|grpc|process|DCGM)_\w+)", expression)) - {"rlhf_job", "grpc_service", "grpc_method", "grpc_code"}


def selectors_in(expression):
    """Every `metric` or `metric{matchers}` of an expression."""
    pattern = r"\b(?:rlhf|grpc|process|DCGM)_\w+(?:\{[^}]*\})?"
    return {found for found in re.findall(pattern, expression) if names_in(found)}


def rules():
    return yaml.safe_load((MONITORING / "rules.yml").read_text())["groups"][0]["rules"]


def console_queries():
    for file in sorted((MONITORING / "consoles").glob("*.html")):
        for queries in re.findall(r"^  expr: (\[.*\]),$", file.read_text(), re.M):
            for query in json.loads(queries):
                yield file.name, query


def panels():
    for file in sorted((MONITORING / "dashboards").glob("*.json")):
        for panel in json.loads(file.read_text())["panels"]:
            yield f"{file.stem}: {panel['title']}", [target["expr"] for target in panel["targets"]]


class ServiceTest(unittest.TestCase):
    def test_a_start_that_fails_leaves_nothing_behind(self):
        seen = []

        def prepare(service):
            seen.append(service)
            service.dir.mkdir()
            service.undo.append(lambda: seen.append(service.dir.exists()))

        with self.assertRaisesRegex(AssertionError, "rlhfctl up ended with .*--no-such-flag"):
            Service("--no-such-flag", prepare=prepare)
        service, dir_was_there = seen
        self.assertTrue(dir_was_there)  # what was prepared is undone before its folder goes
        self.assertIsNotNone(service.process.returncode)
        self.assertFalse(service.scratch.exists())


class LiveTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.service = Service()
        try:
            cls.service.make_model()
            until("every process says its ports", 30, lambda: len(cls.service.ports()) == 6)
            cls.prometheus = Prometheus(cls.service) if shutil.which("prometheus") else None
            cls.service.ctl("submit", cls.service.write_pipeline(STEPS))
            until("the gate waits", 200, cls.gate_waits)
            if cls.prometheus:
                until("Prometheus has seen the end", 30, cls.end_is_seen)
        except BaseException:
            cls.service.close()
            raise

    @classmethod
    def tearDownClass(cls):
        if cls.prometheus:
            cls.prometheus.close()
        cls.service.close()

    @classmethod
    def is_refused(cls):
        cls.service.ctl("token", "list", check=False)  # for the panels that count refusals

    @classmethod
    def end_is_seen(cls):
        cls.is_refused()  # also behind a scrape that has seen the first: else there is no rate
        return all(map(cls.prometheus.series, ("rlhf_gates == 1", "rlhf_slice_win_rate", 'rate(grpc_server_handled_total{grpc_code!="OK"}[90s]) > 0')))

    @classmethod
    def gate_waits(cls):
        cls.is_refused()
        state = cls.service.job("live")["state"]
        if state in ("FAILED", "CANCELLED", "SUCCEEDED"):
            raise AssertionError(cls.service.job("live"))
        return state == "WAITING"

    def setUp(self):
        if self._testMethodName.endswith("_page") and not chromium.find():
            self.skipTest("no chromium here")
        if self._testMethodName[5] in "abcd" and self.prometheus is None:
            self.skipTest("no prometheus here")

    def test_a_every_panel_has_data(self):
        empty = []
        for where, queries in panels():
            for query in queries:
                if not self.prometheus.series(query.replace("$__rate_interval", "90s").replace("[1h]", "[90s]")):
                    empty.append(f"{where}: {query}")
        self.assertEqual(empty, [])
        shown = list(console_queries())
        self.assertEqual(len(shown), sum(len(queries) for _, queries in panels()))
        self.assertEqual([where for where in shown if not self.prometheus.series(where[1])], [])

    def test_b_every_rule_looks_at_series_that_exist(self):
        missing, excused = [], set()
        for rule in rules():
            self.prometheus.series(rule["expr"])  # an error of evaluation is HTTP's
            for selector in sorted(selectors_in(rule["expr"])):
                if self.prometheus.series(selector):
                    continue
                excused.add(selector)
                if selector not in NOT_LIVE:
                    missing.append(f"{rule['alert']}: {selector}")
        self.assertEqual(missing, [])
        self.assertEqual(sorted(set(NOT_LIVE) - excused), [], "there after all: take it out of NOT_LIVE")
        loaded = self.prometheus.get("rules")["groups"][0]["rules"]
        self.assertEqual([rule["name"] for rule in loaded], [rule["alert"] for rule in rules()])
        self.assertEqual([rule["name"] for rule in loaded if rule["health"] != "ok"], [])

    def test_b_a_monitors_alarm_is_an_alert(self):
        firing = [alert["labels"] for alert in self.prometheus.get("alerts")["alerts"] if alert["state"] == "firing"]
        ours = [labels for labels in firing if labels["alertname"] == "RewardHackingSuspected" and labels.get("source") == "monitor"]
        self.assertTrue(ours, firing)
        self.assertTrue({labels["monitor"] for labels in ours} <= {"kl", "repetition"}, ours)

    def test_c_consoles_render(self):
        for file in sorted((MONITORING / "consoles").glob("*.html")):
            with urllib.request.urlopen(f"{self.prometheus.url}/consoles/{file.name}", timeout=20) as response:
                text = response.read().decode()
            self.assertIn("PromConsole.Graph", text, file.name)
            self.assertNotIn("{{", text, file.name)

    def test_d_documented_metrics_are_the_exported_ones(self):
        documented = set(re.findall(r"^\| `((?:rlhf|grpc|process)_\w+)`", (ROOT / "docs/operations.md").read_text(), re.M))
        known = set(self.prometheus.get("label/__name__/values"))
        exported = {re.sub(r"_(bucket|sum|count)$", "", name) for name in known if re.match(r"(rlhf|grpc|process)_", name)}
        self.assertEqual(sorted(exported - documented), [], "exported and not in docs/operations.md")
        self.assertEqual(sorted(documented - exported), [], "in docs/operations.md and not exported")
        ends = self.prometheus.series('rlhf_certificate_expiry_timestamp_seconds{certificate="fleet"}')
        self.assertEqual(len(ends), len(self.service.ports()), "a process that does not tell when its certificate ends")

    def test_e_status_page(self):
        web = self.service.ports()["coordinator"]["web"]
        browser = chromium.Browser()
        try:
            browser.go(f"https://127.0.0.1:{web}/")
            browser.wait("location.pathname === '/signin' && document.querySelector('input[name=token]') !== null")
            browser.js("document.querySelector('input[name=token]').value = 'rlhf_000000000000_wrong'")
            browser.js("document.querySelector('form').requestSubmit()")
            browser.wait("document.querySelector('[role=alert]').textContent !== ''")
            browser.problems.clear()  # the refused sign-ins
            browser.js(f"document.querySelector('input[name=token]').value = {json.dumps(self.service.token('overseer'))}")
            browser.js("document.querySelector('form').requestSubmit()")
            browser.wait("document.body.dataset.ready === 'yes'")
            # A pipeline before its stages, and those as they ran.
            shown = browser.js("[...document.querySelectorAll('#jobs [data-job] td:first-child')].map((cell) => cell.innerText)")
            self.assertEqual(shown[:4], ["live", "· before", "· ppo", "· after"])
            self.assertTrue(browser.js("document.querySelector('#gates').innerText.includes('waiting')"))
            self.assertTrue(browser.js("document.querySelector('[data-alert=GateWaiting]') !== null"))
            self.assertEqual(browser.js("document.querySelectorAll('#fleet tr').length"), 6)
            ppo = self.service.job("live")["children"][1]
            browser.go(f"https://127.0.0.1:{web}/?job={ppo}")
            for curve in ("reward/mean", "gold/mean", "kl", "loss/policy"):
                browser.wait(f"document.querySelector('[data-curve=\"{curve}\"] svg path') !== null")
            self.assertTrue(browser.js("document.querySelector('#ledger').innerText.includes('every sample is accounted for')"))
            self.assertEqual(browser.js("document.querySelector('#ledger rect').getAttribute('width')"), "1000")
            for scheme in ("light", "dark"):
                browser.scheme(scheme)
                browser.screenshot(self.service.scratch / f"status-{scheme}.png")
            self.assertNotEqual(browser.js("getComputedStyle(document.body).backgroundColor"), "rgb(246, 247, 249)")
            self.assertEqual(browser.problems, [])
            self.keep("status-dark.png")
            self.keep("status-light.png")
            # An overseer approves the report that is shown.
            browser.js("[...document.querySelectorAll('#gates a')].find((link) => link.textContent === 'read the report and decide').click()")
            browser.wait("document.querySelector('#gate .bar') !== null")
            report = browser.js("document.querySelector('#gate').innerText")
            [waiting] = [gate for gate in json.loads(self.service.ctl("--output", "json", "gate", "list", context="overseer").stdout)]
            for part in (waiting["report_sha256"], *waiting["metrics"], *waiting["artifacts"].values()):
                self.assertIn(part, report, "who decides reads all that the digest is of")
            browser.js("window.prompt = () => 'read on the page'")
            browser.js("[...document.querySelectorAll('#gate button')].find((button) => button.textContent === 'approve').click()")
            browser.wait("document.querySelector('#gates').innerText.includes('approved') || document.querySelector('#refused').textContent !== ''")
            self.assertEqual(browser.js("document.querySelector('#refused').textContent"), "")
            [gate] = [gate for gate in json.loads(self.service.ctl("--output", "json", "gate", "list", "--all", context="overseer").stdout)
                      if gate["job_id"] == self.service.job("live")["id"]]
            self.assertEqual((gate["state"], gate["approvals"][0]["comment"]), ("GATE_APPROVED", "read on the page"))
        finally:
            browser.close()

    def test_f_samples_page(self):
        web = self.service.ports()["coordinator"]["web"]
        ppo = self.service.job("live")["children"][1]
        browser = chromium.Browser()
        try:
            browser.go(f"https://127.0.0.1:{web}/signin?next={urllib.parse.quote(f'/samples?job={ppo}', safe='')}")
            browser.wait("document.querySelector('input[name=token]') !== null")
            browser.js(f"document.querySelector('input[name=token]').value = {json.dumps(self.service.token('submitter'))}")
            browser.js("document.querySelector('form').requestSubmit()")
            browser.wait("document.body.dataset.ready === 'yes'")
            browser.wait("document.querySelector('article[data-coloured=logprob] .tokens span') !== null")
            colour = "document.querySelector('article[data-coloured] .tokens span').style.backgroundColor"
            self.assertIn("rgba", browser.js(colour))
            # The tokens' texts together are the response.
            text = browser.js("document.querySelector('article[data-coloured] .tokens').textContent")
            self.assertTrue(text)
            browser.js("{ const c = document.getElementById('colour'); c.value = 'kl'; c.dispatchEvent(new Event('change')); }")
            browser.wait("document.querySelector('article[data-coloured=kl] .tokens span') !== null")
            self.assertIn("KL", browser.js("document.querySelector('article[data-coloured=kl] .tokens span').title"))
            before = browser.js("document.querySelectorAll('article').length")
            browser.js("{ const s = document.getElementById('search'); s.value = 'dog number 4'; s.dispatchEvent(new Event('input')); }")
            browser.wait(f"document.querySelectorAll('article').length < {before} || document.getElementById('more').hidden")
            self.assertTrue(browser.js("[...document.querySelectorAll('article')].every(a => a.innerText.includes('dog number 4'))"))
            self.assertTrue(browser.js("document.querySelector('article mark') !== null"))
            browser.screenshot(self.service.scratch / "samples.png")
            self.assertEqual(browser.problems, [])
            self.keep("samples.png")
        finally:
            browser.close()

    def test_g_python_client(self):
        environment = {**os.environ, "PYTHONPATH": str(BIN.parent / "python")}
        result = subprocess.run(
            ["/usr/bin/python3", str(pathlib.Path(__file__).parent / "client_checks.py"), str(self.service.dir / "client.json"), str(self.service.scratch)],
            env=environment, capture_output=True, text=True)
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        plot = self.service.scratch / "metrics.svg"
        script = ROOT / "client/python/scripts/plot_metrics.py"
        ppo = self.service.job("live")["children"][1]
        subprocess.run(["/usr/bin/python3", str(script), str(self.service.dir / "client.json"), ppo, str(plot)], env=environment, check=True)
        self.assertIn("svg", plot.read_text()[:2000])

    def keep(self, name):
        """For the docs: RLHF_KEEP_PICTURES names a folder."""
        if folder := os.environ.get("RLHF_KEEP_PICTURES"):
            shutil.copy(self.service.scratch / name, folder)

    def test_h_weights_are_timed_from_the_manifest_on(self):
        count, seconds = {}, {}
        for instance, ports in self.service.ports().items():
            if not instance.startswith("rollout-"):
                continue
            with urllib.request.urlopen(f"http://127.0.0.1:{ports['http']}/metrics", timeout=20) as response:
                text = response.read().decode()
            for what, phase, value in re.findall(r'^rlhf_weight_sync_seconds_(count|sum)\{phase="(\w+)"\} (\S+)$', text, re.M):
                into = count if what == "count" else seconds
                into[phase] = into.get(phase, 0) + float(value)
        self.assertEqual(sorted(count), ["apply", "fetch", "load", "total", "wait"])
        self.assertGreater(count["wait"], 0, "no version was fetched ahead")
        self.assertEqual(count["fetch"], count["apply"])
        self.assertGreaterEqual(count["total"], count["apply"])
        self.assertGreaterEqual(seconds["total"] + 1e-3, seconds["fetch"] + seconds["wait"] + seconds["apply"])


if __name__ == "__main__":
    unittest.main()
