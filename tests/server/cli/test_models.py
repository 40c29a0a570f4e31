"""`foreframe models` changes the models of a server that runs."""

import sys
from pathlib import Path

import pytest

from foreframe_server.cli.serving import running_server

sys.path.append(str(Path(__file__).parents[1] / "toys"))


@pytest.fixture
def served(tmp_path):
    """A folder of toys and the address of its server."""
    from model_toys import ToyFolder  # noqa: PLC0415 - of the folder that was added to the path above

    folder = ToyFolder(tmp_path / "models")
    folder.add("grasp", "1")
    folder.add("reach", "1")
    settings = folder.settings()
    settings = settings.model_copy(update={"http": settings.http.model_copy(update={"port": 0})})
    with running_server(settings, folder.open) as address:
        yield folder, address


def test_models_are_listed_loaded_and_unloaded(run, run_json, served):
    folder, address = served
    folder.add("reach", "2")
    listed = run_json("models", "list", "--at", address, "--json")["models"]
    assert [(model["name"], model["version"]) for model in listed] == [("grasp", "1"), ("reach", "1")]
    loaded = run_json("models", "load", "reach", "--at", address, "--json")
    assert (loaded["state"], loaded["version"]) == ("READY", "2")
    assert "UNAVAILABLE" in run("models", "unload", "reach", "--at", address).stdout
    assert "unloaded" in run("models", "list", "--at", address).stdout


def test_a_load_that_fails_is_one_line_that_says_why(run, served):
    folder, address = served
    folder.add("reach", "2", fault="damaged")
    failed = run("models", "load", "reach", "--at", address)
    assert failed.exit_code != 0
    assert "differs from the manifest" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert run("models", "load", "push", "--at", address).exit_code != 0


def test_without_a_command_contracts_are_listed(run_json, served):
    _, address = served
    assert [model["id"] for model in run_json("models", "--url", address, "--json")["models"]] == ["grasp", "reach"]
