"""MCAP files as recordings: the frames and states of a log, and the requests that a server recorded. Knows no server.

Frames are JSON messages of schema foxglove.CompressedImage; states are JSON messages with `values`, or with `position`
as in a JointState. A file that was cut short is read up to where it ends.
"""

import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64
from mcap.exceptions import EndOfFile, McapError
from mcap.reader import NonSeekingReader
from mcap.records import Message, Metadata
from mcap.stream_reader import StreamReader

from foreframe_engines import Query
from foreframe_engines.episodes import Episode
from foreframe_engines.errors import DatasetError
from foreframe_engines.readers.recordings import check_index, unmasked_episode
from foreframe_server.recording.messages import (
    IMAGE,
    REQUEST,
    REQUEST_TOPIC,
    read_context_ns,
    read_document,
    read_image,
    read_query,
)

_GAP = 1.5
"""Frames further apart than so many usual distances are of different episodes."""

_PREDICTED = "/prediction/"
_STATE_KEYS = ("values", "position")


@dataclass(frozen=True, slots=True)
class Note:
    """One message. log_ns: the time that it is of."""

    topic: str
    schema: str
    encoding: str
    log_ns: int
    data: bytes


@dataclass(frozen=True, slots=True, eq=False)
class RecordedRequest:
    """What a server was asked. received_ns: when its first byte came. now_ns: when its newest frame was seen."""

    request_id: str
    received_ns: int
    now_ns: int
    query: Query


@dataclass(slots=True, eq=False)
class _Index:
    """When frames were shown, and every row of states, by topic."""

    frames_ns: dict[str, list[int]] = field(default_factory=dict)
    states_ns: dict[str, list[int]] = field(default_factory=dict)
    states: dict[str, list[Mapping[str, Any]]] = field(default_factory=dict)
    has_requests: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class McapRecordings:
    """One camera and one topic of states of a log, cut into episodes where frames are missing.

    Each frame has the newest states at its time; frames before the first states are left out.
    """

    path: Path
    camera_topic: str
    frames_ns: Int64[np.ndarray, " n"]
    states: Float32[np.ndarray, "n d"]
    starts: tuple[int, ...]
    state_names: tuple[str, ...]
    fps: float | None
    has_requests: bool

    @classmethod
    def open(cls, path: Path, camera: str | None = None) -> "McapRecordings":
        """Read where everything is. camera: a topic or the end of one. Raises DatasetError."""
        index = _read_index(path)
        topic = _choose_camera(path, index, camera)
        state_topic = _choose_states(path, index)
        frames_ns = np.sort(np.asarray(index.frames_ns[topic], np.int64))
        rows = _newest_rows(np.asarray(index.states_ns[state_topic], np.int64), frames_ns)
        frames_ns, rows = frames_ns[rows >= 0], rows[rows >= 0]
        if not len(frames_ns):
            raise DatasetError(f"{path.name}: no frame of {topic} has states of {state_topic} at or before it")
        records = [index.states[state_topic][row] for row in rows]
        states, fps = _stack_states(path, state_topic, records), _read_fps(path)
        starts = _find_starts(frames_ns, records, fps)
        names = tuple(str(name) for name in records[0].get("names") or records[0].get("name") or ())
        return cls(path, topic, frames_ns, states, starts, names, fps or _usual_fps(frames_ns), index.has_requests)

    def __len__(self) -> int:
        return len(self.starts)

    def read(self, index: int) -> Episode:
        """Read one episode. Raises DatasetError."""
        check_index(index, self, self.path.name)
        start = self.starts[index]
        end = (*self.starts, len(self.frames_ns))[index + 1]
        wanted = dict.fromkeys(self.frames_ns[start:end].tolist())
        found = {
            note.log_ns: note.data
            for note in read_notes(self.path)
            if note.topic == self.camera_topic and note.log_ns in wanted
        }
        frames = np.stack([read_image(found[shown_ns], self.camera_topic) for shown_ns in wanted])
        metadata: dict[str, object] = {"source": self.path.name, "start_ns": int(self.frames_ns[start])}
        return unmasked_episode(index, frames, self.states[start:end], metadata)


def read_requests(path: Path, model: str) -> Iterator[RecordedRequest]:
    """Read what a server recorded, in order, to be asked of a model again. Raises DatasetError."""
    frames: dict[int, bytes] = {}
    for note in read_notes(path):
        if note.schema == IMAGE and not note.topic.startswith(_PREDICTED):
            frames[note.log_ns] = note.data
        elif note.schema == REQUEST:
            record = read_document(note.data, note.topic)
            shown_ns = read_context_ns(record)
            if missing := [each for each in shown_ns if each not in frames]:
                raise DatasetError(f"{path.name}: the frame of {missing[0]} ns, which a request saw, is not there")
            frames = {each: frames[each] for each in shown_ns}  # no later request looks further back
            context = np.stack([read_image(data, note.topic) for data in frames.values()])
            query = read_query(record, context, model)
            yield RecordedRequest(str(record.get("request_id", "")), note.log_ns, shown_ns[-1], query)


def read_notes(path: Path) -> Iterator[Note]:
    """Read every message in the order in which it was written. Raises DatasetError for anything but MCAP."""
    try:
        with path.open("rb") as file:
            for schema, channel, message in NonSeekingReader(file).iter_messages(log_time_order=False):
                name = "" if schema is None else schema.name
                yield Note(channel.topic, name, channel.message_encoding, message.log_time, message.data)
    except EndOfFile:
        return  # it was never closed, or was cut: what is whole has been read
    except (McapError, struct.error, zlib.error, ValueError, KeyError, RuntimeError) as error:
        raise DatasetError(f"{path.name} is not a whole MCAP file: {error}") from error


def _read_index(path: Path) -> _Index:
    index = _Index()
    for note in read_notes(path):
        index.has_requests |= note.topic == REQUEST_TOPIC and note.schema == REQUEST
        if note.schema == IMAGE and not note.topic.startswith(_PREDICTED):
            _check_json(path, note)
            index.frames_ns.setdefault(note.topic, []).append(note.log_ns)
        elif note.encoding == "json" and _may_be_states(note.data):
            record = read_document(note.data, note.topic)
            if _values_of(record) is not None:
                index.states_ns.setdefault(note.topic, []).append(note.log_ns)
                index.states.setdefault(note.topic, []).append(record)
    return index


def _may_be_states(data: bytes) -> bool:
    return any(f'"{key}"'.encode() in data for key in _STATE_KEYS)


def _check_json(path: Path, note: Note) -> None:
    if note.encoding != "json":
        raise DatasetError(f"{path.name}: {note.topic} is written as {note.encoding}; frames are read from json")


def _values_of(record: Mapping[str, Any]) -> list[Any] | None:
    found = [record[key] for key in _STATE_KEYS if isinstance(record.get(key), list)]
    return found[0] if found and found[0] else None


def _choose_camera(path: Path, index: _Index, camera: str | None) -> str:
    topics = sorted(index.frames_ns)
    if camera is not None:
        topics = [topic for topic in topics if topic in (camera, f"/camera/{camera}") or topic.endswith(f"/{camera}")]
    if len(topics) != 1:
        names = ", ".join(sorted(index.frames_ns)) or "none"
        raise DatasetError(f"{path.name}: name one camera of {names}; frames are messages of {IMAGE}")
    return topics[0]


def _choose_states(path: Path, index: _Index) -> str:
    topics = sorted(index.states)
    if len(topics) != 1:
        names = ", ".join(topics) or "none"
        raise DatasetError(f"{path.name}: expected one topic of JSON messages with values or position, found {names}")
    return topics[0]


def _newest_rows(states_ns: Int64[np.ndarray, " m"], frames_ns: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """Find the newest states at or before each frame; -1 where there are none."""
    order = np.argsort(states_ns, kind="stable")
    places = np.searchsorted(states_ns[order], frames_ns, side="right") - 1
    return np.where(places >= 0, order[places], -1)


def _stack_states(path: Path, topic: str, records: list[Mapping[str, Any]]) -> Float32[np.ndarray, "n d"]:
    try:
        states = np.asarray([_values_of(record) for record in records], np.float32)
    except (TypeError, ValueError) as error:
        raise DatasetError(f"{path.name}: the messages of {topic} do not all hold as many numbers") from error
    return states


def _find_starts(
    frames_ns: Int64[np.ndarray, " n"], records: list[Mapping[str, Any]], fps: float | None
) -> tuple[int, ...]:
    """Find where episodes start: where the log says so, or where frames are missing."""
    if all("segment" in record for record in records):
        is_first = np.diff([record["segment"] for record in records]) != 0
    else:
        steps = np.diff(frames_ns)
        usual = 1e9 / fps if fps else float(np.median(steps)) if len(steps) else 0.0
        is_first = steps > _GAP * usual
    return (0, *(np.flatnonzero(is_first) + 1).tolist())


def _usual_fps(frames_ns: Int64[np.ndarray, " n"]) -> float | None:
    return 1e9 / float(np.median(np.diff(frames_ns))) if len(frames_ns) > 1 else None


def _read_fps(path: Path) -> float | None:
    """Read the frame rate that this project's logs say."""
    try:
        with path.open("rb") as file:
            for record in StreamReader(file, record_size_limit=None).records:
                if isinstance(record, Metadata) and "fps" in record.metadata:
                    return float(record.metadata["fps"])
                if isinstance(record, Message):
                    return None  # it stands before the first message
    except (EndOfFile, ValueError):
        return None
    return None
