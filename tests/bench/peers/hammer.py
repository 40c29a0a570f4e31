"""Blocking connections that never pause, in processes of their own. Reads no more of an answer than its length.

An answer's bytes are compared for the first of each connection and every fiftieth later.
"""

import multiprocessing
import socket
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain

from peers.errors import Invalid
from peers.stub_wires import StubQuestion

_PROCESSES = 2
_EVERY = 50
_BUFFER_BYTES = 1 << 20
_TIMEOUT_S = 30.0
_MAX_BUSY = 0.95


class Refused(Invalid):
    """An answer that is none."""


@dataclass(frozen=True, slots=True)
class Tally:
    """What connections got. elapsed_s, cpu_s: of the process that held them."""

    latencies_ms: Sequence[float]
    elapsed_s: float
    cpu_s: float


def hammer(port: int, questions: Sequence[StubQuestion], seconds: float) -> list[Tally]:
    """Give each question a connection that asks it again and again. Raises Invalid for a wrong or missing answer."""
    shares = [questions[start::_PROCESSES] for start in range(_PROCESSES)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(_PROCESSES, mp_context=context) as pool:
        list(pool.map(time.sleep, [0.0] * _PROCESSES))
        return list(pool.map(_ask_side_by_side, [port] * _PROCESSES, shares, [seconds] * _PROCESSES))


def require_spare_time(tallies: Sequence[Tally]) -> float:
    """Return the busiest asker's share of a core. Raises Invalid where the askers were what was measured."""
    busiest = max(tally.cpu_s / tally.elapsed_s for tally in tallies)
    if busiest > _MAX_BUSY:
        raise Invalid(f"the askers were busy for {busiest:.0%} of the time, so they were what was measured")
    return busiest


def _ask_side_by_side(port: int, questions: Sequence[StubQuestion], seconds: float) -> Tally:
    started_s, cpu_s = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(len(questions)) as threads:
        latencies = list(threads.map(lambda question: _ask(port, question, seconds), questions))
    return Tally(list(chain(*latencies)), time.perf_counter() - started_s, time.process_time() - cpu_s)


def ask_once(port: int, question: StubQuestion) -> None:
    """Ask on a connection of its own. Raises OSError, Refused, or Invalid for a wrong answer."""
    with _connect(port) as connection:
        connection.sendall(question.request)
        require_pieces(bytes(read_reply(connection, memoryview(bytearray(_BUFFER_BYTES)))), question.pieces)


def _ask(port: int, question: StubQuestion, seconds: float) -> list[float]:
    latencies: list[float] = []
    buffer = memoryview(bytearray(_BUFFER_BYTES))
    with _connect(port) as connection:
        until_s = time.perf_counter() + seconds
        while (started_s := time.perf_counter()) < until_s:
            connection.sendall(question.request)
            body = read_reply(connection, buffer)
            if len(latencies) % _EVERY == 0:
                require_pieces(bytes(body), question.pieces)
            latencies.append(1000 * (time.perf_counter() - started_s))
    return latencies


def _connect(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), _TIMEOUT_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def read_reply(connection: socket.socket, buffer: memoryview) -> memoryview:
    """Return the body of one reply. Raises Invalid for anything but a whole 200 with a length."""
    have = 0
    while (end := bytes(buffer[:have]).find(b"\r\n\r\n")) < 0:
        have += _receive(connection, buffer[have:])
    head = bytes(buffer[:end]).lower()
    if not head.startswith(b"http/1.1 200"):
        raise Refused(f"the server answered {bytes(buffer[: min(have, end + 200)]).decode(errors='replace')!r}")
    length = next((int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"content-length:")), None)
    if length is None:
        raise Invalid("an answer does not say how long it is")
    start = end + 4
    while have < start + length:
        have += _receive(connection, buffer[have : start + length])
    return buffer[start : start + length]


def require_pieces(body: bytes, pieces: Sequence[bytes]) -> None:
    """Raise Invalid unless the body holds every piece of the right answer."""
    if not all(piece in body for piece in pieces):
        raise Invalid("an answer of the stub differs from the right one")


def _receive(connection: socket.socket, buffer: memoryview) -> int:
    count = connection.recv_into(buffer)
    if count == 0:
        raise Refused("the server hung up")
    return count
