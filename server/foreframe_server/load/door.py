"""A server behind an address, over real HTTP. Turns replies into values; knows nothing of when to ask."""

import contextlib
import json
import os
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias, cast

import httpx
import numpy as np
from jaxtyping import UInt8

from foreframe_server.codec.documents import Document, read_document
from foreframe_server.codec.media import Media
from foreframe_server.load.generator import Send
from foreframe_server.load.questions import Questions, Sizes
from foreframe_server.load.records import OK, UNREACHABLE, Reply
from foreframe_server.load.traces import Arrival, Ask
from foreframe_server.settings import CLIENT_KEY

Keep: TypeAlias = Callable[[UInt8[np.ndarray, "f h w 3"]], object]
_ROUTE = "/v1/predictions"
_HEADERS = {"content-type": "application/msgpack", "accept": "application/msgpack, application/problem+json"}
_TIMEOUT_S = 120.0
_MAX_VALUES = 10_000_000
_NO_DEVICE = ("receive", "decode", "queue", "reduce", "respond")
_ROWS = re.compile(r"^foreframe_step_batch_rows_sum(?:\{[^}]*\})? (\S+)$", re.MULTILINE)
_POLL_S = 0.1
_READY_S = 2.0


class UnfitServer(Exception):
    """A server does not answer, or has no model that predicts; the message is one line for a person."""


@dataclass(frozen=True, slots=True, eq=False)
class Fetched:
    """An answer with its frames (RGB 0..255), and what it took and weighed."""

    reply: Reply
    elapsed_ms: float
    sent: bytes
    received_bytes: int
    frames: UInt8[np.ndarray, "f h w 3"]


class Door:
    """Predictions of one server. Made by `open_door`."""

    def __init__(self, client: httpx.AsyncClient, sizes: Sizes, *, seed: int = 0, nonce: int = 0) -> None:
        self.sizes = sizes
        self.nonce = nonce
        self._client = client
        self._seed = seed
        self._questions = Questions(sizes, seed=seed, nonce=nonce)

    def marked(self, nonce: int) -> "Door":
        """Return the same door with another nonce: doors of one seed and nonce ask the same about equal contents."""
        return Door(self._client, self.sizes, seed=self._seed, nonce=nonce)

    def prepare(self, arrival: Arrival) -> Send:
        """Write a question; what comes back sends it."""
        return partial(self._send, self._questions.write(arrival.ask, arrival.content))

    def prepare_kept(self, body: bytes, keep: Keep) -> Send:
        """Take a question as it is; what comes back sends it and passes an answer's frames (RGB 0..255) to `keep`."""
        return partial(self._send, body, keep)

    async def fetch(self, ask: Ask, content: int) -> Fetched:
        """Ask one question and keep what came. Raises UnfitServer for a refusal, and for no answer."""
        body = self._questions.write(ask, content)
        started_s = time.perf_counter()
        try:
            response = await self._client.post(_ROUTE, content=body, headers=_HEADERS)
        except httpx.HTTPError as error:
            raise UnfitServer(f"no server answers at {self._client.base_url} any more: {error}") from error
        elapsed_ms = 1000 * (time.perf_counter() - started_s)
        if response.status_code != 200:
            raise UnfitServer(f"the server answered {response.status_code}: {response.text[:200]}")
        document = read_document(response.content, Media.MSGPACK, max_values=_MAX_VALUES)
        return Fetched(_answer(document), elapsed_ms, body, len(response.content), _frames(document))

    async def read_version(self) -> str | None:
        """Return what the server calls its version, None where it does not say. Raises UnfitServer when it is away."""
        try:
            response = await self._client.get("/version")
            return str(response.json()["version"])
        except httpx.HTTPError as error:
            raise UnfitServer(f"no server answers at {self._client.base_url} any more: {error}") from error
        except (ValueError, KeyError, TypeError):
            return None

    async def read_metrics(self) -> str:
        """Return what the server counts. Raises UnfitServer when it does not say."""
        response = await self._client.get("/metrics")
        if response.status_code != 200:
            raise UnfitServer(f"the server's metrics cannot be read: it answered {response.status_code}")
        return response.text

    async def count_rows(self) -> float:
        """Return how many rows the server has stepped so far. Raises UnfitServer when it does not say."""
        response = await self._client.get("/metrics")
        found = _ROWS.search(response.text)
        if found is None:
            raise UnfitServer("the server's /metrics do not count rows")
        return float(found[1])

    async def _send(self, body: bytes, keep: Keep | None = None) -> Reply:
        try:
            response = await self._client.post(_ROUTE, content=body, headers=_HEADERS)
        except httpx.HTTPError:
            return Reply(UNREACHABLE)
        if response.status_code != 200:
            return Reply(_problem_code(response))
        document = read_document(response.content, Media.MSGPACK, max_values=_MAX_VALUES)
        if keep is not None:
            keep(_frames(document))
        return _answer(document)


@contextlib.asynccontextmanager
async def open_door(address: str, *, seed: int = 0) -> AsyncIterator[Door]:
    """Connect to a server for as long as the block runs. seed: of what is asked about. Raises UnfitServer."""
    async with open_client(address) as client:
        # Runs that start in different nanoseconds find nothing of each other in a cache.
        yield Door(client, await _read_sizes(client), seed=seed, nonce=time.time_ns())


def wait_until_ready(address: str, patience_s: float) -> None:
    """Wait for a server that is not there yet, or not ready; does not mind when it stays so."""
    give_up_s = time.monotonic() + patience_s
    with httpx.Client(base_url=address, timeout=_READY_S, trust_env=False) as client:
        while not _is_ready(client) and time.monotonic() < give_up_s:
            time.sleep(_POLL_S)


def _is_ready(client: httpx.Client) -> bool:
    """Whether waiting longer is of no use: what is no foreframe never becomes ready."""
    try:
        response = client.get("/readyz")
    except httpx.TransportError:
        return False
    return response.status_code != httpx.codes.SERVICE_UNAVAILABLE


def open_client(address: str) -> httpx.AsyncClient:
    """Open a client that never waits for one of its own connections, with the environment's key if there is one."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    key = os.environ.get(CLIENT_KEY)
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    return httpx.AsyncClient(base_url=address, timeout=_TIMEOUT_S, limits=limits, headers=headers, trust_env=False)


async def _read_sizes(client: httpx.AsyncClient) -> Sizes:
    models = _list(await _get(client, "/v1/models"), "models")
    able = [model for model in map(_map, models) if "predict" in _list(model, "capabilities")]
    if not able:
        raise UnfitServer("the server has no model that predicts")
    model = able[0]
    camera, sampler = _map(_list(model, "cameras")[0]), _map(model["sampler"])
    schema = await _get(client, f"/v1/state-schemas/{model['state_schema']}")
    return Sizes(
        model=str(model["id"]),
        revision=str(model["revision"]),
        camera=str(camera["name"]),
        height=_whole(camera["height"]),
        width=_whole(camera["width"]),
        context_frames=_whole(model["context_frames"]),
        horizon=_whole(model["horizon"]),
        steps=_whole(sampler["steps"]),
        state_mean=tuple(cast("list[float]", schema["mean"])),
        state_std=tuple(cast("list[float]", schema["std"])),
    )


async def _get(client: httpx.AsyncClient, path: str) -> Document:
    try:
        response = await client.get(path)
    except httpx.HTTPError as error:
        raise UnfitServer(f"no server answers at {client.base_url}: {error}") from error
    if response.status_code != 200:
        raise UnfitServer(f"the server answered {response.status_code} to {path}")
    try:
        return _map(response.json())
    except json.JSONDecodeError as error:
        raise UnfitServer(f"what answers at {client.base_url} is not foreframe") from error


def _answer(document: Mapping[str, object]) -> Reply:
    ensemble, timings = _map(document["ensemble"]), cast("Mapping[str, float]", document["timings_ms"])
    return Reply(
        code=OK,
        members=_whole(ensemble["members"]),
        from_cache=_whole(ensemble["from_cache"]),
        rows_per_step=timings["step_batch_mean"],
        server_ms=timings["total"],
        device_ms=timings["total"] - sum(timings[stage] for stage in _NO_DEVICE),
        cache=str(document["cache"]),
        spread=_mean_spread(_map(document["uncertainty"])),
        is_degraded=document["degraded"] is not None,
        says_late=document["deadline_met"] is False,
    )


def _mean_spread(uncertainty: Mapping[str, object]) -> float | None:
    """Return the mean of the frames' spreads, None with fewer than two members."""
    spreads = cast("list[float]", _list(uncertainty, "spread_per_frame"))
    return sum(spreads) / len(spreads) if spreads else None


def _frames(document: Mapping[str, object]) -> UInt8[np.ndarray, "f h w 3"]:
    frames = [cast("Mapping[str, np.ndarray]", frame)["image"] for frame in _list(document, "frames")]
    return np.stack(frames)


def _problem_code(response: httpx.Response) -> str:
    try:
        return str(response.json()["code"])
    except (ValueError, KeyError, TypeError):
        return f"status_{response.status_code}"


def _map(value: object) -> Document:
    if not isinstance(value, dict):
        raise UnfitServer("what answers is not foreframe")
    return value


def _list(fields: Mapping[str, object], name: str) -> list[object]:
    value = fields.get(name)
    if not isinstance(value, list):
        raise UnfitServer("what answers is not foreframe")
    return value


def _whole(value: object) -> int:
    if not isinstance(value, int):
        raise UnfitServer("what answers is not foreframe")
    return value
