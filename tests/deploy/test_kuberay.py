"""The cluster of pods runs the application of serve.yaml, with a token, and is guarded as the chart is."""

import copy
import re

import pytest
import yaml

from foreframe_server.settings import setting_names

_TOKEN = {"secretKeyRef": {"name": "foreframe-ray-token", "key": "auth_token"}}
_NEVER_DEPLOYED = {"privileged", "hostNetwork", "hostPID", "hostIPC", "hostPath", "hostPort"}


@pytest.fixture(scope="module")
def documents(deploy):
    text = (deploy / "ray" / "kuberay.yaml").read_text(encoding="utf-8")
    return {document["kind"]: document for document in yaml.safe_load_all(text)}


@pytest.fixture(scope="module")
def service(documents):
    return documents["RayService"]["spec"]


@pytest.fixture(scope="module")
def serve(deploy):
    return yaml.safe_load((deploy / "ray" / "serve.yaml").read_text(encoding="utf-8"))


def groups_of(service):
    cluster = service["rayClusterConfig"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def environment_of(container):
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container["env"]}


def unguarded(service):
    """Say what the pods of any group let their processes do."""
    return {fault for group in groups_of(service) for fault in _faults_of(group["template"]["spec"])}


def _faults_of(pod):
    (container,) = pod["containers"]
    environment = environment_of(container)
    mounts = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
    scratch = [volume["emptyDir"] for volume in pod["volumes"] if "emptyDir" in volume]
    checks = {
        "root": pod["securityContext"].items()
        >= {"runAsNonRoot": True, "runAsUser": 10001, "runAsGroup": 10001}.items(),
        "system calls": pod["securityContext"].get("seccompProfile") == {"type": "RuntimeDefault"},
        "a root that can be written to": container["securityContext"].get("readOnlyRootFilesystem") is True,
        "new privileges": container["securityContext"].get("allowPrivilegeEscalation") is False,
        "capabilities": container["securityContext"].get("capabilities") == {"drop": ["ALL"]},
        "the cluster's API": pod.get("automountServiceAccountToken") is False,
        "all memory": "memory" in container["resources"]["limits"],
        "any folder": mounts == {"/tmp", "/dev/shm"} and all("sizeLimit" in volume for volume in scratch),
        "work from anybody": (environment.get("RAY_AUTH_MODE"), environment.get("RAY_AUTH_TOKEN")) == ("token", _TOKEN),
        "telling others of it": environment.get("RAY_USAGE_STATS_ENABLED") == "0",
        "answers without a key": environment.get("FOREFRAME_KEYS__FILE") == "/run/secrets/foreframe/keys.json",
        "the machine": not set(re.findall(r"\w+", yaml.safe_dump(pod))) & _NEVER_DEPLOYED,
    }
    return {fault for fault, is_guarded in checks.items() if not is_guarded}


def test_the_application_is_that_of_serve_yaml(service, serve):
    config = yaml.safe_load(service["serveConfigV2"])
    assert config["applications"] == serve["applications"]
    assert config["proxy_location"] == serve["proxy_location"]
    assert config["http_options"] == {**serve["http_options"], "host": "0.0.0.0"}
    config["applications"][0]["args"]["max_replicas"] += 1
    assert config["applications"] != serve["applications"]


def test_every_pod_is_guarded(service):
    assert unguarded(service) == set()


@pytest.mark.parametrize(
    ("at", "planted", "fault"),
    [
        (("securityContext",), {"runAsUser": 0}, "root"),
        (("containers", 0, "securityContext"), {"readOnlyRootFilesystem": False}, "a root that can be written to"),
        (("containers", 0, "securityContext"), {"capabilities": {"add": ["SYS_ADMIN"]}}, "capabilities"),
        (("containers", 0, "securityContext"), {"privileged": True}, "the machine"),
        (("containers", 0, "env", 0), {"value": "disabled"}, "work from anybody"),
        (("containers", 0, "resources"), {"limits": {}}, "all memory"),
        ((), {"automountServiceAccountToken": True}, "the cluster's API"),
    ],
)
def test_a_worker_that_may_do_more_is_found(service, at, planted, fault):
    changed = copy.deepcopy(service)
    place = groups_of(changed)[-1]["template"]["spec"]
    for key in at:
        place = place[key]
    place.update(planted)
    assert fault in unguarded(changed)


def test_the_operator_shows_the_token_that_the_pods_have(service):
    wanted = {"mode": "token", "secretName": _TOKEN["secretKeyRef"]["name"]}
    assert service["rayClusterConfig"]["authOptions"] == wanted


def test_every_setting_is_one_that_the_server_reads(service):
    (application,) = yaml.safe_load(service["serveConfigV2"])["applications"]
    named = set(application["runtime_env"]["env_vars"])
    for group in groups_of(service):
        (container,) = group["template"]["spec"]["containers"]
        named |= environment_of(container).keys()
    settings = {name for name in named if name.startswith("FOREFRAME_")}
    assert len(settings) >= 3
    assert settings <= set(setting_names())
    assert not {*settings, "FOREFRAME_KEYS__FLIE"} <= set(setting_names())


def test_what_is_mounted_is_there_and_fits(service):
    for group in groups_of(service):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert volumes.keys() == {mount["name"] for mount in container["volumeMounts"]}
        assert volumes["shared-memory"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "1Gi"}
        assert int(group["rayStartParams"]["object-store-memory"]) < 2**30


def test_deployments_fit_on_the_pods(service):
    config = yaml.safe_load(service["serveConfigV2"])["applications"][0]
    needs = {each["name"]: each["ray_actor_options"] for each in config["deployments"]}
    head, workers = (group["rayStartParams"] for group in groups_of(service))
    assert needs["door"]["num_cpus"] <= int(head["num-cpus"]) < needs["engines"]["num_cpus"]
    assert sum(need["num_cpus"] for need in needs.values()) <= int(workers["num-cpus"])
    (group,) = service["rayClusterConfig"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    assert (
        int(workers["num-gpus"]) == container["resources"]["limits"]["nvidia.com/gpu"] == needs["engines"]["num_gpus"]
    )
    assert group["maxReplicas"] == config["args"]["max_replicas"]


def test_probes_ask_ray_and_never_a_proxy_that_workers_have_not(service):
    for group in groups_of(service):
        (container,) = group["template"]["spec"]["containers"]
        probes = [container[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")]
        assert probes == [{"path": "/api/healthz", "port": "agent"}] * 3
        assert {"name": "agent", "containerPort": 52365} in container["ports"]


def test_rays_ports_are_for_the_clusters_own_pods(documents, service):
    policy = documents["NetworkPolicy"]["spec"]
    own = policy["podSelector"]
    for group in groups_of(service):
        assert own["matchLabels"].items() <= group["template"]["metadata"]["labels"].items()
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert all(rule["from"] for rule in policy["ingress"]), "a rule without peers would let everybody in"
    everything = [rule["from"] for rule in policy["ingress"] if "ports" not in rule]
    assert everything == [[{"podSelector": own}]]
    asked = [[port["port"] for port in rule["ports"]] for rule in policy["ingress"] if "ports" in rule]
    assert asked == [["serve"], ["dashboard", "serve"], ["metrics"]]
    assert [rule["ports"][0]["port"] for rule in policy["egress"] if "ports" in rule] == [53]


def test_the_version_of_ray_is_the_one_that_was_tested(service, root):
    (tested,) = re.findall(r"^ray==(\S+)", (root / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert service["rayClusterConfig"]["rayVersion"] == tested
