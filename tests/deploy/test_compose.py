"""The compose file: what each profile starts, and that nothing in it may do more than it needs."""

import re

import pytest
import yaml

from foreframe_server.settings import Settings

_SECRET_SETTINGS = {"FOREFRAME_CACHE__REDIS_URL", "FOREFRAME_CACHE__SECRET"}


@pytest.fixture(scope="module")
def compose(deploy):
    return yaml.safe_load((deploy / "compose" / "compose.yaml").read_text())


@pytest.fixture(scope="module")
def services(compose):
    return compose["services"]


def unguarded(service):
    """Say what a service lets its processes do."""
    return {
        name
        for name, is_there in {
            "a root that can be written to": service.get("read_only") is True,
            "capabilities": service.get("cap_drop") == ["ALL"] and "cap_add" not in service,
            "new privileges": "no-new-privileges:true" in service.get("security_opt", []),
            "root": not str(service.get("user", "0")).startswith("0"),
            "all memory": "mem_limit" in service,
            "any number of processes": 0 < service.get("pids_limit", -1) <= 512,
            "the host": not service.keys() & {"privileged", "network_mode", "pid", "ipc", "devices", "userns_mode"},
            "the container engine": "docker.sock" not in str(service),
        }.items()
        if not is_there
    }


def test_profiles_start_what_they_say(services):
    started = {}
    for name, service in services.items():
        for profile in service["profiles"]:
            started.setdefault(profile, set()).add(name)
    assert started == {
        "core": {"foreframe"},
        "gpu": {"foreframe-gpu"},
        "cache": {"redis"},
        "observability": {"prometheus", "grafana", "jaeger"},
    }


def test_every_service_is_guarded(services):
    assert {name: unguarded(service) for name, service in services.items() if unguarded(service)} == {}


@pytest.mark.parametrize(
    "planted", [{"privileged": True}, {"user": "0"}, {"read_only": False}, {"cap_add": ["NET_RAW"]}]
)
def test_a_service_that_may_do_more_is_found(services, planted):
    assert unguarded({**services["foreframe"], **planted})


def test_only_doors_are_published_and_only_to_this_machine(services):
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    for ports in published.values():
        for port in ports:
            assert re.fullmatch(r"(\$\{FOREFRAME_PUBLISH:-)?127\.0\.0\.1:\d+\}?:\d+", port), port
    assert {port.rsplit(":", 1)[1] for ports in published.values() for port in ports} == {"8000", "3000", "16686"}


def test_nothing_inside_reaches_the_outside(compose):
    assert compose["networks"]["inside"]["internal"] is True
    (masquerade,) = compose["networks"]["door"]["driver_opts"].values()
    assert masquerade == "false"
    assert compose["services"]["redis"]["networks"] == compose["services"]["prometheus"]["networks"] == ["inside"]


def test_the_grace_period_is_longer_than_a_drain(services):
    grace_s = int(services["foreframe"]["stop_grace_period"].removesuffix("s"))
    assert grace_s >= Settings().http.drain_s + 10
    assert services["foreframe"]["stop_signal"] == "SIGTERM"


def test_no_secret_stands_in_the_file(compose, services):
    environment = services["foreframe"]["environment"]
    assert all(environment[name] is None for name in _SECRET_SETTINGS)
    for secret in compose["secrets"].values():
        assert secret["file"].startswith("./secrets/")


def test_what_is_mounted_of_the_machine_is_read_only(services):
    bound = [
        volume for service in services.values() for volume in service.get("volumes", []) if re.match(r"[.$]", volume)
    ]
    assert bound
    assert all(volume.endswith(":ro") for volume in bound)


def test_everything_that_is_named_exists(compose, services, deploy):
    folder = deploy / "compose"
    for service in services.values():
        for secret in service.get("secrets", []):
            assert secret in compose["secrets"]
        for volume in service.get("volumes", []):
            if volume.startswith(".."):
                assert (folder / volume.split(":")[0]).resolve().is_dir(), volume
    assert (folder / compose["configs"]["redis"]["file"]).resolve().is_file()
    assert (folder / services["foreframe"]["build"]["context"]).resolve() == deploy.parent


def test_prometheus_scrapes_the_admin_listener_of_the_image(deploy, root):
    config = yaml.safe_load((deploy / "prometheus" / "prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["foreframe:9000"]}]
    assert "FOREFRAME_HTTP__ADMIN_PORT=9000" in (root / "Dockerfile").read_text()
