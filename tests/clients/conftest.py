"""A scripted server at the border of the network, and one scene. Runs on Python 3.8 with numpy and httpx alone."""

from __future__ import annotations

import json
from dataclasses import dataclass

import httpx
import numpy as np
import pytest

from foreframe_client._arrays import pack_array, unpack_arrays
from foreframe_client._msgpack import decode, encode

MODEL = {
    "id": "toy",
    "family": "toy",
    "revision": "r1",
    "cameras": [{"name": "head", "height": 4, "width": 5}],
    "context_frames": 3,
    "horizon": 2,
    "fps": 10.0,
    "state_schema": "eve25",
    "state_dim": 25,
    "capabilities": ["predict", "likelihood", "score"],
}


def picture(value: int) -> dict[str, object]:
    return pack_array(np.full((4, 5, 3), value, np.uint8))


def members() -> dict[str, object]:
    frames = np.full((2, 2, 4, 5, 3), 10, np.uint8)
    return pack_array(frames + np.array([[0, 10], [1, 11]], np.uint8)[:, :, None, None, None])


def prediction_document() -> dict[str, object]:
    """One whole reply: frames of value 10 and 20, and two members of which one is a grey level brighter."""
    return {
        "id": "p-1",
        "model": "toy",
        "revision": "r1",
        "frames": [{"index": i, "t_s": i / 10, "image": picture(10 * i)} for i in (1, 2)],
        "members": members(),
        "uncertainty": {
            "source": "sample_spread",
            "members": 2,
            "spread_per_frame": [0.25, 0.5],
            "map": pack_array(np.arange(40, dtype=np.float32).reshape(2, 4, 5)),
        },
        "ensemble": {"requested": 3, "members": 2, "from_cache": 0, "steps": 6, "strategy": "sample"},
        "degraded": {"members": 2, "steps": 6, "reason": "deadline"},
        "deadline_met": True,
        "seed": 7,
        "determinism": "bitwise",
        "cache": "miss",
        "timings_ms": {"total": 12.5, "cold": False},
        "warnings": [{"code": "state_flat", "pointer": "/future/values", "message": "states never change"}],
    }


def likelihood_document() -> dict[str, object]:
    """One whole reply about two grids of 2 x 3 ids."""
    return {
        "id": "l-1",
        "model": "toy",
        "revision": "r1",
        "scenario": "teacher_forced",
        "support": "top_k",
        "nats_total": 24.0,
        "bits_total": 34.6,
        "nats_per_token": 2.0,
        "bits_per_token": 2.885,
        "bits_per_frame": [14.6, 20.0],
        "grid_frames": [[1], [2, 3]],
        "bits_per_pixel": 0.9,
        "tokens": 12,
        "topk_cross_entropy": {
            "k": 5,
            "definition": "topk_renormalised",
            "value": 1.5,
            "escape_nats": 0.25,
            "escape_mass": 0.125,
            "num_outside": 3,
            "left_out": 3,
        },
        "surprise_per_frame": [
            {"frames": [1], "bits": 14.6, "z": -1.0, "quantile": 0.1},
            {"frames": [2, 3], "bits": 20.0, "z": 2, "quantile": 0.99},
        ],
        "map": pack_array(np.arange(12, dtype=np.float32).reshape(2, 2, 3)),
        "timings_ms": {"total": 3.5},
        "deadline_met": True,
        "warnings": [],
    }


def candidate_document(index: int, cost: float, rank: int, **changes: object) -> dict[str, object]:
    fields: dict[str, object] = {"index": index, "id": str(index), "status": "ok", "reason": None, "cost": cost}
    fields.update(terms={"goal_image": cost}, constraints=[], feasible=True, rank=rank, uncertainty=None, frames=None)
    return {**fields, **changes}


def scores_document() -> dict[str, object]:
    """One whole reply: the second of three is best, the first breaks a bound, the third is invalid."""
    bound = {"kind": "spread", "value": 0.5, "max": 0.25, "satisfied": False}
    kept = {**bound, "value": 0.125, "satisfied": True}
    shown = [{"index": 2, "t_s": 0.2, "image": picture(7)}]
    lost = {"status": "invalid", "reason": "not finite", "terms": None, "constraints": None, "feasible": None}
    return {
        "id": "s-1",
        "model": "toy",
        "revision": "r1",
        "direction": "minimize",
        "best_index": 1,
        "rank_stability": 0.75,
        "seed": 7,
        "strategy": "sample",
        "members": 8,
        "determinism": "bitwise",
        "candidates": [
            candidate_document(0, 0.5, 2, constraints=[bound], feasible=False),
            candidate_document(1, 1.5, 1, constraints=[kept], frames=shown),
            candidate_document(2, None, None, **lost),
        ],
        "scored": 2,
        "deadline_met": True,
        "timings_ms": {"total": 9.0},
        "warnings": [],
    }


def packed(document: dict[str, object], status: int = 200) -> httpx.Response:
    return httpx.Response(status, content=encode(document), headers={"content-type": "application/msgpack"})


def problem(code: str, status: int, *, retryable: bool, **more: object) -> httpx.Response:
    body = {"type": "about:blank", "title": "no", "status": status, "detail": f"It is {code}.", "code": code}
    body.update(request_id="r-9", errors=[], retryable=retryable, retry_after_ms=None)
    headers = {"content-type": "application/problem+json"}
    return httpx.Response(status, content=json.dumps({**body, **more}), headers=headers)


class ScriptedServer:
    """Answers GET with one model and all else with the next entry of its script, the last one for ever.

    It keeps what came.
    """

    def __init__(self) -> None:
        self.script: list[object] = [packed(prediction_document())]
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if request.method == "GET":
            return self._describe(request.url.path)
        entry = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(entry, Exception):
            raise entry
        return httpx.Response(entry.status_code, content=entry.content, headers=entry.headers)

    def _describe(self, path: str) -> httpx.Response:
        schema = {"name": "eve25", "names": ["a", "b"], "units": ["rad", "m"]}
        known = {
            "/v1/models": {"models": [MODEL]},
            "/v1/models/toy": MODEL,
            "/v1/state-schemas": {"state_schemas": [schema]},
            "/healthz": {"status": "ok"},
            "/version": {"name": "foreframe", "version": "0.1.0"},
        }
        if path in known:
            return httpx.Response(200, json=known[path])
        if path == "/readyz":
            return problem("not_ready", 503, retryable=True)
        return problem("unknown_model", 404, retryable=False)

    def paths(self) -> list[str]:
        return [request.url.path for request in self.requests]

    def posted(self) -> list[dict[str, object]]:
        return [unpack_arrays(decode(request.content)) for request in self.requests if request.method == "POST"]


@dataclass(frozen=True, eq=False)
class Scene:
    frames: np.ndarray
    states: np.ndarray
    future_states: np.ndarray

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        return self.frames, self.states, self.future_states


@pytest.fixture
def server() -> ScriptedServer:
    return ScriptedServer()


@pytest.fixture
def scene() -> Scene:
    rng = np.random.RandomState(0)
    return Scene(rng.randint(0, 256, (3, 4, 5, 3)).astype(np.uint8), rng.randn(3, 25), rng.randn(2, 25))


@pytest.fixture
def refuse():
    return problem


@pytest.fixture
def prediction():
    return prediction_document()


@pytest.fixture
def likelihood():
    return likelihood_document()


@pytest.fixture
def scores():
    return scores_document()


@pytest.fixture
def answer():
    return packed
