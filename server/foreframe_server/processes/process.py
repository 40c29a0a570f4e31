"""One process with an engine, from its start to its death, as its parent sees it. Knows no restarts.

A process has one way to end: it is killed, also when all is well.
"""

import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from itertools import count
from typing import Self, TypeAlias

from foreframe_engines import EngineError, RuntimeUnavailable
from foreframe_server.processes.answering import ERRORS
from foreframe_server.processes.channel import Channel, ChannelClosed, Link, Message
from foreframe_server.processes.frames import CorruptFrame
from foreframe_server.processes.limits import ProcessLimits
from foreframe_server.processes.messages import Body, Call, Failure, Hello, Open
from foreframe_server.processes.parcels import Parcel
from foreframe_server.processes.shared_memory import SharedMemory
from foreframe_server.processes.tally import Tally

Write: TypeAlias = Callable[[Parcel], Call]
"""Writes a call: its arrays into the parcel, and the body that counts into them."""

_MODULE = "foreframe_server.processes.child"
_ERRORS = {name: kind for kind, name in ERRORS.items()}


class ProcessLost(Exception):
    """The process is dead, silent or not to be understood. `reason`: crash, hang or corrupt."""

    def __init__(self, reason: str, *, has_run: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        self.has_run = has_run


class EngineProcess:
    """A process with an engine: `spawn`, `open`, then calls, one at a time, until it is lost or killed.

    Spawn it in a thread that outlives it: the system ends it with that thread.
    """

    def __init__(self, popen: "subprocess.Popen[bytes]", link: Link, begun: Tally) -> None:
        """Take over a process that runs `child`, this side's end of the link, and the tally of the calls it began."""
        self.pid = popen.pid
        self.lost: str | None = None
        """Why it was given up, when it was not found dead."""
        self._popen = popen
        self._pidfd = os.pidfd_open(popen.pid)
        self._link = link
        self._begun = begun
        self._num_answered = 0
        self._channel = Channel(link, self._wait_readable)
        self._numbers = count(1)
        self._until_s = 0.0
        self._death = select.poll()
        self._death.register(self._pidfd, select.POLLIN)
        self._news = select.poll()
        self._news.register(self._pidfd, select.POLLIN)
        self._news.register(link.socket, select.POLLIN)

    @classmethod
    def spawn(cls, limits: ProcessLimits) -> Self:
        """Start a process that waits to be told what to open.

        Raises RuntimeUnavailable where processes cannot be had, OSError when the system refuses one.
        """
        if sys.platform != "linux":
            raise RuntimeUnavailable("engines in processes of their own need Linux")
        with ExitStack() as undo:
            outgoing, incoming = (undo.enter_context(closing(SharedMemory.create())) for _ in range(2))
            ours, theirs = (undo.enter_context(end) for end in socket.socketpair())
            begun = undo.enter_context(closing(Tally.create()))
            link = Link(ours, outgoing, incoming)
            process = cls(_popen(theirs.fileno(), link, begun, limits.memory_bytes), link, begun)
            undo.pop_all()
        theirs.close()
        return process

    @property
    def num_known(self) -> int:
        """How many arrays it remembers."""
        return len(self._channel.sent)

    def open(self, asked: Open, limit_s: float) -> Hello:
        """Let it open a model. Raises what opening raised, or ProcessLost."""
        message = self._ask(lambda _: asked, limit_s, is_call=False)
        if not isinstance(message.body, Hello):
            raise self._lose("corrupt", has_run=True)
        return message.body

    def call(self, write: Write, limit_s: float) -> Message:
        """Run a call. Raises the EngineError that it raised, or ProcessLost."""
        message = self._ask(write, limit_s, is_call=True)
        if isinstance(message.body, Hello | Open):
            raise self._lose("corrupt", has_run=True)
        return message

    def wait_end(self, timeout_s: float) -> bool:
        """Wait for its death so long; returns whether it is dead."""
        return bool(self._death.poll(1000 * timeout_s))

    def kill(self, reason: str) -> None:
        """End it at once, and remember why, if that is not known."""
        self.lost = self.lost or reason
        self._popen.kill()

    def bury(self) -> int:
        """Wait until it is gone, free all it held, and return how it ended, as `subprocess` tells it."""
        code = self._popen.wait()
        os.close(self._pidfd)
        self._link.close()
        self._begun.close()
        return code

    def _ask(self, write: Callable[[Parcel], Body], limit_s: float, *, is_call: bool) -> Message:
        self._until_s = time.monotonic() + limit_s
        parcel = Parcel(self._channel.sent)
        body = write(parcel)
        number = next(self._numbers)
        try:
            self._send(number, body, parcel)
            message = self._next(number)
            self._channel.trim()
        except (ChannelClosed, TimeoutError, CorruptFrame) as error:
            raise self._lose(_reason(error), has_run=not is_call or self._has_begun()) from error
        self._num_answered += is_call
        if isinstance(message.body, Failure):
            raise _ERRORS[message.body.error](message.body.message)
        return message

    def _has_begun(self) -> bool:
        """Tell whether the call that is lost was read and began."""
        return self._begun.take() > self._num_answered

    def _send(self, number: int, body: Body, parcel: Parcel) -> None:
        self._link.socket.settimeout(max(0.001, self._until_s - time.monotonic()))
        self._channel.send(number, body, parcel)

    def _next(self, number: int) -> Message:
        message = self._channel.receive()
        if message.number != number:
            raise CorruptFrame("a frame answers another call")
        return message

    def _lose(self, reason: str, *, has_run: bool) -> ProcessLost:
        if reason != "crash":  # one that is found dead says by itself how it ended
            self.kill(reason)
        return ProcessLost(reason, has_run=has_run)

    def _wait_readable(self) -> None:
        """Wait for bytes or the death. What was said before the death is still heard."""
        # Asked once more when the time is over: this process may have stood still, not the other.
        for left_s in (max(0.0, self._until_s - time.monotonic()), 0.0):
            events = self._news.poll(1000 * left_s)
            if any(descriptor != self._pidfd for descriptor, _ in events):
                return
            if events:
                raise ChannelClosed
        raise TimeoutError


def _reason(error: EngineError | ChannelClosed | TimeoutError) -> str:
    if isinstance(error, TimeoutError):
        return "hang"
    return "corrupt" if isinstance(error, CorruptFrame) else "crash"


def _popen(descriptor: int, link: Link, begun: Tally, memory_bytes: int | None) -> "subprocess.Popen[bytes]":
    descriptors = (descriptor, link.incoming.fd, link.outgoing.fd, begun.fd)
    arguments = [str(number) for number in (*descriptors, os.getpid(), memory_bytes or 0)]
    # What can be imported here can be imported there, and nothing from the folder that it happens to start in.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen(  # noqa: S603 - this interpreter and a module of this package
        [sys.executable, "-P", "-m", _MODULE, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=2,  # what a runtime prints belongs to the log, not to what the server prints
        env=environment,
        pass_fds=descriptors,
    )
