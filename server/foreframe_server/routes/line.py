"""A websocket that was accepted: frames in, frames out one at a time, an end with its reason. Knows no message."""

import asyncio
from typing import Any, Final

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from foreframe_server.disconnects import ClientLeft
from foreframe_server.errors import InvalidRequest, PayloadTooLarge, ServiceError
from foreframe_server.problems import closing_messages

SERVICE_RESTART: Final = 1012
"""Code of the end that the server itself brings about because it stops."""

_PATIENCE_S = 30.0
"""How long a reader may keep one frame waiting before it counts as gone."""


def is_server_leaving(receiving: asyncio.Task[Any]) -> bool:
    """Whether no frame follows because the server stops, so that what was asked is still to be answered."""
    if not receiving.done() or receiving.cancelled():
        return False
    error = receiving.exception()
    return isinstance(error, WebSocketDisconnect) and error.code == SERVICE_RESTART


class Line:
    """Takes and gives binary frames."""

    def __init__(self, websocket: WebSocket, max_bytes: int) -> None:
        self._websocket = websocket
        self._max_bytes = max_bytes
        self._turn = asyncio.Lock()

    async def receive(self) -> bytes:
        """Wait for a frame. Raises WebSocketDisconnect, InvalidRequest or PayloadTooLarge, all of them the end."""
        frame = await self._websocket.receive()
        if frame["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(frame.get("code", 1005))
        data = frame.get("bytes")
        if not isinstance(data, bytes):
            raise InvalidRequest("Messages are msgpack in binary frames; text is not read.")
        if len(data) > self._max_bytes:
            raise PayloadTooLarge(f"A message may have {self._max_bytes} bytes.")
        return data

    async def write(self, data: bytes | str) -> None:
        """Send a frame once those before it are taken. Raises WebSocketDisconnect when nobody takes it."""
        async with self._turn:
            if self._websocket.application_state is not WebSocketState.CONNECTED:
                raise WebSocketDisconnect(1006)
            try:
                async with asyncio.timeout(_PATIENCE_S):
                    if isinstance(data, str):
                        await self._websocket.send_text(data)
                    else:
                        await self._websocket.send_bytes(data)
            except TimeoutError:
                self._websocket.state.problem_code = ClientLeft.code
                raise WebSocketDisconnect(1006) from None

    async def close(self, error: ServiceError) -> None:
        """Say in a text frame what ended it, and close. Who is gone is not told so."""
        self._websocket.state.problem_code = error.code
        try:
            async with asyncio.timeout(_PATIENCE_S):
                for message in closing_messages(error):
                    await self._websocket.send(message)
        except (TimeoutError, WebSocketDisconnect):
            self._websocket.state.problem_code = ClientLeft.code
