"""A likelihood engine on a replica, as the engines of other processes are called. Knows no Ray.

It is called in the thread of a lane. Arrays that last are sent once to each replica.
"""

import uuid
from typing import Final

from foreframe_engines import EngineLost
from foreframe_server.processes.channel import Message
from foreframe_server.processes.messages import Arrays, DetokenizeCall, Failure, ReadCall, Scores, TokenizeCall
from foreframe_server.processes.parcels import Parcel, SentArrays
from foreframe_server.processes.process import Write
from foreframe_server.ray.envelopes import read_letter, write_letter
from foreframe_server.ray.messages import Lost
from foreframe_server.ray.replicas import ReplicaLost, Replicas
from foreframe_server.ray.translation import read_error

_LIMIT_S: Final = 60.0
_PATIENCE_S: Final = 5.0
"""How long a call waits for a replica to be there."""


class RemoteCalls:
    """Runs engine calls on the replica of a place, or on another while there is none."""

    def __init__(self, replicas: Replicas, place: int) -> None:
        self._replicas = replicas
        self._place = place
        self._begin_link("")

    def __call__(self, write: Write, kind: str, size: int) -> Message:
        """Run a call. Raises what the engine raised, or EngineLost."""
        replica = self._find()
        if replica != self._replica:
            self._begin_link(replica)
        parcel = Parcel(self._sent)
        body = write(parcel)
        if not isinstance(body, TokenizeCall | DetokenizeCall | ReadCall):
            raise TypeError(f"{kind} of {size} is no call that crosses to a replica")
        data = write_letter(self._replicas.model, body, parcel, link=self._link, forget=self._sent.take_gone())
        try:
            letter = read_letter(self._replicas.link.ask_now("call_engine", replica, data, _LIMIT_S))
        except ReplicaLost as error:
            self._lose(replica)
            raise EngineLost(f"the replica was lost: {error}") from error
        if isinstance(letter.body, Lost):
            self._lose(replica)
        if isinstance(letter.body, Lost | Failure):
            raise read_error(letter.body)
        parcel.confirm()
        if not isinstance(letter.body, Arrays | Scores):
            raise TypeError("a replica answered something else than what was asked")
        return Message(0, letter.body, letter.arrays)

    def _find(self) -> str:
        standing = self._replicas.at(self._place) or self._replicas.wait_any(_PATIENCE_S)
        if standing is None:
            raise EngineLost("no replica is there", has_run=False)
        return standing.replica

    def _lose(self, replica: str) -> None:
        self._replicas.lose(replica)
        self._begin_link("")

    def _begin_link(self, replica: str) -> None:
        self._replica, self._link, self._sent = replica, uuid.uuid4().hex, SentArrays()
