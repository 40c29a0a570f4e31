"""The real client's streams against the real app over a socket: news come while the engine works, and end with it."""

import asyncio
import contextlib
import threading

import httpx
import numpy as np
import pytest
import structlog
import uvicorn

from foreframe_client import AsyncClient, Client, InvalidRequest, ModelFault, Prediction, Progress
from foreframe_engines.testing import ToyRolloutEngine, toy_contract
from foreframe_server.app import create_app
from foreframe_server.opening import given
from foreframe_server.settings import Settings

CONTRACT = toy_contract()
RNG = np.random.default_rng(0)
FRAMES = RNG.integers(0, 256, (CONTRACT.context_frames, 8, 8, 3), np.uint8)
ASKED = (FRAMES, RNG.normal(size=(CONTRACT.context_frames, 3)), RNG.normal(size=(CONTRACT.horizon, 3)))
PATIENCE_S = 20


class Brake:
    """A step hook that holds the engine after so many forwards, until it is let go."""

    def __init__(self):
        self.go = threading.Event()
        self.num_left = None
        self.num_rows = 0
        self.fault = None

    def hold_after(self, num_forwards):
        self.num_left, self.num_rows = num_forwards, 0

    def __call__(self, rows):
        self.num_rows += len(rows)
        if self.num_left is None:
            return
        self.num_left -= 1
        assert self.num_left >= 0 or self.go.wait(PATIENCE_S)
        if self.go.is_set() and self.fault is not None:
            raise self.fault


@contextlib.contextmanager
def served(brake):
    """Serve the app over a socket, for the blocking client; a forward has two rows."""
    app = create_app(Settings(scheduler={"max_rows": 2}), given(ToyRolloutEngine(CONTRACT, step_hook=brake)))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, ws="none"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            thread.join(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        with Client(f"http://127.0.0.1:{port}") as client:
            while not client.ready():
                thread.join(0.01)
            yield client
    finally:
        brake.go.set()
        server.should_exit = True
        thread.join()


def test_news_come_while_the_engine_works_and_the_answer_is_the_ordinary_one():
    brake = Brake()
    with served(brake) as client:
        brake.hold_after(9)
        stream = client.predict_stream(*ASKED, ensemble=32, seed=7, members=True, deadline_ms=60_000)
        news = [next(stream)]
        while news[-1].num_members < 4:
            news.append(next(stream))
        brake.go.set()
        *more, answer = list(stream)
        plain = client.predict(*ASKED, ensemble=32, seed=7, members=True, cache="bypass")

    assert all(isinstance(item, Progress) for item in news + more)
    assert isinstance(answer, Prediction)
    assert [item.num_members for item in news][-1] == 4
    assert all(item.frames.shape == answer.frames.shape for item in news + more)
    for name in ("frames", "members", "variance", "frame_indices", "times_s", "spread_per_frame"):
        np.testing.assert_array_equal(getattr(answer, name), getattr(plain, name))
    assert (answer.num_members, answer.seed, answer.steps) == (plain.num_members, plain.seed, plain.steps)


def test_who_hangs_up_ends_the_work():
    brake = Brake()
    with served(brake) as client:
        brake.hold_after(9)
        stream = client.predict_stream(*ASKED, ensemble=32, steps=4, seed=7)
        next(stream)
        stream.close()
        wait_for_code(client, "client_left")
        brake.go.set()
        client.predict(*ASKED, steps=1, seed=8)
    assert brake.num_rows <= 2 * 9 + 2 + 1


def wait_for_code(client, code):
    """Wait until a prediction has been counted with a code."""
    counted, pause = f'foreframe_requests_total{{code="{code}",route="/v1/predictions"}}', threading.Event()
    for _ in range(100 * PATIENCE_S):
        if counted in httpx.get(f"{client._http.base_url}/metrics").text:
            return
        pause.wait(0.01)
    pytest.fail("it was never counted")


def test_refusals_are_raised_before_and_within_a_stream():
    brake = Brake()
    with structlog.testing.capture_logs(), served(brake) as client:
        with pytest.raises(InvalidRequest) as early:
            list(client.predict_stream(*ASKED, ensemble=33))
        brake.hold_after(9)
        brake.fault = RuntimeError("planted")
        stream = client.predict_stream(*ASKED, ensemble=32, seed=7)
        next(stream)
        brake.go.set()
        with pytest.raises(ModelFault) as late:
            list(stream)

    assert early.value.reasons[0].pointer == "/ensemble/size"
    assert late.value.status == 500
    assert late.value.request_id


def test_the_asynchronous_client_reads_the_same():
    async def read():
        app = create_app(Settings(), given(ToyRolloutEngine(CONTRACT)))
        transport = httpx.ASGITransport(app)
        async with app.router.lifespan_context(app), AsyncClient(transport=transport) as client:
            await app.state.starting
            items = [item async for item in client.predict_stream(*ASKED, ensemble=8, seed=7)]
            return items, await client.predict(*ASKED, ensemble=8, seed=7)

    (*news, answer), plain = asyncio.run(read())
    assert all(isinstance(item, Progress) for item in news)
    assert (answer.cache, plain.cache) == ("miss", "hit")
    np.testing.assert_array_equal(answer.frames, plain.frames)
