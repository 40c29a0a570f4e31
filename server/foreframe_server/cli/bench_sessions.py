"""`foreframe bench sessions`: steps against predictions of the same content, long sessions, forks.

All over HTTP, to two servers. One answers the predictions; the other has encoded their contexts for its session.
"""

import resource
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float32

from foreframe_engines import DatasetError
from foreframe_engines.episodes import Clip, clips, episode_paths, load_episode
from foreframe_server.cli.clips import shipped_clips
from foreframe_server.cli.console import print_note
from foreframe_server.cli.facts import bundle_path
from foreframe_server.cli.faults import Fault, needs_client
from foreframe_server.cli.serving import running_server
from foreframe_server.load.processes import NotStarted, running_child
from foreframe_server.measures import psnr_db
from foreframe_server.settings import Settings

if TYPE_CHECKING:
    from foreframe_client import Client, Session

_SETTLE_S = 0.04
"""What a robot does between two steps; the next context is encoded meanwhile."""

_NUM_EPISODES = 8


@dataclass(frozen=True, slots=True)
class SessionPlan:
    """How much is measured."""

    steps: int
    rounds: int
    forks: int


@dataclass(frozen=True, slots=True)
class _Way:
    """How a step is drawn, and how many rows it has."""

    strategy: Literal["sample", "posterior_mean"]
    rows: int


_WAYS = (_Way("posterior_mean", 1), _Way("sample", 1), _Way("sample", 8))


@dataclass(frozen=True, slots=True)
class StepMeasures:
    """Wall time of a step against that of a prediction of the same content, from the client's call to its arrays.

    equal_bytes: steps whose frames are those of the prediction, byte for byte.
    """

    strategy: str
    rows: int
    rounds: int
    session_ms: float
    stateless_ms: float
    wall_ratio: float
    equal_bytes: int


def run_sessions(settings: Settings, data: Path | None, plan: SessionPlan) -> dict[str, object]:
    """Measure sessions of a model. Raises BundleError, DatasetError or Fault."""
    with needs_client():
        from foreframe_client import Client
    compared = list(_compare_ways(settings, data, plan.rounds))
    with running_server(settings) as address, Client(address) as client:
        (model,) = client.models()
        films = list(_films(data, bundle_path(settings), model.context_frames))
        print_note(f"a session of {plan.steps} steps")
        long_session = _run_long(client, address, films[0], plan)
        print_note(f"{len(films)} films, frame by frame")
        return {
            "experiment": "bench sessions",
            "model": model.id,
            "revision": model.revision,
            "num_threads": settings.engine.num_threads,
            **{f"{each.strategy}_{each.rows}_rows": asdict(each) for each in compared},
            "long_session": long_session,
            "psnr": _measure_psnr(client, films, model.context_frames),
        }


def _compare_ways(settings: Settings, data: Path | None, rounds: int) -> Iterator[StepMeasures]:
    """Compare with servers in processes of their own, so that no side's threads keep the other's waiting."""
    with needs_client():
        from foreframe_client import Client
    engine = settings.engine
    child = {"FOREFRAME_ENGINE__NUM_THREADS": str(engine.num_threads)}
    with ExitStack() as stack:
        try:
            addresses = [stack.enter_context(running_child(engine.bundle, child)) for _ in range(2)]
        except NotStarted as error:
            raise Fault(str(error)) from None
        session_side, other_side = (stack.enter_context(Client(address)) for address in addresses)
        (model,) = session_side.models()
        films = list(_films(data, bundle_path(settings), model.context_frames))
        for way in _WAYS:
            yield _compare(session_side, other_side, films, way, rounds)


def _films(data: Path | None, folder: Path, context: int) -> Iterator[Clip]:
    """Give what really happened: episodes of a data set, or the clips that come with the model."""
    if data is None:
        yield from shipped_clips(folder, _NUM_EPISODES)
        return
    for path in episode_paths(data)[:_NUM_EPISODES]:
        episode = load_episode(path)
        if len(episode.frames) <= context:
            raise DatasetError(f"{path.name} is shorter than {context + 1} frames")
        yield next(clips(episode, len(episode.frames), 1))


def _compare(
    session_side: "Client", other_side: "Client", films: Sequence[Clip], way: _Way, rounds: int
) -> StepMeasures:
    """Step a session and predict the same from what it stood at, in turns; the first turn is not timed."""
    print_note(f"{way.strategy}, {way.rows} rows a step")
    (model,) = session_side.models()
    context = model.context_frames
    frames, states = films[0].frames[:context], films[0].states[:context]
    turns: list[tuple[float, float]] = []
    num_equal = 0
    with session_side.open_session(frames, states, seed=0) as session:
        for turn in range(rounds + 1):
            time.sleep(_SETTLE_S)
            rows = _rows(films[0], context, turn, way.rows)
            started_s = time.perf_counter()
            step = session.step(rows, strategy=way.strategy, variance="none")
            between_s = time.perf_counter()
            time.sleep(_SETTLE_S)
            resumed_s = time.perf_counter()
            alone = other_side.predict(
                frames, states, rows, strategy=way.strategy, seed=step.seed, variance="none", cache="bypass"
            )
            turns.append((between_s - started_s, time.perf_counter() - resumed_s))
            num_equal += int(np.array_equal(step.frames, alone.frames))
            frames = np.concatenate([frames, step.frames])[-context:]
            states = np.concatenate([states, rows])[-context:]
    timed = turns[1:]
    return StepMeasures(
        strategy=way.strategy,
        rows=way.rows,
        rounds=rounds,
        session_ms=round(1000 * median(one for one, _ in timed), 2),
        stateless_ms=round(1000 * median(other for _, other in timed), 2),
        wall_ratio=round(median(one / other for one, other in timed), 4),
        equal_bytes=num_equal,
    )


def _rows(film: Clip, context: int, turn: int, count: int) -> Float32[np.ndarray, "n d"]:
    """Take the film's next rows; at its end it is played back, so that no row jumps."""
    future = film.states[context:]
    there_and_back = np.concatenate([future, future[::-1]])
    return there_and_back[(turn * count + np.arange(count)) % len(there_and_back)]


def _run_long(client: "Client", address: str, film: Clip, plan: SessionPlan) -> dict[str, object]:
    """Step for long, then fork. Memory is the whole process', servers and client."""
    (model,) = client.models()
    context = model.context_frames
    taken: list[float] = []
    resident: list[int] = []
    held: list[int] = []
    with client.open_session(film.frames[:context], film.states[:context], seed=0) as session:
        for turn in range(plan.steps):
            started_s = time.perf_counter()
            session.step(_rows(film, context, turn, 1), strategy="posterior_mean", variance="none")
            taken.append(time.perf_counter() - started_s)
            resident.append(_resident_bytes())
            held.append(session.status().num_bytes)
        forks = _fork(address, session, plan.forks)
    tenth = plan.steps // 10
    early, late = fmean(resident[tenth : 2 * tenth]), fmean(resident[-tenth:])
    return {
        "steps": plan.steps,
        "first_tenth_ms": round(1000 * median(taken[:tenth]), 2),
        "last_tenth_ms": round(1000 * median(taken[-tenth:]), 2),
        "resident_mb_early": round(early / 2**20, 2),
        "resident_mb_late": round(late / 2**20, 2),
        "resident_late_over_early": round(late / early, 4),
        "session_bytes_first": held[0],
        "session_bytes_last": held[-1],
        "fork": forks,
    }


def _fork(address: str, session: "Session", count: int) -> dict[str, object]:
    before = _held_bytes(address)
    taken = []
    forks = []
    for _ in range(count):
        started_s = time.perf_counter()
        forks.append(session.fork())
        taken.append(time.perf_counter() - started_s)
    extra = (_held_bytes(address) - before) / count
    for fork in forks:
        fork.close()
    return {
        "forks": count,
        "median_ms": round(1000 * median(taken), 3),
        "worst_ms": round(1000 * max(taken), 3),
        "extra_bytes": extra,
        "extra_ratio": round(extra / session.status().num_bytes, 6),
    }


def _measure_psnr(client: "Client", films: Sequence[Clip], context: int) -> dict[str, object]:
    """Step sessions row by row through films, with nothing pushed, and compare every frame with what happened."""
    ours, kept = [], []
    for film in films:
        truth = film.frames[context:]
        with client.open_session(film.frames[:context], film.states[:context], seed=0) as session:
            made = [
                session.step(row[None], strategy="posterior_mean", variance="none").frames[0]
                for row in film.states[context:]
            ]
        ours.append(psnr_db(np.stack(made), truth))
        kept.append(psnr_db(np.repeat(film.frames[context - 1 : context], len(truth), axis=0), truth))
    shortest = min(len(each) for each in ours)
    mean, baseline = (np.mean([each[:shortest] for each in side], axis=0) for side in (ours, kept))
    return {
        "films": len(films),
        "steps": shortest,
        "strategy": "posterior_mean",
        "per_step_db": [round(float(value), 3) for value in mean],
        "last_frame_kept_db": [round(float(value), 3) for value in baseline],
        "mean_db": round(float(mean.mean()), 3),
        "mean_last_frame_kept_db": round(float(baseline.mean()), 3),
        "steps_above_baseline": int((mean > baseline).sum()),
    }


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


def _held_bytes(address: str) -> int:
    with needs_client():
        import httpx
    lines = httpx.get(f"{address}/metrics").text.splitlines()
    held = [line.split()[1] for line in lines if line.startswith("foreframe_session_bytes ")]
    if not held:
        raise Fault("the server does not say what its sessions hold")
    return int(float(held[0]))
