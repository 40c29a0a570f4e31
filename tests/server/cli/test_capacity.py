"""`foreframe capacity` as a table."""

import json

import pytest

from foreframe_server.capacity.costs import Costs, Seconds


@pytest.fixture
def costs_file(tmp_path):
    """A device that steps a row in 20 ms, as a file."""
    taken = Seconds(0.02, 0.02)
    path = tmp_path / "costs.json"
    path.write_text(json.dumps(Costs(Seconds(0.005, 0.005), Seconds(0.001, 0.001), {1: taken}, 0.0, 0.0).to_json()))
    return path


def test_the_table_fits_a_terminal_of_80_columns(run, costs_file, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    arguments = ("--rate", 0.125, "--robots", 1, "--robots", 12, "--seconds", 60, "--min-members", 0)
    shown = run("capacity", costs_file, *arguments)
    assert shown.exit_code == 0, shown.stderr
    assert "…" not in shown.stdout
    assert all(len(line) <= 80 for line in shown.stdout.splitlines())
    rows = [line.split() for line in shown.stdout.splitlines() if line.split()[:1] == ["0.125"]]
    assert [(row[1], len(row), row[-1][-1]) for row in rows] == [("1", 9, "%"), ("12", 9, "%")]
