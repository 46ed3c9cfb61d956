"""What the rendered manifests promise: selectors, ports, probes, the restricted profile, network policies, budgets, images,
fields of CRD kinds, schemas, and that every ConfigMap is accepted by the binary it is for."""
import ipaddress
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

from fields import quantity
from rendered import BIN, FILES, RENDERED, ROOT, Network, at, labels_of, matches, pods, ports_of_ranks, secrets_of_pki_init, templates

TOOLS = ROOT / ".deps/python-tools"
PLAIN_PORT = 9100

# Kinds that no built-in schema knows, with the fields that their operators require. Untested against a server.
CRDS = {
    ("cert-manager.io/v1", "Issuer"): [],
    ("cert-manager.io/v1", "Certificate"): ["spec.secretName", "spec.issuerRef.name"],
    ("jobset.x-k8s.io/v1alpha2", "JobSet"): ["spec.replicatedJobs"],
    ("keda.sh/v1alpha1", "ScaledObject"): ["spec.scaleTargetRef.name", "spec.triggers"],
    ("kueue.x-k8s.io/v1beta1", "ResourceFlavor"): ["spec"],
    ("kueue.x-k8s.io/v1beta1", "ClusterQueue"): ["spec.resourceGroups", "spec.namespaceSelector"],
    ("kueue.x-k8s.io/v1beta1", "LocalQueue"): ["spec.clusterQueue"],
    ("monitoring.coreos.com/v1", "PodMonitor"): ["spec.selector", "spec.podMetricsEndpoints"],
    ("monitoring.coreos.com/v1", "PrometheusRule"): ["spec.groups"],
}


class ManifestsTest(unittest.TestCase):
    def test_everything_was_rendered(self):
        sources = {path.name for path in (ROOT / "deploy/overlays").iterdir()} | {"job-sft", "job-ppo", "job-pipeline"}
        self.assertEqual(sources, set(FILES))

    def test_schemas(self):
        if not TOOLS.exists():
            self.skipTest("kubernetes-validate is not in .deps/python-tools: run scripts/bootstrap")
        command = [sys.executable, str(TOOLS / "bin/kubernetes-validate"), "--strict", *map(str, sorted(RENDERED.glob("*.yaml")))]
        result = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(TOOLS)}, capture_output=True, text=True)
        text = result.stdout + result.stderr
        self.assertEqual(result.returncode, 0, text)
        for line in text.splitlines():
            if line.startswith("INFO"):
                continue
            unknown = re.match(r"WARN .*Couldn't find schema for kind (\S+) with api version (\S+)", line)
            self.assertTrue(unknown and (unknown[2], unknown[1]) in CRDS, line)

    def test_crd_kinds_have_their_required_fields(self):
        seen = set()
        for name, documents in FILES.items():
            for document in documents:
                key = (document["apiVersion"], document["kind"])
                if "." not in key[0].split("/")[0] or key[0].split("/")[0].endswith("k8s.io") and key not in CRDS:
                    continue
                if key[0].split("/")[0] in ("networking.k8s.io", "policy", "apps", "batch"):
                    continue
                self.assertIn(key, CRDS, f"{name}: a kind nobody has vouched for")
                seen.add(key)
                for field in CRDS[key]:
                    self.assertIsNotNone(at(document, field), f"{name}: {key[1]} {document['metadata']['name']} lacks {field}")
        self.assertEqual(seen, set(CRDS), "a listed kind is in no overlay")

    def test_selectors_pick_their_pods(self):
        for name, documents in FILES.items():
            all_labels = [labels_of(t) for d in documents for _, t in templates(d)]
            for document in documents:
                kind, where = document["kind"], f"{name}: {document['kind']} {document['metadata']['name']}"
                if kind in ("StatefulSet", "Deployment"):
                    self.assertTrue(matches(document["spec"]["selector"], labels_of(document["spec"]["template"])), where)
                if kind == "Service":
                    selector = {"matchLabels": document["spec"]["selector"]}
                    self.assertEqual(sum(matches(selector, labels) for labels in all_labels) > 0, True, where)
                if kind in ("PodDisruptionBudget", "PodMonitor"):
                    self.assertTrue(any(matches(document["spec"]["selector"], labels) for labels in all_labels), where)
                if kind == "StatefulSet":
                    services = [d["metadata"]["name"] for d in documents if d["kind"] == "Service"]
                    self.assertIn(document["spec"]["serviceName"], services, where)

    def test_named_ports_exist(self):
        for name, documents in FILES.items():
            for document in documents:
                if document["kind"] != "Service":
                    continue
                selector = {"matchLabels": document["spec"]["selector"]}
                for d in documents:
                    for _, template in templates(d):
                        if d["kind"] == "JobSet" or not matches(selector, labels_of(template)):
                            continue
                        ports = {p["name"]: p["containerPort"] for c in template["spec"]["containers"] for p in c.get("ports", [])}
                        for port in document["spec"]["ports"]:
                            self.assertEqual(ports.get(port["targetPort"]), port["port"], f"{name}: {document['metadata']['name']} {port}")

    def test_restricted_profile(self):
        for where, document, template in pods():
            spec = template["spec"]
            self.assertIs(spec["automountServiceAccountToken"], False, where)
            self.assertIs(spec["securityContext"]["runAsNonRoot"], True, where)
            self.assertGreater(spec["securityContext"]["runAsUser"], 0, where)
            self.assertEqual(spec["securityContext"]["seccompProfile"]["type"], "RuntimeDefault", where)
            for forbidden in ("hostNetwork", "hostPID", "hostIPC"):
                self.assertFalse(spec.get(forbidden), where)
            for volume in spec.get("volumes", []):
                self.assertNotIn("hostPath", volume, where)
            for container in spec["containers"] + spec.get("initContainers", []):
                context = container["securityContext"]
                self.assertIs(context["allowPrivilegeEscalation"], False, where)
                self.assertIs(context["readOnlyRootFilesystem"], True, where)
                # One that is added would do nothing for a user that is not root, and need a weaker profile of the namespace.
                self.assertEqual(context["capabilities"], {"drop": ["ALL"]}, where)

    def test_a_pods_start_does_not_walk_through_its_volumes(self):
        """By default the kubelet changes every file of a claim, the artifacts' too, at each start of a pod with an fsGroup."""
        for where, document, template in pods():
            claims = [v for v in template["spec"]["volumes"] if "persistentVolumeClaim" in v] + document["spec"].get("volumeClaimTemplates", [])
            if claims:
                self.assertEqual(template["spec"]["securityContext"].get("fsGroupChangePolicy"), "OnRootMismatch", where)

    def test_the_namespace_enforces_the_profile(self):
        for name, documents in FILES.items():
            for document in documents:
                if document["kind"] == "Namespace":
                    self.assertEqual(document["metadata"]["labels"]["pod-security.kubernetes.io/enforce"], "restricted", name)

    def test_what_keda_scales_is_not_queued_by_kueue(self):
        """Kueue's webhook refuses to change a queued set's replicas, but to and from 0."""
        queued = set()
        for name, documents in FILES.items():
            labelled = {d["metadata"]["name"] for d in documents if d["kind"] == "StatefulSet" and "kueue.x-k8s.io/queue-name" in d["metadata"]["labels"]}
            scaled = {d["spec"]["scaleTargetRef"]["name"] for d in documents if d["kind"] == "ScaledObject"}
            self.assertEqual(labelled & scaled, set(), name)
            queued |= labelled
        self.assertEqual(queued, {"rlhf-learner"})

    def test_what_is_queued_asks_for_nothing_that_the_queue_does_not_count(self):
        """Kueue admits no pod that asks for a resource without a quota."""
        for name, documents in FILES.items():
            covered = {r for d in documents if d["kind"] == "ClusterQueue" for group in d["spec"]["resourceGroups"] for r in group["coveredResources"]}
            for document in documents:
                if "kueue.x-k8s.io/queue-name" in document["metadata"].get("labels", {}):
                    for where, template in templates(document):
                        asked = {r for c in template["spec"]["containers"] for part in c["resources"].values() for r in part}
                        self.assertLessEqual(asked, covered, f"{name}: {where}")

    def test_what_keda_scales_changes_slowly_and_has_no_number_of_its_own(self):
        """A number in the manifest is set again by every apply. A ratio of the newest step shows late what was changed."""
        seen = set()
        for name, documents in FILES.items():
            for scaled in (d for d in documents if d["kind"] == "ScaledObject"):
                seen.add(name)
                target = next(d for d in documents if d["kind"] == "StatefulSet" and d["metadata"]["name"] == scaled["spec"]["scaleTargetRef"]["name"])
                self.assertNotIn("replicas", target["spec"], name)
                behavior = at(scaled, "spec.advanced.horizontalPodAutoscalerConfig.behavior")
                for direction in ("scaleUp", "scaleDown"):
                    for policy in behavior[direction]["policies"]:
                        self.assertGreaterEqual(policy["periodSeconds"], 300, f"{name}: {direction}")
                        self.assertLessEqual(policy["value"], {"Percent": 50, "Pods": 2}[policy["type"]], f"{name}: {direction}")
                namespace = next(d["metadata"]["name"] for d in documents if d["kind"] == "Namespace")
                self.assertIn(f'{{namespace="{namespace}"}}', scaled["spec"]["triggers"][0]["metadata"]["query"], name)
        self.assertEqual(seen, {"multi-gpu-full"})

    def test_images_are_pinned(self):
        for where, _, template in pods():
            for container in template["spec"]["containers"]:
                image = container["image"]
                self.assertRegex(image, r"^[^:@]+(:\d+)?/.+:[^:]+$", where)
                self.assertNotRegex(image, r":latest$", where)

    def test_probes_ask_the_plain_port(self):
        """Where rlhfctl runs several ranks the kubelet asks it whether one of them hangs: port 9100 is process 0's alone."""
        for where, document, template in pods():
            if labels_of(template)["app.kubernetes.io/name"] == "rlhf-job":
                continue
            for container in template["spec"]["containers"]:
                ports = {port["name"]: port["containerPort"] for port in container["ports"]}
                self.assertEqual(ports["http"], PLAIN_PORT, where)
                for probe, path in (("startupProbe", "/healthz"), ("readinessProbe", "/readyz"), ("livenessProbe", "/healthz")):
                    of_ranks = container.get("command", [])[1:2] == ["ranks"] and probe == "livenessProbe"
                    self.assertEqual(container[probe]["httpGet"]["port"], "probes" if of_ranks else "http", where)
                    self.assertEqual(container[probe]["httpGet"]["path"], path, where)

    def test_memory_is_bounded_and_shared_memory_is_a_volume(self):
        for where, _, template in pods():
            for container in template["spec"]["containers"]:
                self.assertIn("memory", container["resources"]["limits"], where)
                mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
                if "/dev/shm" not in mounts:
                    continue
                volume = next(v for v in template["spec"]["volumes"] if v["name"] == mounts["/dev/shm"])
                self.assertEqual(volume["emptyDir"]["medium"], "Memory", where)

    def test_gpus_are_in_limits(self):
        for where, _, template in pods():
            for container in template["spec"]["containers"]:
                wants = "cuda" in " ".join(container.get("args", []) + container.get("command", [])) or "cuda" in container["image"]
                if wants:
                    self.assertIn("nvidia.com/gpu", container["resources"]["limits"], where)
                    self.assertNotIn("nvidia.com/gpu", container["resources"].get("requests", {}), where)

    def test_a_node_that_runs_out_evicts_others_first(self):
        """It ranks pods by what they have above what they asked for, memory or disk; the small overlay may be overcommitted."""
        for where, document, template in pods():
            if labels_of(template)["app.kubernetes.io/name"] == "rlhf-job" or where.startswith("dev-cpu:"):
                continue
            resources = template["spec"]["containers"][0]["resources"]
            self.assertEqual(resources["requests"]["memory"], resources["limits"]["memory"], where)
            if labels_of(template)["app.kubernetes.io/name"] == "rlhf-coordinator":
                volumes = sum(quantity(v["emptyDir"]["sizeLimit"]) for v in template["spec"]["volumes"] if "emptyDir" in v)
                logs = 64 << 20  # five files of ten megabytes, by the kubelet's defaults
                self.assertGreaterEqual(quantity(resources["requests"]["ephemeral-storage"]), volumes + logs, where)

    def test_ranks_find_each_other_before_they_are_ready(self):
        """They meet by their names when a group forms, whether the kubelet has found them ready by then or not."""
        found = [document for documents in FILES.values() for document in documents
                 if document["kind"] == "Service" and document["metadata"]["name"] == "rlhf-learner"]
        self.assertTrue(found)
        for document in found:
            self.assertEqual((document["spec"]["clusterIP"], document["spec"].get("publishNotReadyAddresses")), ("None", True))

    def test_a_coordinator_has_the_memory_that_clients_may_fill(self):
        text = subprocess.run([BIN / "rlhf-coordinator", "--help"], capture_output=True, text=True, check=True).stdout
        received = int(re.search(r"--receive-memory-mb INT=(\d+)", text)[1]) << 20
        for where, _, template in pods():
            if labels_of(template)["app.kubernetes.io/name"] in ("rlhf-coordinator", "rlhf"):
                limit = quantity(template["spec"]["containers"][0]["resources"]["limits"]["memory"])
                self.assertGreaterEqual(limit, 2 * received, f"{where}: all that may be received, and as much for itself")

    def test_pods_with_a_gpu_may_go_where_gpus_are(self):
        """Clusters keep others off their GPU nodes by this taint."""
        toleration = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
        for where, _, template in pods():
            wants = any("nvidia.com/gpu" in container["resources"]["limits"] for container in template["spec"]["containers"])
            self.assertEqual(template["spec"].get("tolerations", []), [toleration] if wants else [], where)

    def test_a_learner_that_lost_its_node_gets_another(self):
        """It needs all GPUs of one, so pods with one each must make room; the coordinator before all."""
        values = {d["metadata"]["name"]: d["value"] for d in FILES["multi-gpu-full"] if d["kind"] == "PriorityClass"}
        seen = {}
        for where, _, template in pods():
            if "priorityClassName" in template["spec"]:
                self.assertIn(template["spec"]["priorityClassName"], values, where)
            if where.startswith("multi-gpu-full: rlhf-") and "/" not in where:
                seen[labels_of(template)["app.kubernetes.io/name"]] = values.get(template["spec"].get("priorityClassName"), 0)
        self.assertEqual(sorted(seen, key=seen.get, reverse=True)[:2], ["rlhf-coordinator", "rlhf-learner"])
        self.assertGreater(seen["rlhf-coordinator"], seen["rlhf-learner"])
        self.assertGreater(seen["rlhf-learner"], max(seen["rlhf-rollout-worker"], seen["rlhf-reward-server"]))
        for document in (d for documents in FILES.values() for d in documents if d["kind"] == "PriorityClass"):
            self.assertNotIn("namespace", document["metadata"], "it is the cluster's")
            self.assertNotIn("globalDefault", document)
            self.assertNotIn("preemptionPolicy", document, "the default makes room")

    def test_of_two_coordinators_each_can_start_and_be_updated(self):
        """Who stands by is never ready: a set that waits for that would not start the next pod, and end no update."""
        seen = set()
        for name, documents in FILES.items():
            for document in documents:
                if document["kind"] != "StatefulSet" or document["metadata"]["name"] != "rlhf-coordinator" or document["spec"]["replicas"] == 1:
                    continue
                seen.add(name)
                spec, pod = document["spec"], document["spec"]["template"]["spec"]
                self.assertEqual((spec["podManagementPolicy"], spec["updateStrategy"]), ("Parallel", {"type": "OnDelete"}), name)
                self.assertNotIn("volumeClaimTemplates", spec, f"{name}: each would have a folder of its own")
                shared = next(v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if v["name"] == "data")
                claim = next(d for d in documents if d["kind"] == "PersistentVolumeClaim" and d["metadata"]["name"] == shared)
                self.assertEqual(claim["spec"]["accessModes"], ["ReadWriteMany"], name)
                apart = at(pod, "affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution")
                self.assertTrue(matches(apart[0]["labelSelector"], labels_of(spec["template"])), name)
                policies = [d["spec"] for d in documents if d["kind"] == "NetworkPolicy" and matches(d["spec"]["podSelector"], labels_of(spec["template"]))]
                self.assertIn({"ports": [{"protocol": "TCP", "port": 5432}]}, [rule for p in policies for rule in p.get("egress", [])], name)
                # libpq takes no password file that a group may read, and the kubelet makes every Secret's file such a one.
                self.assertIn("PGPASSWORD", {variable["name"] for variable in pod["containers"][0]["env"]}, name)
        self.assertEqual(seen, {"multi-gpu-two-coordinators"})

    def test_variables_in_commands_are_there(self):
        """One that is not stays as it is written."""
        for where, _, template in pods():
            for container in template["spec"]["containers"]:
                named = set(re.findall(r"\$\((\w+)\)", " ".join(container.get("command", []) + container["args"])))
                self.assertLessEqual(named, {variable["name"] for variable in container.get("env", [])}, where)

    def test_grace_is_longer_than_the_drain(self):
        for name, documents in FILES.items():
            configs = {d["metadata"]["name"]: d["data"] for d in documents if d["kind"] == "ConfigMap"}
            for document in documents:
                for where, template in templates(document):
                    for volume in template["spec"].get("volumes", []):
                        text = "".join(configs.get(volume.get("configMap", {}).get("name"), {}).values())
                        drain = re.search(r"^grace-seconds = (\d+)$", text, re.M) or re.search(r"^grace-ms: (\d+)000$", text, re.M)
                        if drain:
                            self.assertGreater(template["spec"]["terminationGracePeriodSeconds"], int(drain[1]), f"{name}: {where}")

    def test_mounted_things_exist(self):
        # Made by rlhfctl, or by cert-manager in overlays that have it; never in a manifest.
        by_pki, tokens = set(secrets_of_pki_init()), {"rlhf-bootstrap-token", "rlhf-submitter-token"}
        for name, documents in FILES.items():
            certificates = {d["spec"]["secretName"] for d in documents if d["kind"] == "Certificate"}
            secrets = tokens | (certificates or by_pki)
            def names(kind):
                return {d["metadata"]["name"] for d in documents if d["kind"] == kind}
            for document in documents:
                for where, template in templates(document):
                    spec = template["spec"]
                    volumes = {volume["name"]: volume for volume in spec.get("volumes", [])}
                    claims = {c["metadata"]["name"] for c in document["spec"].get("volumeClaimTemplates", [])}
                    for container in spec["containers"]:
                        for mount in container["volumeMounts"]:
                            self.assertIn(mount["name"], set(volumes) | claims, f"{name}: {where}")
                    for volume in volumes.values():
                        # The coordinator starts without it once there are other tokens; no pod starts without the rest.
                        is_first_token = volume.get("secret", {}).get("secretName") == "rlhf-bootstrap-token"
                        self.assertEqual(volume.get("secret", {}).get("optional", False), is_first_token, f"{name}: {where}: {volume}")
                        if "configMap" in volume:
                            self.assertIn(volume["configMap"]["name"], names("ConfigMap"), f"{name}: {where}")
                        if "secret" in volume:
                            self.assertIn(volume["secret"]["secretName"], secrets, f"{name}: {where}")
                        if "persistentVolumeClaim" in volume:
                            self.assertIn(volume["persistentVolumeClaim"]["claimName"], names("PersistentVolumeClaim"), f"{name}: {where}")
                    if not name.startswith("job-"):
                        self.assertIn(spec["serviceAccountName"], names("ServiceAccount"), f"{name}: {where}")

    def test_a_jobs_own_verdict_is_final(self):
        """Its exit codes but 1 (something else went wrong) and 6 (nobody there) would be the same at every try."""
        expected = [{"action": "FailJob", "onExitCodes": {"containerName": "submit", "operator": "In", "values": [2, 3, 4, 5, 7]}},
                    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}]
        for name in ("job-sft", "job-ppo", "job-pipeline"):
            self.assertEqual(at(next(d for d in FILES[name] if d["kind"] == "Job"), "spec.podFailurePolicy.rules"), expected, name)
        fleet = next(d["spec"] for d in FILES["multi-gpu-full"] if d["kind"] == "JobSet")
        submit = next(job["template"]["spec"] for job in fleet["replicatedJobs"] if job["name"] == "submit")
        self.assertEqual((submit["podFailurePolicy"]["rules"], submit["template"]["spec"]["restartPolicy"]), (expected, "Never"))
        rule = next(r for r in fleet["failurePolicy"]["rules"] if r["action"] == "FailJobSet")
        self.assertEqual((rule["targetReplicatedJobs"], rule["onJobFailureReasons"]), (["submit"], ["PodFailurePolicy"]))

    def test_cert_manager_makes_what_pki_init_makes(self):
        """So that everything that mounts those Secrets, jobs among it, starts with either."""
        by_pki = secrets_of_pki_init()
        for name, documents in FILES.items():
            certificates = {d["spec"]["secretName"]: d["spec"] for d in documents if d["kind"] == "Certificate"}
            if not certificates:
                continue
            self.assertEqual(set(certificates) - {"rlhf-ca"}, set(by_pki), name)
            for secret, keys in by_pki.items():
                self.assertLessEqual(keys, {"ca.crt", "tls.crt", "tls.key"}, "what a Secret of cert-manager has")
                named = any(key in certificates[secret] for key in ("uris", "dnsNames", "ipAddresses"))
                speaks = {"client auth", "server auth"} & set(certificates[secret]["usages"])
                self.assertEqual((named, bool(speaks)), ("tls.key" in keys,) * 2, f"{name}: {secret}")
            for secret, spec in certificates.items():
                # Said, not left to a default that differs between releases: the CA's key stays, or all that it signed is refused.
                self.assertEqual(spec["privateKey"].get("rotationPolicy"), "Never" if spec.get("isCA") else "Always", f"{name}: {secret}")
            break
        else:
            self.fail("no overlay has cert-manager")

    def test_only_learners_and_the_coordinator_write_artifacts(self):
        for where, _, template in pods():
            for container in template["spec"]["containers"]:
                for mount in container["volumeMounts"]:
                    if mount["name"] == "artifacts":
                        role = labels_of(template)["app.kubernetes.io/name"]
                        writer = role in ("rlhf-learner", "rlhf-coordinator")
                        claim = next(v for v in template["spec"]["volumes"] if v["name"] == "artifacts")
                        read_only = claim["persistentVolumeClaim"].get("readOnly", False)
                        self.assertEqual(not read_only, writer, where)

    def test_network_policies_allow_what_the_fleet_does_and_nothing_else(self):
        documents = FILES["multi-gpu"]
        network = Network(documents + [d for d in FILES["job-ppo"] if d["kind"] == "Job"])
        policies, connects = network.policies, network.connects
        coordinator, learner, rollout, reward = "rlhf-coordinator", "rlhf-learner", "rlhf-rollout-worker", "rlhf-reward-server"
        for role in (learner, rollout, reward):
            self.assertTrue(connects(role, coordinator, 7000), role)
            self.assertFalse(connects(role, coordinator, 7001), role)
        self.assertTrue(connects("rlhf-job-ppo", coordinator, 7001))
        self.assertFalse(connects("rlhf-job-ppo", coordinator, 7000))
        self.assertFalse(connects("rlhf-job-ppo", learner, 7010))
        self.assertTrue(connects(coordinator, reward, 7020))
        self.assertTrue(connects(rollout, learner, 7010))
        self.assertTrue(connects(rollout, rollout, 7011))
        self.assertFalse(connects(learner, rollout, 7011))
        self.assertFalse(connects(rollout, rollout, 7010))
        self.assertTrue(connects(learner, learner, 41234), "ranks choose their ports")
        self.assertFalse(connects(rollout, learner, 41234))
        self.assertFalse(connects(reward, learner, 7010))
        self.assertFalse(connects(rollout, reward, 7020))
        default = next(p for p in policies if p["metadata"]["name"] == "default-deny")
        self.assertEqual(default["spec"], {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]})

    def test_names_are_asked_of_dns_pods_and_of_the_node_alone(self):
        for name in ("multi-gpu", "dev-cpu", "single-gpu"):
            rules = [rule for d in FILES[name] if d["kind"] == "NetworkPolicy" and d["spec"]["podSelector"] == {} for rule in d["spec"].get("egress", [])]
            self.assertEqual(len(rules), 1, name)
            self.assertEqual(rules[0]["ports"], [{"protocol": protocol, "port": 53} for protocol in ("UDP", "TCP")], name)
            self.assertEqual([peer["namespaceSelector"]["matchLabels"] for peer in rules[0]["to"] if "namespaceSelector" in peer],
                             [{"kubernetes.io/metadata.name": "kube-system"}], name)
            node = [ipaddress.ip_network(peer["ipBlock"]["cidr"]) for peer in rules[0]["to"] if "ipBlock" in peer]
            for address in ("169.254.20.10", "169.254.25.10"):  # of the add-on, and of kubespray
                self.assertTrue(any(ipaddress.ip_address(address) in network for network in node), name)
            self.assertEqual([peer["ipBlock"]["except"] for peer in rules[0]["to"] if "ipBlock" in peer], [["169.254.169.254/32"]], name)

    def test_every_process_of_a_learner_pod_is_reached(self):
        """Process K of `rlhfctl ranks` may become rank 0, whose weights everybody wants, and each has metrics of its own."""
        seen = set()
        for name, documents in FILES.items():
            for learner, template in ((w, t) for d in documents for w, t in templates(d)):
                container = template["spec"]["containers"][0]
                command = container.get("command", [])
                if command[:2] != ["/usr/bin/rlhfctl", "ranks"]:
                    continue
                seen.add(name)
                network, named = Network(documents), {port["containerPort"]: port["name"] for port in container["ports"]}
                weights, http = ports_of_ranks(int(command[command.index("--count") + 1]))
                probes = int(command[command.index("--http-address") + 1].rpartition(":")[2])
                self.assertEqual(named.get(probes), "probes", name)
                self.assertEqual(set(named), {*weights, *http, probes}, name)
                for port in weights:
                    self.assertTrue(network.connects("rlhf-rollout-worker", learner, port), f"{name}: {port}")
                for port in http:
                    self.assertTrue(network.scrapes(learner, port), f"{name}: {port}")
                    self.assertRegex(named[port], "^http", name)
                for port in (weights[0] - 1, weights[-1] + 1, http[0] - 1, http[-1] + 1):
                    self.assertFalse(network.connects("rlhf-rollout-worker", learner, port), f"{name}: {port}")
                    self.assertFalse(network.scrapes(learner, port), f"{name}: {port}")
        self.assertEqual(seen, {name for name in FILES if name.startswith("multi-gpu")})

    def test_every_process_of_rlhfctl_up_is_scraped(self):
        documents = FILES["single-gpu"]
        template = next(t for d in documents for w, t in templates(d) if w == "rlhf")
        container = template["spec"]["containers"][0]
        words = dict(zip(container["args"], container["args"][1:]))
        text = subprocess.run([BIN / "rlhfctl", "up", "--help"], capture_output=True, text=True, check=True).stdout
        roles = ("--reward-servers", "--rollout-workers", "--learners")
        count = sum(int(words.get(role) or re.search(rf"{role} .*=(\d+)", text)[1]) for role in roles)
        first = int(words["--role-http-address"].rpartition(":")[2])
        wanted = {"http": PLAIN_PORT, **{f"http-{k + 1}": first + k for k in range(count)}}
        self.assertTrue(words["--role-http-address"].startswith("0.0.0.0:"))
        self.assertIn("--log-to-stdout", container["args"], "kubectl logs would show nothing of the roles")
        self.assertEqual({p["name"]: p["containerPort"] for p in container["ports"] if p["name"].startswith("http")}, wanted)
        network = Network(documents)
        for port in wanted.values():
            self.assertTrue(network.scrapes("rlhf", port), port)
        self.assertFalse(network.scrapes("rlhf", max(wanted.values()) + 1))
        # A pod of the same namespace that is labelled as a client: any will do.
        network = Network(documents + [d for d in FILES["job-ppo"] if d["kind"] == "Job"])
        self.assertTrue(network.connects("rlhf-job-ppo", "rlhf", 7001))
        self.assertFalse(network.connects("rlhf-job-ppo", "rlhf", PLAIN_PORT))
        self.assertFalse(network.connects("rlhf", "rlhf", 7001), "nothing but clients")

    def test_every_plain_port_is_scraped(self):
        for name, documents in FILES.items():
            for monitor in (d for d in documents if d["kind"] == "PodMonitor"):
                scraped = {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]}
                for where, template in ((w, t) for d in documents for w, t in templates(d)):
                    ports = {p["name"] for c in template["spec"]["containers"] for p in c.get("ports", []) if p["name"].startswith("http")}
                    if ports:
                        self.assertTrue(matches(monitor["spec"]["selector"], labels_of(template)), f"{name}: {where}")
                        self.assertLessEqual(ports, scraped, f"{name}: {where}")

    def test_budgets(self):
        for name, documents in FILES.items():
            for document in documents:
                if document["kind"] != "PodDisruptionBudget":
                    continue
                labels = document["spec"]["selector"]["matchLabels"]
                self.assertNotEqual(labels["app.kubernetes.io/name"], "rlhf-coordinator", "would block every drain")
                replicas = [d["spec"].get("replicas", 1) for d in documents
                            if d["kind"] in ("StatefulSet", "Deployment") and matches(document["spec"]["selector"], labels_of(d["spec"]["template"]))]
                self.assertGreater(replicas[0], document["spec"].get("minAvailable", 0), f"{name}: no pod could be drained")
                # A share of pods is counted by the scale of what owns them, which a Job has not: then nothing may be evicted.
                selected = {d["kind"] for d in documents for _, t in templates(d) if matches(document["spec"]["selector"], labels_of(t))}
                self.assertLessEqual(selected, {"StatefulSet", "Deployment"}, f"{name}: {document['metadata']['name']}")
                self.assertEqual(document["spec"].get("unhealthyPodEvictionPolicy"), "AlwaysAllow", f"{name}: {document['metadata']['name']}")

    def test_an_update_of_a_deployment_needs_no_further_gpu(self):
        """By default it makes a pod before it takes one away, and of few pods takes none away: it would wait for ever."""
        seen = set()
        for name, documents in FILES.items():
            for document in documents:
                if document["kind"] == "Deployment":
                    self.assertEqual(document["spec"].get("strategy"),
                                     {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}, f"{name}: {document['metadata']['name']}")
                    seen.add(name)
        self.assertIn("multi-gpu", seen)

    def test_a_pod_that_cannot_start_is_replaced_by_the_next_try(self):
        """In order, a set waits for a broken pod before it makes the corrected one (Kubernetes: forced rollback)."""
        for name, documents in FILES.items():
            for document in documents:
                if document["kind"] == "StatefulSet":
                    self.assertEqual(document["spec"].get("podManagementPolicy"), "Parallel", f"{name}: {document['metadata']['name']}")

    def test_learners_are_replaced_together(self):
        seen = set()
        for name, documents in FILES.items():
            for document in documents:
                if document["kind"] == "StatefulSet" and document["metadata"]["name"] == "rlhf-learner":
                    seen.add(name)
                    self.assertEqual(document["spec"].get("updateStrategy"), {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "100%"}}, name)
        self.assertIn("multi-gpu", seen)

    def test_one_node_does_not_have_all_reward_servers(self):
        for where, document, template in pods():
            if document["kind"] == "Deployment":
                spread = template["spec"].get("topologySpreadConstraints", [])
                self.assertEqual([s["topologyKey"] for s in spread], ["kubernetes.io/hostname"], where)
                self.assertTrue(matches(spread[0]["labelSelector"], labels_of(template)), where)

    def test_config_maps_are_accepted_by_the_binaries(self):
        binaries = {"coordinator.yaml": "rlhf-coordinator", "learner.toml": "rlhf-learner",
                    "rollout-worker.toml": "rlhf-rollout-worker", "reward-server.toml": "rlhf-reward-server"}
        checked, texts = set(), set()
        for name, documents in FILES.items():
            for document in documents:
                if document["kind"] != "ConfigMap":
                    continue
                for file, text in document["data"].items():
                    if text in texts:
                        continue  # of another overlay, and the same
                    texts.add(text)
                    with tempfile.TemporaryDirectory() as scratch:
                        scratch = pathlib.Path(scratch)
                        if file in binaries:
                            self.check_config(scratch, binaries[file], file, text, f"{name}: {file}")
                        else:
                            self.assertEqual(file, "job.yaml", f"{name}: nobody reads {file}")
                            self.check_job(scratch, text, f"{name}: {document['metadata']['name']}")
                        checked.add(file)
        self.assertEqual(checked, set(binaries) | {"job.yaml"})

    def check_config(self, scratch, binary, file, text, where):
        # The mounted files, made by the same command that makes the Secrets.
        subprocess.run([BIN / "rlhfctl", "pki", "init", "--dir", scratch / "pki"], check=True, capture_output=True)
        role = binary.removeprefix("rlhf-")
        for mounted, made in (("ca.crt", "ca.pem"), ("tls.crt", f"{role}.pem"), ("tls.key", f"{role}.key")):
            text = text.replace(f"/etc/rlhf/tls/{mounted}", str(scratch / "pki" / made))
        (scratch / file).write_text(text)
        extra = [] if binary == "rlhf-coordinator" else ["--instance", f"{role}-0"]
        result = subprocess.run([BIN / binary, "--config", scratch / file, *extra, "--check-config"], capture_output=True, text=True)
        self.assertEqual(result.returncode, 0, f"{where}: {result.stdout}{result.stderr}")
        # An unknown key is refused, so the check means something.
        unknown = "no-such-flag: 1\n" if file.endswith(".yaml") else "no-such-flag = 1\n"
        (scratch / file).write_text(text + unknown)
        result = subprocess.run([BIN / binary, "--config", scratch / file, *extra, "--check-config"], capture_output=True, text=True)
        self.assertNotEqual(result.returncode, 0, f"{where}: an unknown key was accepted")

    def check_job(self, scratch, text, where):
        # Parsed and completed by rlhfctl; what is left is that nobody is there to ask about artifacts.
        (scratch / "job.yaml").write_text(text)
        result = subprocess.run([BIN / "rlhfctl", "--address", "127.0.0.1:1", "--insecure", "submit", scratch / "job.yaml", "--dry-run"],
                                capture_output=True, text=True)
        self.assertEqual(result.returncode, 0, f"{where}: {result.stdout}{result.stderr}")

    def test_commands_are_of_the_binaries(self):
        """Every flag in args is one that the binary's --help lists."""
        for where, _, template in pods():
            for container in template["spec"]["containers"]:
                image = container["image"].split("/")[-1].split(":")[0]
                binary = {"cli": "rlhfctl", "all": "rlhfctl"}.get(image, f"rlhf-{image}")
                words = container["args"]
                help_of = [BIN / binary, "--help"]
                if binary == "rlhfctl":
                    command = next(w for w in words if w in ("up", "submit"))
                    help_of = [BIN / binary, command, "--help"]
                text = subprocess.run(help_of, capture_output=True, text=True).stdout
                text += subprocess.run([BIN / binary, "--help"], capture_output=True, text=True).stdout
                for word in words:
                    if word.startswith("--"):
                        self.assertIn(word.split("=")[0], text, where)


if __name__ == "__main__":
    unittest.main()
