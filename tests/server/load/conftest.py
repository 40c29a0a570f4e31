"""Records made by hand."""

import pytest

from foreframe_server.load.records import OK, Record, Reply
from foreframe_server.load.traces import Arrival, Ask


def build_record(due_s, latency_ms, code=OK, *, deadline_ms=None, lag_ms=0.0, **fields):
    arrival = Arrival(due_s, Ask(deadline_ms=deadline_ms), 0)
    return Record(arrival, due_s + lag_ms / 1000, due_s + latency_ms / 1000, Reply(code, **fields))


@pytest.fixture
def record():
    return build_record
