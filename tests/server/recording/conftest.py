"""Exchanges with the toy, and what a file then holds."""

import io
import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
from mcap.reader import make_reader

from foreframe_engines.sampling import sample
from foreframe_engines.testing import ToyRolloutEngine, toy_contract
from foreframe_server.calls import Answer, CacheResult, Timings
from foreframe_server.recording.log import Log
from foreframe_server.recording.streams import Exchanged, StreamLog

START_NS = 1_700_000_000_000_000_000
FACTS = {"model": "toy", "fps": str(toy_contract().fps)}


@dataclass(frozen=True)
class Read:
    """A message as mcap's own reader gives it."""

    topic: str
    schema: str
    log_ns: int
    sequence: int
    record: dict


def read_file(path):
    """Read a whole file with its index, as tools do."""
    with path.open("rb") as file:
        reader = make_reader(io.BytesIO(file.read()), validate_crcs=True)
        assert reader.get_summary().statistics.message_count > 0
        return [
            Read(channel.topic, schema.name, message.log_time, message.sequence, json.loads(message.data))
            for schema, channel, message in reader.iter_messages()
        ]


@pytest.fixture
def read_log():
    return read_file


@pytest.fixture
def answered(make_query):
    """Ask the toy; `content` decides what was seen, `seed` only the noise."""

    def ask(at_s=0.0, *, query=None, **options):
        query = query or make_query(**options)
        prediction = sample(ToyRolloutEngine(), query)
        answer = Answer(prediction, CacheResult.MISS, 0, Timings(denoise=2.0), True, None, "bitwise")
        return Exchanged(query, answer, f"request-{at_s}", START_NS + round(at_s * 1e9))

    return ask


@pytest.fixture
def slide():
    """Take a query's window on by frames; what is new is drawn from a seed."""

    def onwards(query, count, seed):
        rng = np.random.default_rng(seed)
        frames = rng.integers(0, 256, (count, *query.context.shape[1:]), dtype=np.uint8)
        rows = rng.standard_normal((count, query.states.shape[1]), dtype=np.float32)
        states = np.concatenate([query.states[count:4], rows, query.states[4:]])
        return replace(query, context=np.concatenate([query.context[count:], frames]), states=states)

    return onwards


@pytest.fixture
def write_stream(tmp_path):
    """Write exchanges as one stream; returns the file."""

    def write(*exchanges, name="stream.mcap", is_closed=True):
        log = Log(tmp_path / name, FACTS)
        stream = StreamLog(log, toy_contract())
        for exchanged in exchanges:
            stream.write(exchanged)
        if is_closed:
            stream.close()
        return tmp_path / name

    return write
