"""`foreframe predict`: one recorded window, predicted here or by a server, as a picture or a film."""

import base64
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from foreframe_engines import (
    Bundle,
    EnsembleSpec,
    Prediction,
    Query,
    RolloutEngine,
    Sampling,
    SpreadCalibration,
    Strategy,
    open_rollout_engine,
    sample,
)
from foreframe_engines.episodes import Clip
from foreframe_server.cli.clips import SHIPPED, Place, read_clip
from foreframe_server.cli.console import print_json, print_pretty, table_of
from foreframe_server.cli.facts import ModelFacts, bundle_path, read_contract
from foreframe_server.cli.faults import Fault, needs_data
from foreframe_server.cli.remote import ask_over, connected, prediction_of, read_facts
from foreframe_server.cli.rerun_export import write_rerun
from foreframe_server.codec.pictures import encode_png
from foreframe_server.codec.video import encode_mp4
from foreframe_server.evaluation import psnr, squared_errors
from foreframe_server.pictures import Drawing, film, strip
from foreframe_server.settings import Settings

if TYPE_CHECKING:
    from foreframe_client import Client

_FILM_FPS = 5.0


@dataclass(frozen=True, slots=True)
class Wish:
    """Which window of a recording to predict, and how; None leaves the steps to the model, the clip to the bundle."""

    recording: Path | None
    place: Place
    strategy: str
    size: int
    steps: int | None
    seed: int


@dataclass(frozen=True, slots=True)
class Outputs:
    """Where a prediction goes: a picture or film, and files for robots' viewers where they are asked for."""

    picture: Path
    mcap: Path | None = None
    rerun: Path | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _Answer:
    """A prediction, and what its spread says: the verdict and horizon of a server's reply."""

    prediction: Prediction
    verdict: str = "uncalibrated"
    trusted_horizon: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _Outcome:
    facts: ModelFacts
    clip: Clip
    answer: _Answer
    elapsed_ms: float

    @property
    def prediction(self) -> Prediction:
        return self.answer.prediction


def predict_recording(wish: Wish, settings: Settings, url: str | None, out: Outputs, *, is_json: bool) -> None:
    """Predict, write the picture or film and what else is asked for, and print a summary.

    Raises DatasetError, BundleError, Fault or ForeframeError.
    """
    outcome = _predict_here(wish, settings) if url is None else _predict_there(wish, settings, url)
    _write(out.picture, outcome)
    _export(out, outcome)
    summary = {**_summary(outcome), "out": str(out.picture)}
    if is_json:
        print_json(summary)
    else:
        print_pretty(table_of(summary, f"{outcome.facts.model} {outcome.facts.revision}"))


def print_body(wish: Wish, settings: Settings) -> None:
    """Print what `POST /v1/predictions` takes for this wish. Raises DatasetError or BundleError."""
    contract = read_contract(settings)
    facts = ModelFacts.of(contract)
    query = _query(wish, facts, read_clip(_recording(wish, settings), facts, wish.place))
    past, future = np.split(query.states, [len(query.context)])
    pictures = [base64.b64encode(encode_png(frame)).decode() for frame in query.context]
    print_json(
        {
            "observation": {
                "cameras": {contract.camera.name: {"encoding": "png", "frames": pictures}},
                "state": {"schema": contract.state.name, "values": past.tolist()},
            },
            "future": {"kind": "state", "values": future.tolist()},
            "ensemble": {"size": query.ensemble.size},
            "sampling": {
                "strategy": query.sampling.strategy.value,
                "steps": query.sampling.steps,
                "seed": query.sampling.seed,
            },
        }
    )


def _recording(wish: Wish, settings: Settings) -> Path:
    return wish.recording or bundle_path(settings) / SHIPPED


def _predict_here(wish: Wish, settings: Settings) -> _Outcome:
    bundle = Bundle.open(bundle_path(settings))
    with closing(open_rollout_engine(bundle, num_threads=settings.engine.num_threads)) as engine:
        ask = partial(_ask_here, engine, bundle.calibration.spread)
        return _predict(wish, _recording(wish, settings), ModelFacts.of(bundle.contract), ask)


def _predict_there(wish: Wish, settings: Settings, url: str) -> _Outcome:
    with connected(url) as client:
        return _predict(wish, _recording(wish, settings), read_facts(client), partial(_ask_there, client))


def _ask_here(engine: RolloutEngine, spread: SpreadCalibration | None, query: Query) -> _Answer:
    prediction = sample(engine, query)
    judgement = None if spread is None else spread.judge(prediction)
    if judgement is None:
        return _Answer(prediction)
    return _Answer(prediction, judgement.verdict, judgement.trusted_horizon)


def _ask_there(client: "Client", query: Query) -> _Answer:
    reply = ask_over(client, query)
    return _Answer(prediction_of(query, reply), reply.verdict, reply.trusted_horizon)


def _predict(wish: Wish, recording: Path, facts: ModelFacts, ask: Callable[[Query], _Answer]) -> _Outcome:
    clip = read_clip(recording, facts, wish.place)
    query = _query(wish, facts, clip)
    started = time.perf_counter()
    answer = ask(query)
    return _Outcome(facts, clip, answer, (time.perf_counter() - started) * 1000)


def _query(wish: Wish, facts: ModelFacts, clip: Clip) -> Query:
    strategy = Strategy(wish.strategy)
    steps = 1 if strategy is Strategy.POSTERIOR_MEAN else wish.steps or facts.steps
    if wish.size > facts.max_ensemble_size or steps > facts.max_steps:
        raise Fault(f"{facts.model} takes at most {facts.max_ensemble_size} members of {facts.max_steps} steps")
    return Query(
        model=facts.model,
        context=clip.frames[: facts.context_frames],
        states=clip.states,
        frame_indices=tuple(range(1, facts.horizon + 1)),
        sampling=Sampling(strategy, steps, wish.seed),
        ensemble=EnsembleSpec(wish.size),
    )


def _write(out: Path, outcome: _Outcome) -> None:
    prediction, fps = outcome.prediction, outcome.facts.fps
    is_ensemble = prediction.num_members > 1
    drawing = Drawing(
        outcome.clip,
        _label(prediction),
        prediction.frames,
        prediction.members[0] if is_ensemble else None,
        prediction.variance if is_ensemble else None,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".mp4":
        out.write_bytes(encode_mp4(film([drawing], fps=fps), _FILM_FPS))
    else:
        title = f"{outcome.facts.model}: episode {outcome.clip.seed}, frame {outcome.clip.start}"
        out.write_bytes(encode_png(strip(drawing, fps=fps, title=title)))


def _export(out: Outputs, outcome: _Outcome) -> None:
    facts, prediction = outcome.facts, outcome.prediction
    if out.rerun is not None:
        write_rerun(out.rerun, outcome.clip, prediction, facts)
    if out.mcap is None:
        return
    with needs_data():
        from foreframe_server.cli.exports import clip_episode, open_scene, write_told
    with open_scene(out.mcap, facts) as scene:
        scene.write_episode(clip_episode(outcome.clip), 0, 0)
        write_told(scene, prediction, (facts.context_frames - 1) * scene.step_ns, outcome.elapsed_ms, 1)


def _label(prediction: Prediction) -> str:
    if prediction.sampling.strategy is Strategy.POSTERIOR_MEAN:
        return "posterior mean"
    return f"mean of {prediction.num_members}" if prediction.num_members > 1 else "one member"


def _summary(outcome: _Outcome) -> dict[str, object]:
    prediction, facts = outcome.prediction, outcome.facts
    context, truth = np.split(outcome.clip.frames, [facts.context_frames])
    spread = prediction.spread_per_frame[-1] * 255 if prediction.num_members > 1 else None
    return {
        "model": facts.model,
        "revision": facts.revision,
        "prediction": _label(prediction),
        "members": prediction.num_members,
        "steps": prediction.sampling.steps,
        "seed": prediction.sampling.seed,
        "frames": len(prediction.frames),
        "psnr_last": psnr(squared_errors(prediction.frames, truth)[-1:]),
        "psnr_copy_last": psnr(squared_errors(context[-1], truth)[-1:]),
        "spread_last_grey_levels": None if spread is None else round(spread, 2),
        "verdict": outcome.answer.verdict,
        "trusted_horizon": outcome.answer.trusted_horizon,
        "elapsed_ms": round(outcome.elapsed_ms, 1),
    }
