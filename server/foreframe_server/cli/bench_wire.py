"""`foreframe bench wire`: what a request costs by how it is written, beside a model that costs nothing."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from foreframe_engines import Contract
from foreframe_engines.types import StepRow
from foreframe_server.cli.bench_wire_server import StubServer, running_stub
from foreframe_server.cli.console import print_note
from foreframe_server.cli.faults import Fault, needs
from foreframe_server.load.stub import StubEngine, stub_contract
from foreframe_server.load.wire_bodies import WIRE_FORMS, Body, write_body
from foreframe_server.settings import Settings

if TYPE_CHECKING:
    from httpx import Client

_REFERENCE = "json base64 raw"
_DIRECT = ("msgpack raw", "multipart raw")
_MAX_CPU_RATIO = 0.5
_MAX_ADDED_MS = 15.0
_BODY_BYTES = 128 * 2**20
_TIMEOUT_S = 60.0
_WARM_UP = 3
_MILLI = 1000


@dataclass(frozen=True, slots=True)
class WirePlan:
    """What is sent how often: `frames` context frames of `size` x `size`, in each form once a round."""

    frames: int
    size: int
    rounds: int
    policy: str


@dataclass(frozen=True, slots=True)
class _Lap:
    """One answer: milliseconds at the client, and of the server's processor."""

    client_ms: float
    server_cpu_ms: float


def run_wire(settings: Settings, plan: WirePlan) -> dict[str, object]:
    """Send the same observation in every form, in turns, to a server in a process of its own. Raises Fault."""
    with needs("pip install httpx"):
        import httpx
    contract = stub_contract(plan.size, plan.frames)
    frames = make_frames(plan.frames, plan.size)
    roomy = settings.model_copy(
        update={"http": settings.http.model_copy(update={"max_body_bytes": _BODY_BYTES, "port": 0})}
    )
    with (
        running_stub(roomy, plan.size, plan.frames) as server,
        httpx.Client(base_url=server.address, timeout=_TIMEOUT_S) as client,
    ):
        write = partial(write_body, contract=contract, frames=frames, policy=plan.policy)
        laps, num_bytes = _measure(client, server, write, plan.rounds)
    engine_ms = _time_engine(contract, frames, plan.rounds)
    return _record(plan, engine_ms, laps, num_bytes)


def make_frames(count: int, size: int) -> UInt8[np.ndarray, "t h w 3"]:
    """Make frames like a camera's: a gradient that moves, with a little noise (seed 0)."""
    rows, columns = np.mgrid[0:size, 0:size] * (255 / size)
    noise = np.random.default_rng(0).integers(-4, 5, (count, size, size, 3), np.int16)
    smooth = np.stack([rows, columns, (rows + columns) / 2], axis=-1)
    moved = [np.roll(smooth, 2 * index, axis=1) for index in range(count)]
    return np.clip(np.stack(moved) + noise, 0, 255).astype(np.uint8)


def _measure(
    client: "Client", server: StubServer, write: Callable[[str, int], Body], rounds: int
) -> tuple[dict[str, list[_Lap]], dict[str, int]]:
    """Ask in turns; every question has a seed of its own, so that no answer is one from before."""
    laps: dict[str, list[_Lap]] = {form: [] for form in WIRE_FORMS}
    num_bytes: dict[str, int] = {}
    for round_index in range(_WARM_UP + rounds):
        print_note(f"round {round_index + 1} of {_WARM_UP + rounds}")
        for place, form in enumerate(WIRE_FORMS):
            body = write(form, round_index * len(WIRE_FORMS) + place)
            num_bytes[form] = len(body.content)
            lap = _ask(client, server, body)
            if round_index >= _WARM_UP:
                laps[form].append(lap)
    return laps, num_bytes


def _ask(client: "Client", server: StubServer, body: Body) -> _Lap:
    before_s, started_s = server.cpu_s(), time.perf_counter()
    reply = client.post("/v1/predictions", content=body.content, headers=body.headers)
    client_s = time.perf_counter() - started_s
    if reply.status_code != 200:
        raise Fault(f"the server answered {reply.status_code}: {reply.text[:200]}")
    return _Lap(client_s * _MILLI, (server.cpu_s() - before_s) * _MILLI)


def _time_engine(contract: Contract, frames: UInt8[np.ndarray, "t h w 3"], rounds: int) -> float:
    """Return the median milliseconds that the same model takes for the same question when it is called directly."""
    engine = StubEngine(contract)
    return median(_run_engine(engine, frames) for _ in range(_WARM_UP + rounds))


def _run_engine(engine: StubEngine, frames: UInt8[np.ndarray, "t h w 3"]) -> float:
    states = np.zeros((len(frames) + 1, engine.contract.state.dim), np.float32)
    noise = np.zeros(engine.noise_shape(), np.float32)
    started_s = time.perf_counter()
    conditioning = engine.condition(engine.encode(frames), states)
    latents = engine.initial_latents(conditioning, noise)
    (latents,) = engine.step([StepRow(latents, 1.0, 0.0, conditioning)])
    engine.decode([latents], [1])
    return (time.perf_counter() - started_s) * _MILLI


def _record(
    plan: WirePlan, engine_ms: float, laps: Mapping[str, list[_Lap]], num_bytes: Mapping[str, int]
) -> dict[str, object]:
    cpu_ms = {form: median(lap.server_cpu_ms for lap in each) for form, each in laps.items()}
    client_ms = {form: median(lap.client_ms for lap in each) for form, each in laps.items()}
    forms = {
        form: {
            "body_bytes": num_bytes[form],
            "client_p50_ms": round(client_ms[form], 3),
            "added_p50_ms": round(client_ms[form] - engine_ms, 3),
            "server_cpu_p50_ms": round(cpu_ms[form], 3),
            "server_cpu_ratio": round(cpu_ms[form] / cpu_ms[_REFERENCE], 4),
        }
        for form in laps
    }
    ratio = max(cpu_ms[form] / cpu_ms[_REFERENCE] for form in _DIRECT)
    added_ms = max(client_ms[form] - engine_ms for form in _DIRECT)
    return {
        "experiment": "bench wire",
        "frames": plan.frames,
        "size": plan.size,
        "frames_bytes": plan.frames * plan.size**2 * 3,
        "rounds": plan.rounds,
        "cache": plan.policy,
        "reply": "one raw frame in msgpack",
        "engine_p50_ms": round(engine_ms, 3),
        "forms": forms,
        "server_cpu_ratio": {"value": round(ratio, 4), "at_most": _MAX_CPU_RATIO, "is_met": ratio <= _MAX_CPU_RATIO},
        "added_p50_ms": {"value": round(added_ms, 3), "at_most": _MAX_ADDED_MS, "is_met": added_ms <= _MAX_ADDED_MS},
    }
