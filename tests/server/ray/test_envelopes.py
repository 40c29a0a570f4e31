"""Messages between processes: what was written is read, and whatever else is refused by one error."""

import random

import numpy as np
import pytest

from foreframe_server.errors import CODES, Overloaded, Reason
from foreframe_server.processes.frames import CorruptFrame
from foreframe_server.processes.parcels import Parcel, ReceivedArrays, SentArrays
from foreframe_server.ray.envelopes import read_letter, write_letter
from foreframe_server.ray.messages import Ask, ContextCall, Members
from foreframe_server.ray.translation import read_error, write_error

NUM_FUZZED = 20_000


def write_frames():
    parcel = Parcel()
    frames = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)
    return write_letter("model", Members(frames=(parcel.put(frames),), steps=3), parcel), frames


def test_arrays_come_back_as_they_were():
    data, frames = write_frames()
    letter = read_letter(data)
    assert letter.model == "model"
    assert np.array_equal(letter.array(letter.body.frames[0]), frames)
    assert letter.array(0).dtype == frames.dtype


def test_arrays_that_last_cross_once_on_a_link_and_are_forgotten():
    sent, links = SentArrays(), {}
    lasting = np.ones((1, 4, 4, 3), np.uint8)
    sizes = []
    for _ in range(2):
        parcel = Parcel(sent)
        data = write_letter("m", ContextCall(context=parcel.keep(lasting), left_s=None), parcel, link="a")
        parcel.confirm()
        sizes.append(len(data))
        assert np.array_equal(read_letter(data, links).array(0), lasting)
    assert sizes[1] < sizes[0] - lasting.nbytes // 2
    with pytest.raises(CorruptFrame):
        read_letter(data, {"a": ReceivedArrays()})
    del lasting, parcel
    read_letter(write_letter("m", Ask(), link="a", forget=sent.take_gone()), links)
    assert len(links["a"]) == 0


def test_whatever_the_bytes_are_reading_them_raises_one_error():
    data, _ = write_frames()
    rng = random.Random(7)
    num_read = 0
    for _ in range(NUM_FUZZED):
        changed = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        cut = rng.randrange(len(changed) + 1) if rng.random() < 0.3 else len(changed)
        try:
            read_letter(bytes(changed[:cut]))
            num_read += 1
        except CorruptFrame:
            continue
    assert 0 < num_read < NUM_FUZZED
    for odd in (b"", data + b"x", None, "text", [data]):
        with pytest.raises(CorruptFrame):
            read_letter(odd)


def test_every_refusal_crosses_as_itself():
    for kind in CODES:
        error = kind("no", reasons=[Reason("/a", "is b", "c", "d")], retry_after_ms=5)
        read = read_error(read_letter(write_letter("m", write_error(error))).body)
        assert type(read) is kind
        assert (read.detail, read.reasons, read.retry_after_ms) == (error.detail, error.reasons, 5)
    assert not isinstance(read_error(write_error(RuntimeError("secret"))), Overloaded)
    assert "secret" not in str(read_error(write_error(RuntimeError("secret"))))
