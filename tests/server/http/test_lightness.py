"""Only what is read in no time is read on the event loop: few values, few bytes, pixels as they are."""

import threading

import numpy as np
import pytest

from foreframe_server.codec import Media, is_light_prediction, read_light, write_document
from foreframe_server.codec.lightness import MAX_LIGHT_BYTES

CONTEXT, SIZE = 4, 8  # of the toy
RAW = {"encoding": "raw_rgb8", "data": b"\0" * 12, "width": 2, "height": 2}


def observing(clip):
    return {"observation": {"cameras": {"head": clip}}}


def body_of(document):
    return memoryview(write_document(document, Media.MSGPACK))


def test_a_small_body_is_read():
    assert read_light(body_of({"seed": 1}), Media.MSGPACK) == {"seed": 1}


@pytest.mark.parametrize(
    "document",
    [
        {"values": list(range(300))},
        {"data": np.zeros(MAX_LIGHT_BYTES, np.uint8)},
        {"maps": [{"a": {}} for _ in range(200)]},
    ],
)
def test_many_values_and_many_bytes_are_left_to_a_thread(document):
    assert read_light(body_of(document), Media.MSGPACK) is None


def test_what_is_no_document_and_what_is_json_is_left_to_a_thread():
    assert read_light(memoryview(b"\xc1"), Media.MSGPACK) is None
    assert read_light(memoryview(b"{}"), Media.JSON) is None


@pytest.mark.parametrize("clip", [RAW, {"frames": np.zeros((1, 2, 2, 3), np.uint8)}])
def test_pixels_as_they_are_are_light(clip):
    assert is_light_prediction(observing(clip))


@pytest.mark.parametrize(
    "clip",
    [
        {"encoding": "png", "frames": [b"png"]},
        {"encoding": "mp4", "data": b"mp4"},
        {"encoding": "raw_rgb8", "data": "AAAA"},
        {**RAW, "resize": "pad"},
        {"frames": [np.zeros((2, 2, 3), np.uint8)]},
        {},
        7,
    ],
)
def test_pictures_that_are_decoded_or_resized_are_not_light(clip):
    assert not is_light_prediction(observing(clip))


@pytest.mark.parametrize("document", [{"observation": 7}, {"observation": {}}, {"observation": {"cameras": [1]}}])
def test_what_is_no_observation_is_not_light(document):
    assert not is_light_prediction(document)


async def test_light_bodies_alone_are_read_on_the_event_loop(client, toy_request, monkeypatch):
    is_own = []
    own = threading.current_thread()

    def note(*_args, **_kwargs):
        is_own.append(threading.current_thread() is own)
        return []

    monkeypatch.setattr("foreframe_server.codec.context.find_flat", note)
    pictures = toy_request()
    pixels = toy_request(observation__cameras__head={"frames": np.zeros((CONTEXT, SIZE, SIZE, 3), np.uint8)})
    for document in (pictures, pixels):
        content = write_document(document, Media.MSGPACK)
        reply = await client.post("/v1/predictions", content=content, headers={"content-type": Media.MSGPACK.value})
        assert reply.status_code == 200, reply.text
    assert is_own == [False, True]
