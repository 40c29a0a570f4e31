"""The process that runs engines: opens a model, says hello, then answers calls until its parent is gone.

`python -m foreframe_server.processes.child SOCKET OUTGOING INCOMING TALLY PARENT MEMORY_BYTES`: four descriptors first.
It has one way to end, which is to be killed.
"""

import ctypes
import faulthandler
import os
import resource
import signal
import socket
import sys
import traceback
from typing import Final, NoReturn

from foreframe_server.opening import OpenedEngines
from foreframe_server.processes.answering import answer, describe_failure
from foreframe_server.processes.channel import Channel, ChannelClosed, Link
from foreframe_server.processes.frames import CorruptFrame
from foreframe_server.processes.messages import Open
from foreframe_server.processes.notes import describe
from foreframe_server.processes.openers import find_opener
from foreframe_server.processes.shared_memory import SharedMemory
from foreframe_server.processes.tally import Tally
from foreframe_server.settings import EngineSettings

NICENESS: Final = 10
"""As lanes have it: who only passes work on goes first where all cores are busy."""
_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> NoReturn:
    """Serve calls until the parent is gone."""
    descriptor, outgoing, incoming, tally, parent, memory_bytes = (int(argument) for argument in arguments)
    _settle_in(parent, memory_bytes)
    link = Link(socket.socket(fileno=descriptor), SharedMemory(outgoing), SharedMemory(incoming))
    try:
        _serve(Channel(link), Tally(tally))
    except ChannelClosed:
        os._exit(0)  # threads of a runtime must not keep it
    except CorruptFrame as error:
        print(f"foreframe: an engine's process was sent what it cannot read: {error}", file=sys.stderr)  # noqa: T201 - nobody else listens
        os._exit(1)
    except BaseException:  # noqa: BLE001 - whatever it is, threads of a runtime must not keep it either
        traceback.print_exc()
        os._exit(1)


def _settle_in(parent: int, memory_bytes: int) -> None:
    """End with the parent, never by a signal that is meant for it, and give way to it."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    faulthandler.enable()
    os.setpriority(os.PRIO_PROCESS, 0, max(os.getpriority(os.PRIO_PROCESS, 0), NICENESS))
    if memory_bytes > 0:
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))


def _serve(channel: Channel, begun: Tally) -> NoReturn:
    opened = _open(channel)
    while True:
        _answer_next(channel, begun, opened)


def _answer_next(channel: Channel, begun: Tally, opened: OpenedEngines) -> None:
    """Run one call; nothing of it lives on here but what is to be remembered."""
    message = channel.receive()
    begun.add()
    answered = answer(opened, message)
    channel.send(message.number, answered.body, answered.parcel)


def _open(channel: Channel) -> OpenedEngines:
    message = channel.receive()
    asked = message.body
    if not isinstance(asked, Open):
        raise CorruptFrame("the first frame does not ask to open a model")
    try:
        opened = find_opener(asked.opener)(EngineSettings.model_validate_json(asked.settings))
        hello = describe(opened)
    except Exception as error:
        channel.send(message.number, describe_failure(error))
        raise ChannelClosed from error
    channel.send(message.number, hello)
    return opened


if __name__ == "__main__":
    main(sys.argv[1:])
