"""A run from start to end, on servers that know the answers by heart."""

import json
import re
from dataclasses import replace

import psutil
import pytest
from peers.__main__ import main
from peers.catalogue import catalogue
from peers.plan import Contents

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
    for part in server["mixed"]:
        assert part["goodput"]["whole"] == part["goodput"]["robots_asked"] > 0
    assert [part["load"] for part in server["mixed"]] == [0.6, 0.9, 1.2]
    assert server["commit"] == report["commit"]
    assert server["digest"] == report["digest"]
    assert re.search(r"\| toy( †)? \| raw bytes \|", capsys.readouterr().out)
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


def test_a_server_that_dies_in_a_trace_has_no_goodput(run, make_toy, plan, capsys):
    dies_at = Contents.of(plan).mixed[1] + 1
    code, report = run([make_toy(last=dies_at)])
    told = capsys.readouterr()
    assert (code, report, told.out) == (2, None, "")
    assert "invalid: toy: the server ended while it was measured" in told.err


def test_without_any_server_that_runs_there_is_nothing_to_say(run, make_toy, capsys):
    assert run([broken(make_toy())]) == (2, None)
    assert "toy: the server ended as it started: no model here" in capsys.readouterr().err


def test_servers_that_cannot_run_here_are_named_and_the_others_measured(run, make_toy, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("peers.catalogue.ENVIRONMENTS", tmp_path)
    code, report = run([uninstallable(tmp_path), broken(make_toy("broken")), make_toy()])
    assert code == 0
    assert [server["name"] for server in report["servers"]] == ["toy"]
    assert list(report["not_measured"]) == ["mosec", "broken"]
    assert "- mosec cannot be installed: " in capsys.readouterr().out


def broken(peer):
    return replace(peer, command=lambda port: ["python3", "-c", "raise SystemExit('no model here')"])


def uninstallable(folder):
    """A peer of the catalogue whose pins no environment holds, and whose python there is not."""
    (peer,) = [each for each in catalogue() if each.name == "mosec"]
    return replace(peer, python=str(folder / "no-python"))
