import json

import pytest

from foreframe_server.errors import CODES, InvalidRequest, Overloaded, Reason
from foreframe_server.problems import MAX_PROBLEM_BYTES, problem_response


@pytest.mark.parametrize("error", CODES)
def test_every_code_has_every_member(error):
    reply = problem_response(error("It is so."), "r-1")

    problem = json.loads(reply.body)
    assert set(problem) == {
        "type", "title", "status", "detail", "code", "request_id", "errors", "retryable", "retry_after_ms",
    }  # fmt: skip
    assert (problem["status"], problem["code"], problem["retryable"]) == (error.status, error.code, error.is_retryable)
    assert reply.status_code == error.status


def test_a_reply_stays_small_whatever_the_reasons():
    reasons = [Reason("/a" * 2000, "é" * 2000, "b" * 2000, "c" * 2000)] * 500

    reply = problem_response(InvalidRequest("d" * 9000, reasons=reasons), "r" * 64)

    assert len(reply.body) <= MAX_PROBLEM_BYTES
    assert 1 <= len(json.loads(reply.body)["errors"]) <= 8


def test_eight_usual_reasons_fit():
    reasons = [Reason(f"/future/values/{row}/24", "is not finite as float32", "a finite number") for row in range(20)]

    assert len(json.loads(problem_response(InvalidRequest("no", reasons=reasons), "r").body)["errors"]) == 8


def test_a_retry_is_told_in_milliseconds_and_in_whole_seconds():
    reply = problem_response(Overloaded("Busy.", retry_after_ms=1200), "r-1")

    assert reply.headers["retry-after"] == "2"
    assert json.loads(reply.body)["retry_after_ms"] == 1200
