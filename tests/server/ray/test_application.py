"""What `serve run` starts is refused where the cluster takes work from anybody, and what is deployed is well-formed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from foreframe_server.ray.application import DOOR, ENGINES, Arguments, build
from foreframe_server.ray.autoscaling import PendingWorkPolicy
from foreframe_server.ray.safety import require_token
from foreframe_server.settings import SettingsError

DEPLOY = Path(__file__).parents[3] / "deploy" / "ray"


@pytest.mark.parametrize("mode", [None, "", "disabled", "Token"])
def test_without_a_token_nothing_is_built(monkeypatch, mode):
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    if mode is not None:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    with pytest.raises(SettingsError, match="RAY_AUTH_MODE is not token") as refused:
        build(Arguments())
    assert "\n" not in str(refused.value)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    require_token()


def test_what_runs_without_ray_never_imports_it():
    script = "import sys, foreframe_server.app, foreframe_server.ray.devices; sys.exit('ray' in sys.modules)"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    assert subprocess.run([sys.executable, "-c", script], env=environment, timeout=60, check=False).returncode == 0


@pytest.mark.parametrize("path", sorted(DEPLOY.glob("serve*.yaml")), ids=lambda path: path.name)
def test_configurations_are_what_ray_serve_reads(path, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    config = ServeDeploySchema.model_validate(yaml.safe_load(path.read_text()))
    assert config.http_options.host == "127.0.0.1"
    (application,) = config.applications
    assert application.import_path == "foreframe_server.ray.application:build"
    Arguments.model_validate(application.args)
    assert {deployment.name for deployment in application.deployments} == {DOOR, ENGINES}
    (engines,) = (each for each in application.deployments if each.name == ENGINES)
    scaling = engines.autoscaling_config
    assert scaling.policy.get_policy() is PendingWorkPolicy if hasattr(scaling, "policy") else scaling
    most = scaling["max_replicas"] if isinstance(scaling, dict) else scaling.max_replicas
    assert most <= application.args["max_replicas"]
