"""Bars are judged, and a report is plain JSON."""

import json

import pytest

from foreframe_server.load.findings import Bar, Findings, Part, above, join_findings, over, typical_findings
from foreframe_server.load.summary import check_schedule


@pytest.mark.parametrize(
    ("value", "limits", "is_met"),
    [
        (1.0, {"at_most": 1.0}, True),
        (1.01, {"at_most": 1.0}, False),
        (5.0, {"at_least": 5.0}, True),
        (4.9, {"at_least": 5.0}, False),
        (None, {"at_most": 1.0}, False),
    ],
)
def test_a_bar_is_met_within_its_limits_and_never_by_nothing(value, limits, is_met):
    assert Bar("measure", value, **limits).is_met is is_met


def test_ratios_and_differences_of_nothing_are_nothing():
    assert (over(1.0, 4.0), over(None, 4.0), over(1.0, None), over(1.0, 0.0)) == (0.25, None, None, None)
    assert (above(3.0, 1.0), above(None, 1.0)) == (2.0, None)


def test_a_report_is_json_with_its_bars_judged(record):
    part = Part.of("all", [record(0, 5, members=1), record(1.5, 5, "overloaded")], 2.0)
    document = Findings("x", [part], [Bar("measure", 2.0, at_most=1.0)], {"fact": 1}).report({"load": 1}).record
    again = json.loads(json.dumps(document, allow_nan=False))
    assert again["bars"] == [
        {"measure": "measure", "value": 2.0, "at_most": 1.0, "at_least": None, "rounds": [], "is_met": False}
    ]
    assert again["parts"][0]["summary"]["ok"] == 1
    assert [second["second"] for second in again["parts"][0]["seconds"]] == [0, 1]


def test_a_run_without_an_answer_says_nothing(record):
    refused = Part.of("all", [record(0, 5, "overloaded"), record(1, 5, "timeout")], 2.0)
    answered = Part.of("later", [record(0, 5)], 2.0)
    assert Findings("x", [refused]).faults == ["none of 2 questions were answered: overloaded, timeout"]
    assert Findings("x", [refused, answered]).faults == []


def test_seconds_are_compared_only_where_questions_were_paced(record):
    records = [record(second, 5) for second in range(3)]
    part = Part.of("all", records, 3.0)
    assert not Findings("x", [part]).report({}).samples
    (samples,) = Findings("x", [part], schedule=check_schedule(records, 10.0)).report({}).samples
    assert samples.values == (5.0, 5.0, 5.0)


def test_of_joined_findings_the_worst_schedule_stands_for_all(record):
    found = [
        Findings("x", facts={name: lag}, schedule=check_schedule([record(0, 50, lag_ms=lag)], 10.0))
        for name, lag in (("a", 1.0), ("b", 20.0), ("c", 2.0))
    ]
    joined = join_findings("x", [*found, Findings("x")])
    assert not joined.schedule.is_on_schedule
    assert joined.facts == {"a": 1.0, "b": 20.0, "c": 2.0}


def test_of_several_rounds_each_bar_is_the_median_and_the_middle_round_tells_the_rest():
    rounds = [
        Findings("x", bars=[Bar("first", first, at_most=2.0), Bar("second", second)], facts={"first": first})
        for first, second in ((3.0, 10.0), (1.0, 30.0), (2.0, 20.0))
    ]
    typical = typical_findings(rounds)
    assert [(bar.value, bar.rounds) for bar in typical.bars] == [(2.0, (3.0, 1.0, 2.0)), (20.0, (10.0, 30.0, 20.0))]
    assert typical.bars[0].is_met
    assert typical.facts == {"first": 2.0}
    assert typical_findings(rounds[:1]) is rounds[0]


def test_a_round_without_a_value_leaves_the_bar_without_one():
    bars = [Bar("measure", 1.0, at_most=2.0), Bar("measure", None, at_most=2.0)]
    (bar,) = typical_findings([Findings("x", bars=[each]) for each in bars]).bars
    assert (bar.value, bar.is_met) == (None, False)
