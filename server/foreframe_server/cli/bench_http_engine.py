"""Whole predictions on an engine in this process, as fast as a plain loop goes: what a server is compared with."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import pairwise

from foreframe_engines import EnsembleSpec, Query, RolloutEngine, StepRow
from foreframe_engines.ensemble import summarise
from foreframe_engines.sampling import initial_member
from foreframe_engines.schedule import get_schedule, num_steps
from foreframe_server.cli.clips import shipped_clips
from foreframe_server.cli.facts import bundle_path, open_engine
from foreframe_server.evaluation import clip_query
from foreframe_server.load.throughput import PlainLoop
from foreframe_server.load.traces import Ask
from foreframe_server.settings import Settings


@contextlib.contextmanager
def running_engine(settings: Settings, ask: Ask) -> Iterator[PlainLoop]:
    """Open the model for as long as the block runs. Raises BundleError or DatasetError."""
    with closing(open_engine(settings)) as engine:
        query = clip_query(engine.contract, shipped_clips(bundle_path(settings), 1)[0])
        sampling = query.sampling if ask.steps is None else replace(query.sampling, steps=ask.steps)
        job = replace(query, sampling=sampling, ensemble=EnsembleSpec(ask.members))
        yield PlainLoop(list_sizes(engine.contract.buckets, ask.members), partial(measure_engine, engine, job))


def list_sizes(buckets: Sequence[int], members: int) -> list[int]:
    """List rows of a forward to try: the model's own, up to a whole job or the largest."""
    return sorted({min(size, members) for size in buckets})


def measure_engine(engine: RolloutEngine, query: Query, max_rows: int, duration_s: float) -> float:
    """Run a query again and again, after one untimed time, and return rows a second."""
    run_job(engine, query, max_rows)
    started_s, num_jobs = time.perf_counter(), 0
    while time.perf_counter() - started_s < duration_s:
        run_job(engine, query, max_rows)
        num_jobs += 1
    return num_jobs * query.ensemble.size * num_steps(query.sampling) / (time.perf_counter() - started_s)


def run_job(engine: RolloutEngine, query: Query, max_rows: int) -> None:
    """Encode, condition, take a few members at a time through all steps, decode them, and reduce."""
    conditioning = engine.condition(engine.encode(query.context), query.states)
    latents = [initial_member(engine, conditioning, query, member) for member in range(query.ensemble.size)]
    for first in range(0, len(latents), max_rows):
        wave = slice(first, first + max_rows)
        for times in pairwise(get_schedule(num_steps(query.sampling), engine.contract.sampler.shift)):
            latents[wave] = engine.step([StepRow(member, *times, conditioning) for member in latents[wave]])
    members = engine.decode(latents, query.frame_indices)
    summarise(members, query.frame_indices, query.sampling, query.ensemble)
