"""One MCAP file while it is written. Knows topics and messages, and not why they are written."""

import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from mcap.writer import Writer

from foreframe_server.recording.messages import schema_of

_CHUNK_BYTES = 2**18
"""What a crash may lose."""

_PROFILE = "foreframe"


class Log:
    """A file that grows message by message; close it, or it lacks its index. Raises OSError for a full disk."""

    def __init__(self, path: Path, facts: Mapping[str, str]) -> None:
        """Create the file for this user alone. facts: what a reader should know, as the record `foreframe`."""
        self.path = path
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        self._file = os.fdopen(descriptor, "wb")
        self._writer = Writer(self._file, chunk_size=_CHUNK_BYTES)
        self._num_bytes = 0
        self._schemas: dict[str, int] = {}
        self._channels: dict[str, int] = {}
        self._writer.start(profile=_PROFILE, library=_PROFILE)
        self._writer.add_metadata(_PROFILE, dict(facts))

    @property
    def num_bytes(self) -> int:
        """How much has been written."""
        return self._num_bytes if self._file.closed else self._file.tell()

    def write(self, topic: str, schema: str, data: bytes, at_ns: int, sequence: int = 0) -> None:
        """Write a message that is of a time. sequence: of the request that it belongs to."""
        channel = self._channels.get(topic)
        if channel is None:
            channel = self._channels[topic] = self._writer.register_channel(topic, "json", self._schema(schema))
        self._writer.add_message(channel, at_ns, data, at_ns, sequence)

    def _schema(self, name: str) -> int:
        if name not in self._schemas:
            self._schemas[name] = self._writer.register_schema(name, "jsonschema", schema_of(name))
        return self._schemas[name]

    def flush(self) -> None:
        """Hand whole chunks to the operating system."""
        self._file.flush()

    def close(self) -> None:
        """Write the index and close the file."""
        try:
            self._writer.finish()  # type: ignore[no-untyped-call]
        finally:
            self._num_bytes = self._file.tell()
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
