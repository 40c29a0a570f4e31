"""`foreframe bench scores`: shared against repeated histories, in the engine and over HTTP."""

import base64
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32

from foreframe_engines import Contract
from foreframe_engines.engine import LikelihoodEngine
from foreframe_engines.episodes import Clip
from foreframe_engines.reading import grid_states
from foreframe_server.benchmarks import Plans, SharingMeasures, measure_sharing
from foreframe_server.cli.console import print_note
from foreframe_server.cli.facts import bundle_path, open_likelihood
from foreframe_server.cli.faults import Fault, needs_client
from foreframe_server.cli.serving import running_server
from foreframe_server.cli.token_data import long_clip
from foreframe_server.codec.pictures import encode_png
from foreframe_server.reports.samples import Samples
from foreframe_server.settings import Settings

if TYPE_CHECKING:
    from httpx import Client

_HISTORY = 8
_FUTURES = (8, 1)
_JITTER = 0.1
_AT_ONCE = 8
_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class _Lap:
    """How long an answer took, and the candidates' costs in nats per token."""

    seconds: float
    costs: Sequence[float]


def run_scores(
    settings: Settings, data: Path | None, candidates: int, repeats: int, *, has_http: bool
) -> dict[str, object]:
    """Compare for a history as long as the future and one 8 times as long. Raises BundleError, DatasetError, Fault."""
    folder = bundle_path(settings)
    with closing(open_likelihood(folder, settings)) as engine:
        contract = engine.contract
        _check_windows(engine)
        clip = long_clip(engine, data, folder, _HISTORY + max(_FUTURES))
        plans = {future: _plans(engine, clip, candidates, future) for future in _FUTURES}
        measured = []
        for future, each in plans.items():
            print_note(f"engine: history {_HISTORY}, future {future}, {candidates} candidates")
            measured.append(measure_sharing(engine, each, repeats, time.perf_counter))
    record: dict[str, object] = {
        "experiment": "bench scores",
        "model": contract.model,
        "revision": contract.revision,
        "num_threads": settings.engine.num_threads,
        "engine": [asdict(each) for each in measured],
        "samples": [_ratios(each).record() for each in measured],
    }
    if not has_http:
        return record
    with running_server(settings) as address:
        return {
            **record,
            "http": [compare_over_http(address, contract, clip, plans[each], repeats) for each in _FUTURES],
        }


def _ratios(measures: SharingMeasures) -> Samples:
    name = f"shared over own histories, {measures.future_grids} grids"
    return Samples(name, "", "lower", tuple(measures.wall_time_ratios), statistic="median")


def _check_windows(engine: LikelihoodEngine) -> None:
    tokens = engine.tokens
    if tokens.window_frames != 1 or tokens.max_grids < _HISTORY + max(_FUTURES):
        raise Fault(f"the bench takes models that read {_HISTORY + max(_FUTURES)} grids, each of one frame")


def _plans(engine: LikelihoodEngine, clip: Clip, count: int, future: int) -> Plans:
    """Make candidates: the clip's own future states, each row shifted a little and at random (seed 0)."""
    states = grid_states(clip.states, engine.tokens)
    own = states[_HISTORY : _HISTORY + future]
    shifts = np.random.default_rng(0).standard_normal((count, *own.shape), np.float32)
    candidates = (own + _JITTER * engine.contract.state.std * shifts).astype(np.float32)
    return Plans(clip.frames[:_HISTORY], states[:_HISTORY], candidates)


def compare_over_http(address: str, contract: Contract, clip: Clip, plans: Plans, repeats: int) -> dict[str, object]:
    """Send candidates in one request and in one each, some at once; both sides take turns. Raises Fault."""
    with needs_client():
        import httpx
    count, future = plans.candidates.shape[:2]
    print_note(f"HTTP: history {_HISTORY}, future {future}, {count} candidates")
    turns: list[tuple[_Lap, _Lap]] = []
    with httpx.Client(base_url=address, timeout=_TIMEOUT_S) as client:
        bodies = [_body(contract, clip, plans.candidates[place : place + 1]) for place in range(count)]
        together = _body(contract, clip, plans.candidates)
        _lap(client, [together])
        turns.extend((_lap(client, [together]), _lap(client, bodies)) for _ in range(repeats))
    shared, independent = turns[-1]
    return {
        "history_grids": _HISTORY,
        "future_grids": future,
        "candidates": count,
        "requests_at_once": _AT_ONCE,
        "repeats": repeats,
        "shared_ms": round(1000 * median(one.seconds for one, _ in turns), 1),
        "independent_ms": round(1000 * median(many.seconds for _, many in turns), 1),
        "wall_time_ratio": round(median(one.seconds / many.seconds for one, many in turns), 4),
        "largest_cost_difference_nats_per_token": max(
            abs(one - other) for one, other in zip(shared.costs, independent.costs, strict=True)
        ),
    }


def _body(contract: Contract, clip: Clip, candidates: Float32[np.ndarray, "k h n"]) -> dict[str, object]:
    pictures = [base64.b64encode(encode_png(frame)).decode() for frame in clip.frames[:_HISTORY]]
    return {
        "observation": {
            "cameras": {contract.camera.name: {"encoding": "png", "frames": pictures}},
            "state": {"schema": contract.state.name, "values": clip.states[:_HISTORY].tolist()},
        },
        "candidates": {"values": candidates.tolist()},
        "objectives": [{"kind": "likelihood"}],
    }


def _lap(client: "Client", bodies: Sequence[dict[str, object]]) -> _Lap:
    """Send bodies, some at once, and wait for all answers."""
    started = time.perf_counter()
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        replies = list(pool.map(lambda body: _post(client, body), bodies))
    return _Lap(time.perf_counter() - started, [cost for costs in replies for cost in costs])


def _post(client: "Client", body: dict[str, object]) -> list[float]:
    reply = client.post("/v1/scores", json=body)
    if reply.status_code != 200:
        raise Fault(f"the server answered {reply.status_code}: {reply.text[:200]}")
    scored = reply.json()["candidates"]
    if missing := [candidate for candidate in scored if candidate["cost"] is None]:
        raise Fault(f"the server did not score a candidate: {missing[0]['status']}, {missing[0]['reason']}")
    return [candidate["cost"] for candidate in scored]
