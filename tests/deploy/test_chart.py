"""The chart: values are checked, what it renders is guarded, and Helm renders the same where it is installed."""

import copy
import json

import pytest
import yaml

FULL = {
    "replicas": 3,
    "image": {"repository": "registry.local/foreframe", "digest": "sha256:" + "a" * 64},
    "settings": {"FOREFRAME_ENGINE__NUM_THREADS": "4", "FOREFRAME_HTTP__MAX_BODY_BYTES": "16777216"},
    "settingsSecret": "foreframe-cache",
    "models": {"claim": "models"},
    "gpu": {"enabled": True, "count": 2},
    "network": {
        "redis": [{"podSelector": {"matchLabels": {"app": "redis"}}}],
        "collectors": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "tracing"}}}],
    },
    "monitor": {"enabled": True},
    "nodeSelector": {"gpu": "h100"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
}
BARE = {"network": {"enabled": False}, "disruption": {"enabled": False}, "resources": {"limits": {"memory": "1Gi"}}}


@pytest.fixture(scope="module")
def jsonschema():
    import jsonschema  # noqa: PLC0415 - takes five seconds, and every process of a run reads this file

    return jsonschema


@pytest.fixture(scope="module")
def check_values(deploy, jsonschema):
    folder = deploy / "helm" / "foreframe"
    schema = json.loads((folder / "values.schema.json").read_text())
    jsonschema.Draft7Validator.check_schema(schema)
    defaults = yaml.safe_load((folder / "values.yaml").read_text())

    def check(**changes):
        values = copy.deepcopy(defaults)
        for path, value in changes.items():
            *groups, key = path.split("__")
            at = values
            for group in groups:
                at = at[group]
            at[key] = value
        jsonschema.validate(values, schema)

    return check


def pod_of(documents):
    return documents["Deployment", "fleet"]["spec"]["template"]["spec"]


def test_the_default_values_fit_their_schema_and_every_value_has_a_schema(check_values, deploy):
    check_values()
    folder = deploy / "helm" / "foreframe"
    schema = json.loads((folder / "values.schema.json").read_text())["properties"]
    for group, value in yaml.safe_load((folder / "values.yaml").read_text()).items():
        assert group in schema
        if isinstance(value, dict) and "properties" in schema[group]:
            assert value.keys() <= schema[group]["properties"].keys()


@pytest.mark.parametrize(
    "changes",
    [
        {"replicas": 0},
        {"replicas": "2"},
        {"image__digest": "sha256:abc"},
        {"image__pullPolicy": "Sometimes"},
        {"keys__secret": ""},
        {"settings": {"FOREFRAME_HTTP_PORT": "1"}},
        {"settings": {"FOREFRAME_SCHEDULER__MAX_ROWS": 8}},
        {"settings": {"FOREFRAME_CACHE__SECRET": "in the open"}},
        {"settings": {"FOREFRAME_HTTP__ADMIN_HOST": "127.0.0.1"}},
        {"terminationGracePeriodSeconds": 5},
        {"resources": {"requests": {"cpu": "1"}}},
        {"service__type": "ExternalName"},
        {"securityContext": {"privileged": True}},
    ],
    ids=str,
)
def test_values_that_cannot_work_are_refused(check_values, jsonschema, changes):
    with pytest.raises(jsonschema.ValidationError):
        check_values(**changes)


@pytest.mark.parametrize("values", [{}, FULL, BARE], ids=["default", "full", "bare"])
def test_pods_may_do_nothing_that_they_need_not(chart, values):
    pod = pod_of(chart.render(**values))
    (container,) = pod["containers"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"].items() >= {"runAsNonRoot": True, "runAsUser": 10001}.items()
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
    assert "memory" in container["resources"]["limits"]
    mounts = {mount["mountPath"]: mount.get("readOnly", False) for mount in container["volumeMounts"]}
    assert {path for path, is_read_only in mounts.items() if not is_read_only} == {"/tmp", "/dev/shm"}
    sizes = {volume["name"]: volume["emptyDir"] for volume in pod["volumes"] if "emptyDir" in volume}
    assert all(size.keys() == {"medium", "sizeLimit"} for size in sizes.values())
    assert {volume["name"] for volume in pod["volumes"]} == {mount["name"] for mount in container["volumeMounts"]}


def test_liveness_is_not_readiness_and_both_ask_the_admin_listener(chart):
    (container,) = pod_of(chart.render())["containers"]
    asked = {name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")}
    assert asked == {
        "startup": {"path": "/readyz", "port": "admin"},
        "liveness": {"path": "/healthz", "port": "admin"},
        "readiness": {"path": "/readyz", "port": "admin"},
    }


def test_the_admin_listener_has_no_address_outside_the_cluster(chart):
    documents = chart.render(service={"type": "LoadBalancer"})
    outside = documents["Service", "fleet"]["spec"]
    inside = documents["Service", "fleet-admin"]["spec"]
    assert [port["targetPort"] for port in outside["ports"]] == ["http"]
    assert (inside["type"], inside["clusterIP"]) == ("ClusterIP", "None")


def test_nothing_is_reached_but_what_is_named(chart):
    policy = chart.render()["NetworkPolicy", "fleet"]["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert not policy["egress"]
    assert [rule["ports"][0]["port"] for rule in policy["ingress"]] == ["http", "admin"]
    with_redis = chart.render(**FULL)["NetworkPolicy", "fleet"]["spec"]["egress"]
    assert [rule["ports"][0]["port"] for rule in with_redis] == [53, 6379, 4318]
    nobody = chart.render(network={"clients": [], "monitoring": []})["NetworkPolicy", "fleet"]["spec"]
    assert not nobody["ingress"], "a rule without peers would let everybody in"
    assert all(rule["from"] for rule in policy["ingress"])


def test_settings_and_gpus_arrive_in_the_container(chart):
    (container,) = pod_of(chart.render(**FULL))["containers"]
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    assert environment["FOREFRAME_HTTP__MAX_BODY_BYTES"] == "16777216"
    assert environment["FOREFRAME_KEYS__FILE"] == "/run/secrets/foreframe/keys.json"
    assert all(isinstance(value, str) for value in environment.values())
    assert container["envFrom"] == [{"secretRef": {"name": "foreframe-cache"}}]
    assert container["image"] == "registry.local/foreframe@sha256:" + "a" * 64
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 2


def test_selectors_match_the_pods(chart):
    documents = chart.render(**FULL)
    labels = documents["Deployment", "fleet"]["spec"]["template"]["metadata"]["labels"]
    selectors = [
        documents["Deployment", "fleet"]["spec"]["selector"]["matchLabels"],
        documents["Service", "fleet"]["spec"]["selector"],
        documents["NetworkPolicy", "fleet"]["spec"]["podSelector"]["matchLabels"],
        documents["PodDisruptionBudget", "fleet"]["spec"]["selector"]["matchLabels"],
    ]
    assert all(selector and selector.items() <= labels.items() for selector in selectors)
    watched = documents["ServiceMonitor", "fleet"]["spec"]["selector"]["matchLabels"]
    assert watched.items() <= documents["Service", "fleet-admin"]["metadata"]["labels"].items()
    assert not watched.items() <= documents["Service", "fleet"]["metadata"]["labels"].items()


def test_what_is_turned_off_is_not_rendered(chart):
    kinds = {kind for kind, _ in chart.render(**BARE)}
    assert kinds == {"Deployment", "Service"}


@pytest.mark.parametrize("values", [{}, FULL, BARE], ids=["default", "full", "bare"])
def test_helm_renders_the_same(chart, helm_template, values):
    assert helm_template(**values) == chart.render(**values)


def test_the_reader_of_templates_refuses_what_it_does_not_know(chart):
    with pytest.raises(NotImplementedError):
        chart._call("tpl", ["", {}])
