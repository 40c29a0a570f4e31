from __future__ import annotations

import pickle

import pytest

from foreframe_client import (
    DeadlineUnmeetable,
    ForeframeError,
    InvalidRequest,
    NonFinite,
    Problem,
    Reason,
    ServerError,
    TransportError,
)
from foreframe_client._errors import ERRORS, error_of


def subclasses(kind):
    return {kind}.union(*(subclasses(below) for below in kind.__subclasses__()))


def test_every_class_of_a_code_is_listed_once():
    assert subclasses(ServerError) - {ServerError} == set(ERRORS)
    assert len({error.code for error in ERRORS}) == len(ERRORS)


def test_everything_can_be_caught_by_one_class():
    assert subclasses(TransportError) | set(ERRORS) < subclasses(ForeframeError)


@pytest.mark.parametrize("kind", ERRORS)
def test_a_class_knows_its_code_without_a_problem(kind):
    error = kind("words")
    assert str(error) == error.detail == "words"
    assert error.code == kind.code
    assert error.reasons == ()


def test_a_busy_server_is_no_invalid_request():
    problem = Problem("deadline_unmeetable", 503, is_retryable=True)
    error = error_of("Not now.", problem)
    assert type(error) is DeadlineUnmeetable
    assert (error.status, error.is_retryable) == (503, True)
    assert not isinstance(error, InvalidRequest)


def test_errors_cross_processes_whole():
    problem = Problem("non_finite", 422, is_retryable=False, request_id="r", reasons=(Reason("/future", "is NaN"),))
    error = pickle.loads(pickle.dumps(NonFinite("bad", problem)))
    assert type(error) is NonFinite
    assert (error.request_id, error.reasons, str(error)) == ("r", problem.reasons, "bad; /future: is NaN")
