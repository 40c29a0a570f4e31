"""One query, from context frames to prediction, as a plain loop. Knows no queue, no deadline and no cache.

Every faster path must give what this one gives.
"""

from collections.abc import Sequence
from itertools import pairwise

from foreframe_engines.engine import RolloutEngine
from foreframe_engines.ensemble import summarise
from foreframe_engines.noise import member_noise
from foreframe_engines.schedule import get_schedule, num_steps
from foreframe_engines.types import Conditioning, Prediction, Query, StepRow, StepState


def sample(engine: RolloutEngine, query: Query) -> Prediction:
    """Predict one query: encode, condition, denoise every member, decode, reduce. Raises ModelFault."""
    conditioning = engine.condition(engine.encode(query.context), query.states)
    latents = [initial_member(engine, conditioning, query, member) for member in range(query.ensemble.size)]
    times = get_schedule(num_steps(query.sampling), engine.contract.sampler.shift)
    for index, (time, next_time) in enumerate(pairwise(times)):
        rows = [
            StepRow(member, time, next_time, conditioning, times[:index], query.sampling.guidance) for member in latents
        ]
        latents = step_all(engine, rows)
    members = engine.decode(latents, query.frame_indices)
    return summarise(members, query.frame_indices, query.sampling, query.ensemble)


def initial_member(engine: RolloutEngine, conditioning: Conditioning, query: Query, member: int) -> StepState:
    """Draw one member's starting latents: the clean context, then its noise."""
    noise = member_noise(query.sampling.seed, member, engine.noise_shape(), query.ensemble.noise)
    return engine.initial_latents(conditioning, noise)


def step_all(engine: RolloutEngine, rows: Sequence[StepRow]) -> list[StepState]:
    """Advance any number of rows by one solver step, at most the engine's largest bucket a forward."""
    largest = engine.contract.buckets[-1]
    groups = [rows[start : start + largest] for start in range(0, len(rows), largest)]
    return [latents for group in groups for latents in engine.step(group)]
