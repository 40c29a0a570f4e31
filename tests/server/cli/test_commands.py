"""How commands are called and how they end: help, usage, faults in one line, bugs with their traceback."""

import re
import subprocess
import sys
import typing

import pytest
import typer
from typer.testing import CliRunner

from foreframe_engines import Strategy
from foreframe_server.cli import commands
from foreframe_server.cli.faults import Fault, FaultLine

HEAVY = ("torch", "mujoco", "matplotlib", "numpy", "fastapi", "onnxruntime", "foreframe_client", "foreframe_engines")


def loaded_after(code):
    report = f"import sys; {code}; print([name for name in {HEAVY} if name in sys.modules])"
    return subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True).stdout


def test_help_loads_nothing_heavy():
    code = "from typer.testing import CliRunner; from foreframe_server.cli import app; {}".format(
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0"
    )
    assert loaded_after(code).strip() == "[]"
    assert "numpy" in loaded_after("import foreframe_engines")


def test_every_command_stands_in_the_help(run):
    stdout = run("--help").stdout
    names = (
        "serve",
        "demo",
        "predict",
        "eval",
        "world",
        "train",
        "export",
        "calibrate",
        "bench",
        "plan",
        "models",
        "doctor",
    )
    for name in names:
        assert re.search(rf"\b{name}\b", stdout)


def test_the_help_groups_every_command(run):
    stdout = run("--help").stdout
    titles = re.findall(r"^╭─ ([\w ]+?) ─", stdout, flags=re.MULTILINE)
    assert titles == ["Options", "Serve", "Predict", "Measure", "Make a model", "Operate"]
    names = {info.name or info.callback.__name__ for info in commands.app.registered_commands}
    names |= {info.name for info in commands.app.registered_groups}
    for name in names:
        assert len(re.findall(rf"^│ {name} ", stdout, flags=re.MULTILINE)) == 1


@pytest.mark.parametrize("command", ["predict", "replay"])
def test_what_an_ensemble_has_is_called_members(run, command):
    shown = " ".join(run(command, "--help").stdout.replace("│", " ").split())
    assert "How many members to draw" in shown
    assert "samples" not in shown


@pytest.mark.parametrize(
    "command",
    [
        *("serve", "demo", "predict", "eval", "export", "calibrate", "plan", "models", "doctor"),
        *("eval compression", "eval ensembles", "eval states", "eval rollouts"),
        *("eval noise", "bench scores", "bench history"),
    ],
)
def test_every_command_speaks_json(run, command):
    assert "--json" in run(*command.split(), "--help").stdout


def test_the_words_of_the_options_are_those_of_the_engine():
    hints = typing.get_type_hints(commands.predict)
    assert set(typing.get_args(hints["strategy"])) == set(Strategy)


def test_the_version_is_printed(run):
    result = run("--version")
    assert result.exit_code == 0
    assert result.stdout.strip()


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("demo", "--clips", "1"),
        ("serve", "--port", "70000"),
        ("predict", "x.npz", "--out", "x.gif"),
        ("predict", "x.npz", "--strategy", "guess"),
        ("predict", "x.npz", "--strategy", "posterior_mean", "--ensemble", "4"),
        ("world", "generate", "--episodes", "1"),
    ],
)
def test_wrong_usage_ends_with_2(run, arguments):
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("serve", "--bundle", "."), "manifest.json"),
        (("eval", "--bundle", "nowhere"), "nowhere"),
        (("demo", "--bundle", "."), "manifest.json"),
        (("demo", "--clips", "1000"), "24 clips"),
        (("eval", "--data", "."), "foreframe world generate"),
        (("predict", "absent.npz"), "absent.npz is not a file"),
        (("models", "--bundle", "nowhere"), "nowhere"),
        (("models", "--url", "http://127.0.0.1:1"), "not reached"),
        (("export", "--run", ".", "--data", ".", "--out", "out"), "No such file"),
        (("train", "rollout", "--data", ".", "--validation", ".", "--out", "run"), "dataset.json"),
    ],
)
def test_faults_end_with_3_and_one_line(run, arguments, words):
    result = run(*arguments)
    assert result.exit_code == 3, result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("foreframe: ")]
    assert result.stderr.rstrip().endswith(line)
    assert words in line
    assert result.stdout == ""


@pytest.mark.parametrize(("name", "value"), [("FOREFRAME_HTTP__PORT", "many"), ("FOREFRAME_HTPP__PORT", "1")])
def test_a_wrong_setting_ends_with_3_and_names_itself(run, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    result = run("serve")
    assert result.exit_code == 3
    assert name in result.stderr


@pytest.mark.parametrize(
    ("package", "arguments", "remedy"),
    [
        ("foreframe_client", ("models", "--url", "http://127.0.0.1:1"), "pip install foreframe-client"),
        ("torch", ("export", "--run", "a", "--data", "b", "--out", "c"), "pip install 'foreframe[models]'"),
        ("onnx", ("export", "--run", "a", "--data", "b", "--out", "c"), "pip install 'foreframe[models]'"),
        ("torch", ("train", "rollout", "--data", "a", "--validation", "b", "--out", "c"), "foreframe[models]"),
        ("matplotlib", ("eval", "states", "--data", "a", "--out", "a.json"), "pip install 'foreframe[models]'"),
        ("mujoco", ("world", "generate", "--out", "a", "--episodes", "1"), "pip install 'foreframe[world]'"),
        ("mujoco", ("plan",), "pip install 'foreframe[world]'"),
    ],
)
def test_a_missing_package_is_named_with_its_remedy(package, arguments, remedy):
    code = f"import sys; sys.modules[{package!r}] = None; sys.argv[1:] = {arguments!r}; "
    code += "from foreframe_server.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert remedy in done.stderr
    named = re.findall(r"(\w+) is not installed", done.stderr)
    assert [name.lower() for name in named] == [package]
    assert "Traceback" not in done.stderr


def test_a_bug_keeps_its_traceback_and_a_fault_does_not():
    app = typer.Typer(cls=FaultLine)

    @app.command()
    def bug():
        raise ZeroDivisionError

    @app.command()
    def fault():
        raise Fault("the door\nis shut")

    assert isinstance(CliRunner().invoke(app, ["bug"]).exception, ZeroDivisionError)
    result = CliRunner().invoke(app, ["fault"])
    assert (result.exit_code, result.stderr) == (3, "foreframe: the door is shut\n")
