"""A run from start to end, on servers that know the answers by heart."""

import json

import psutil
import pytest
from peers.__main__ import main

from foreframe_server.load.summary import check_schedule


@pytest.fixture
def run(ledger, tmp_path):
    out = tmp_path / "report.json"

    def run(peers, *words):
        out.unlink(missing_ok=True)
        words = ["--seconds", "1", "--max-lag-ms", "1000", "--folder", str(ledger.folder), "--out", str(out), *words]
        return main(words, peers), json.loads(out.read_text()) if out.exists() else None

    return run


def test_right_answers_become_a_table_and_a_wrong_one_leaves_no_number(run, make_toy, capsys):
    code, report = run([make_toy(shift=1)])
    assert code == 0
    (server,) = report["servers"]
    assert server["answers"]["largest_difference"] == 1, "rounding is no wrong answer"
    assert server["answers"]["compared"] > 10
    assert server["mixed"]["goodput"]["whole"] == server["mixed"]["goodput"]["robots_asked"] > 0
    assert "| toy | raw bytes |" in capsys.readouterr().out
    assert not [each for each in psutil.Process().children(recursive=True) if "toy_server" in " ".join(each.cmdline())]

    code, report = run([make_toy(), make_toy("liar", shift=2)])
    told = capsys.readouterr()
    assert (code, report, told.out) == (2, None, "")
    assert "invalid: liar: 1 answers differ from the right ones" in told.err
    assert "toy: starts" not in told.err, "what was measured is not measured again"


def test_a_missed_schedule_makes_the_run_invalid(run, make_toy, capsys, monkeypatch):
    monkeypatch.setattr("peers.measuring.check_schedule", lambda records, _: check_schedule(records, -1.0))
    code, report = run([make_toy()])
    told = capsys.readouterr()
    assert (code, report, told.out) == (2, None, "")
    assert "invalid: toy: the schedule was missed" in told.err


def test_a_server_that_does_not_start_is_named_with_its_last_words(run, make_toy, capsys):
    broken = make_toy()
    object.__setattr__(broken, "command", lambda port: ["python3", "-c", "raise SystemExit('no model here')"])
    assert run([broken])[0] == 2
    assert "toy: the server ended as it started: no model here" in capsys.readouterr().err
