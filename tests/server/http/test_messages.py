"""A websocket's messages as bytes: whatever comes is a message or one typed refusal."""

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreframe_server.codec import read_message, write_message
from foreframe_server.errors import InvalidRequest
from foreframe_server.realtime_schemas import MessageKind

LEAVES = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary()
VALUES = st.recursive(
    LEAVES, lambda each: st.lists(each) | st.dictionaries(st.text() | st.binary(), each), max_leaves=20
)
KEYS = st.sampled_from(["type", "request_id", b"type", b"request_id", "payload", "__ndarray__", "data"])


def read(data):
    return read_message(data, max_values=1000)


def read_or_refuse(data):
    try:
        return read(data)
    except InvalidRequest as refusal:
        return refusal


@given(st.binary(max_size=400))
def test_any_bytes_are_a_message_or_refused(data):
    read_or_refuse(data)


@given(st.dictionaries(KEYS, VALUES), st.integers(0, 200))
def test_any_map_cut_anywhere_is_a_message_or_refused(fields, cut):
    data = msgpack.packb(fields)
    for part in (data, data[: len(data) - cut]):
        read_or_refuse(part)


@given(st.sampled_from(MessageKind), st.from_regex(r"[A-Za-z0-9._:-]{1,64}", fullmatch=True), st.booleans())
def test_an_envelope_is_taken_off(kind, request_id, has_bytes):
    envelope = {"type": kind.value, "request_id": request_id}
    envelope = {key.encode() if has_bytes else key: value for key, value in envelope.items()}
    message = read(msgpack.packb({**envelope, "future": [1]}))

    assert (message.kind, message.request_id, message.fields, message.fault) == (
        kind,
        request_id,
        {"future": [1]},
        None,
    )


def test_an_id_that_is_told_from_the_head_is_as_clean_as_any():
    broken = {"__ndarray__": True, "data": b"", "dtype": "object", "shape": []}
    clean, dirty = ({"type": "predict", "request_id": request_id, "x": broken} for request_id in ("r-1", "<script>"))

    assert (read(msgpack.packb(clean)).request_id, read(msgpack.packb(clean)).kind) == ("r-1", None)
    with pytest.raises(InvalidRequest):
        read(msgpack.packb(dirty))


def test_a_head_that_is_longer_than_is_looked_at_is_no_id():
    broken = {"__ndarray__": True, "data": b"", "dtype": "object", "shape": []}

    with pytest.raises(InvalidRequest):
        read(msgpack.packb({"type": "x" * 300, "request_id": "r-1", "x": broken}))


@given(st.dictionaries(st.text(), VALUES), st.none() | st.dictionaries(st.text(), st.floats(allow_nan=False)))
def test_an_envelope_around_bytes_is_one_map_around_what_they_stand_for(body, server_timing):
    packed = msgpack.packb(body)
    data = write_message("done", "r-1", packed, server_timing)
    expected = {"type": "done", "request_id": "r-1", "body": body}
    if server_timing is not None:
        expected["server_timing"] = server_timing

    assert data.endswith(packed)
    assert msgpack.packb(msgpack.unpackb(data), use_bin_type=True) == data
    assert list(msgpack.unpackb(data))[-1] == "body"
    assert {**msgpack.unpackb(data), "body": None} == {**expected, "body": None}
