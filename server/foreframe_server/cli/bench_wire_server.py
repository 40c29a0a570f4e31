"""A server of its own in another process, so that neither its work nor its processor time mixes with its client's."""

import contextlib
import json
import selectors
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from foreframe_server.cli.faults import Fault
from foreframe_server.cli.serving import running_server
from foreframe_server.load.stub import StubEngine, stub_contract
from foreframe_server.log import configure_logging
from foreframe_server.opening import given
from foreframe_server.settings import Settings

_START_S = 60.0


@dataclass(frozen=True, slots=True, eq=False)
class StubServer:
    """A running server and the pipes to its process."""

    address: str
    _asks: IO[str]
    _answers: IO[str]

    def cpu_s(self) -> float:
        """Return the seconds of processor that the server's process has used, all its threads together."""
        self._asks.write("\n")
        self._asks.flush()
        return float(self._answers.readline())


@contextlib.contextmanager
def running_stub(settings: Settings, size: int, context_frames: int) -> Iterator[StubServer]:
    """Serve a stub (see `stub_contract`) from a process of its own until the block ends.

    Raises Fault when it does not start.
    """
    command = [sys.executable, "-m", __name__, str(size), str(context_frames)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        asks, answers = process.stdin, process.stdout
        assert asks is not None  # noqa: S101 - both are pipes
        assert answers is not None  # noqa: S101
        asks.write(settings.model_dump_json() + "\n")
        asks.flush()
        address = answers.readline().strip() if _is_readable(answers, _START_S) else ""
        if not address:
            process.kill()
            raise Fault("the server of the bench did not start")
        yield StubServer(address, asks, answers)


def _is_readable(pipe: IO[str], timeout_s: float) -> bool:
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        return bool(selector.select(timeout_s))


def _serve() -> None:
    """Serve, and answer every line of the pipe with the processor's seconds, until it is closed."""
    size, context_frames = map(int, sys.argv[1:])
    settings = Settings(**json.loads(sys.stdin.readline()))
    configure_logging(is_quiet=True)
    with running_server(settings, given(StubEngine(stub_contract(size, context_frames)))) as address:
        print(address, flush=True)  # noqa: T201 - the other end of the pipe reads it
        while sys.stdin.readline():
            print(time.process_time(), flush=True)  # noqa: T201


if __name__ == "__main__":
    _serve()
