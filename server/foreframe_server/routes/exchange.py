"""One exchange: read, answer, write, every stage timed. The same for every kind of request and at every door.

Knows HTTP requests, and what a door has to bring that has none.
"""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, Generic, Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from foreframe_engines import Contract
from foreframe_server.access import current_caller
from foreframe_server.calls import Call, CallOptions, StageTimings
from foreframe_server.codec import DOCUMENT_MEDIA, Bounds, Document, EncodedReply, Media, Recall, read_light
from foreframe_server.hosting import Capability, HostedModel
from foreframe_server.loaded_models import Loan
from foreframe_server.metrics import WIRE_STAGES
from foreframe_server.observations import StoredObservation
from foreframe_server.routes.calls import (
    Received,
    build_call,
    call_of,
    read_received,
    receive,
    receive_ms,
    timing_headers,
)
from foreframe_server.routes.host import Host, host_of


class _Asked(Protocol):
    @property
    def options(self) -> CallOptions: ...


class _Answered(Protocol):
    @property
    def timings(self) -> StageTimings: ...


_MAX_NAME: Final = 128

AskedT = TypeVar("AskedT", bound=_Asked)
AnsweredT = TypeVar("AnsweredT", bound=_Answered)


@dataclass(frozen=True, slots=True, eq=False)
class Exchange(Generic[AskedT, AnsweredT]):
    """How one kind of request is read, answered and written.

    Writing takes place in the codec's threads, unless `is_light` says that it takes less time than to get there.
    """

    host: Host
    model: HostedModel
    decode: Callable[[Document, Media, Contract, Bounds, Recall], AskedT]
    answer: Callable[[AskedT, Call], Awaitable[AnsweredT]]
    encode: Callable[[AskedT, AnsweredT, Contract, Call], EncodedReply]
    is_light: Callable[[AskedT, AnsweredT], bool] = lambda _asked, _answered: False

    @property
    def contract(self) -> Contract:
        """The contract of the model that answers."""
        return self.model.contract

    def read(self, document: Document, accepted: Media) -> AskedT:
        """Read a document. May take long. Raises what `decode` raises."""
        return self.decode(document, accepted, self.contract, self.host.bounds, self._recall)

    def _recall(self, observation_id: str) -> StoredObservation:
        return self.host.observations.get(observation_id, current_caller().tenant).of_model(self.model.fingerprint)


@dataclass(frozen=True, slots=True)
class Offer(Generic[AskedT, AnsweredT]):
    """One kind of request: what it needs of a model, and how a model's exchange is put together.

    session_id: of a request to a session, which remembers its model. is_light: which small documents are read at once.
    """

    capability: Capability | None
    build: Callable[[Host, HostedModel], Exchange[AskedT, AnsweredT]]
    session_id: str | None = None
    is_light: Callable[[Document], bool] = lambda _document: False

    def check(self, host: Host) -> None:
        """Refuse what no model here could answer, before its body is read. Raises NotReady or what `build` raises."""
        self.build(host, host.models.prefer(self.capability))

    def open(self, host: Host, document: Document, loan: Loan) -> Exchange[AskedT, AnsweredT]:
        """Take the model that a document is for. Raises NotReady, UnknownModel, InvalidRequest, or as `build`."""
        return self.build(host, loan.take(partial(self._find, host, document)))

    def _find(self, host: Host, document: Document) -> HostedModel:
        if self.session_id is not None:
            return host.models.find_session(self.session_id)
        name = document.get("model")
        if name is None:
            name = self._remembered(host, document)
        if isinstance(name, str) and len(name) <= _MAX_NAME:
            return host.models.find(name)
        # What is no name at all is refused with everything else that is wrong, when the document is read.
        return host.models.choose(self.capability) if name is None else host.models.prefer(self.capability)

    @staticmethod
    def _remembered(host: Host, document: Document) -> str | None:
        """Return the model that encoded the observation that a document names, if it names one that is held."""
        observation_id = document.get("observation_id")
        if not isinstance(observation_id, str) or len(host.models) == 1:
            return None
        return host.observations.find_model(observation_id, current_caller().tenant)


@dataclass(frozen=True, slots=True)
class Opened(Generic[AskedT, AnsweredT]):
    """What a request asks for and of whom, the call it makes, and what reading it took."""

    exchange: Exchange[AskedT, AnsweredT]
    asked: AskedT
    call: Call
    receive_ms: float
    decode_ms: float


async def respond(
    request: Request, offer: Offer[AskedT, AnsweredT], offered: tuple[Media, ...] = DOCUMENT_MEDIA
) -> Response:
    """Turn a request into its reply. Raises what the offer's parts raise."""
    with host_of(request).models.loan() as loan:
        return await answer_opened(await open_request(request, offer, offered, loan))


async def answer_opened(opened: Opened[AskedT, AnsweredT]) -> Response:
    """Answer a request that was read. Raises what the exchange's parts raise."""
    answered = await opened.exchange.answer(opened.asked, opened.call)
    reply = await close_exchange(opened, answered)
    headers = {**reply.headers, **timing_headers(answered.timings)}
    return Response(reply.body, headers=headers, media_type=reply.media.value)


async def open_request(
    request: Request, offer: Offer[AskedT, AnsweredT], offered: tuple[Media, ...], loan: Loan
) -> Opened[AskedT, AnsweredT]:
    """Receive a request, take its model and read it. Raises what its parts raise."""
    host = host_of(request)
    offer.check(host)
    received = await receive(request, offered)
    read = await _read(host, offer, received, loan)
    decode_ms = received.elapsed_ms
    return Opened(
        read.exchange, read.asked, call_of(request, read.asked.options), receive_ms(request, received), decode_ms
    )


@dataclass(frozen=True, slots=True)
class _Read(Generic[AskedT, AnsweredT]):
    exchange: Exchange[AskedT, AnsweredT]
    asked: AskedT


async def _read(
    host: Host, offer: Offer[AskedT, AnsweredT], received: Received, loan: Loan
) -> _Read[AskedT, AnsweredT]:
    document = read_light(received.body, received.media)
    if document is None:
        return await host.compute(_read_body, host, offer, received, loan)
    if offer.is_light(document):
        return _read_document(host, offer, document, received.accepted, loan)
    return await host.compute(_read_document, host, offer, document, received.accepted, loan)


def _read_body(host: Host, offer: Offer[AskedT, AnsweredT], received: Received, loan: Loan) -> _Read[AskedT, AnsweredT]:
    document = read_received(received, max_values=host.bounds.max_json_values)
    return _read_document(host, offer, document, received.accepted, loan)


def _read_document(
    host: Host, offer: Offer[AskedT, AnsweredT], document: Document, accepted: Media, loan: Loan
) -> _Read[AskedT, AnsweredT]:
    exchange = offer.open(host, document, loan)
    return _Read(exchange, exchange.read(document, accepted))


async def open_fields(
    host: Host,
    offer: Offer[AskedT, AnsweredT],
    fields: Document,
    request_id: str,
    received_s: float,
    loan: Loan,
) -> Opened[AskedT, AnsweredT]:
    """Read a document that a door without HTTP received. Raises what its parts raise."""
    read = await host.compute(_read_document, host, offer, fields, Media.MSGPACK, loan)
    decode_ms = (time.monotonic() - received_s) * 1000
    return Opened(read.exchange, read.asked, build_call(request_id, received_s, read.asked.options), 0.0, decode_ms)


async def close_exchange(opened: Opened[AskedT, AnsweredT], answered: AnsweredT) -> EncodedReply:
    """Write an answer and record its stages. Completes `answered.timings`."""
    exchange, timings, call = opened.exchange, answered.timings, opened.call
    host = exchange.host
    timings.receive, timings.decode = opened.receive_ms, opened.decode_ms
    if exchange.is_light(opened.asked, answered):
        reply = exchange.encode(opened.asked, answered, exchange.contract, call)
    else:
        reply = await host.compute(exchange.encode, opened.asked, answered, exchange.contract, call)
    timings.total = (time.monotonic() - call.received_s) * 1000
    host.metrics.observe_stages(timings, WIRE_STAGES)
    return reply
