"""The asyncio session: drives a session's flows as the blocking one does. Used by one task at a time."""

from __future__ import annotations

import functools
from types import TracebackType
from typing import TYPE_CHECKING, Any, Callable, Coroutine, Optional, Protocol, Type, TypeVar

from foreframe_client import _calls as calls
from foreframe_client import _session_calls as flows
from foreframe_client._http import method_signature

if TYPE_CHECKING:
    from typing_extensions import Concatenate, ParamSpec

    _P = ParamSpec("_P")
_T = TypeVar("_T")


class _Run(Protocol):
    """Drives a flow to its end."""

    async def __call__(self, flow: calls.Flow[_T], /) -> _T:
        """Return what the flow returns."""
        ...


def _awaitable(
    flow: Callable[Concatenate[flows.OpenSession, _P], calls.Flow[_T]],
) -> Callable[Concatenate[AsyncSession, _P], Coroutine[Any, Any, _T]]:
    """Make a coroutine method that drives a flow to its end."""

    @functools.wraps(flow)
    async def call(self: AsyncSession, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return await self._run(flow(self._opened, *args, **kwargs))

    call.__signature__ = method_signature(flow)  # type: ignore[attr-defined]
    return call


class AsyncSession:
    """A stateful rollout on the server. `AsyncClient.open_session` makes it; `async with` ends it with the block."""

    def __init__(self, opened: flows.OpenSession, run: _Run) -> None:
        self._opened = opened
        self._run = run

    @property
    def session_id(self) -> str:
        """The server's name for it."""
        return self._opened.session_id

    @property
    def committed_step_id(self) -> int:
        """The last step that was answered; 0 before the first."""
        return self._opened.committed_step_id

    step = _awaitable(flows.step)
    push = _awaitable(flows.push)
    rollback = _awaitable(flows.rollback)
    reset = _awaitable(flows.reset)
    status = _awaitable(flows.status)
    close = _awaitable(flows.close)

    async def fork(self) -> AsyncSession:
        """Start another session from where this one stands. Raises Gone when the session has ended."""
        return AsyncSession(await self._run(flows.fork(self._opened)), self._run)

    async def __aenter__(self) -> AsyncSession:
        return self

    async def __aexit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        await self.close()
