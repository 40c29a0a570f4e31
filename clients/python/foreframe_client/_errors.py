"""Everything the client raises, drawn once; knows neither HTTP nor bytes.

ForeframeError
├── TransportError             no answer came
│   ├── ConnectionFailed       the server was not reached, the request was not sent
│   └── TimedOut               the server was reached and stayed silent
├── ProtocolError              an answer came that is not what the wire says
└── ServerError                the server refused; also a code this client does not know
    ├── InvalidRequest         also raised before anything is sent
    │   ├── CameraMissing, StateDimMismatch, NonFinite, TooExpensive
    ├── PayloadTooLarge, UnsupportedMedia, RequestTimeout, Unauthorized, Forbidden, UnknownModel
    ├── CapabilityMissing, Superseded, Cancelled, StepOutOfOrder, Gone, QuotaExceeded
    ├── DeadlineUnmeetable     not InvalidRequest: under load it may be met later, and is then retryable
    └── Overloaded, NotReady, DeadlineExceeded, ModelFault, WorkerCrashed
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, Optional, Tuple, Type


class ForeframeError(Exception):
    """Base of every error of this package. `is_retryable` says whether the same call may succeed later."""

    is_retryable = False


class TransportError(ForeframeError):
    """No answer came."""


class ConnectionFailed(TransportError):
    """The server was not reached; the request was not sent."""

    is_retryable = True


class TimedOut(TransportError):
    """The server was reached and stayed silent for too long."""


class ProtocolError(ForeframeError):
    """An answer came that is not what the wire says."""


@dataclass(frozen=True)
class Reason:
    """One thing wrong with a request: a JSON pointer into it, what was expected and what came, in words."""

    pointer: str
    message: str
    expected: Optional[str] = None
    received: Optional[str] = None

    def __str__(self) -> str:
        told = (("expected", self.expected), ("received", self.received))
        known = ", ".join(f"{word} {value}" for word, value in told if value is not None)
        return f"{self.pointer}: {self.message}" + (f" ({known})" if known else "")


@dataclass(frozen=True)
class Problem:
    """What the server said when it refused."""

    code: str
    status: int
    is_retryable: bool
    request_id: Optional[str] = None
    reasons: Tuple[Reason, ...] = ()
    retry_after_ms: Optional[int] = None


class ServerError(ForeframeError):
    """The server refused. A code that this client does not know is raised as this class, with the code kept."""

    code = "unknown"
    status = 500
    request_id: Optional[str] = None
    reasons: Tuple[Reason, ...] = ()
    retry_after_ms: Optional[int] = None

    def __init__(self, detail: str, problem: Optional[Problem] = None) -> None:
        super().__init__(detail)
        self.detail = detail
        if problem is not None:
            self.code = problem.code
            self.status = problem.status
            self.is_retryable = problem.is_retryable
            self.request_id = problem.request_id
            self.reasons = problem.reasons
            self.retry_after_ms = problem.retry_after_ms

    def __str__(self) -> str:
        return "; ".join([self.detail.rstrip("."), *map(str, self.reasons)]) if self.reasons else self.detail


class InvalidRequest(ServerError):
    """The request is outside the model's contract, or an argument cannot be sent at all."""

    code, status = "invalid_request", 422


class CameraMissing(InvalidRequest):
    """A camera of the contract is missing, or an unknown one was sent."""

    code = "camera_missing"


class StateDimMismatch(InvalidRequest):
    """State rows have another width or number than the contract's."""

    code = "state_dim_mismatch"


class NonFinite(InvalidRequest):
    """A number is NaN or infinite."""

    code = "non_finite"


class TooExpensive(InvalidRequest):
    """The request needs more work than one request may."""

    code = "too_expensive"


class DeadlineUnmeetable(ServerError):
    """The server knows beforehand that it cannot meet this deadline: never (422), or not under its load now (503)."""

    code, status = "deadline_unmeetable", 422


class PayloadTooLarge(ServerError):
    """The body is larger than the server's limit."""

    code, status = "payload_too_large", 413


class UnsupportedMedia(ServerError):
    """The server does not read this content type or picture encoding."""

    code, status = "unsupported_media", 415


class RequestTimeout(ServerError):
    """The body did not arrive in time."""

    code, status, is_retryable = "request_timeout", 408, True


class Unauthorized(ServerError):
    """No valid key was sent."""

    code, status = "unauthorized", 401


class Forbidden(ServerError):
    """The key may not do this."""

    code, status = "forbidden", 403


class UnknownModel(ServerError):
    """No model, schema or resource has this name."""

    code, status = "unknown_model", 404


class CapabilityMissing(ServerError):
    """The model exists and cannot do this."""

    code, status = "capability_missing", 409


class Superseded(ServerError):
    """A newer request of the same stream replaced this one."""

    code, status = "superseded", 409


class Cancelled(ServerError):
    """Its own caller took the request back."""

    code, status = "cancelled", 499


class StepOutOfOrder(ServerError):
    """A session's step is not the next one."""

    code, status = "step_out_of_order", 409


class Gone(ServerError):
    """The observation or session has expired."""

    code, status = "gone", 410


class QuotaExceeded(ServerError):
    """The key has used up its budget for now."""

    code, status, is_retryable = "quota_exceeded", 429, True


class Overloaded(ServerError):
    """The server's queue is full of work."""

    code, status, is_retryable = "overloaded", 503, True


class NotReady(ServerError):
    """The server is starting or draining."""

    code, status, is_retryable = "not_ready", 503, True


class DeadlineExceeded(ServerError):
    """Time ran out before there was anything to return."""

    code, status, is_retryable = "deadline_exceeded", 504, True


class ModelFault(ServerError):
    """The model failed or returned values that are not finite."""

    code, status = "model_fault", 500


class WorkerCrashed(ServerError):
    """The worker died while it held this request."""

    code, status = "worker_crashed", 500


ERRORS: Tuple[Type[ServerError], ...] = (
    InvalidRequest,
    CameraMissing,
    StateDimMismatch,
    NonFinite,
    TooExpensive,
    DeadlineUnmeetable,
    PayloadTooLarge,
    UnsupportedMedia,
    RequestTimeout,
    Unauthorized,
    Forbidden,
    UnknownModel,
    CapabilityMissing,
    Superseded,
    Cancelled,
    StepOutOfOrder,
    Gone,
    QuotaExceeded,
    Overloaded,
    NotReady,
    DeadlineExceeded,
    ModelFault,
    WorkerCrashed,
)
"""One class a code of the server."""

_BY_CODE: Dict[str, Type[ServerError]] = {error.code: error for error in ERRORS}


def error_of(detail: str, problem: Problem) -> ServerError:
    """Return the error that stands for a refusal; plain ServerError when its code is not known."""
    return _BY_CODE.get(problem.code, ServerError)(detail, problem)
