"""Routes that read their whole request themselves: who may ask is settled as declared, and nothing else is injected."""

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, cast

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from foreframe_server.access import Policy, PolicyMissing


class DirectRoute(APIRoute):
    """A route whose endpoint takes the request alone, so that FastAPI has nothing to solve for each one.

    Raises PolicyMissing when it has any dependency but one policy, TypeError when its endpoint takes anything else.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return what lets a caller in and asks the endpoint."""
        policy = self._sole_policy()
        endpoint = cast("Callable[[Request], Awaitable[Response]]", self.endpoint)

        async def handle(request: Request) -> Response:
            await policy(request)
            return await endpoint(request)

        self._handler = handle
        return handle

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request. Nothing was injected, so nothing has to be closed behind the reply."""
        if scope["method"] not in (self.methods or ()):
            await super().handle(scope, receive, send)
            return
        response = await self._handler(Request(scope, receive, send))
        await response(scope, receive, send)

    def _sole_policy(self) -> Policy:
        needed = self.dependant
        injected = (needed.path_params, needed.query_params, needed.header_params, needed.cookie_params)
        if self.body_field is not None or any(injected) or needed.request_param_name is None:
            raise TypeError(f"the endpoint of {self.path} takes more than its request")
        calls = [dependency.call for dependency in needed.dependencies]
        if len(calls) != 1 or not isinstance(calls[0], Policy):
            raise PolicyMissing(f"the route {self.path} needs one policy and no other dependency")
        return calls[0]
