"""What two replicas brought becomes a report as every bench's is."""

import pytest

from foreframe_server.cli.bench_options import Outputs
from foreframe_server.cli.bench_ray import Scaling, report_scaling
from foreframe_server.cli.bench_reports import Measured, publish_report
from foreframe_server.cli.faults import InvalidRun


def scaling(*, is_equal=True):
    return Scaling(10.0, 19.0, 0.8, 0.4, is_equal, (10, 10, 10), (19, 19, 19))


def test_two_replicas_are_set_against_one():
    report = report_scaling(scaling(), 3.0)
    assert [(bar["value"], bar["is_met"]) for bar in report.record["bars"]] == [(1.9, True), (0.5, True)]
    assert [samples.values for samples in report.samples] == [(10.0,) * 3, (19.0,) * 3]
    assert report.plan == {"duration_s": 3.0}


def test_unequal_answers_say_nothing(tmp_path):
    out = tmp_path / "ray.json"
    with pytest.raises(InvalidRun, match="otherwise"):
        publish_report(report_scaling(scaling(is_equal=False), 3.0), Outputs(out), Measured(None))
    assert "19" not in out.read_text().partition('"plan"')[2]
