"""The blocking session: drives a session's flows. Used by one thread at a time."""

from __future__ import annotations

import functools
from types import TracebackType
from typing import TYPE_CHECKING, Callable, Optional, Protocol, Type, TypeVar

from foreframe_client import _calls as calls
from foreframe_client import _session_calls as flows
from foreframe_client._http import method_signature

if TYPE_CHECKING:
    from typing_extensions import Concatenate, ParamSpec

    _P = ParamSpec("_P")
_T = TypeVar("_T")


class _Run(Protocol):
    """Drives a flow to its end."""

    def __call__(self, flow: calls.Flow[_T], /) -> _T:
        """Return what the flow returns."""
        ...


def _blocking(
    flow: Callable[Concatenate[flows.OpenSession, _P], calls.Flow[_T]],
) -> Callable[Concatenate[Session, _P], _T]:
    """Make a method that drives a flow to its end."""

    @functools.wraps(flow)
    def call(self: Session, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return self._run(flow(self._opened, *args, **kwargs))

    call.__signature__ = method_signature(flow)  # type: ignore[attr-defined]
    return call


class Session:
    """A stateful rollout on the server. `Client.open_session` makes it; `with` ends it with the block."""

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

    step = _blocking(flows.step)
    push = _blocking(flows.push)
    rollback = _blocking(flows.rollback)
    reset = _blocking(flows.reset)
    status = _blocking(flows.status)
    close = _blocking(flows.close)

    def fork(self) -> Session:
        """Start another session from where this one stands. Raises Gone when the session has ended."""
        return Session(self._run(flows.fork(self._opened)), self._run)

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()
