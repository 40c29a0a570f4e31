"""Every refusal the server can give, drawn once.

    ServiceError
    ├── InvalidRequest         invalid_request 422
    │   ├── CameraMissing      camera_missing 422
    │   ├── StateDimMismatch   state_dim_mismatch 422
    │   ├── NonFinite          non_finite 422
    │   ├── TooExpensive       too_expensive 422
    │   └── DeadlineUnmeetable deadline_unmeetable 422 (even idle)
    ├── PayloadTooLarge        payload_too_large 413
    ├── UnsupportedMedia       unsupported_media 415
    ├── RequestTimeout         request_timeout 408
    ├── Unauthorized           unauthorized 401
    ├── Forbidden              forbidden 403
    ├── UnknownModel           unknown_model 404
    ├── CapabilityMissing      capability_missing 409
    ├── Superseded             superseded 409
    ├── Cancelled              cancelled 499
    ├── StepOutOfOrder         step_out_of_order 409
    ├── Gone                   gone 410
    ├── QuotaExceeded          quota_exceeded 429
    ├── Overloaded             overloaded 503
    ├── LoadedDeadline         deadline_unmeetable 503 (because of load)
    ├── NotReady               not_ready 503
    ├── DeadlineExceeded       deadline_exceeded 504
    ├── ModelFault             model_fault 500
    └── WorkerCrashed          worker_crashed 500

A message is written for a person and never repeats the input, a path or a traceback.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reason:
    """One thing wrong with a request: a JSON pointer into it, what was expected and what came, in words."""

    pointer: str
    message: str
    expected: str | None = None
    received: str | None = None


class ServiceError(Exception):
    """Base of every refusal. `code` and `status` are stable; `is_retryable` says whether the same call may succeed."""

    code = "model_fault"
    status = 500
    title = "The server failed"
    is_retryable = False

    def __init__(self, detail: str, *, reasons: Sequence[Reason] = (), retry_after_ms: int | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.reasons = tuple(reasons)
        self.retry_after_ms = retry_after_ms


class InvalidRequest(ServiceError):
    """The request was understood and is outside the model's contract."""

    code, status, title = "invalid_request", 422, "The request is not valid"


class CameraMissing(InvalidRequest):
    """A camera of the contract is missing, or an unknown one was sent."""

    code, title = "camera_missing", "A camera is missing or unknown"


class StateDimMismatch(InvalidRequest):
    """State rows have another width or number than the contract's."""

    code, title = "state_dim_mismatch", "States have the wrong shape"


class NonFinite(InvalidRequest):
    """A number is NaN or infinite."""

    code, title = "non_finite", "A number is not finite"


class TooExpensive(InvalidRequest):
    """The request needs more work than one request may."""

    code, title = "too_expensive", "The request is too expensive"


class DeadlineUnmeetable(InvalidRequest):
    """No idle server could meet this deadline."""

    code, title = "deadline_unmeetable", "The deadline cannot be met"


class PayloadTooLarge(ServiceError):
    """The body is larger than the limit."""

    code, status, title = "payload_too_large", 413, "The body is too large"


class UnsupportedMedia(ServiceError):
    """The content type, or a picture's encoding, is not one the server reads."""

    code, status, title = "unsupported_media", 415, "The media type is not supported"


class RequestTimeout(ServiceError):
    """The body did not arrive in time."""

    code, status, title, is_retryable = "request_timeout", 408, "The request arrived too slowly", True


class Unauthorized(ServiceError):
    """No valid key was sent."""

    code, status, title = "unauthorized", 401, "A valid key is needed"


class Forbidden(ServiceError):
    """The key may not do this."""

    code, status, title = "forbidden", 403, "The key does not allow this"


class UnknownModel(ServiceError):
    """No model, schema or resource has this name."""

    code, status, title = "unknown_model", 404, "No such model"


class CapabilityMissing(ServiceError):
    """The model exists and cannot do this."""

    code, status, title = "capability_missing", 409, "The model cannot do this"


class Superseded(ServiceError):
    """A newer request of the same stream replaced this one."""

    code, status, title = "superseded", 409, "A newer request replaced this one"


class Cancelled(ServiceError):
    """Its own caller took the request back."""

    code, status, title = "cancelled", 499, "The request was cancelled"


class StepOutOfOrder(ServiceError):
    """A session's step is not the next one."""

    code, status, title = "step_out_of_order", 409, "The step is out of order"


class Gone(ServiceError):
    """The observation or session has expired."""

    code, status, title = "gone", 410, "The resource has expired"


class QuotaExceeded(ServiceError):
    """The key has used up its budget for now."""

    code, status, title, is_retryable = "quota_exceeded", 429, "The quota is used up", True


class Overloaded(ServiceError):
    """The queue is full of predicted work."""

    code, status, title, is_retryable = "overloaded", 503, "The server is overloaded", True


class LoadedDeadline(ServiceError):
    """The work that waits leaves too little time before this deadline."""

    code, status, title, is_retryable = "deadline_unmeetable", 503, "The deadline cannot be met now", True


class NotReady(ServiceError):
    """The server is starting or draining."""

    code, status, title, is_retryable = "not_ready", 503, "The server is not ready", True


class DeadlineExceeded(ServiceError):
    """Time ran out before there was anything to return."""

    code, status, title, is_retryable = "deadline_exceeded", 504, "The deadline passed", True


class ModelFault(ServiceError):
    """A model failed or returned values that are not finite."""

    code, status, title = "model_fault", 500, "The model failed"


class WorkerCrashed(ServiceError):
    """Two workers died while they held this request."""

    code, status, title = "worker_crashed", 500, "The worker crashed"


def not_ready() -> NotReady:
    """Say that the server is starting or stopping."""
    return NotReady("The server is starting or stopping.", retry_after_ms=1000)


def retry_ms(wait_s: float) -> int:
    """Say in `retry_after_ms` that the same call may succeed after so long."""
    return max(1, math.ceil(1000 * wait_s))


CODES: tuple[type[ServiceError], ...] = (
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
"""Every code once, in the order of the tree; the client has one exception for each."""
