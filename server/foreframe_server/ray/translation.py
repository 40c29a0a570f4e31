"""Jobs, results and refusals as messages and back. Knows no Ray and no engine.

Deadlines cross as what is left of them.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from foreframe_engines import EngineError, EngineLost, EnsembleSpec, Query, Sampling
from foreframe_server.calls import Call, Timings
from foreframe_server.errors import CODES, ModelFault, ServiceError
from foreframe_server.jobs import Share
from foreframe_server.processes.answering import ERRORS
from foreframe_server.processes.messages import Failure
from foreframe_server.processes.parcels import Parcel
from foreframe_server.ray.envelopes import Letter
from foreframe_server.ray.messages import JobCall, Lost, Refusal, Result
from foreframe_server.tickets import Frames, Listener, WorkerResult

_REFUSALS = {error.__name__: error for error in CODES}
_ERRORS = {name: kind for kind, name in ERRORS.items()}


@dataclass(frozen=True, slots=True, eq=False)
class Order:
    """A job as it is admitted, on whichever side."""

    query: Query
    call: Call
    first_member: int
    share: Share


def write_job(order: Order, job: str, now: float, listener: Listener | None, parcel: Parcel) -> JobCall:
    """Write a job; `now` is on the call's clock."""
    query, call = order.query, order.call
    sampling, ensemble = query.sampling, query.ensemble
    latents = query.context_latents
    return JobCall(
        job=job,
        model=query.model,
        context=parcel.put(query.context),
        states=parcel.put(query.states),
        context_latents=None if latents is None else parcel.put(latents),
        frame_indices=tuple(int(index) for index in query.frame_indices),
        strategy=sampling.strategy,
        steps=sampling.steps,
        seed=sampling.seed,
        guidance=sampling.guidance,
        size=ensemble.size,
        reducer=ensemble.reducer,
        noise=ensemble.noise,
        tolerance=ensemble.tolerance,
        priority=query.priority,
        stream_id=query.stream_id,
        request_id=call.request_id,
        key=call.key,
        tenant=call.tenant,
        received_s=now - call.received_s,
        left_s=None if call.deadline_s is None else call.deadline_s - now,
        on_deadline=call.on_deadline,
        first_member=order.first_member,
        share_index=order.share.index,
        share_count=order.share.count,
        is_told=listener is not None,
        wants_estimate=listener is not None and listener.wants_estimate,
    )


def read_job(letter: Letter, body: JobCall, now: float) -> Order:
    """Read a job; `now` is on this side's clock. Raises CorruptFrame."""
    query = Query(
        model=body.model,
        context=letter.array(body.context),
        states=letter.array(body.states),
        frame_indices=body.frame_indices,
        sampling=Sampling(body.strategy, body.steps, body.seed, body.guidance),
        ensemble=EnsembleSpec(body.size, body.reducer, body.noise, body.tolerance),
        priority=body.priority,
        stream_id=body.stream_id,
        context_latents=None if body.context_latents is None else letter.array(body.context_latents),
    )
    call = Call(
        request_id=body.request_id,
        received_s=now - body.received_s,
        deadline_s=None if body.left_s is None else now + body.left_s,
        on_deadline=body.on_deadline,
        priority=body.priority,
        key=body.key,
        tenant=body.tenant,
    )
    return Order(query, call, body.first_member, Share(body.share_index, body.share_count))


def write_result(result: WorkerResult, num_told: int, parcel: Parcel) -> Result:
    """Write what a job came to, without the members that were told before."""
    return Result(
        members=tuple(parcel.put(frames) for frames in result.members[num_told:]),
        latents=tuple(parcel.put(latents) for latents in result.latents),
        steps=result.steps,
        is_estimate=result.is_estimate,
        timings=asdict(result.timings),
    )


def read_result(letter: Letter, body: Result, told: Sequence[Frames]) -> WorkerResult:
    """Read what a job came to, behind the members that were told. Raises CorruptFrame."""
    members = (*told, *(letter.array(index) for index in body.members))
    latents = tuple(np.asarray(letter.array(index)) for index in body.latents)
    timings = {name: value for name, value in body.timings.items() if name in Timings.__dataclass_fields__}
    is_cold = bool(timings.pop("cold", False))
    return WorkerResult(members, latents, Timings(**timings, cold=is_cold), body.steps, body.is_estimate)


def write_error(error: Exception) -> Refusal | Failure | Lost:
    """Write what a call raised; of what is nobody's to know only that the model failed."""
    if isinstance(error, EngineLost):
        return Lost(message=str(error), has_run=error.has_run)
    if isinstance(error, ServiceError):
        return Refusal(
            error=type(error).__name__,
            detail=error.detail,
            reasons=error.reasons,
            retry_after_ms=error.retry_after_ms,
        )
    if isinstance(error, EngineError):
        name = next(name for kind, name in ERRORS.items() if isinstance(error, kind))
        return Failure(error=name, message=str(error))
    return Failure(error="ModelFault", message=f"the engine raised {type(error).__name__}")


def read_error(body: Refusal | Failure | Lost) -> Exception:
    """Read what a call raised."""
    match body:
        case Lost():
            return EngineLost(body.message, has_run=body.has_run)
        case Failure():
            return _ERRORS[body.error](body.message)
        case Refusal():
            kind = _REFUSALS.get(body.error, ModelFault)
            return kind(body.detail, reasons=body.reasons, retry_after_ms=body.retry_after_ms)
