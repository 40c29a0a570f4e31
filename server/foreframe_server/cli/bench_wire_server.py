"""A server of its own in another process, so that neither its work nor its processor time mixes with its client's."""

import contextlib
import multiprocessing
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection

from foreframe_engines import Contract
from foreframe_server.cli.faults import Fault
from foreframe_server.cli.serving import running_server
from foreframe_server.load.stub import StubEngine
from foreframe_server.log import configure_logging
from foreframe_server.opening import given
from foreframe_server.settings import Settings

_START_S = 60.0


@dataclass(frozen=True, slots=True, eq=False)
class StubServer:
    """A running server and the pipe to its process."""

    address: str
    _pipe: Connection

    def cpu_s(self) -> float:
        """Return the seconds of processor that the server's process has used, all its threads together."""
        self._pipe.send(None)
        seconds: float = self._pipe.recv()
        return seconds


@contextlib.contextmanager
def running_stub(settings: Settings, contract: Contract) -> Iterator[StubServer]:
    """Serve a stub from a process of its own until the block ends. Raises Fault when it does not start."""
    spawning = multiprocessing.get_context("spawn")
    here, there = spawning.Pipe()
    process = spawning.Process(target=_serve, args=(settings, contract, there), name="foreframe-stub")
    process.start()
    there.close()
    try:
        if not here.poll(_START_S):
            raise Fault("the server of the bench did not start")
        yield StubServer(here.recv(), here)
    finally:
        here.close()
        process.join()


def _serve(settings: Settings, contract: Contract, pipe: Connection) -> None:
    """Serve, and answer every message of the pipe with the processor's seconds, until it is closed."""
    configure_logging(is_quiet=True)
    with running_server(settings, given(StubEngine(contract))) as address, contextlib.suppress(EOFError):
        pipe.send(address)
        while True:
            pipe.recv()
            pipe.send(time.process_time())
