"""`bench http` from the command line: at an address, and with a server of its own."""

import json

import pytest

from foreframe_engines.testing import ToyRolloutEngine
from foreframe_server.cli.overrides import read_overridden
from foreframe_server.cli.serving import running_server
from foreframe_server.opening import given

PATIENT = ("--max-lag-ms", 60_000)


@pytest.fixture
def address():
    with running_server(read_overridden(host="127.0.0.1", port=0), given(ToyRolloutEngine())) as address:
        yield address


def test_a_constant_rate_is_reported_as_one_object_and_as_a_file(run_json, address, tmp_path):
    out = tmp_path / "bench.json"
    load = ("--rate", 20, "--members", 2, "--seconds", 1, "--out", out)
    record = run_json("bench", "http", "constant", "--url", address, *load, *PATIENT)
    summary = record["parts"][0]["summary"]
    assert (summary["sent"], summary["ok"], summary["members"]) == (20, 20, 2)
    assert summary["latency_ms"]["p99"] >= summary["latency_ms"]["p50"] > 0
    assert record["schedule"]["is_on_schedule"]
    assert json.loads(out.read_text()) == record


def test_a_load_that_was_not_on_time_ends_with_1_and_says_so(run, address):
    load = ("--rate", 200, "--seconds", 0.5, "--max-lag-ms", 0.1)
    result = run("bench", "http", "constant", "--url", address, *load)
    assert result.exit_code == 1
    assert "off schedule" in result.stderr


def test_tables_name_parts_and_bars(run, address):
    load = ("--robots", 1, "--robots", 2, "--rate", 10, "--seconds", 0.5, "--members", 2)
    result = run("bench", "http", "robots", "--url", address, *load, *PATIENT)
    assert result.exit_code == 0, result.stderr
    for word in ("2 robots", "members", "deadline misses, 1 robot", "0.01"):
        assert word in result.stdout


def test_without_an_address_a_server_is_started_for_the_run(run_json):
    load = ("--rate", 4, "--members", 1, "--steps", 1, "--seconds", 0.5)
    record = run_json("bench", "http", "constant", *load, *PATIENT)
    assert record["parts"][0]["summary"]["ok"] == 2


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("constant", "--rate", 1, "--url", "http://127.0.0.1:1"), 3, "no server answers"),
        (("constant", "--rate", 1, "--bundle", "nowhere"), 3, "nowhere"),
        (("poisson", "--out", "bench.txt"), 2, ".json"),
        (("cache", "--members", 4, "--known", 4), 2, "less than"),
    ],
)
def test_what_cannot_work_is_said_before_any_load(run, arguments, code, words):
    result = run("bench", "http", *arguments)
    assert result.exit_code == code
    assert words in result.stderr
