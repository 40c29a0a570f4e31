"""`foreframe models` changes the models of a server that runs."""

import sys
import threading
from pathlib import Path

import pytest

from foreframe_engines.testing import ToyRolloutEngine
from foreframe_server.cli import serving
from foreframe_server.cli.overrides import read_overridden
from foreframe_server.cli.serving import running_server
from foreframe_server.opening import given
from foreframe_server.protocols.sockets import address_of

sys.path.append(str(Path(__file__).parents[1] / "toys"))


@pytest.fixture
def toys(tmp_path):
    """A folder of two toys."""
    from model_toys import ToyFolder  # noqa: PLC0415 - of the folder that was added to the path above

    folder = ToyFolder(tmp_path / "models")
    folder.add("grasp", "1")
    folder.add("reach", "1")
    return folder


def on_free_port(settings, **changes):
    return settings.model_copy(update={"http": settings.http.model_copy(update={"port": 0}), **changes})


@pytest.fixture
def served(toys):
    """A folder of toys and the address of its server."""
    with running_server(on_free_port(toys.settings()), toys.open) as address:
        yield toys, address


@pytest.fixture
def starting():
    """The address of a server that listens and whose model is still being opened."""
    may_open = threading.Event()

    def open_late(settings):
        assert may_open.wait(60.0)
        return given(ToyRolloutEngine())(settings)

    door = serving._open(read_overridden(host="127.0.0.1", port=0), open_late)
    thread = threading.Thread(target=door.server.run, daemon=True)
    thread.start()
    try:
        yield address_of(door.socket)
    finally:
        may_open.set()
        door.stop()
        thread.join()


def test_models_are_listed_loaded_and_unloaded(run, run_json, served):
    folder, address = served
    folder.add("reach", "2")
    listed = run_json("models", "list", "--url", address, "--json")["models"]
    assert [(model["name"], model["version"]) for model in listed] == [("grasp", "1"), ("reach", "1")]
    loaded = run_json("models", "load", "reach", "--url", address, "--json")
    assert (loaded["state"], loaded["version"]) == ("READY", "2")
    assert "UNAVAILABLE" in run("models", "unload", "reach", "--url", address).stdout
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


@pytest.mark.parametrize(
    ("before", "words"),
    [
        (("--url", "http://127.0.0.1:1"), "belongs after the subcommand"),
        (("--json",), "belongs after the subcommand"),
        (("--bundle", "."), "means nothing to list"),
    ],
)
def test_options_before_the_subcommand_are_refused_instead_of_ignored(run, served, before, words):
    _, address = served
    refused = run("models", *before, "list", "--url", address)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert words in refused.stderr


@pytest.mark.parametrize("output", [(), ("--json",)])
def test_a_server_that_is_starting_is_not_ready_instead_of_empty(run, starting, output):
    result = run("models", "list", "--url", starting, *output)
    assert (result.exit_code, result.stdout) == (3, "")
    assert "not ready" in result.stderr


def test_without_a_key_the_variable_that_holds_it_is_named(run, run_json, toys, tmp_path, monkeypatch):
    file = tmp_path / "keys.json"
    robot, operator = (
        run_json("keys", "create", "--file", file, "--id", scope, "--scope", scope)["token"]
        for scope in ("predict", "admin")
    )
    settings = toys.settings()
    keys = settings.keys.model_copy(update={"file": file})
    with running_server(on_free_port(settings, keys=keys), toys.open) as address:
        refused = run("models", "list", "--url", address)
        assert refused.exit_code == 3
        assert "FOREFRAME_API_KEY" in refused.stderr
        monkeypatch.setenv("FOREFRAME_API_KEY", robot)
        forbidden = run("models", "list", "--url", address)
        assert (forbidden.exit_code, forbidden.stderr) == (3, "foreframe: The key needs the scope admin.\n")
        monkeypatch.setenv("FOREFRAME_API_KEY", operator)
        assert len(run_json("models", "list", "--url", address)["models"]) == 2
