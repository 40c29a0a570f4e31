"""What one stream of requests leaves behind: every frame once, however many requests saw it. Knows no file names."""

import hashlib
from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Float32, UInt8

from foreframe_engines import Contract, Query
from foreframe_server.calls import Answer
from foreframe_server.recording.log import Log
from foreframe_server.recording.messages import (
    PREDICTION,
    PREDICTION_TOPIC,
    REQUEST,
    REQUEST_TOPIC,
    write_prediction,
    write_request,
)
from foreframe_server.recording.scene import Scene


@dataclass(frozen=True, slots=True, eq=False)
class Exchanged:
    """A question and its answer. received_ns: wall clock, when the question's first byte came."""

    query: Query
    answer: Answer
    request_id: str
    received_ns: int

    @property
    def num_bytes(self) -> int:
        """How much memory its arrays hold."""
        prediction = self.answer.prediction
        predicted = (prediction.frames, prediction.members, prediction.variance)
        return sum(array.nbytes for array in (self.query.context, self.query.states, *predicted))


@dataclass(frozen=True, slots=True)
class _Seen:
    """A frame with its states that is in the log already."""

    digest: bytes
    at_ns: int


class StreamLog:
    """Writes the exchanges of one stream, in order.

    A frame is of the time at which its request came, less its distance from the newest frame. Frames that a request
    shares with the one before are not written again; where it shares none, a new segment begins.
    """

    def __init__(self, log: Log, contract: Contract) -> None:
        self._log = log
        self._scene = Scene(log, contract.camera.name, contract.state.names, contract.fps)
        self._step_ns = self._scene.step_ns
        self._seen: list[_Seen] = []
        self._last_ns = -1
        self._segment = -1
        self._num_exchanges = 0

    @property
    def num_bytes(self) -> int:
        """How much has been written."""
        return self._log.num_bytes

    def write(self, exchanged: Exchanged) -> None:
        """Write an exchange. Raises OSError."""
        self._num_exchanges += 1
        sequence, query = self._num_exchanges, exchanged.query
        seen = self._write_context(query, exchanged.received_ns, sequence)
        asked = write_request(query, exchanged.request_id, [each.at_ns for each in seen], exchanged.received_ns)
        self._log.write(REQUEST_TOPIC, REQUEST, asked, exchanged.received_ns, sequence)
        self._write_answer(exchanged, seen[-1].at_ns, sequence)
        self._log.flush()

    def close(self) -> None:
        """Close the file."""
        self._log.close()

    def _write_context(self, query: Query, received_ns: int, sequence: int) -> list[_Seen]:
        count = len(query.context)
        digests = [_digest(*pair) for pair in zip(query.context, query.states[:count], strict=True)]
        shared = _count_shared([each.digest for each in self._seen], digests)
        self._segment += shared == 0
        seen = self._seen[len(self._seen) - shared :]
        for place in range(shared, count):
            nominal_ns = received_ns - (count - 1 - place) * self._step_ns
            at_ns = self._last_ns = max(nominal_ns, self._last_ns + 1, 0)
            self._scene.write_frame(query.context[place], query.states[place], at_ns, self._segment, sequence)
            seen.append(_Seen(digests[place], at_ns))
        self._seen = seen
        return seen

    def _write_answer(self, exchanged: Exchanged, now_ns: int, sequence: int) -> None:
        answer = exchanged.answer
        details = {
            "cache": answer.cache,
            "deadline_met": answer.deadline_met,
            "degraded": None if answer.degraded is None else asdict(answer.degraded),
            "timings_ms": asdict(answer.timings),
        }
        told = write_prediction(answer.prediction, exchanged.request_id, details, exchanged.received_ns)
        self._log.write(PREDICTION_TOPIC, PREDICTION, told, exchanged.received_ns, sequence)
        self._scene.write_future(answer.prediction, now_ns, sequence)


def _digest(frame: UInt8[np.ndarray, "h w 3"], state: Float32[np.ndarray, " d"]) -> bytes:
    return hashlib.blake2b(frame.tobytes() + state.tobytes(), digest_size=16).digest()


def _count_shared(earlier: list[bytes], later: list[bytes]) -> int:
    """Count how many of the last earlier ones the later ones begin with, at most all."""
    for count in range(min(len(earlier), len(later)), 0, -1):
        if earlier[-count:] == later[:count]:
            return count
    return 0
