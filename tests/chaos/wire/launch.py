"""`python -m wire.launch`: serve a calm oracle until told to stop, with a fault planted where the environment says."""

import os
from collections import deque

from harness.launch import announce
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from wire.openers import open_calm

from foreframe_server import bodies
from foreframe_server.bodies import Body
from foreframe_server.cli.serving import serve_until_stopped
from foreframe_server.errors import ServiceError
from foreframe_server.log import configure_logging
from foreframe_server.problems import HANDLERS
from foreframe_server.settings import read_settings

FAULT = "WIRE_FAULT"
LAST = deque([b""], maxlen=1)


class KeptBody(Body):
    """A body that is kept for the planted fault."""

    def close(self) -> memoryview:
        LAST.append(bytes(whole := super().close()))
        return whole


async def echo(request: Request, _: Exception) -> Response:
    """Answer a refusal with what was sent, as a framework's own handler does: raw bytes cannot be written so."""
    return JSONResponse({"code": "planted", "path": request.url.path, "input": LAST[-1].decode()}, 422)


def main() -> None:
    configure_logging()
    if os.environ.get(FAULT) == "echo":
        bodies.Body = KeptBody
        HANDLERS[ServiceError] = echo
    serve_until_stopped(read_settings({"http": {"host": "127.0.0.1", "port": 0}}), announce, open_calm)


if __name__ == "__main__":
    main()
