"""A transport whose end may be put off: closed while a client still sends, it would break before its reply was read."""

import asyncio
from collections.abc import Callable
from typing import Any


class LingeringTransport:
    """A transport as it is, except that `close` asks first. is_wanted: whether the client may still be sending.

    on_linger: is called once the client is told that nothing more will come; the owner aborts the transport in time.
    """

    def __init__(
        self, transport: asyncio.Transport, is_wanted: Callable[[], bool], on_linger: Callable[[], None]
    ) -> None:
        self._transport = transport
        self._is_wanted = is_wanted
        self._on_linger = on_linger
        self._is_lingering = False

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the transport has
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        """Whether nothing more may be written."""
        return self._is_lingering or self._transport.is_closing()

    def close(self) -> None:
        """End the connection, now or when the client has had time to read."""
        if self._transport.is_closing() or not (self._is_wanted() and self._transport.can_write_eof()):
            self._transport.close()
        elif not self._is_lingering:
            self._is_lingering = True
            self._transport.write_eof()
            self._transport.resume_reading()
            self._on_linger()
