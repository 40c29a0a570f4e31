"""The whole app on a toy engine, in this process, and requests that fit it."""

import base64
import contextlib
import copy
import io

import httpx
import numpy as np
import pytest
from PIL import Image

from foreframe_engines.testing import ToyRolloutEngine
from foreframe_server.app import create_app
from foreframe_server.settings import Settings

CONTEXT, SIZE, DIM, HORIZON = 4, 8, 3, 8


@contextlib.asynccontextmanager
async def serve(app):
    """Run the app's lifespan, wait until its model is warm, and give a client of it."""
    async with app.router.lifespan_context(app):
        await app.state.starting
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://robot") as client:
            yield client


def encode(frame, kind="PNG", **options):
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, kind, **options)
    return buffer.getvalue()


def text_of(data):
    return base64.b64encode(data).decode()


def context_frames(seed=0, *, count=CONTEXT, height=SIZE, width=SIZE):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


_REQUEST = {
    "observation": {
        "cameras": {
            "head": {"encoding": "png", "frames": [text_of(encode(frame)) for frame in context_frames()]},
        },
        "state": {"schema": "toy-joints", "values": [[0.1 * row, 0.2, 0.3] for row in range(CONTEXT)]},
    },
    "future": {"kind": "state", "values": [[0.1 * row, 0.2, 0.3] for row in range(HORIZON)]},
    "sampling": {"seed": 7, "steps": 2},
}


def build_request(**fields):
    """A request that the toy answers; `a__b=…` sets a field of a part, `...` removes it."""
    request = copy.deepcopy(_REQUEST)
    for path, value in fields.items():
        *parents, name = path.split("__")
        part = request
        for parent in parents:
            part = part.setdefault(parent, {})
        if value is ...:
            del part[name]
        else:
            part[name] = value
    return request


@pytest.fixture(scope="session")
def anyio_backend():
    return "asyncio"


@pytest.fixture
def engine():
    return ToyRolloutEngine()


@pytest.fixture
def app(engine):
    return create_app(Settings(), engine=engine)


@pytest.fixture
async def client(anyio_backend, app):
    async with serve(app) as client:
        yield client


@pytest.fixture(scope="module")
async def shared_client(anyio_backend):
    """One server for a whole table of requests that change nothing."""
    async with serve(create_app(Settings(), engine=ToyRolloutEngine())) as client:
        yield client


@pytest.fixture
def toy_request():
    return build_request


@pytest.fixture
def serving():
    return serve


@pytest.fixture
def frames():
    return context_frames


@pytest.fixture
def picture():
    return encode


@pytest.fixture
def base64_of():
    return text_of
