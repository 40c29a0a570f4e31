"""One inference of the tensor door: a body's rows become native requests, run side by side, and become one batch."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Generic, Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from foreframe_server.calls import Answer, Call, CallOptions, StageTimings
from foreframe_server.codec import (
    LIKELIHOOD,
    LIKELIHOOD_OUTPUTS,
    PREDICTION,
    PREDICTION_OUTPUTS,
    SCORE,
    SCORE_OUTPUTS,
    SEED,
    Asked,
    AskedLikelihood,
    AskedScores,
    EncodedInference,
    Inference,
    Inferred,
    Media,
    OutputReader,
    TensorModel,
    Wanted,
    choose_outputs,
    likelihood_model,
    prediction_model,
    read_header_length,
    read_inference,
    read_mark,
    rename,
    score_model,
    write_inference,
    write_rows,
)
from foreframe_server.errors import CapabilityMissing, ServiceError, UnknownModel
from foreframe_server.kserve_schemas import DurationReply, InferenceStats, ModelStatistics
from foreframe_server.kserve_statistics import Duration, work_ms
from foreframe_server.likelihoods import LikelihoodAnswer
from foreframe_server.metrics import WIRE_STAGES
from foreframe_server.routes.calls import call_of, timing_headers
from foreframe_server.routes.exchange import Exchange
from foreframe_server.routes.host import Host, host_of
from foreframe_server.routes.likelihoods import likelihood_exchange
from foreframe_server.routes.predictions import prediction_exchange
from foreframe_server.routes.scores import score_exchange
from foreframe_server.routes.sequences import SequenceStep
from foreframe_server.scores import ScoreAnswer

LENGTH_HEADER = "Inference-Header-Content-Length"
_BINARY_MEDIA = "application/octet-stream"


class _Asked(Protocol):
    @property
    def options(self) -> CallOptions: ...


class _Answered(Protocol):
    @property
    def timings(self) -> StageTimings: ...


AskedT = TypeVar("AskedT", bound=_Asked)
AnsweredT = TypeVar("AnsweredT", bound=_Answered)


@dataclass(frozen=True, slots=True, eq=False)
class _Door(Generic[AskedT, AnsweredT]):
    """What one model's inference goes through."""

    model: TensorModel
    exchange: Exchange[AskedT, AnsweredT]
    reader: OutputReader[AskedT, AnsweredT]
    learn: Callable[[AnsweredT], None] = lambda _: None
    """Hears of every answer that has been written."""

    def parse(self, body: bytes, header_length: int | None) -> Inference:
        """Read a body's JSON and find its tensors. May take long. Raises InvalidRequest or ExtensionMissing."""
        max_values = self.exchange.host.bounds.max_json_values
        return read_inference(body, header_length, self.model.datatypes, max_values=max_values)

    def read(self, inference: Inference) -> "_Batch[AskedT]":
        """Read the rows. May take long. Raises what the exchange's `read` does, in the words of tensors."""
        wanted = choose_outputs(inference, self.model.output_names)
        return _Batch(inference, wanted, self._read_rows(inference))

    def _read_rows(self, inference: Inference) -> list[AskedT]:
        rows = []
        for row, document in enumerate(write_rows(inference, self.model)):
            try:
                rows.append(self.exchange.read(document, Media.MSGPACK))
            except ServiceError as error:
                raise rename(error, row, document, self.model) from error
        return rows

    def write(self, batch: "_Batch[AskedT]", answers: Sequence[AnsweredT]) -> EncodedInference:
        """Write the answers. May take long. Sets their `timings.respond`. Raises InvalidRequest."""
        start_s, contract = time.monotonic(), self.exchange.contract
        inferred = Inferred(
            name=self.model.name,
            version=contract.revision,
            parameters=self.reader.tell_rows(batch.rows, answers),
            outputs=self.reader.stack(self.model, [each.name for each in batch.wanted], answers, contract),
        )
        encoded = write_inference(inferred, batch.wanted, batch.inference.id)
        for answer in answers:
            answer.timings.respond = (time.monotonic() - start_s) * 1000
        return encoded


@dataclass(frozen=True, slots=True, eq=False)
class _Batch(Generic[AskedT]):
    """What a body asks for: the native request of each row, and the outputs that go back."""

    inference: Inference
    wanted: tuple[Wanted, ...]
    rows: Sequence[AskedT]


@dataclass(frozen=True, slots=True, eq=False)
class _Received:
    """A body's tensors, and when it was whole."""

    inference: Inference
    at_s: float


def _prediction_door(host: Host) -> _Door[Asked, Answer]:
    service = host.open_model().open_service()
    return _Door(
        prediction_model(service.contract),
        prediction_exchange(host),
        PREDICTION_OUTPUTS,
        lambda answer: service.observe_reply((answer.timings.reduce + answer.timings.respond) / 1000),
    )


def _likelihood_door(host: Host) -> _Door[AskedLikelihood, LikelihoodAnswer]:
    exchange = likelihood_exchange(host)
    return _Door(likelihood_model(exchange.contract), exchange, LIKELIHOOD_OUTPUTS)


def _score_door(host: Host) -> _Door[AskedScores, ScoreAnswer]:
    exchange = score_exchange(host)
    return _Door(score_model(exchange.contract), exchange, SCORE_OUTPUTS)


async def answer_inference(request: Request, name: str, version: str | None) -> Response:
    """Turn a request into its reply, and count it. Raises what the model's native route does, or ExtensionMissing."""
    host = host_of(request)
    model = open_tensor_model(host, name, version)
    try:
        return await _ANSWERS[model.name](request, host)
    except ServiceError:
        host.inference_counts[model.name].count_failure(_elapsed_ms(request.state.received_s))
        raise


async def _infer(door_of: Callable[[Host], _Door[AskedT, AnsweredT]], request: Request, host: Host) -> Response:
    door = door_of(host)
    return await _answer(request, door, await _receive(request, door))


async def _predict(request: Request, host: Host) -> Response:
    """Answer as `_infer` does, a step of a sequence by its session."""
    door = _prediction_door(host)
    received = await _receive(request, door)
    mark = read_mark(received.inference)
    if mark is None:
        return await _answer(request, door, received)
    seed = received.inference.parameters.get(SEED)
    step = SequenceStep(
        host.open_model().open_sessions(), host.sequences, mark, seed if isinstance(seed, int) else None
    )
    received = replace(received, inference=await step.complete(received.inference))
    return await _answer(request, replace(door, exchange=replace(door.exchange, answer=step.answer)), received)


async def _receive(request: Request, door: _Door[AskedT, AnsweredT]) -> _Received:
    header_length = read_header_length(request.headers.get(LENGTH_HEADER))
    body = await request.body()
    at_s = time.monotonic()
    return _Received(await door.exchange.host.compute(door.parse, body, header_length), at_s)


async def _answer(request: Request, door: _Door[AskedT, AnsweredT], received: _Received) -> Response:
    host = door.exchange.host
    batch = await host.compute(door.read, received.inference)
    began_s, decode_ms = request.state.received_s, _elapsed_ms(received.at_s)
    answers = await _answer_rows(door.exchange, batch.rows, call_of(request, batch.rows[0].options))
    encoded = await host.compute(door.write, batch, answers)
    for answer in answers:
        answer.timings.receive, answer.timings.decode = (received.at_s - began_s) * 1000, decode_ms
        answer.timings.total = _elapsed_ms(began_s)
        door.learn(answer)
    timings = [answer.timings for answer in answers]
    host.metrics.observe_stages(timings[0], WIRE_STAGES)
    cached = [answer.cache for answer in answers if isinstance(answer, Answer)]
    host.inference_counts[door.model.name].count_success(timings, cached, timings[0].total)
    return _respond(encoded, max(timings, key=work_ms))


async def _answer_rows(
    exchange: Exchange[AskedT, AnsweredT], rows: Sequence[AskedT], call: Call
) -> Sequence[AnsweredT]:
    """Answer rows side by side: the first that fails ends the others. Raises what it failed with."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_answer_row(exchange, row, call)) for row in rows]
    except* ServiceError as failures:
        failure = failures
    else:
        return [task.result() for task in tasks]
    raise failure.exceptions[0]


async def _answer_row(exchange: Exchange[AskedT, AnsweredT], row: AskedT, call: Call) -> AnsweredT:
    return await exchange.answer(row, call)


def _respond(encoded: EncodedInference, timings: StageTimings) -> Response:
    headers = timing_headers(timings)
    if encoded.header_length is None:
        return Response(encoded.body, headers=headers, media_type=Media.JSON.value)
    headers[LENGTH_HEADER] = str(encoded.header_length)
    return Response(encoded.body, headers=headers, media_type=_BINARY_MEDIA)


def _elapsed_ms(since_s: float) -> float:
    return (time.monotonic() - since_s) * 1000


_ANSWERS: Mapping[str, Callable[[Request, Host], Awaitable[Response]]] = {
    PREDICTION: _predict,
    LIKELIHOOD: partial(_infer, _likelihood_door),
    SCORE: partial(_infer, _score_door),
}
_MODELS: Mapping[str, Callable[[Host], TensorModel]] = {
    PREDICTION: lambda host: prediction_model(host.open_model().open_service().contract),
    LIKELIHOOD: lambda host: likelihood_model(host.open_model().open_likelihoods().contract),
    SCORE: lambda host: score_model(host.open_model().open_scores().contract),
}


def open_tensor_model(host: Host, name: str, version: str | None = None) -> TensorModel:
    """Return a model of the door. Raises NotReady, UnknownModel, or CapabilityMissing."""
    contract = host.open_contract()
    if name not in _MODELS:
        raise UnknownModel(f"The models are {', '.join(_MODELS)}.")
    if version not in (None, contract.revision):
        raise UnknownModel("The model has another version.")
    return _MODELS[name](host)


def tensor_models(host: Host) -> list[TensorModel]:
    """List the models that the bundle offers. Raises NotReady."""
    models = []
    for name in _MODELS:
        with contextlib.suppress(CapabilityMissing):
            models.append(open_tensor_model(host, name))
    return models


def write_statistics(host: Host, model: TensorModel) -> ModelStatistics:
    """Write what a model has done."""
    counts = host.inference_counts[model.name]
    return ModelStatistics(
        name=model.name,
        version=host.open_contract().revision,
        last_inference=counts.last_inference_ms,
        inference_count=counts.num_rows,
        execution_count=counts.num_computed,
        inference_stats=InferenceStats(
            **{name: _duration(getattr(counts, name)) for name in InferenceStats.model_fields}
        ),
    )


def _duration(duration: Duration) -> DurationReply:
    return DurationReply(count=duration.count, ns=duration.ns)
