"""`bench http` from the command line: at an address, and with a server of its own."""

import json
from dataclasses import replace

import pytest

from foreframe_engines import Bundle, builtin_bundle
from foreframe_engines.testing import ToyRolloutEngine
from foreframe_server.cli import bench_http, bench_sheets
from foreframe_server.cli.overrides import read_overridden
from foreframe_server.cli.serving import running_server
from foreframe_server.opening import given
from foreframe_server.reports.header import read_commit

PATIENT = ("--max-lag-ms", 60_000)


@pytest.fixture
def address():
    with running_server(read_overridden(host="127.0.0.1", port=0), given(ToyRolloutEngine())) as address:
        yield address


@pytest.fixture(scope="module")
def builtin_address():
    with running_server(read_overridden(host="127.0.0.1", port=0)) as address:
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


def test_a_load_that_was_not_on_time_is_told_without_a_number(run, address, tmp_path):
    files = ("--out", tmp_path / "b.json", "--html", tmp_path / "b.html", "--markdown", tmp_path / "b.md")
    load = ("--rate", 200, "--seconds", 0.5, "--max-lag-ms", 0.1)
    result = run("bench", "http", "constant", "--url", address, *load, *files)
    assert result.exit_code == 2
    assert "off schedule" in result.stderr
    assert result.stdout == ""
    written = json.loads((tmp_path / "b.json").read_text())
    assert set(written) == {"experiment", "header", "is_valid", "plan", "faults"}
    assert written["is_valid"] is False
    for name in ("b.html", "b.md"):
        text = (tmp_path / name).read_text()
        assert "off schedule" in text
        assert "p99</td>" not in text


def test_tables_name_parts_and_bars(run, address):
    load = ("--robots", 1, "--robots", 2, "--rate", 10, "--seconds", 0.5, "--members", 2)
    result = run("bench", "http", "robots", "--url", address, *load, *PATIENT)
    assert result.exit_code == 0, result.stderr
    for word in ("2 robots", "members", "deadline misses, 1 robot", "0.01"):
        assert word in result.stdout


def test_without_an_address_a_server_is_started_for_the_run_and_its_weights_named(run_json):
    load = ("--rate", 4, "--members", 1, "--steps", 1, "--seconds", 0.5)
    record = run_json("bench", "http", "constant", *load, *PATIENT)
    assert record["parts"][0]["summary"]["ok"] == 2
    assert record["header"]["weights"]["digest"] == Bundle.open(builtin_bundle()).digest
    assert (record["header"]["server"], record["header"]["commit"]) == (None, read_commit())


def test_a_report_says_what_it_was_measured_on(run_json, address):
    record = run_json("bench", "http", "constant", "--url", address, "--rate", 5, "--seconds", 0.4, *PATIENT)
    header = record["header"]
    assert header["server"] == address
    assert (header["weights"]["model"], header["weights"]["digest"]) == ("toy", None)
    assert header["machine"]["total_cores"] > 0
    assert header["versions"]["numpy"]
    assert record["plan"]["rate_hz"] == 5
    assert record["facts"]["exam"] is None  # it has another model than the bundle
    assert header["commit"] is None
    assert header["server_version"]
    assert header["seeds"] == [0]


def test_a_few_answers_are_checked_before_a_load(run_json, builtin_address):
    load = ("--rate", 10, "--steps", 1, "--members", 2, "--seconds", 0.5)
    record = run_json("bench", "http", "constant", "--url", builtin_address, *load, *PATIENT)
    assert (record["facts"]["exam"]["clips"], record["facts"]["exam"]["parity_db"]) == (2, 100.0)
    assert record["header"]["weights"]["digest"] is None  # the server does not tell it


@pytest.mark.parametrize("scenario", ["single-stream", "server", "offline"])
def test_scenarios_check_answers_against_a_plain_loop(run_json, builtin_address, scenario):
    paced = ("--rate", 40, *PATIENT) if scenario == "server" else ()
    load = ("--questions", 8, "--members", 1, "--steps", 1, "--exam", 2, *paced)
    record = run_json("bench", "http", scenario, "--url", builtin_address, *load)
    exam = record["facts"]["exam"]
    assert (exam["clips"], exam["parity_db"]) == (2, 100.0)
    assert exam["psnr_db"] == exam["reference_psnr_db"] > 15
    assert record["facts"]["members_from_the_cache"] == 0
    assert [part["summary"]["ok"] for part in record["parts"]] == [8, 8]


@pytest.mark.parametrize(
    ("preset", "arguments"),
    [
        ("single-stream", ("--questions", 8, "--exam", 2)),
        ("constant", ("--rate", 4)),
        ("robots", ()),
        ("overload", ()),
        ("mix", ()),
        ("poisson", ()),
    ],
)
def test_wrong_answers_make_a_run_say_nothing(run, builtin_address, monkeypatch, preset, arguments):
    def spoil(engine, clip, ask):
        sheet = write_sheet(engine, clip, ask)
        return replace(sheet, answer=255 - sheet.answer)

    write_sheet = bench_sheets._write_sheet
    monkeypatch.setattr(bench_sheets, "_write_sheet", spoil)
    load = ("--members", 1, "--steps", 1, *arguments)
    result = run("bench", "http", preset, "--url", builtin_address, *load)
    assert result.exit_code == 2
    assert "2 of 2 answers are wrong" in result.stderr
    assert result.stdout == ""


def test_quality_is_set_against_latency(run_json, builtin_address, tmp_path):
    page = tmp_path / "quality.html"
    sizes = ("--clips", 2, "--members", 1, "--members", 2, "--steps", 1, "--rounds", 2)
    record = run_json("bench", "quality-latency", "--url", builtin_address, *sizes, "--html", page)
    names = ["posterior mean", "1 member, 1 step", "2 members, 1 step"]
    assert [each["setting"] for each in record["settings"]] == names
    posterior, one, two = record["settings"]
    assert posterior["psnr_db"]["mean"] > 15
    assert posterior["spread"] is one["spread"] is None
    assert two["spread"]["mean"] > 0
    assert page.read_text().count("<svg") == 3


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("constant", "--rate", 1, "--url", "http://127.0.0.1:1"), 2, "no server answers"),
        (("constant", "--rate", 1, "--bundle", "nowhere"), 3, "nowhere"),
        (("poisson", "--out", "bench.txt"), 2, ".json"),
        (("cache", "--members", 4, "--known", 4), 2, "less than"),
    ],
)
def test_what_cannot_work_is_said_before_any_load(run, arguments, code, words, monkeypatch):
    monkeypatch.setattr(bench_http, "wait_until_ready", lambda address, patience_s: None)
    result = run("bench", "http", *arguments)
    assert result.exit_code == code
    assert words in result.stderr
