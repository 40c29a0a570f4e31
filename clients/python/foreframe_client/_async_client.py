"""The asyncio client: drives the same flows as the blocking one."""

from __future__ import annotations

import asyncio
import functools
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, AsyncGenerator, Awaitable, Callable, Coroutine, Optional, Type, TypeVar, Union

import httpx

from foreframe_client import _calls as calls
from foreframe_client._async_session import AsyncSession
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
from foreframe_client._session_calls import OpenSession, open_session
from foreframe_client._types import Observation, Progress

if TYPE_CHECKING:
    from typing_extensions import Concatenate, ParamSpec

    _P = ParamSpec("_P")
_T = TypeVar("_T")


def _awaitable(
    flow: Callable[Concatenate[calls.Session, _P], calls.Flow[_T]],
) -> Callable[Concatenate[AsyncClient, _P], Coroutine[Any, Any, _T]]:
    """Make a coroutine method that drives a flow to its end."""

    @functools.wraps(flow)
    async def call(self: AsyncClient, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return await self._run(flow(self._session, *args, **kwargs))

    call.__signature__ = method_signature(flow)  # type: ignore[attr-defined]
    return call


def _holding(
    flow: Callable[Concatenate[calls.Session, _P], calls.Flow[Observation]],
) -> Callable[Concatenate[AsyncClient, _P], Coroutine[Any, Any, AsyncHeldObservation]]:
    """Make a coroutine method that drives a flow to its end and ties what it returns to the client."""

    @functools.wraps(flow)
    async def call(self: AsyncClient, /, *args: _P.args, **kwargs: _P.kwargs) -> AsyncHeldObservation:
        held = await self._run(flow(self._session, *args, **kwargs))
        return AsyncHeldObservation(held.id, held.expires_in_s, held.model, self)

    call.__signature__ = method_signature(flow, "AsyncHeldObservation")  # type: ignore[attr-defined]
    return call


def _opening(
    flow: Callable[Concatenate[calls.Session, _P], calls.Flow[OpenSession]],
) -> Callable[Concatenate[AsyncClient, _P], Coroutine[Any, Any, AsyncSession]]:
    """Make a coroutine method that drives a flow to its end and gives the session that it opened."""

    @functools.wraps(flow)
    async def call(self: AsyncClient, /, *args: _P.args, **kwargs: _P.kwargs) -> AsyncSession:
        return AsyncSession(await self._run(flow(self._session, *args, **kwargs)), self._run)

    call.__signature__ = method_signature(flow, "AsyncSession")  # type: ignore[attr-defined]
    return call


def _streaming(
    flow: Callable[Concatenate[calls.Session, _P], calls.Flow[_T]],
) -> Callable[Concatenate[AsyncClient, _P], AsyncGenerator[Union[Progress, _T], None]]:
    """Make a method that drives a flow to its end and yields what it hears on the way, then the answer."""

    def call(self: AsyncClient, /, *args: _P.args, **kwargs: _P.kwargs) -> AsyncGenerator[Union[Progress, _T], None]:
        return self._stream(flow(self._session, *args, **kwargs))

    present_stream(call, flow, "AsyncGenerator[{}, None]")
    return call


@dataclass(frozen=True)
class AsyncHeldObservation(Observation):
    """An observation that can be forgotten; as an async context manager it is at the end of the block."""

    client: Optional[AsyncClient] = field(default=None, repr=False, compare=False)

    async def forget(self) -> None:
        """Let the server drop it before it expires."""
        if self.client is not None:
            await self.client.forget(self)

    async def __aenter__(self) -> AsyncHeldObservation:
        return self

    async def __aexit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        await self.forget()


class AsyncClient:
    """Talks to one server and keeps its connections open; close it, or use it as an async context manager.

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
        transport: Optional[httpx.AsyncBaseTransport] = None,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._session = calls.Session(timeout_s, retry or RetryPolicy(), encoding=check_encoding(encoding))
        self._http = httpx.AsyncClient(
            base_url=check_address(base_url), headers=headers_of(api_key), transport=transport
        )
        self._sleep = sleep

    predict = _awaitable(calls.predict)
    predict_stream = _streaming(calls.predict)
    likelihood = _awaitable(calls.likelihood)
    score = _awaitable(calls.score)
    observe = _holding(calls.observe)
    forget = _awaitable(calls.forget)
    open_session = _opening(open_session)
    models = _awaitable(calls.models)
    model = _awaitable(calls.model)
    state_schemas = _awaitable(calls.state_schemas)
    check_states = _awaitable(calls.check_states)
    ready = _awaitable(calls.ready)
    health = _awaitable(calls.health)
    version = _awaitable(calls.version)
    model_statuses = _awaitable(model_statuses)
    load_model = _awaitable(load_model)
    unload_model = _awaitable(unload_model)

    async def _run(self, flow: calls.Flow[_T]) -> _T:
        outcome: calls.Outcome = None
        while True:
            try:
                step = flow.send(outcome)
            except StopIteration as end:
                return end.value
            outcome = await self._take(step)

    async def _take(self, step: calls.Step) -> calls.Outcome:
        if isinstance(step, calls.Pause):
            await self._sleep(step.seconds)
            return None
        try:
            return reply_of(await self._http.send(request_of(self._http, step)))
        except httpx.HTTPError as error:
            return failure_of(error, self._http.base_url)

    async def _stream(self, flow: calls.Flow[_T]) -> AsyncGenerator[Union[Progress, _T], None]:
        outcome: calls.Outcome = None
        while True:
            try:
                step = flow.send(outcome)
            except StopIteration as end:
                yield end.value
                return
            if not calls.is_question(step):
                outcome = await self._take(step)
                continue
            hearing = Hearing(step.read_timeout_s, self._session.clock)
            heard = self._hear(streamed(step), hearing)
            try:
                async for progress in heard:
                    yield progress
            finally:
                await heard.aclose()  # who leaves early hangs up at once
            outcome = hearing.end()

    async def _hear(self, step: calls.Send, hearing: Hearing) -> AsyncGenerator[Progress, None]:
        try:
            response = await self._http.send(request_of(self._http, step), stream=True)
            try:
                if not is_event_stream(response):
                    await response.aread()
                    hearing.outcome = reply_of(response)
                    return
                async for piece in response.aiter_bytes():
                    for progress in hearing.feed(piece):
                        yield progress
                    if isinstance(hearing.outcome, TransportError):
                        return
            finally:
                await response.aclose()
        except httpx.HTTPError as error:
            hearing.fail(failure_of(error, self._http.base_url))

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        await self.close()
