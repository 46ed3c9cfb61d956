"""A kubelet, for tests: runs pods from their images' root file systems, each with a network, a host name and IPC of its own, each
container with mounts and processes of its own (its command is process 1), as the user, with the capabilities, root, volumes,
environment and probes that the manifest says. The controllers are in tests/deploy/cluster.py.
"""
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

from fields import Fields, quantity

NETWORK = ipaddress.ip_network("10.244.0.0/24")


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
                ["nsenter", "--target", str(self.pod.sandbox.pid), "--net", "--uts", "--ipc", "--", sys.executable, pathlib.Path(__file__).with_name("container.py"), str(specification)],
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
        spec.take("topologySpreadConstraints", None)
        self.cluster.note("topologySpreadConstraints", "there is one node")
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
