"""The server's list of refusals and the client's: one exception a code, with the same status and the same advice."""

import pytest

from foreframe_client import DeadlineUnmeetable, InvalidRequest, ServerError
from foreframe_client import _wire as wire
from foreframe_client._errors import ERRORS
from foreframe_server import errors as service


def disagreements(codes: tuple[type[service.ServiceError], ...], known: tuple[type[ServerError], ...]) -> list[str]:
    """Say for which codes client and server differ."""
    found = [f"{error.code}: not raised by the server" for error in known if error.code not in {c.code for c in codes}]
    for cause in codes:
        matching = [error for error in known if error.code == cause.code]
        if len(matching) != 1:
            found.append(f"{cause.code}: {len(matching)} client exceptions")
        elif _advice(matching[0]) != _advice(cause):
            found.append(f"{cause.code}: {_advice(matching[0])} is not {_advice(cause)}")
    return found


def _advice(error: type[ServerError] | type[service.ServiceError]) -> tuple[str, int, bool]:
    return error.__name__, error.status, error.is_retryable


def test_every_code_has_exactly_one_client_exception_with_the_same_advice():
    assert disagreements(service.CODES, ERRORS) == []


def test_the_servers_list_is_whole():
    defined = {kind for kind in vars(service).values() if isinstance(kind, type) and issubclass(kind, Exception)}
    assert {error.code for error in defined - {service.ServiceError}} == {error.code for error in service.CODES}


def test_a_difference_would_be_found():
    class Sleepy(service.ServiceError):
        code, status, is_retryable = "sleepy", 503, True

    class Gone(ServerError):
        code, status, is_retryable = "gone", 410, True

    changed = tuple(Gone if error.code == "gone" else error for error in ERRORS)
    assert disagreements((*service.CODES, Sleepy), ERRORS) == ["sleepy: 0 client exceptions"]
    assert disagreements(service.CODES, changed) == ["gone: ('Gone', 410, True) is not ('Gone', 410, False)"]
    assert disagreements(service.CODES, (*ERRORS, ERRORS[0])) == ["invalid_request: 2 client exceptions"]
    assert disagreements(service.CODES[:-1], ERRORS) == ["worker_crashed: not raised by the server"]


@pytest.mark.parametrize("cause", service.CODES, ids=lambda cause: cause.code)
def test_the_client_tree_has_the_servers_branches(cause):
    (error,) = (error for error in ERRORS if error.code == cause.code)
    causes = [kind for kind in vars(service).values() if getattr(kind, "code", None) == cause.code]
    assert issubclass(error, InvalidRequest) == all(issubclass(kind, service.InvalidRequest) for kind in causes)


def test_a_code_that_load_alone_may_cause_is_no_invalid_request():
    assert not issubclass(service.LoadedDeadline, service.InvalidRequest)
    assert not issubclass(DeadlineUnmeetable, InvalidRequest)


def test_a_plain_problem_of_each_code_is_raised_as_its_class():
    for cause in service.CODES:
        body = b'{"code": "%s", "detail": "no", "retryable": true}' % cause.code.encode()
        error = wire.refusal(wire.Reply(cause.status, {"content-type": "application/problem+json"}, body))
        assert type(error).__name__ == cause.__name__
