"""Bodies in parts: read as they come, cut anywhere; every part named; what is wrong gets its problem."""

import gc
import json
import tempfile
from itertools import pairwise

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreframe_server.codec.multipart import MAX_PARTS, FormReader, read_form
from foreframe_server.codec.video import encode_mp4
from foreframe_server.errors import InvalidRequest, ServiceError

pytestmark = pytest.mark.anyio

BOUNDARY = "cut-here-7f3a"
CONTENT_TYPE = f"multipart/form-data; boundary={BOUNDARY}"
MARKER = "planted-7f3a"


def part(name, data, *headers, kind="form-data"):
    lines = [f'Content-Disposition: {kind}; name="{name}"', *headers]
    return "\r\n".join([f"--{BOUNDARY}", *lines, "", ""]).encode() + data + b"\r\n"


def form(*parts):
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def request_part(document, *headers):
    return part("request", json.dumps(document).encode(), *headers)


def read(body, *, cuts=(), content_type=CONTENT_TYPE):
    reader, places = FormReader(content_type), [0, *sorted(cuts), len(body)]
    for start, stop in pairwise(places):
        reader.feed(body[start:stop])
    return reader.close(memoryview(body))


def read_whole(body, **options):
    return read_form(read(body, **options), max_values=1000)


class TestParts:
    # What looks like a boundary and is none, at the beginning, in the middle and at the end.
    data = b"\r\n--cut-here-7f3\r\n--\r\n" + bytes(range(256)) + b"\r\n--cut-here\r"

    @given(st.data())
    def test_a_body_is_the_same_wherever_it_is_cut(self, drawn):
        tail = drawn.draw(st.sampled_from([b"", b"\r", b"\r\n--", b"\r\n--cut-here-7f3"]))
        body = form(request_part({"a": {"$part": "x"}, "b": {"$part": "y"}}), part("x", self.data), part("y", tail))
        cuts = drawn.draw(st.lists(st.integers(0, len(body)), max_size=12))

        document = read_whole(body, cuts=cuts)

        assert (bytes(document["a"]), bytes(document["b"])) == (self.data, tail)

    def test_a_body_is_the_same_byte_by_byte(self):
        body = form(request_part({"a": {"$part": "x"}}), part("x", self.data))

        assert bytes(read_whole(body, cuts=range(len(body)))["a"]) == self.data

    def test_a_reference_with_a_shape_is_an_array_without_a_copy(self):
        values = np.arange(6, dtype=np.float32).reshape(2, 3)
        body = form(
            request_part({"a": [{"b": {"$part": "x", "dtype": "<f4", "shape": [2, 3]}}]}), part("x", values.tobytes())
        )

        array = read_whole(body)["a"][0]["b"]

        np.testing.assert_array_equal(array, values)
        assert np.shares_memory(array, np.frombuffer(body, np.uint8))

    def test_a_part_may_be_named_twice_and_be_empty(self):
        document = read_whole(form(part("x", b""), request_part({"a": {"$part": "x"}, "b": {"$part": "x"}})))

        assert bytes(document["a"]) == bytes(document["b"]) == b""


ARRAY = {"$part": "x", "dtype": "|u1", "shape": [4]}
GOOD = part("x", b"1234")
# body · status · code
REFUSED = {
    "no parts": (form(), 422, "invalid_request"),
    "an empty body": (b"", 422, "invalid_request"),
    "no request": (form(GOOD), 422, "invalid_request"),
    "no end": (form(request_part({"a": ARRAY}), GOOD)[:-6], 422, "invalid_request"),
    "no boundary line": (b"hello" * 20, 422, "invalid_request"),
    "a part that nobody names": (form(request_part({"a": 1}), GOOD), 422, "invalid_request"),
    "a name without a part": (form(request_part({"a": {"$part": MARKER}}), GOOD), 422, "invalid_request"),
    "the request inside itself": (form(request_part({"a": {"$part": "request"}})), 422, "invalid_request"),
    "a name that is a number": (form(request_part({"a": {"$part": 7}}), GOOD), 422, "invalid_request"),
    "a field too many": (form(request_part({"a": {**ARRAY, MARKER: 1}}), GOOD), 422, "invalid_request"),
    "a dtype alone": (form(request_part({"a": {"$part": "x", "dtype": "|u1"}}), GOOD), 422, "invalid_request"),
    "a shape that lies": (form(request_part({"a": {**ARRAY, "shape": [10**9]}}), GOOD), 422, "invalid_request"),
    "objects": (form(request_part({"a": {**ARRAY, "dtype": "|O"}}), GOOD), 422, "invalid_request"),
    "two of a name": (form(request_part({"a": ARRAY}), GOOD, GOOD), 422, "invalid_request"),
    "no name": (form(request_part({"a": ARRAY}), part("", b"1234")), 422, "invalid_request"),
    "a long name": (form(request_part({"a": ARRAY}), part("x" * 200, b"1234")), 422, "invalid_request"),
    "no form data": (form(request_part({"a": ARRAY}), part("x", b"1234", kind="attachment")), 422, "invalid_request"),
    "a name that is no text": (
        form(request_part({"a": ARRAY}), GOOD).replace(b'name="x"', b'name="\xff"'), 422, "invalid_request",
    ),
    "a request that is no JSON": (form(part("request", MARKER.encode())), 422, "invalid_request"),
    "a request that is a list": (form(request_part([1])), 422, "invalid_request"),
    "a header without end": (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="'.encode() + b"x" * 2**16, 422, "invalid_request",
    ),
    "many headers": (form(request_part({"a": ARRAY}), part("x", b"", *["A: b"] * 40)), 422, "invalid_request"),
    "many parts": (form(*(part(f"p{index}", b"") for index in range(MAX_PARTS + 1))), 422, "invalid_request"),
    "base64 parts": (
        form(request_part({"a": ARRAY}), part("x", b"MTIzNA==", "Content-Transfer-Encoding: base64")),
        415, "unsupported_media",
    ),
    "a request that is text": (form(request_part({"a": 1}, "Content-Type: text/plain")), 415, "unsupported_media"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
async def test_a_bad_form_gets_its_problem_and_no_echo(shared_client, name):
    body, status, code = REFUSED[name]

    reply = await shared_client.post("/v1/predictions", content=body, headers={"content-type": CONTENT_TYPE})

    assert (reply.status_code, reply.json()["code"]) == (status, code)
    assert MARKER not in reply.text


@pytest.mark.parametrize("content_type", ["multipart/form-data", f"multipart/form-data; boundary={'x' * 300}"])
def test_a_form_needs_a_boundary_that_can_be_one(content_type):
    with pytest.raises(ServiceError) as caught:
        FormReader(content_type)

    assert caught.value.status in (415, 422)


def test_too_many_parts_are_refused_before_the_body_is_whole():
    reader = FormReader(CONTENT_TYPE)
    for index in range(MAX_PARTS):
        reader.feed(part(f"p{index}", b""))

    with pytest.raises(InvalidRequest, match="parts"):
        reader.feed(part("one too many", b""))


class TestPredictions:
    async def ask(self, client, request, parts, path="/v1/predictions"):
        files = {"request": (None, json.dumps(request), "application/json")}
        files |= {name: (name, data, "application/octet-stream") for name, data in parts.items()}
        return await client.post(path, files=files)

    @pytest.fixture
    async def expected(self, shared_client, toy_request):
        reply = await shared_client.post("/v1/predictions", json=toy_request())
        return reply.json()["frames"]

    async def test_pictures_in_parts_get_the_answer_of_base64(
        self, shared_client, toy_request, frames, picture, expected
    ):
        clip = {"encoding": "png", "frames": [{"$part": f"frame-{index}"} for index in range(4)]}
        parts = {f"frame-{index}": picture(frame) for index, frame in enumerate(frames())}

        reply = await self.ask(shared_client, toy_request(observation__cameras__head=clip), parts)

        assert reply.json()["frames"] == expected

    @pytest.mark.parametrize(
        "clip",
        [
            {"encoding": "raw_rgb8", "width": 8, "height": 8, "data": {"$part": "frames"}},
            {"frames": {"$part": "frames", "dtype": "|u1", "shape": [4, 8, 8, 3]}},
        ],
    )
    async def test_raw_frames_with_their_shape_get_it_too(self, shared_client, toy_request, frames, expected, clip):
        request = toy_request(observation__cameras__head=clip)

        reply = await self.ask(shared_client, request, {"frames": frames().tobytes()})

        assert reply.json()["frames"] == expected

    async def test_states_may_be_parts(self, shared_client, toy_request, expected):
        rows = np.asarray(toy_request()["future"]["values"], np.float64)
        values = {"$part": "future", "dtype": "float64", "shape": list(rows.shape)}

        reply = await self.ask(shared_client, toy_request(future__values=values), {"future": rows.tobytes()})

        assert reply.json()["frames"] == expected

    async def test_a_clip_may_be_a_part(self, shared_client, toy_request, frames):
        clip = {"encoding": "mp4", "data": {"$part": "clip"}}
        request = toy_request(observation__cameras__head=clip)

        reply = await self.ask(shared_client, request, {"clip": encode_mp4(frames(), 10.0)})

        assert reply.status_code == 200

    async def test_raw_bytes_of_another_length_are_refused_where_they_belong(self, shared_client, toy_request):
        clip = {"encoding": "raw_rgb8", "width": 8, "height": 8, "data": {"$part": "frames"}}

        reply = await self.ask(shared_client, toy_request(observation__cameras__head=clip), {"frames": b"text"})

        assert reply.status_code == 422
        assert reply.json()["errors"][0]["pointer"] == "/observation/cameras/head/data"

    async def test_a_reference_in_the_wrong_place_is_refused(self, shared_client, toy_request):
        request = toy_request(metadata={"a": {"$part": "x"}})

        assert (await self.ask(shared_client, request, {"x": b"1"})).status_code == 422

    async def test_a_reference_outside_of_a_form_is_no_picture(self, shared_client, toy_request):
        clip = {"encoding": "png", "frames": [{"$part": "x"}] * 4}

        reply = await shared_client.post("/v1/predictions", json=toy_request(observation__cameras__head=clip))

        assert reply.status_code == 422

    async def test_an_upload_may_come_in_parts_and_outlives_its_body(self, client, app, toy_request, frames, expected):
        clip = {"frames": {"$part": "frames", "dtype": "|u1", "shape": [4, 8, 8, 3]}}
        asked = {"observation": toy_request(observation__cameras__head=clip)["observation"]}

        held = await self.ask(client, asked, {"frames": frames().tobytes()}, "/v1/observations")
        for _ in range(3):  # other bodies in the same memory
            await self.ask(client, asked, {"frames": bytes(4 * 8 * 8 * 3)}, "/v1/observations")
        request = toy_request(observation=..., observation_id=held.json()["observation_id"])
        reply = await client.post("/v1/predictions", json=request)

        assert reply.json()["frames"] == expected
        assert app.state.host.bodies.num_kept_bytes > 0

    async def test_likelihoods_take_forms(self, shared_token_client, likelihood_request):
        reply = await self.ask(shared_token_client, likelihood_request(), {}, "/v1/likelihoods")
        assert reply.status_code == 200

    async def test_a_large_form_does_not_hold_the_event_loop(self, client, toy_request, best_lag):
        size = 15 * 2**20
        body = form(request_part(toy_request(metadata={"a": {"$part": "x"}})), part("x", bytes(size)))

        async def send():
            async def pieces():
                for start in range(0, len(body), 2**16):
                    yield body[start : start + 2**16]

            await client.post("/v1/predictions", content=pieces(), headers={"content-type": CONTENT_TYPE})

        assert await best_lag(send) < 0.05


async def test_a_robot_that_leaves_in_the_middle_leaves_nothing(client, app, toy_request, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    body = form(request_part(toy_request()), part("x", bytes(2**20)))
    messages = [{"type": "http.request", "body": body[: 2**19], "more_body": True}, {"type": "http.disconnect"}]
    sent = []
    scope = {
        "type": "http", "method": "POST", "path": "/v1/predictions", "raw_path": b"/v1/predictions",
        "query_string": b"", "root_path": "", "scheme": "http", "http_version": "1.1", "asgi": {"version": "3.0"},
        "headers": [
            (b"host", b"localhost"), (b"content-type", CONTENT_TYPE.encode()),
            (b"content-length", str(len(body)).encode()),
        ],
    }  # fmt: skip

    async def receive():
        return messages.pop(0)

    async def send(message):
        sent.append(message)

    await app(scope, receive, send)

    gc.collect()
    assert app.state.host.bodies.num_kept_bytes >= len(body)
    assert list(tmp_path.iterdir()) == []
    assert (await client.post("/v1/predictions", json=toy_request())).status_code == 200


def test_httpx_writes_what_is_read():
    files = {"request": (None, '{"a": {"$part": "x"}}'), "x": ("x.bin", b"\x00\x01")}
    request = httpx.Request("POST", "http://robot/", files=files)

    document = read_whole(request.read(), content_type=request.headers["content-type"])

    assert bytes(document["a"]) == b"\x00\x01"
