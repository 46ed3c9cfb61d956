"""A kubelet and the controllers of a small cluster, for tests: runs the pods of rendered manifests from their images' root file
systems, each pod with a network, a host name and IPC of its own, each container with mounts and processes of its own (its
command is process 1), as the user, with the capabilities, root, volumes, environment and probes that the manifest says.

What a manifest says is done, or noted in Cluster.not_enforced with the reason, or an error: a field that nobody read fails.
Services are names in /etc/hosts that stand for their pods' addresses. Must run as root in network, mount and process
namespaces of its own (tests/deploy/images_check makes them): all that is made here ends with those.
Run as a program with a file (internal): becomes the container that the file describes.
"""
import base64
import ctypes
import datetime
import http.client
import ipaddress
import json
import os
import pathlib
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import uuid

NETWORK = ipaddress.ip_network("10.244.0.0/24")
REQUIRED = object()
UNITS = {"": 1, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "k": 10**3, "M": 10**6, "G": 10**9}
CLUSTER_DOMAIN = "cluster.local"


def quantity(text):
    match = re.fullmatch(r"(\d+)([A-Za-z]*)", str(text))
    assert match and match[2] in UNITS, f"expected a whole quantity such as 512Mi, found {text}"
    return int(match[1]) * UNITS[match[2]]


class Fields:
    """An object of a manifest. Leaving the with-block fails when there is a field that was not taken."""

    def __init__(self, value, where):
        assert isinstance(value, dict), f"{where}: expected an object, found {value!r}"
        self.left, self.where = dict(value), where

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        assert kind or not self.left, f"{self.where}: {sorted(self.left)} would be ignored; teach tests/deploy/pods.py what it means"

    def take(self, key, default=REQUIRED):
        assert key in self.left or default is not REQUIRED, f"{self.where}: expected the field {key}"
        return self.left.pop(key, default)

    def object(self, key, default=REQUIRED):
        return Fields(self.take(key, default), f"{self.where}.{key}")

    def objects(self, key, default=REQUIRED):
        return [Fields(value, f"{self.where}.{key}[{i}]") for i, value in enumerate(self.take(key, default))]

    def only(self, key, *allowed):
        """A field of which this runner knows these values alone."""
        value = self.take(key, None)
        assert value in allowed, f"{self.where}.{key}: expected one of {allowed} here, found {value!r}"
        return value


class Probe:
    def __init__(self, fields, ports):
        with fields as f:
            with f.object("httpGet") as get:
                self.path, port = get.take("path"), get.take("port")
                self.port = ports[port] if isinstance(port, str) else port
            self.delay = f.take("initialDelaySeconds", 0)
            self.period, self.timeout = f.take("periodSeconds", 10), f.take("timeoutSeconds", 1)
            self.failures, self.successes = f.take("failureThreshold", 3), f.take("successThreshold", 1)

    def succeeds(self, address):
        connection = http.client.HTTPConnection(address, self.port, timeout=self.timeout)
        try:
            connection.request("GET", self.path, headers={"User-Agent": "kube-probe"})
            return 200 <= connection.getresponse().status < 400
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


class Container:
    """Threads: the supervisor's writes what started, ready, failure and counts say; others only read them."""

    def __init__(self, cluster, pod, fields, init=False):
        self.cluster, self.pod = cluster, pod
        self.process = self.pid = self.failure = None
        self.started = self.ready = False
        self.counts, self.stop = {}, threading.Event()
        with fields as f:
            self.name, self.where = f.take("name"), f.where
            self.image = cluster.image(f.take("image"))
            command, args = f.take("command", None), f.take("args", None)
            config = self.image["config"]
            # Kubernetes: a command replaces the image's entry point and its arguments.
            self.command = command or config.get("Entrypoint") or []
            rest = args if args is not None else [] if command else config.get("Cmd") or []
            self.directory = f.take("workingDir", None) or config.get("WorkingDir") or "/"
            self.environment = dict(pair.split("=", 1) for pair in config.get("Env") or [])
            self.environment["HOSTNAME"] = pod.name
            for variable in f.objects("env", []):
                with variable as v:
                    name = v.take("name")
                    value = v.take("value", None)
                    if value is None:
                        with v.object("valueFrom") as source, source.object("fieldRef") as reference:
                            value = pod.field(reference.take("fieldPath"))
                    self.environment[name] = value
            self.command = [self.expand(word) for word in [*self.command, *rest]]
            self.ports = {}
            for port in f.objects("ports", []):
                with port as p:
                    number = p.take("containerPort")
                    self.ports[p.take("name", str(number))] = number
                    p.only("protocol", None, "TCP")
            self.mounts = []
            for mount in f.objects("volumeMounts", []):
                with mount as m:
                    source, read_only = pod.volumes[m.take("name")]
                    self.mounts.append((str(source), m.take("mountPath"), m.take("readOnly", False) or read_only))
            if "resources" in f.left:
                f.take("resources")
                cluster.note("resources of containers", "no cgroups are made")
            with f.object("securityContext", {}) as security:
                security.only("allowPrivilegeEscalation", False)
                self.read_only = security.take("readOnlyRootFilesystem", False)
                with security.object("capabilities") as capabilities:
                    dropped = capabilities.take("drop")
                    assert dropped == ["ALL"], f"{f.where}: expected capabilities.drop [ALL] here, found {dropped}"
            self.probes = {}
            for kind in () if init else ("startup", "readiness", "liveness"):
                if f"{kind}Probe" in f.left:
                    self.probes[kind] = Probe(f.object(f"{kind}Probe"), self.ports)

    def expand(self, word):
        """$(NAME) of a variable that is there; $$ is a dollar."""

        def value(match):
            if match[0] == "$$":
                return "$"
            return self.environment.get(match[1], match[0])

        return re.sub(r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_]*)\)", value, word)

    @property
    def log(self):
        return self.cluster.scratch / "logs" / f"{self.pod.name}.{self.name}"

    def start(self):
        place = self.cluster.scratch / "containers" / f"{self.pod.name}.{self.name}"
        for folder in ("root", "upper", "work"):
            (place / folder).mkdir(parents=True)
        self.place = place
        specification = place / "container.json"
        specification.write_text(json.dumps({
            "image": self.image["root"], "place": str(place), "mounts": self.mounts, "read_only": self.read_only,
            "files": {f"/etc/{name}": str(self.pod.place / name) for name in ("hosts", "hostname", "resolv.conf")},
            "command": self.command, "environment": self.environment, "directory": self.directory,
            "uid": self.pod.uid, "gid": self.pod.gid, "groups": self.pod.groups}))
        with open(f"{self.log}.out", "wb") as out, open(f"{self.log}.err", "wb") as err:
            self.process = subprocess.Popen(
                ["nsenter", "--target", str(self.pod.sandbox.pid), "--net", "--uts", "--ipc", "--", sys.executable, __file__, str(specification)],
                stdout=out, stderr=err, stdin=subprocess.DEVNULL)
        threading.Thread(target=self.supervise, daemon=True).start()

    def supervise(self):
        startup = self.probes.get("startup")
        if startup and not self.probe_until(startup, "startup"):
            return
        self.started = True
        readiness, liveness = self.probes.get("readiness"), self.probes.get("liveness")
        if not readiness:
            self.ready = True
        now = time.monotonic()
        due = {kind: now + probe.delay for kind, probe in (("readiness", readiness), ("liveness", liveness)) if probe}
        in_a_row = {kind: (kind == "liveness", 0) for kind in due}
        while due and not self.stop.wait(max(0.0, min(due.values()) - time.monotonic())):
            kind = min(due, key=due.get)
            probe = self.probes[kind]
            result = self.counted(probe, kind)
            last, count = in_a_row[kind]
            count = count + 1 if result == last else 1
            in_a_row[kind] = result, count
            if kind == "readiness":
                if count >= (probe.successes if result else probe.failures):
                    self.ready = result
            elif not result and count >= probe.failures:
                self.failure = f"the liveness probe failed {count} times in a row"
                return
            due[kind] = time.monotonic() + probe.period

    def counted(self, probe, kind):
        result = probe.succeeds(self.pod.address)
        good, bad = self.counts.get(kind, (0, 0))
        self.counts[kind] = (good + result, bad + (not result))
        return result

    def probe_until(self, probe, kind):
        wait = probe.delay
        for _ in range(probe.failures):
            if self.stop.wait(wait):
                return False
            if self.counted(probe, kind):
                return True
            wait = probe.period
        self.failure = f"the {kind} probe failed {probe.failures} times"
        return False

    def signal(self, number):
        """To process 1 of the container."""
        file = self.place / "pid"
        if self.process.poll() is None and file.exists():
            os.kill(int(file.read_text()), number)

    def wait(self, timeout):
        """The exit code as a container has it."""
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGKILL)
            self.process.wait(60)
            raise AssertionError(f"{self.where}: still running after {timeout} s") from None
        finally:
            self.stop.set()
        return code

    def listens(self, port):
        try:
            socket.create_connection((self.pod.address, port), timeout=2).close()
            return True
        except OSError:
            return False

    def written_outside(self):
        """What of the root file system changed, beside the mount points that were made before the start."""
        upper = self.place / "upper"
        made = set(json.loads((self.place / "mount-points.json").read_text()))
        found = {str(pathlib.Path(folder, name).relative_to(upper)) for folder, folders, files in os.walk(upper) for name in [*folders, *files]}
        return sorted(found - made)


class Pod:
    def __init__(self, cluster, name, template, claims=None, uid=None):
        self.cluster, self.name = cluster, name
        self.sandbox = None
        self.address = cluster.next_address()
        self.place = cluster.scratch / "pods" / name
        (self.place / "volumes").mkdir(parents=True)
        where = f"pod {name}"
        self.volumes, self.limits = {}, []
        with Fields(template, where) as f:
            with f.object("metadata", {}) as metadata:
                self.labels = dict(metadata.take("labels", {}))
                assert not metadata.take("annotations", None), f"{where}: annotations mean nothing here"
            if uid:
                self.labels["batch.kubernetes.io/controller-uid"] = uid
            with f.object("spec") as spec:
                self.read(spec, claims or {})

    def read(self, spec, claims):
        spec.only("automountServiceAccountToken", False)
        spec.only("enableServiceLinks", False)
        account = spec.take("serviceAccountName")
        assert account in self.cluster.accounts, f"{spec.where}: there is no ServiceAccount {account}"
        self.restart = spec.take("restartPolicy", "Always")
        self.grace = spec.take("terminationGracePeriodSeconds", 30)
        with spec.object("securityContext") as security:
            self.uid, self.gid = security.take("runAsUser"), security.take("runAsGroup")
            assert not security.take("runAsNonRoot", False) or self.uid != 0, f"{spec.where}: runAsNonRoot with user 0"
            self.fs_group = security.take("fsGroup", None)
            self.groups = [self.gid] + ([] if self.fs_group is None else [self.fs_group])
            self.fs_group_policy = security.take("fsGroupChangePolicy", "Always")
            with security.object("seccompProfile", {}) as seccomp:
                if seccomp.only("type", None, "RuntimeDefault"):
                    self.cluster.note("seccompProfile RuntimeDefault", "it is the container runtime's")
        for name, claim in claims.items():
            self.volumes[name] = self.claim(claim, read_only=False)
        for volume in spec.objects("volumes", []):
            with volume as v:
                name = v.take("name")
                kinds = {"emptyDir": self.empty_dir, "configMap": self.config_map, "secret": self.secret, "persistentVolumeClaim": self.claim_volume}
                kind = next((kind for kind in kinds if kind in v.left), None)
                assert kind, f"{v.where}: expected one of {sorted(kinds)}, found {sorted(v.left)}"
                with v.object(kind) as source:
                    self.volumes[name] = kinds[kind](name, source)
        self.init_containers = [Container(self.cluster, self, c, init=True) for c in spec.objects("initContainers", [])]
        self.containers = [Container(self.cluster, self, c) for c in spec.objects("containers")]
        mounted = {source for container in [*self.init_containers, *self.containers] for source, _, _ in container.mounts}
        unused = [name for name, (source, _) in self.volumes.items() if str(source) not in mounted]
        assert not unused, f"{spec.where}: no container mounts the volumes {unused}"

    # Volumes: (folder, read-only).
    def empty_dir(self, name, source):
        folder = self.place / "volumes" / name
        folder.mkdir()
        limit = quantity(source.take("sizeLimit")) if "sizeLimit" in source.left else None
        if source.only("medium", None, "Memory"):
            size = [f"size={limit}"] if limit else []
            subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(["nosuid", "nodev", *size]), "tmpfs", folder], check=True)
        elif limit:
            self.limits.append((folder, limit))
        folder.chmod(0o777)
        self.own(folder)
        return folder, False

    def config_map(self, name, source):
        data = self.cluster.config_maps[source.take("name")]
        return self.projected(name, source, {key: text.encode() for key, text in data.items()})

    def secret(self, name, source):
        secret, optional = source.take("secretName"), source.take("optional", False)
        assert optional or secret in self.cluster.secrets, f"{source.where}: there is no Secret {secret}"
        return self.projected(name, source, self.cluster.secrets.get(secret, {}))

    def projected(self, name, source, data):
        """As the kubelet writes them: files behind a link that is replaced when they change."""
        folder = self.place / "volumes" / name
        mode = source.take("defaultMode", 0o644)
        paths = {key: key for key in data}
        if "items" in source.left:
            paths = {}
            for item in source.objects("items"):
                with item as i:
                    paths[i.take("key")] = i.take("path")
        current = folder / datetime.datetime.now().strftime("..%Y_%m_%d_%H_%M_%S.1")
        current.mkdir(parents=True)
        (folder / "..data").symlink_to(current.name)
        for key, path in paths.items():
            assert key in data and "/" not in path, f"{source.where}: the key {key} is not there, or {path} is not a plain name"
            (current / path).write_bytes(data[key])
            (current / path).chmod(mode)
            (folder / path).symlink_to(f"..data/{path}")
        for file in [folder, current, *current.iterdir()]:
            if self.fs_group is not None:
                os.chown(file, 0, self.fs_group)
                if not file.is_dir():
                    file.chmod(mode | 0o440)
        return folder, True

    def claim_volume(self, _name, source):
        return self.claim(source.take("claimName"), source.take("readOnly", False))

    def claim(self, name, read_only):
        folder = self.cluster.claims[name]
        # The kubelet gives a volume that it may write to the group.
        if not read_only:
            self.own(folder)
        return folder, read_only

    def own(self, folder):
        if self.fs_group is None:
            return
        status = folder.stat()
        right = status.st_gid == self.fs_group and status.st_mode & 0o2770 == 0o2770
        if self.fs_group_policy == "OnRootMismatch" and right:
            return
        assert self.fs_group_policy in ("Always", "OnRootMismatch"), self.fs_group_policy
        for path in [folder, *folder.rglob("*")]:
            if not path.is_symlink():
                os.chown(path, -1, self.fs_group)
                path.chmod(stat.S_IMODE(path.stat().st_mode) | (0o2770 if path.is_dir() else 0o660))

    def field(self, path):
        fixed = {"metadata.name": self.name, "metadata.namespace": self.cluster.namespace, "status.podIP": self.address}
        label = re.fullmatch(r"metadata\.labels\['(.+)'\]", path)
        if label:
            return self.labels[label[1]]
        assert path in fixed, f"pod {self.name}: the field {path} is not known here"
        return fixed[path]

    def start(self):
        """The sandbox (network, host name, IPC), then the init containers one by one, then the others."""
        self.sandbox = subprocess.Popen(
            ["unshare", "--net", "--uts", "--ipc", "--", "sh", "-c", 'hostname "$0" && ip link set lo up && echo made && exec sleep infinity', self.name],
            stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
        made = self.sandbox.stdout.readline()
        assert made == "made\n", f"pod {self.name}: its namespaces could not be made"
        link = f"veth{int(ipaddress.ip_address(self.address)) & 255}"
        ip = lambda *words: subprocess.run(["ip", *words], check=True)
        ip("link", "add", "dev", link, "type", "veth", "peer", "name", "eth0", "netns", str(self.sandbox.pid))
        ip("link", "set", "dev", link, "master", "cluster", "up")
        enter = ["nsenter", "--target", str(self.sandbox.pid), "--net", "--"]
        for words in (["addr", "add", f"{self.address}/{NETWORK.prefixlen}", "dev", "eth0"], ["link", "set", "dev", "eth0", "up"]):
            subprocess.run([*enter, "ip", *words], check=True)
        (self.place / "hostname").write_text(self.name + "\n")
        (self.place / "resolv.conf").write_text("")
        (self.place / "hosts").write_text(self.cluster.hosts(self))
        for container in self.init_containers:
            container.start()
            code = container.wait(600)
            assert code == 0, f"{container.where}: expected exit code 0, found {code}"
        for container in self.containers:
            container.start()

    def close(self):
        for container in [*self.init_containers, *self.containers]:
            container.stop.set()
            if container.process and container.process.poll() is None:
                container.process.kill()
                container.process.wait()
        if self.sandbox:
            self.sandbox.kill()
            self.sandbox.wait()
            self.sandbox.stdout.close()


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


NEW_MOUNTS, NEW_PROCESSES = 0x00020000, 0x20000000  # CLONE_NEWNS, CLONE_NEWPID
SET_DEATH_SIGNAL, DROP_BOUNDING, NO_NEW_PRIVILEGES = 1, 24, 38  # prctl


def run_container(specification):
    """A child in mount and process namespaces of its own becomes the container; exits as it does, with 128 + N for signal N."""
    spec = json.loads(pathlib.Path(specification).read_text())
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.unshare(NEW_MOUNTS | NEW_PROCESSES) == 0, os.strerror(ctypes.get_errno())
    child = os.fork()
    if child == 0:
        try:
            become_container(spec, libc)
        except BaseException as error:
            print(f"the container could not be made: {error}", file=sys.stderr, flush=True)
            os._exit(126)
    (pathlib.Path(spec["place"]) / "pid").write_text(str(child))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os._exit(128 - code if code < 0 else code)


def become_container(spec, libc):
    """Mounts, then the command in its root with its rights; returns never."""
    place = pathlib.Path(spec["place"])
    mount = lambda *words: subprocess.run(["mount", *map(str, words)], check=True)
    root = place / "root"
    mount("-t", "overlay", "-o", f"lowerdir={spec['image']},upperdir={place / 'upper'},workdir={place / 'work'}", "overlay", root)
    inside = lambda path: root / path.lstrip("/")
    in_dev = [path for _, path, _ in spec["mounts"] if path.startswith("/dev/")]
    for path in ["/proc", "/dev", "/sys", *[path for _, path, _ in spec["mounts"] if path not in in_dev]]:
        inside(path).mkdir(parents=True, exist_ok=True)
    for path in spec["files"]:
        inside(path).touch()
    upper = place / "upper"
    made = [str(path.relative_to(upper)) for path in upper.rglob("*")]
    (place / "mount-points.json").write_text(json.dumps(made))
    if spec["read_only"]:
        mount("-o", "remount,ro", root)
    mount("-t", "proc", "-o", "nosuid,nodev,noexec", "proc", inside("/proc"))
    mount("-t", "sysfs", "-o", "ro,nosuid,nodev,noexec", "sysfs", inside("/sys"))
    device_folder = inside("/dev")
    mount("-t", "tmpfs", "-o", "nosuid,mode=755", "tmpfs", device_folder)
    for name, minor in {"null": 3, "zero": 5, "full": 7, "random": 8, "urandom": 9}.items():
        os.mknod(device_folder / name, 0o666 | stat.S_IFCHR, os.makedev(1, minor))
        (device_folder / name).chmod(0o666)
    for name, target in {"fd": "fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"}.items():
        (device_folder / name).symlink_to(f"/proc/self/{target}")
    shared = device_folder / "shm"
    shared.mkdir()
    if "/dev/shm" not in in_dev:
        mount("-t", "tmpfs", "-o", "nosuid,nodev,noexec,mode=1777,size=64m", "tmpfs", shared)
    for source, path, read_only in [*spec["mounts"], *[(file, path, spec["read_only"]) for path, file in spec["files"].items()]]:
        assert path == "/dev/shm" or not path.startswith(("/dev/", "/proc/", "/sys/")), f"a volume at {path} is not implemented"
        mount("--bind", source, inside(path))
        if read_only:
            mount("-o", "remount,bind,ro", inside(path))
    os.chroot(root)
    os.chdir(spec["directory"])
    for capability in range(64):
        if libc.prctl(DROP_BOUNDING, capability, 0, 0, 0) != 0:
            break
    assert libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0) == 0, os.strerror(ctypes.get_errno())
    os.setgroups(spec["groups"])
    os.setresgid(*[spec["gid"]] * 3)
    os.setresuid(*[spec["uid"]] * 3)
    # After the change of user, which resets it: no container outlives its runner.
    libc.prctl(SET_DEATH_SIGNAL, 9, 0, 0, 0)
    os.umask(0o022)
    os.execvpe(spec["command"][0], spec["command"], spec["environment"])


if __name__ == "__main__":
    run_container(sys.argv[1])
