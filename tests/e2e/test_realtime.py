"""The websocket over a socket: a real server, a real client, and what the two say that no test inside a process can."""

import contextlib
import json
import threading

import httpx
import msgpack
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosedError, InvalidStatus
from websockets.sync.client import connect

from foreframe_engines.testing import ToyRolloutEngine, toy_contract
from foreframe_server.cli.serving import running_server
from foreframe_server.codec.arrays import map_for_msgpack
from foreframe_server.opening import given
from foreframe_server.settings import Settings

CONTRACT = toy_contract()
PATIENCE_S = 20
RNG = np.random.default_rng(0)
REQUEST = {
    "observation": {
        "cameras": {"head": {"frames": RNG.integers(0, 256, (4, 8, 8, 3), np.uint8)}},
        "state": {"values": RNG.normal(size=(4, 3))},
    },
    "future": {"values": RNG.normal(size=(8, 3))},
    "return": {"encoding": "raw", "members": True},
}


class Brake:
    """A step hook that holds the device while it is on."""

    def __init__(self):
        self.go = threading.Event()
        self.go.set()
        self.is_held = threading.Event()

    def __call__(self, rows):
        if not self.go.is_set():
            self.is_held.set()
            assert self.go.wait(PATIENCE_S)


@contextlib.contextmanager
def serving(*, hook=None, **http):
    with running_server(
        Settings(http={"port": 0, **http}), given(ToyRolloutEngine(CONTRACT, step_hook=hook))
    ) as address:
        yield address


@contextlib.contextmanager
def talking(address, **options):
    with connect(f"{address.replace('http', 'ws', 1)}/v1/realtime", max_size=None, **options) as socket:
        yield socket


def pack(message):
    return msgpack.packb(message, default=map_for_msgpack)


def ask(socket, kind, request_id, **fields):
    socket.send(pack({"type": kind, "request_id": request_id, **fields}))


def read(socket):
    return msgpack.unpackb(socket.recv(timeout=PATIENCE_S))


def metrics_of(address):
    return httpx.get(f"{address}/metrics").text


def wait_for(condition):
    pause = threading.Event()
    for _ in range(100 * PATIENCE_S):
        if condition():
            return
        pause.wait(0.01)
    pytest.fail("it never came")


def test_a_robot_is_told_the_contract_and_answered_as_over_http():
    with serving() as address, talking(address) as socket:
        assert socket.protocol.extensions == []
        assert read(socket)["body"] == httpx.get(f"{address}/v1/models/toy").json()
        asked = {**REQUEST, "sampling": {"seed": 7}, "ensemble": {"size": 8}}
        ask(socket, "predict", "a", progress=True, **asked)
        messages = [read(socket)]
        while messages[-1]["type"] != "done":
            messages.append(read(socket))
        headers = {"content-type": "application/msgpack", "accept": "application/msgpack"}
        plain = httpx.post(f"{address}/v1/predictions", content=pack(asked), headers=headers).content
        assert "foreframe_connections 1.0" in metrics_of(address)

    assert messages[0]["type"] == "accepted"
    for part in ("frames", "members"):
        assert messages[-1]["body"][part] == msgpack.unpackb(plain)[part]


def test_hanging_up_ends_the_work():
    brake = Brake()
    with serving(hook=brake) as address:
        with talking(address) as socket:
            read(socket)
            brake.go.clear()
            for number in range(3):
                ask(socket, "predict", f"r-{number}", sampling={"seed": number, "steps": 50}, **REQUEST)
            assert brake.is_held.wait(PATIENCE_S)
        wait_for(lambda: 'foreframe_requests_total{code="client_left",route="/v1/realtime"} 3.0' in metrics_of(address))
        wait_for(lambda: "foreframe_connections 0.0" in metrics_of(address))
        brake.go.set()
        wait_for(lambda: "foreframe_queue_step_seconds 0.0" in metrics_of(address))


def test_a_message_that_is_too_large_closes_the_connection():
    with serving(max_body_bytes=4096) as address, talking(address) as socket:
        read(socket)
        ask(socket, "ping", "fits", payload=b"\x00" * 3000)
        assert read(socket)["type"] == "pong"
        ask(socket, "ping", "large", payload=b"\x00" * 5000)
        with pytest.raises(ConnectionClosedError) as closed:
            read(socket)

    assert closed.value.rcvd.code == 1009


def test_a_fatal_error_is_a_text_frame_and_a_close():
    with serving() as address, talking(address) as socket:
        read(socket)
        socket.send("no binary")
        text = socket.recv(timeout=PATIENCE_S)
        with pytest.raises(ConnectionClosedError) as closed:
            socket.recv(timeout=PATIENCE_S)

    assert set(json.loads(text)) == {"code", "message"}
    assert closed.value.rcvd.code == 1011


def test_another_site_s_page_gets_a_problem_instead_of_a_connection():
    with serving() as address:
        with pytest.raises(InvalidStatus) as refused, talking(address, origin="http://elsewhere.example"):
            pass
        with talking(address, origin=address) as socket:
            assert read(socket)["type"] == "contract"

    response = refused.value.response
    assert (response.status_code, json.loads(response.body)["code"]) == (403, "forbidden")


def test_a_server_that_stops_says_so():
    with contextlib.ExitStack() as server, talking(server.enter_context(serving())) as socket:
        read(socket)
        server.close()
        with pytest.raises(ConnectionClosedError) as closed:
            read(socket)

    assert closed.value.rcvd.code == 1012
