"""One inference of the tensor door: a body's rows become native requests, run side by side, and become one batch."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Generic, Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from foreframe_server.access import current_caller
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
from foreframe_server.hosting import Capability, HostedModel
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
    """What one model's inference goes through. name: as the model was asked for."""

    name: str
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
            name=self.name,
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


@dataclass(frozen=True, slots=True, eq=False)
class HostedTensors:
    """A model of this door, which is what a loaded model does in one way. name: as it is asked for."""

    name: str
    kind: str
    model: HostedModel
    tensors: TensorModel

    @property
    def version(self) -> str:
        """The loaded model's revision."""
        return self.model.contract.revision


def _prediction_door(host: Host, found: HostedTensors) -> _Door[Asked, Answer]:
    service = found.model.open_service()
    return _Door(
        found.name,
        found.tensors,
        prediction_exchange(host, found.model),
        PREDICTION_OUTPUTS,
        lambda answer: service.observe_reply((answer.timings.reduce + answer.timings.respond) / 1000),
    )


def _likelihood_door(host: Host, found: HostedTensors) -> _Door[AskedLikelihood, LikelihoodAnswer]:
    return _Door(found.name, found.tensors, likelihood_exchange(host, found.model), LIKELIHOOD_OUTPUTS)


def _score_door(host: Host, found: HostedTensors) -> _Door[AskedScores, ScoreAnswer]:
    return _Door(found.name, found.tensors, score_exchange(host, found.model), SCORE_OUTPUTS)


async def answer_inference(request: Request, name: str, version: str | None) -> Response:
    """Turn a request into its reply, and count it. Raises what the model's native route does, or ExtensionMissing."""
    host = host_of(request)
    with host.models.loan() as loan:
        loan.take(lambda: _find_model(host, name))
        found = open_tensor_model(host, name, version)
        try:
            return await _ANSWERS[found.kind](request, host, found)
        except ServiceError:
            host.inference_counts[found.name].count_failure(_elapsed_ms(request.state.received_s))
            raise


async def _infer(
    door_of: Callable[[Host, HostedTensors], _Door[AskedT, AnsweredT]],
    request: Request,
    host: Host,
    found: HostedTensors,
) -> Response:
    door = door_of(host, found)
    return await _answer(request, door, await _receive(request, door))


async def _predict(request: Request, host: Host, found: HostedTensors) -> Response:
    """Answer as `_infer` does, a step of a sequence by its session."""
    door = _prediction_door(host, found)
    received = await _receive(request, door)
    mark = read_mark(received.inference)
    if mark is None:
        return await _answer(request, door, received)
    seed = received.inference.parameters.get(SEED)
    step = SequenceStep(
        sessions=found.model.open_sessions(),
        book=found.model.sequences,
        mark=mark,
        seed=seed if isinstance(seed, int) else None,
        tenant=current_caller().tenant,
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
    host.inference_counts[door.name].count_success(timings, cached, timings[0].total)
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


_ANSWERS: Final[Mapping[str, Callable[[Request, Host, HostedTensors], Awaitable[Response]]]] = {
    PREDICTION: _predict,
    LIKELIHOOD: partial(_infer, _likelihood_door),
    SCORE: partial(_infer, _score_door),
}
_MODELS: Final[Mapping[str, Callable[[HostedModel], TensorModel]]] = {
    PREDICTION: lambda model: prediction_model(model.open_service().contract),
    LIKELIHOOD: lambda model: likelihood_model(model.open_likelihoods().contract),
    SCORE: lambda model: score_model(model.open_scores().contract),
}
_CAPABILITIES: Final[Mapping[str, Capability]] = {PREDICTION: "predict", LIKELIHOOD: "likelihood", SCORE: "score"}
_SUFFIXES: Final = {kind: kind.removeprefix(PREDICTION) for kind in _MODELS}
"""What comes after a loaded model's own name."""


def open_tensor_model(host: Host, name: str, version: str | None = None) -> HostedTensors:
    """Return a model of the door: of the default model by its kind, or of any by its own name.

    Raises NotReady, UnknownModel, or CapabilityMissing.
    """
    model, kind = _find_model(host, name), _kind_of(host, name)
    if version not in (None, model.contract.revision):
        raise UnknownModel("The model has another version.")
    return HostedTensors(name, kind, model, _MODELS[kind](model))


def _find_model(host: Host, name: str) -> HostedModel:
    kind = _kind_of(host, name)
    if name == kind:
        return host.models.prefer(_CAPABILITIES[kind])
    return host.models.find(name if kind == PREDICTION else name.removesuffix(_SUFFIXES[kind]))


def _kind_of(host: Host, name: str) -> str:
    """Say what a name's model does. Raises NotReady, or UnknownModel."""
    known = tensor_names(host)
    if name not in known:
        raise UnknownModel(f"The models are {', '.join(known)}.")
    return known[name]


def tensor_names(host: Host) -> dict[str, str]:
    """Return the kind of each name of this door. Raises NotReady."""
    host.open_model()
    names = {kind: kind for kind in _MODELS}
    for model in host.models.every():
        names |= {f"{model.contract.model}{suffix}": kind for kind, suffix in _SUFFIXES.items()}
    return names


def tensor_models(host: Host) -> list[HostedTensors]:
    """List what the default model offers, and what others do by their own names. Raises NotReady."""
    is_alone = len(host.models) == 1
    models = []
    for name in _MODELS if is_alone else tensor_names(host):
        with contextlib.suppress(CapabilityMissing):
            models.append(open_tensor_model(host, name))
    return models


def write_statistics(host: Host, model: HostedTensors) -> ModelStatistics:
    """Write what a model has done."""
    counts = host.inference_counts[model.name]
    return ModelStatistics(
        name=model.name,
        version=model.version,
        last_inference=counts.last_inference_ms,
        inference_count=counts.num_rows,
        execution_count=counts.num_computed,
        inference_stats=InferenceStats(
            **{name: _duration(getattr(counts, name)) for name in InferenceStats.model_fields}
        ),
    )


def _duration(duration: Duration) -> DurationReply:
    return DurationReply(count=duration.count, ns=duration.ns)
