"""The blocking client: drives the flows over httpx. May be used from several threads."""

from __future__ import annotations

import contextlib
import functools
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Callable, Generator, Iterator, Optional, Type, TypeVar, Union

import httpx

from foreframe_client import _calls as calls
from foreframe_client._encodings import FrameEncoding, check_encoding
from foreframe_client._errors import TransportError
from foreframe_client._http import (
    check_address,
    failure_of,
    headers_of,
    is_event_stream,
    method_signature,
    present_stream,
    reply_of,
    request_of,
)
from foreframe_client._progress import Hearing, streamed
from foreframe_client._repository_calls import load_model, model_statuses, unload_model
from foreframe_client._retry import RetryPolicy
from foreframe_client._session import Session
from foreframe_client._session_calls import OpenSession, open_session
from foreframe_client._types import Observation, Progress

if TYPE_CHECKING:
    from typing_extensions import Concatenate, ParamSpec

    _P = ParamSpec("_P")
_T = TypeVar("_T")


def _blocking(flow: Callable[Concatenate[calls.Session, _P], calls.Flow[_T]]) -> Callable[Concatenate[Client, _P], _T]:
    """Make a method that drives a flow to its end."""

    @functools.wraps(flow)
    def call(self: Client, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return self._run(flow(self._session, *args, **kwargs))

    call.__signature__ = method_signature(flow)  # type: ignore[attr-defined]
    return call


def _holding(
    flow: Callable[Concatenate[calls.Session, _P], calls.Flow[Observation]],
) -> Callable[Concatenate[Client, _P], HeldObservation]:
    """Make a method that drives a flow to its end and ties what it returns to the client."""

    @functools.wraps(flow)
    def call(self: Client, /, *args: _P.args, **kwargs: _P.kwargs) -> HeldObservation:
        held = self._run(flow(self._session, *args, **kwargs))
        return HeldObservation(held.id, held.expires_in_s, held.model, self)

    call.__signature__ = method_signature(flow, "HeldObservation")  # type: ignore[attr-defined]
    return call


def _opening(
    flow: Callable[Concatenate[calls.Session, _P], calls.Flow[OpenSession]],
) -> Callable[Concatenate[Client, _P], Session]:
    """Make a method that drives a flow to its end and gives the session that it opened."""

    @functools.wraps(flow)
    def call(self: Client, /, *args: _P.args, **kwargs: _P.kwargs) -> Session:
        return Session(self._run(flow(self._session, *args, **kwargs)), self._run)

    call.__signature__ = method_signature(flow, "Session")  # type: ignore[attr-defined]
    return call


def _streaming(
    flow: Callable[Concatenate[calls.Session, _P], calls.Flow[_T]],
) -> Callable[Concatenate[Client, _P], Generator[Union[Progress, _T], None, None]]:
    """Make a method that drives a flow to its end and yields what it hears on the way, then the answer."""

    def call(self: Client, /, *args: _P.args, **kwargs: _P.kwargs) -> Generator[Union[Progress, _T], None, None]:
        return self._stream(flow(self._session, *args, **kwargs))

    present_stream(call, flow, "Generator[{}, None, None]")
    return call


@dataclass(frozen=True)
class HeldObservation(Observation):
    """An observation that can be forgotten; as a context manager it is at the end of the block."""

    client: Optional[Client] = field(default=None, repr=False, compare=False)

    def forget(self) -> None:
        """Let the server drop it before it expires."""
        if self.client is not None:
            self.client.forget(self)

    def __enter__(self) -> HeldObservation:
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.forget()


class Client:
    """Talks to one server and keeps its connections open; close it, or use it as a context manager.

    `api_key` is `id.secret`, by default that of the environment variable FOREFRAME_API_KEY.
    `timeout_s` bounds the wait for an answer of a call without a deadline. `encoding` is how frames are sent; `jpeg`
    and `mp4` are small and lose a little, and need the extra `pictures`.
    """

    def __init__(  # noqa: PLR0913 - each with its default
        self,
        base_url: str = "http://127.0.0.1:8000",
        *,
        api_key: Optional[str] = None,
        timeout_s: float = 60.0,
        retry: Optional[RetryPolicy] = None,
        encoding: FrameEncoding = "raw",
        transport: Optional[httpx.BaseTransport] = None,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._session = calls.Session(timeout_s, retry or RetryPolicy(), encoding=check_encoding(encoding))
        self._http = httpx.Client(base_url=check_address(base_url), headers=headers_of(api_key), transport=transport)
        self._sleep = sleep

    predict = _blocking(calls.predict)
    predict_stream = _streaming(calls.predict)
    likelihood = _blocking(calls.likelihood)
    score = _blocking(calls.score)
    observe = _holding(calls.observe)
    forget = _blocking(calls.forget)
    open_session = _opening(open_session)
    models = _blocking(calls.models)
    model = _blocking(calls.model)
    state_schemas = _blocking(calls.state_schemas)
    check_states = _blocking(calls.check_states)
    ready = _blocking(calls.ready)
    health = _blocking(calls.health)
    version = _blocking(calls.version)
    model_statuses = _blocking(model_statuses)
    load_model = _blocking(load_model)
    unload_model = _blocking(unload_model)

    def _run(self, flow: calls.Flow[_T]) -> _T:
        outcome: calls.Outcome = None
        while True:
            try:
                step = flow.send(outcome)
            except StopIteration as end:
                return end.value
            outcome = self._take(step)

    def _take(self, step: calls.Step) -> calls.Outcome:
        if isinstance(step, calls.Pause):
            self._sleep(step.seconds)
            return None
        try:
            return reply_of(self._http.send(request_of(self._http, step)))
        except httpx.HTTPError as error:
            return failure_of(error, self._http.base_url)

    def _stream(self, flow: calls.Flow[_T]) -> Generator[Union[Progress, _T], None, None]:
        outcome: calls.Outcome = None
        while True:
            try:
                step = flow.send(outcome)
            except StopIteration as end:
                yield end.value
                return
            if calls.is_question(step):
                hearing = Hearing(step.read_timeout_s, self._session.clock)
                yield from self._hear(streamed(step), hearing)
                outcome = hearing.end()
            else:
                outcome = self._take(step)

    def _hear(self, step: calls.Send, hearing: Hearing) -> Iterator[Progress]:
        try:
            response = self._http.send(request_of(self._http, step), stream=True)
            with contextlib.closing(response):
                if not is_event_stream(response):
                    response.read()
                    hearing.outcome = reply_of(response)
                    return
                for piece in response.iter_bytes():
                    yield from hearing.feed(piece)
                    if isinstance(hearing.outcome, TransportError):
                        return
        except httpx.HTTPError as error:
            hearing.fail(failure_of(error, self._http.base_url))

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()
