"""`foreframe replay`: a recording played against a server at the rate it was made, predictions beside the originals."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean

import numpy as np
from jaxtyping import UInt8

from foreframe_engines import EnsembleSpec, Prediction, Query, Sampling, Strategy
from foreframe_engines.episodes import Episode, clips
from foreframe_engines.readers import Recordings
from foreframe_server.cli.clips import check_clips
from foreframe_server.cli.console import print_json, print_pretty, table_of
from foreframe_server.cli.exports import open_scene, start_of, write_told
from foreframe_server.cli.facts import ModelFacts
from foreframe_server.cli.faults import Fault
from foreframe_server.cli.playing import Due, Pace, play
from foreframe_server.cli.recordings import open_recordings, pad_episode, thin_out
from foreframe_server.cli.remote import connected, predict_over, read_facts
from foreframe_server.evaluation import Predict, psnr, squared_errors
from foreframe_server.recording.reader import McapRecordings, read_requests
from foreframe_server.recording.scene import Scene


@dataclass(frozen=True, slots=True)
class Draw:
    """How the questions about episodes are sampled; None leaves the steps to the model."""

    strategy: str
    size: int
    steps: int | None
    seed: int


@dataclass(frozen=True, slots=True)
class Wish:
    """What to play and how. episode: None is all. every: frames between questions. draw: None is as recorded."""

    source: Path
    episode: int | None
    camera: str | None
    every: int
    speed: float
    draw: Draw | None
    is_padded: bool


@dataclass(frozen=True, slots=True, eq=False)
class _Asked:
    """One question. now_ns: when its newest frame was seen. truth: what then came, where that is known."""

    query: Query
    now_ns: int
    truth: UInt8[np.ndarray, "f h w 3"] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """What becomes one file: the episodes that it begins with, and the questions about them."""

    name: str
    episodes: Sequence[Episode]
    dues: Sequence[Due[_Asked]]


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What became of one question; PSNR in dB of the last frame, where it is known what came."""

    elapsed_ms: float
    psnr_last: float | None = None
    psnr_copy_last: float | None = None


def replay_recording(wish: Wish, url: str, out: Path | None, *, is_json: bool) -> None:
    """Play, write a log for every episode, and print what became of it.

    Raises DatasetError, Fault or ForeframeError.
    """
    folder = out or wish.source.resolve().parent
    folder.mkdir(parents=True, exist_ok=True)
    files: list[dict[str, object]] = []
    with connected(url) as client:
        facts = read_facts(client)
        for part in _find_parts(wish, facts):
            path = folder / f"{part.name}.replayed.mcap"
            with open_scene(path, facts) as scene:
                outcomes = _play_part(part, scene, partial(predict_over, client), Pace(wish.speed))
            files.append({"file": str(path), **_sum_up(outcomes)})
            if not is_json:
                print_pretty(table_of(files[-1], part.name))
    if is_json:
        print_json({"model": facts.model, "revision": facts.revision, "files": files})


def _find_parts(wish: Wish, facts: ModelFacts) -> Iterator[_Part]:
    recordings = open_recordings(wish.source, wish.camera)
    if wish.draw is None:
        yield _recorded_part(wish, recordings, facts)
        return
    for number in range(len(recordings)) if wish.episode is None else [wish.episode]:
        episode = thin_out(recordings.read(number), recordings.fps, facts.fps)
        episode = pad_episode(episode, facts) if wish.is_padded else episode
        dues = list(_ask_windows(episode, wish.every, wish.draw, facts))
        if not dues:
            raise Fault(f"episode {number} of {wish.source} is shorter than {facts.num_frames} frames of the model's")
        name = wish.source.resolve().stem + ("" if len(recordings) == 1 else f"-{number:06d}")
        yield _Part(name, [episode], dues)


def _recorded_part(wish: Wish, recordings: Recordings, facts: ModelFacts) -> _Part:
    """Take a server's own record: its questions, at the times at which they came."""
    if not isinstance(recordings, McapRecordings) or not recordings.has_requests:
        raise Fault(f"{wish.source} holds no requests; --as-recorded plays what `foreframe serve --record` wrote")
    requests = list(read_requests(wish.source, facts.model))
    first_ns = requests[0].received_ns
    dues = [Due((each.received_ns - first_ns) / 1e9, _Asked(each.query, each.now_ns)) for each in requests]
    episodes = [recordings.read(number) for number in range(len(recordings))]
    return _Part(wish.source.resolve().stem, episodes, dues)


def _ask_windows(episode: Episode, every: int, draw: Draw, facts: ModelFacts) -> Iterator[Due[_Asked]]:
    """Ask for the future of every window; a question is due when the newest frame of its context is seen."""
    for clip in clips(episode, facts.num_frames, every):
        check_clips([clip], facts)
        context, truth = np.split(clip.frames, [facts.context_frames])
        newest = clip.start + facts.context_frames - 1
        query = Query(
            model=facts.model,
            context=context,
            states=clip.states,
            frame_indices=tuple(range(1, facts.horizon + 1)),
            sampling=_sampling_of(draw, facts),
            ensemble=EnsembleSpec(draw.size),
        )
        yield Due(clip.start / facts.fps, _Asked(query, start_of(episode) + round(newest / facts.fps * 1e9), truth))


def _sampling_of(draw: Draw, facts: ModelFacts) -> Sampling:
    strategy = Strategy(draw.strategy)
    return Sampling(strategy, 1 if strategy is Strategy.POSTERIOR_MEAN else draw.steps or facts.steps, draw.seed)


def _play_part(part: _Part, scene: Scene, predict: Predict, pace: Pace) -> list[_Outcome | None]:
    """Play, write down, and return what became of every question; None was skipped."""
    for segment, episode in enumerate(part.episodes):
        scene.write_episode(episode, start_of(episode), segment)
    outcomes: list[_Outcome | None] = []
    for moment in play(part.dues, lambda asked: predict(asked.query), pace):
        outcomes.append(None if moment.answer is None else _compare(moment.asked, moment.answer, moment.elapsed_ms))
        if moment.answer is not None:
            write_told(scene, moment.answer, moment.asked.now_ns, moment.elapsed_ms, len(outcomes))
    return outcomes


def _compare(asked: _Asked, prediction: Prediction, elapsed_ms: float) -> _Outcome:
    if asked.truth is None:
        return _Outcome(elapsed_ms)
    truth = asked.truth[-1:]
    predicted, copied = prediction.frames[-1:], asked.query.context[-1:]
    return _Outcome(elapsed_ms, psnr(squared_errors(predicted, truth)), psnr(squared_errors(copied, truth)))


def _sum_up(outcomes: Sequence[_Outcome | None]) -> dict[str, object]:
    answered = [outcome for outcome in outcomes if outcome is not None]
    taken_ms = [outcome.elapsed_ms for outcome in answered]
    return {
        "asked": len(answered),
        "skipped": len(outcomes) - len(answered),
        "latency_p50_ms": round(float(np.quantile(taken_ms, 0.5)), 1),
        "latency_p99_ms": round(float(np.quantile(taken_ms, 0.99)), 1),
        "psnr_last": _mean(outcome.psnr_last for outcome in answered),
        "psnr_copy_last": _mean(outcome.psnr_copy_last for outcome in answered),
    }


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(fmean(known), 3) if known else None
