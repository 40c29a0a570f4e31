"""The whole server through its door: signals, a second listener, a Unix socket, few files, hang-ups, websockets."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import msgpack
import numpy as np
import pytest
import structlog
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from foreframe_engines.testing import ToyRolloutEngine, toy_contract
from foreframe_server.cli.serving import running_server
from foreframe_server.codec.arrays import map_for_msgpack
from foreframe_server.opening import given
from foreframe_server.settings import Settings

PATIENCE_S = 30
RNG = np.random.default_rng(0)
REQUEST = {
    "observation": {
        "cameras": {"head": {"frames": RNG.integers(0, 256, (4, 8, 8, 3), np.uint8)}},
        "state": {"values": RNG.normal(size=(4, 3))},
    },
    "future": {"values": RNG.normal(size=(8, 3))},
}
POLICY = {
    "images": {"head": RNG.integers(0, 256, (4, 8, 8, 3), np.uint8)},
    "state": RNG.normal(size=(4, 3)),
    "actions": RNG.normal(size=(8, 3)),
}
UPLOAD = (
    b"POST /v1/predictions HTTP/1.1\r\nHost: localhost\r\n"
    b"Content-Type: application/json\r\nContent-Length: 9999\r\n\r\n{"
)


class Served:
    """`serve` as a process of its own."""

    def __init__(self, log, *, before="", **settings):
        program = f"{before}\nfrom foreframe_server.cli.commands import app\napp()"
        named = {f"FOREFRAME_HTTP__{name.upper()}": str(value) for name, value in settings.items()}
        self.log = log
        command = [sys.executable, "-c", program, "serve", "--port", "0", "--json"]
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=errors, text=True, env={**os.environ, **named}
            )
        lines = []
        while not lines or lines[-1] != "}\n":
            lines.append(self.process.stdout.readline())
            assert lines[-1], log.read_text()
        self.address = json.loads("".join(lines))["address"]
        self.port = int(self.address.rsplit(":", 1)[-1]) if self.address.startswith("http") else None

    def lines(self):
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]


@pytest.fixture
def serve(tmp_path):
    with contextlib.ExitStack() as stack:

        def start(**options):
            served = Served(tmp_path / "log", **options)
            stack.callback(served.process.stdout.close)
            stack.callback(served.process.wait)
            stack.callback(served.process.kill)
            return served

        yield start


def test_a_terminated_server_is_lame_first_and_ends_well(serve):
    served = serve(lame_duck_s=1.0)
    with httpx.Client(base_url=served.address) as client:
        assert client.get("/readyz").status_code == 200
        served.process.send_signal(signal.SIGTERM)
        until_s = time.monotonic() + PATIENCE_S
        while (reply := client.get("/readyz")).status_code == 200:
            assert time.monotonic() < until_s
        assert (reply.status_code, reply.json()["code"]) == (503, "not_ready")
        assert client.get("/healthz").status_code == 200
    assert served.process.wait(PATIENCE_S) == 0
    assert "Traceback" not in served.log.read_text()


def test_a_second_signal_ends_it_at_once(serve):
    served = serve(lame_duck_s=600, drain_s=1200)
    served.process.send_signal(signal.SIGTERM)
    with httpx.Client(base_url=served.address) as client:
        while client.get("/readyz").status_code == 200:
            pass
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(PATIENCE_S) == 128 + signal.SIGTERM


def test_aborted_and_slow_uploads_are_a_line_each_and_no_traceback(serve):
    served = serve(lame_duck_s=0, body_timeout_s=1)
    for index in range(100):
        with socket.create_connection(("127.0.0.1", served.port)) as upload:
            upload.sendall(UPLOAD)
            if index % 2:
                upload.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    with socket.create_connection(("127.0.0.1", served.port)) as upload:
        upload.sendall(UPLOAD)
        reply = upload.recv(4096)
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(PATIENCE_S) == 0
    lines = [line for line in served.lines() if line["event"] == "request"]
    (slow,) = [line for line in lines if line["code"] == "request_timeout"]
    assert (reply[:13], slow["status"], slow["request_id"].encode() in reply) == (b"HTTP/1.1 408 ", 408, True)
    assert {line["code"] for line in lines} <= {"client_left", "request_timeout"}
    assert len(lines) <= 101
    assert "Traceback" not in served.log.read_text()


def test_few_open_files_are_fewer_connections(serve):
    few = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))"
    served = serve(lame_duck_s=0, before=few)
    held = []
    for _ in range(300):
        with contextlib.suppress(OSError):
            held.append(socket.create_connection(("127.0.0.1", served.port)))
    assert httpx.get(f"{served.address}/healthz").status_code == 200
    for one in held:
        one.close()
    assert [line["max_connections"] for line in served.lines() if "fewer connections" in line["event"]] == [128]


def test_a_unix_socket_is_served_and_removed(serve, tmp_path):
    path = tmp_path / "door.sock"
    served = serve(lame_duck_s=0, host=f"unix:{path}", admin_port=0)
    assert served.address == f"unix:{path}"
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://localhost") as client:
        assert client.get("/readyz").status_code == 200
    (admin,) = [line["address"] for line in served.lines() if line["event"] == "operators are answered"]
    assert httpx.get(f"{admin}/metrics").status_code == 200
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(PATIENCE_S) == 0
    assert not path.exists()


class Brake:
    """A step hook that holds the device while it is on."""

    def __init__(self):
        self.go = threading.Event()
        self.is_held = threading.Event()

    def __call__(self, rows):
        if not self.go.is_set():
            self.is_held.set()
            assert self.go.wait(PATIENCE_S)


def answers_until_the_end(line):
    answers = []
    while True:
        try:
            answers.append(line.recv(timeout=PATIENCE_S))
        except ConnectionClosed as error:
            return answers, error.rcvd.code


@pytest.mark.parametrize("path", ["/v1/realtime", "/openpi/policy"])
@pytest.mark.parametrize("parser", ["h11", "httptools"])
def test_a_robot_gets_its_answer_before_its_line_ends(path, parser):
    brake = Brake()
    brake.go.set()
    engine = ToyRolloutEngine(toy_contract(), step_hook=brake)
    settings = Settings(http={"port": 0, "parser": parser, "lame_duck_s": 0})
    asked = {"type": "predict", "request_id": "r1", **REQUEST} if path == "/v1/realtime" else POLICY
    with contextlib.ExitStack() as serving:
        address = serving.enter_context(running_server(settings, given(engine)))
        with connect(f"ws{address.removeprefix('http')}{path}", max_size=None) as line:
            line.recv(timeout=PATIENCE_S)
            brake.go.clear()
            line.send(msgpack.packb(asked, default=map_for_msgpack))
            assert brake.is_held.wait(PATIENCE_S)
            leaving = threading.Thread(target=serving.pop_all().close)
            leaving.start()
            threading.Timer(0.5, brake.go.set).start()
            answers, code = answers_until_the_end(line)
            leaving.join()
    (answer,) = map(msgpack.unpackb, answers)
    assert (code, answer.get("type", "done"), "code" in answer) == (1012, "done", False)


@pytest.mark.parametrize("parser", ["h11", "httptools"])
def test_a_request_that_is_cut_off_is_told_so_and_is_a_line_and_no_traceback(parser, caplog):
    brake = Brake()
    brake.go.set()
    engine = ToyRolloutEngine(toy_contract(), step_hook=brake)
    settings = Settings(http={"port": 0, "parser": parser, "lame_duck_s": 0, "drain_s": 0.5})
    body = msgpack.packb(REQUEST, default=map_for_msgpack)
    with structlog.testing.capture_logs() as lines, ThreadPoolExecutor(2) as threads, contextlib.ExitStack() as serving:
        address = serving.enter_context(running_server(settings, given(engine)))
        brake.go.clear()
        headers = {"content-type": "application/msgpack"}
        asking = threads.submit(
            httpx.post, f"{address}/v1/predictions", content=body, headers=headers, timeout=PATIENCE_S
        )
        assert brake.is_held.wait(PATIENCE_S)
        leaving = threads.submit(serving.pop_all().close)
        reply = asking.result(PATIENCE_S)
        brake.go.set()
        leaving.result(PATIENCE_S)
    assert (reply.status_code, reply.headers["content-type"]) == (503, "application/problem+json")
    assert (reply.json()["code"], reply.json()["retryable"]) == ("not_ready", True)
    assert [(line["status"], line["code"]) for line in lines if line["event"] == "request"] == [(503, "not_ready")]
    assert "Traceback" not in caplog.text
