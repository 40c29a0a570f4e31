"""Messages over a handle of Ray Serve; what breaks on the way is a lost replica."""

import contextlib
from collections.abc import AsyncGenerator, Iterator
from contextvars import Context
from typing import cast

from ray import exceptions
from ray.serve.exceptions import RayServeException, RequestCancelledError
from ray.serve.handle import DeploymentHandle, DeploymentResponse, DeploymentResponseGenerator

from foreframe_server.ray.replicas import Method, ReplicaLost

_ANSWER_S = 5.0
"""A replica that says nothing for so long when it is asked how it stands is left as it was heard of last."""


class HandleLink:
    """Carries messages through a deployment's handle; see `Link`."""

    def __init__(self, handle: DeploymentHandle[object]) -> None:
        self._handle = handle

    async def broadcast(self, data: bytes) -> list[bytes]:
        """Ask every replica how a model stands."""
        with _losing():
            replies = self._handle.broadcast("stand", "", data)
            told = await replies.results_async(timeout_s=_ANSWER_S, return_exceptions=True)
        return [reply for reply in told if isinstance(reply, bytes)]

    async def run(self, place: str, data: bytes) -> AsyncGenerator[bytes, None]:
        """Run a job and hear of it; closing it cancels the job."""
        options = self._handle.options(method_name="run", stream=True)
        response = cast("DeploymentResponseGenerator[bytes]", _apart(options, place, data))
        try:
            with _losing():
                async for news in response:
                    yield news
        finally:
            response.cancel()  # type: ignore[no-untyped-call]

    async def ask(self, method: Method, place: str, data: bytes) -> bytes:
        """Call a method of one replica."""
        with _losing():
            return await self._call(method, place, data)

    def ask_now(self, method: Method, place: str, data: bytes, limit_s: float) -> bytes:
        """Call a method of one replica, from a thread without an event loop."""
        with _losing():
            return self._call(method, place, data).result(timeout_s=limit_s)

    def _call(self, method: Method, place: str, data: bytes) -> DeploymentResponse[bytes]:
        return cast("DeploymentResponse[bytes]", _apart(self._handle.options(method_name=method), place, data))


def _apart(options: DeploymentHandle[object], place: str, data: bytes) -> object:
    """Send a call on its way in a context of its own.

    Calls of one request share its id in Ray Serve, and a router, which finds them by it, takes the one for the other.
    """
    return Context().run(options.remote, place, data)


@contextlib.contextmanager
def _losing() -> Iterator[None]:
    try:
        yield
    except (exceptions.RayError, RayServeException, RequestCancelledError, TimeoutError) as error:
        raise ReplicaLost(type(error).__name__) from error
