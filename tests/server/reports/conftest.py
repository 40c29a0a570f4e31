"""Reports made by hand."""

import json

import pytest

from foreframe_server.reports.header import Header, Machine, Weights
from foreframe_server.reports.report import Report

HEADER = Header(
    taken_at="2026-01-01T00:00:00+00:00",
    commit="abc",
    weights=Weights("toy", "1", "digest"),
    machine=Machine("two cores", "Linux", 2, (0, 1), 0.5, [{"name": "GPU X", "pstate": "P0"}]),
    versions={"python": "3.11"},
    seeds=(7,),
)


def write(samples=(), *, header=HEADER, **fields):
    report = Report("bench x", **{"plan": {"rounds": 3}, "samples": samples, **fields})
    return json.loads(json.dumps(report.document(header), allow_nan=False))


@pytest.fixture
def header():
    return HEADER


@pytest.fixture
def document():
    return write
