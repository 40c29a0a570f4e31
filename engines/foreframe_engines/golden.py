"""What each graph of a bundle takes and gives in use: recorded once, so that other ways to run it can be compared.

Held-out clips that ship with a bundle are used, random ones where none do. Knows no runtime.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import cycle, islice

import numpy as np

from foreframe_engines.bundle import Bundle, GraphName, LikelihoodGraphName
from foreframe_engines.engine import RolloutEngine
from foreframe_engines.episodes import Clip, read_clips
from foreframe_engines.likelihood import GraphLikelihoodEngine, MemoryShape
from foreframe_engines.reading import grid_states
from foreframe_engines.rollout import GraphRolloutEngine
from foreframe_engines.runtime.parity import GoldenRun, RecordingSession
from foreframe_engines.runtime.session import Session
from foreframe_engines.selftest import point_at_zero, random_rows
from foreframe_engines.types import Conditioning, Contract, StepRow, TokenHistory, TokenRow

CLIPS = "clips.npz"
_NUM_CLIPS = 2
_TOP_K = 5
_GUIDANCE = 2.0
_SEED = 0

Goldens = Mapping[str, Sequence[GoldenRun]]
"""Recorded runs by the name of the graph."""


def record_rollout(bundle: Bundle, sessions: Mapping[GraphName, Session], buckets: tuple[int, ...]) -> Goldens:
    """Run every rollout graph, step and decode in forwards of every bucket's size. The sessions stay open."""
    recorders = {name: RecordingSession(session) for name, session in sessions.items()}
    engine = GraphRolloutEngine(bundle.contract, recorders, buckets=buckets)
    for bucket in buckets:
        _use(engine, random_rows(engine, bucket, _example_jobs(engine, bundle)))
    return {name: recorder.runs for name, recorder in recorders.items()}


def record_likelihood(
    bundle: Bundle, sessions: Mapping[LikelihoodGraphName, Session], memory: MemoryShape, buckets: tuple[int, ...]
) -> Goldens:
    """Run every likelihood graph in forwards of every bucket's size, without a past and with one."""
    recorders = {name: RecordingSession(session) for name, session in sessions.items()}
    engine = GraphLikelihoodEngine(bundle.contract, recorders, memory, buckets=buckets)
    clips = example_clips(bundle)
    size = engine.tokens.window_frames
    for bucket in buckets:
        frames = np.concatenate([clip.frames[:size] for clip in islice(cycle(clips), bucket)])
        ids = engine.tokenize(frames).reshape(bucket, -1, engine.tokens.tokens)
        states = [grid_states(clip.states[: 2 * size], engine.tokens)[:2] for clip in islice(cycle(clips), bucket)]
        rows = [
            TokenRow(grids[0], pair, TokenHistory(), grids[-1], _TOP_K) for grids, pair in zip(ids, states, strict=True)
        ]
        scores = engine.read(rows)
        engine.read([TokenRow(row.ids, row.states, score.history) for row, score in zip(rows, scores, strict=True)])
        engine.detokenize(ids.reshape(-1, engine.tokens.tokens))
    return {name: recorder.runs for name, recorder in recorders.items()}


def _example_jobs(engine: RolloutEngine, bundle: Bundle) -> list[Conditioning]:
    num_seen = bundle.contract.context_frames
    return [engine.condition(engine.encode(clip.frames[:num_seen]), clip.states) for clip in example_clips(bundle)]


def _use(engine: GraphRolloutEngine, rows: Sequence[StepRow]) -> None:
    """Run the graphs that steps and decoding can run: with guidance and without, the first frame and the last."""
    latents = point_at_zero(engine, rows, engine.step(rows))
    if "step_guided" in engine.sessions:
        engine.step([replace(row, guidance=_GUIDANCE) for row in rows])
    for index in (1, engine.contract.horizon):
        engine.decode(latents, (index,))


def example_clips(bundle: Bundle) -> list[Clip]:
    """Return clips that the bundle ships, or random ones of its sizes."""
    if CLIPS in bundle.files:
        return list(read_clips(bundle.files[CLIPS].content, CLIPS)[:_NUM_CLIPS])
    return [_random_clip(bundle.contract, seed) for seed in range(_NUM_CLIPS)]


def _random_clip(contract: Contract, seed: int) -> Clip:
    rng = np.random.default_rng((_SEED, seed))
    length = contract.context_frames + contract.horizon
    shape = (length, contract.camera.height, contract.camera.width)
    deviations = rng.standard_normal((length, contract.state.dim), dtype=np.float32)
    frames = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    states = contract.state.mean + contract.state.std * deviations
    return Clip(seed, 0, frames, states, np.zeros(shape, np.uint8))
