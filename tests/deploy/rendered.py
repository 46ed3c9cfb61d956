"""The rendered manifests, for the checks of them: their objects and pods, what their network policies let through, and what
rlhfctl gives its processes and prints.
"""
import functools
import os
import pathlib
import re
import subprocess
import tempfile

import yaml

ROOT = pathlib.Path(os.environ.get("RLHF_SOURCE_DIR", pathlib.Path(__file__).resolve().parents[2]))
BIN = pathlib.Path(os.environ.get("RLHF_BIN_DIR", ROOT / "build/release/bin"))
RENDERED = ROOT / "deploy/rendered"


def load(path):
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


FILES = {path.stem: load(path) for path in sorted(RENDERED.glob("*.yaml"))}


def templates(document):
    """Every pod template of an object, with a name for messages."""
    spec, kind = document.get("spec", {}), document["kind"]
    if kind in ("StatefulSet", "Deployment", "Job"):
        yield document["metadata"]["name"], spec["template"]
    if kind == "JobSet":
        for job in spec["replicatedJobs"]:
            yield f"{document['metadata']['name']}/{job['name']}", job["template"]["spec"]["template"]


def pods():
    for name, documents in FILES.items():
        for document in documents:
            for template_name, template in templates(document):
                yield f"{name}: {template_name}", document, template


def at(document, path):
    for key in path.split("."):
        if not isinstance(document, dict) or key not in document:
            return None
        document = document[key]
    return document


def matches(selector, labels):
    return all(labels.get(key) == value for key, value in (selector or {}).get("matchLabels", {}).items())


def labels_of(template):
    return template["metadata"]["labels"]


class Network:
    """What the NetworkPolicies of some objects let through. Pods are named by what makes them."""

    def __init__(self, documents):
        self.policies = [d for d in documents if d["kind"] == "NetworkPolicy"]
        self.pods = {where: template for d in documents for where, template in templates(d)}

    def passes(self, direction, subject, port, peer, target):
        """Whether `peer`, a predicate of a rule's peer, may be at the other end; `target` is the pod that listens."""
        key = {"Ingress": ("ingress", "from"), "Egress": ("egress", "to")}[direction]
        applying = [p for p in self.policies if direction in p["spec"]["policyTypes"] and matches(p["spec"]["podSelector"], labels_of(self.pods[subject]))]
        assert applying, f"{subject} is not isolated"
        rules = [rule for policy in applying for rule in policy["spec"].get(key[0], [])]
        return any(self.allows(rule, port, target) and any(map(peer, rule.get(key[1], []))) for rule in rules)

    def allows(self, rule, port, target):
        named = {p["name"]: p["containerPort"] for c in self.pods[target]["spec"]["containers"] for p in c.get("ports", [])}
        return "ports" not in rule or any(
            named.get(p["port"], p["port"]) == port or "endPort" in p and p["port"] <= port <= p["endPort"] for p in rule["ports"])

    def connects(self, source, target, port):
        def is_pod(pod):
            return lambda peer: "namespaceSelector" not in peer and matches(peer["podSelector"], labels_of(self.pods[pod]))
        return self.passes("Egress", source, port, is_pod(target), target) and self.passes("Ingress", target, port, is_pod(source), target)

    def scrapes(self, target, port):
        """From a pod of a namespace that may scrape."""
        return self.passes("Ingress", target, port, lambda peer: peer == {"namespaceSelector": {"matchLabels": {"rlhf.dev/prometheus": "true"}}}, target)


@functools.lru_cache
def ports_of_ranks(count):
    """The weights ports and the plain ports that `rlhfctl ranks` gives its processes, as it gives them."""
    command = ["/bin/sh", "-c", 'echo "$@"; exec sleep 60', "learner"]
    ranks = subprocess.Popen([BIN / "rlhfctl", "ranks", "--count", str(count), "--instance", "pod", "--", *command], stdout=subprocess.PIPE, text=True)
    try:
        text = "".join(ranks.stdout.readline() for _ in range(count))
    finally:
        ranks.terminate()
        ranks.communicate()
    weights, http = (sorted(map(int, re.findall(rf"--{flag}=\S+:(\d+)", text))) for flag in ("address", "http-address"))
    assert len(weights) == len(http) == count, text
    return weights, http


@functools.lru_cache
def secrets_of_pki_init():
    """The Secrets that `rlhfctl pki init --kubernetes` prints, each with its keys."""
    with tempfile.TemporaryDirectory() as scratch:
        text = subprocess.run([BIN / "rlhfctl", "pki", "init", "--dir", scratch, "--kubernetes"], check=True, capture_output=True, text=True).stdout
    return {document["metadata"]["name"]: set(document["data"]) for document in yaml.safe_load_all(text) if document}
