"""`bench compare` from the command line: its exit codes, and what it prints."""

import json

import pytest

from foreframe_server.reports.header import Header
from foreframe_server.reports.report import Report
from foreframe_server.reports.samples import Samples


@pytest.fixture
def write(tmp_path):
    def invoke(name, factor=1.0, **fields):
        values = tuple(factor * value for value in (10.0, 11.0, 12.0, 13.0, 14.0))
        report = Report("bench x", {"rounds": 5}, samples=[Samples("step", "ms", "lower", values)], **fields)
        path = tmp_path / name
        path.write_text(json.dumps(report.document(Header.now(None, ()))))
        return path

    return invoke


@pytest.mark.parametrize(("factor", "code", "verdict"), [(1.0, 0, "same"), (0.5, 0, "better"), (1.5, 1, "worse")])
def test_a_regression_and_nothing_else_ends_with_1(run, write, factor, code, verdict):
    result = run("bench", "compare", write("a.json"), write("b.json", factor))
    assert result.exit_code == code, result.stderr
    assert verdict in result.stdout


def test_a_comparison_is_one_object(run_json, write):
    record = run_json("bench", "compare", write("a.json"), write("b.json", 0.5))
    (measure,) = record["measures"]
    assert (measure["verdict"], measure["is_paired"], measure["ratio"]["mean"]) == ("better", True, 0.5)


def test_what_cannot_be_compared_ends_with_2(run, write, tmp_path):
    good, invalid = write("a.json"), write("b.json", faults=["off schedule"])
    (tmp_path / "text.json").write_text("no")
    for other, words in (
        (invalid, "off schedule"),
        (tmp_path / "text.json", "no JSON"),
        (tmp_path / "none.json", "none"),
    ):
        result = run("bench", "compare", good, other)
        assert result.exit_code == 2
        assert words in result.stderr
        assert result.stdout == ""
