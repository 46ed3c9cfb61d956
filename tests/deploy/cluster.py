"""The controllers of a small cluster, for tests: runs the pods of rendered manifests (tests/deploy/pods.py).

What a manifest says is done, or noted in Cluster.not_enforced with the reason, or an error: a field that nobody read fails.
Services are names in /etc/hosts that stand for their pods' addresses. Must run as root in network, mount and process
namespaces of its own (tests/deploy/images_check makes them): all that is made here ends with those.
"""
import base64
import os
import pathlib
import re
import signal
import subprocess
import time
import uuid

from fields import Fields, quantity
from pods import NETWORK, Pod

CLUSTER_DOMAIN = "cluster.local"


class Cluster:
    def __init__(self, scratch, images, namespace):
        """images: by the name without registry and tag, {"root": folder, "config": of the image}."""
        self.scratch, self.images, self.namespace = pathlib.Path(scratch), images, namespace
        self.accounts, self.config_maps, self.secrets, self.claims, self.sizes = set(), {}, {}, {}, {}
        self.services, self.workloads, self.pods, self.not_enforced = {}, [], [], {}
        self.given = 1
        (self.scratch / "logs").mkdir(parents=True)
        for words in (["link", "set", "dev", "lo", "up"], ["link", "add", "name", "cluster", "type", "bridge"],
                      ["addr", "add", f"{NETWORK[1]}/{NETWORK.prefixlen}", "dev", "cluster"], ["link", "set", "dev", "cluster", "up"]):
            subprocess.run(["ip", *words], check=True)

    def note(self, what, why):
        self.not_enforced[what] = why

    def image(self, reference):
        match = re.fullmatch(r"\S+/([a-z-]+):([\w.-]+)", reference)
        assert match and match[1] in self.images, f"expected an image of {sorted(self.images)} with a tag, found {reference}"
        return self.images[match[1]]

    def next_address(self):
        self.given += 1
        return str(NETWORK[self.given])

    def apply(self, documents):
        for document in documents:
            with Fields(document, f"{document['kind']} {document['metadata']['name']}") as f:
                f.take("apiVersion")
                kind = f.take("kind")
                with f.object("metadata") as metadata:
                    name = metadata.take("name")
                    metadata.take("labels", None)
                    metadata.only("namespace", *([None] if kind == "Namespace" else [self.namespace]))
                getattr(self, f"apply_{kind}")(name, f)

    def apply_Namespace(self, name, _fields):
        assert name == self.namespace, name

    def apply_ServiceAccount(self, name, fields):
        fields.only("automountServiceAccountToken", False)
        self.accounts.add(name)

    def apply_ConfigMap(self, name, fields):
        self.config_maps[name] = fields.take("data")

    def apply_Secret(self, name, fields):
        fields.only("type", None, "Opaque")
        self.secrets[name] = {key: base64.b64decode(value, validate=True) for key, value in fields.take("data").items()}

    def apply_PersistentVolumeClaim(self, name, fields):
        with fields.object("spec") as spec:
            modes = set(spec.take("accessModes"))
            assert modes <= {"ReadWriteOnce", "ReadWriteOncePod", "ReadWriteMany"}, f"{fields.where}: {modes}"
            with spec.object("resources") as resources, resources.object("requests") as requests:
                self.sizes[name] = quantity(requests.take("storage"))
        self.claims[name] = self.scratch / "claims" / name
        self.claims[name].mkdir(parents=True)

    def apply_Service(self, name, fields):
        with fields.object("spec") as spec:
            headless = spec.only("clusterIP", None, "None") is not None
            if headless and not spec.take("publishNotReadyAddresses", False):
                self.note("names of pods that are not ready", "they resolve from the start")
            ports = []
            for port in spec.objects("ports"):
                with port as p:
                    p.take("name")
                    p.only("protocol", None, "TCP")
                    ports.append((p.take("port"), p.take("targetPort")))
            self.services[name] = {"selector": spec.take("selector"), "ports": ports, "headless": headless}

    def apply_NetworkPolicy(self, _name, fields):
        fields.take("spec")
        self.note("NetworkPolicy", "there is no network plugin; tests/deploy/manifests_test.py checks the objects")

    def apply_PodDisruptionBudget(self, _name, fields):
        fields.take("spec")
        self.note("PodDisruptionBudget", "nothing is evicted")

    def apply_StatefulSet(self, name, fields):
        with fields.object("spec") as spec:
            replicas = spec.take("replicas", 1)
            assert spec.take("podManagementPolicy", "OrderedReady") == "Parallel" or replicas == 1, f"{name}: pods in order are not implemented"
            spec.take("updateStrategy", None)
            service = spec.take("serviceName")
            assert service in self.services, f"{fields.where}: there is no Service {service}"
            template, selector = spec.take("template"), spec.take("selector")
            self.check_selector(fields.where, selector, template)
            templates = spec.take("volumeClaimTemplates", [])
            for ordinal in range(replicas):
                claims = {}
                for claim in templates:
                    short = claim["metadata"]["name"]
                    claims[short] = f"{short}-{name}-{ordinal}"
                    metadata = {"name": claims[short], "namespace": self.namespace}
                    self.apply([{**claim, "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata}])
                self.workloads.append((f"{name}-{ordinal}", template, claims, service))

    def apply_Deployment(self, name, fields):
        with fields.object("spec") as spec:
            template = spec.take("template")
            self.check_selector(fields.where, spec.take("selector"), template)
            spec.take("strategy", None)
            self.note("how sets and deployments are updated", "nothing is")
            for _ in range(spec.take("replicas", 1)):
                self.workloads.append((f"{name}-{uuid.uuid4().hex[:10]}", template, {}, None))

    @staticmethod
    def check_selector(where, selector, template):
        with Fields(selector, where) as s:
            wanted, labels = s.take("matchLabels"), template["metadata"]["labels"]
            assert wanted.items() <= labels.items(), f"{where}: selects {wanted}, its pods are {labels}"

    def hosts(self, pod):
        """The names of services and of the pods of sets, as cluster DNS gives them."""
        lines = ["127.0.0.1 localhost", f"{pod.address} {pod.name}"]
        suffixes = ["", f".{self.namespace}", f".{self.namespace}.svc", f".{self.namespace}.svc.{CLUSTER_DOMAIN}"]
        for name, service in self.services.items():
            chosen = [other for other in self.pods if service["selector"].items() <= other.labels.items()]
            if not service["headless"]:
                assert len(chosen) <= 1, f"Service {name}: several pods behind one address are not implemented"
                for other in chosen:
                    ports = {key: number for container in other.containers for key, number in container.ports.items()}
                    for port, target in service["ports"]:
                        assert ports.get(target, target) == port, f"Service {name}: port {port} that is another of the pod is not implemented"
            for other in chosen:
                lines.append(" ".join([other.address, *[name + suffix for suffix in suffixes]]))
                if other.name.startswith(name):
                    lines.append(" ".join([other.address, *[f"{other.name}.{name}{suffix}" for suffix in suffixes]]))
        return "\n".join(lines) + "\n"

    def start(self):
        """Every pod of the sets and deployments that were applied."""
        for name, template, claims, _ in self.workloads:
            self.pods.append(Pod(self, name, template, claims))
        for pod in self.pods:
            assert pod.restart == "Always"
            pod.start()

    def check(self):
        for pod in self.pods:
            for container in pod.containers:
                code = container.process.poll()
                assert code is None, f"{container.where}: ended with {code}"
                assert not container.failure, f"{container.where}: {container.failure}"

    def wait_ready(self, seconds):
        deadline = time.monotonic() + seconds
        containers = [container for pod in self.pods for container in pod.containers]
        while not all(container.ready for container in containers):
            self.check()
            waiting = [container.where for container in containers if not container.ready]
            assert time.monotonic() < deadline, f"not ready after {seconds} s: {waiting}"
            time.sleep(0.2)
        for container in containers:
            closed = {name: port for name, port in container.ports.items() if not container.listens(port)}
            assert not closed, f"{container.where}: nothing listens on {closed}"

    def run_pod(self, name, template, seconds, uid=None, meanwhile=None):
        """A pod that ends: (exit code, what it wrote to standard output). meanwhile(container) is called once while it runs."""
        pod = Pod(self, name, template, uid=uid)
        assert pod.restart == "Never" and len(pod.containers) == 1, f"{name}: expected one container that is not restarted"
        try:
            pod.start()
            container = pod.containers[0]
            if meanwhile:
                meanwhile(container)
            code = container.wait(seconds)
            assert (container.place / "mount-points.json").exists(), f"{container.where}: not started: {pathlib.Path(f'{container.log}.err').read_text()}"
            outside = container.written_outside()
            assert not outside, f"{container.where}: wrote outside its volumes: {outside}"
            output = pathlib.Path(f"{container.log}.out").read_text()
            if code != 0:
                errors = pathlib.Path(f"{container.log}.err").read_text()
                print(f"{name}: exit code {code}\n{output[-2000:]}{errors[-2000:]}", flush=True)
            return code, output
        finally:
            pod.close()

    def run_job(self, documents, seconds, meanwhile=None):
        """Applies a Job with what it needs and retries as its policies say; (codes of its pods, output of the last)."""
        jobs = [document for document in documents if document["kind"] == "Job"]
        self.apply([document for document in documents if document["kind"] != "Job"])
        assert len(jobs) == 1, f"expected one Job, found {len(jobs)}"
        name, uid, codes = jobs[0]["metadata"]["name"], str(uuid.uuid4()), []
        with Fields(jobs[0]["spec"], f"Job {name}") as spec:
            backoff, template = spec.take("backoffLimit", 6), spec.take("template")
            spec.take("ttlSecondsAfterFinished", None)
            self.note("ttlSecondsAfterFinished", "nothing outlives the check")
            final = set()
            with spec.object("podFailurePolicy", {}) as policy:
                for rule in policy.objects("rules", []):
                    with rule as r:
                        action = r.take("action")
                        if "onPodConditions" in r.left:
                            r.take("onPodConditions")
                            self.note("podFailurePolicy.onPodConditions", "no pod is disrupted")
                            continue
                        with r.object("onExitCodes") as on:
                            on.only("operator", "In")
                            on.only("containerName", template["spec"]["containers"][0]["name"])
                            assert action == "FailJob", f"{r.where}: {action} is not implemented"
                            final |= set(on.take("values"))
        while True:
            code, output = self.run_pod(f"{name}-{len(codes)}", template, seconds, uid, None if codes else meanwhile)
            codes.append(code)
            if code == 0 or code in final or len(codes) > backoff:
                return codes, output

    def stop(self):
        """As a deletion: SIGTERM, the pod's grace period, exit code 0; then what must hold of what they wrote."""
        self.check()
        for pod in self.pods:
            for container in pod.containers:
                container.stop.set()
                container.signal(signal.SIGTERM)
        for pod in self.pods:
            for container in pod.containers:
                code = container.wait(pod.grace)
                assert code == 0, f"{container.where}: expected exit code 0 after SIGTERM, found {code}"
                outside = container.written_outside()
                assert not outside, f"{container.where}: wrote outside its volumes: {outside}"
            for folder, limit in pod.limits:
                assert used(folder) <= limit, f"{folder.name} of {pod.name}: expected at most {limit} bytes, found {used(folder)}"
        for name, limit in self.sizes.items():
            assert used(self.claims[name]) <= limit, f"claim {name}: expected at most {limit} bytes, found {used(self.claims[name])}"

    def close(self):
        for pod in self.pods:
            pod.close()

    def print_logs(self, size=4000):
        for log in sorted((self.scratch / "logs").iterdir()):
            text = log.read_text(errors="replace")
            if text:
                print(f"--- {log.name}\n{text[-size:]}")


def used(folder):
    return sum(os.lstat(os.path.join(where, name)).st_blocks * 512 for where, _, files in os.walk(folder) for name in files)
