"""What equal queries may count on from an engine, measured: the same rows stepped alone and in changing company.

It knows no weights: contexts, states and noise are random, and only the bytes of the answers are compared.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np
from jaxtyping import Float32

from foreframe_engines.engine import RolloutEngine
from foreframe_engines.noise import member_noise
from foreframe_engines.types import Conditioning, Latents, NoisePlan, StepRow, StepState

LEVELS = ("bitwise", "bucketed", "tolerance")
_SEED = 0


def measure_determinism(engine: RolloutEngine, buckets: Sequence[int] | None = None) -> str:
    """Return `bitwise`, `bucketed` or `tolerance`: equal bytes always, in batches of one bucket only, or not even then.

    buckets: the sizes of forwards that will be run, ascending; by default all of the contract's. Costs about four
    times as many rows as the largest has. Raises ModelFault.
    """
    sizes = tuple(buckets or engine.contract.buckets)
    rows = random_rows(engine, sizes[-1] + 1)
    answers: dict[int, dict[int, set[bytes]]] = defaultdict(lambda: defaultdict(set))
    for numbers in _companies(sizes):
        bucket = next(size for size in sizes if size >= len(numbers))
        for number, latents in zip(numbers, engine.step([rows[number] for number in numbers]), strict=True):
            answers[number][bucket].add(latents.tobytes())
    return _classify(list(answers.values()))


def weaker(one: str, other: str) -> str:
    """Return the level that promises less."""
    return max(one, other, key=LEVELS.index)


def _companies(buckets: Sequence[int]) -> Iterator[list[int]]:
    """Say which rows share a forward: every bucket full, then full or one short with other rows in other places."""
    yield [0]
    for smaller, bucket in pairwise((0, *buckets)):
        yield list(range(bucket))
        is_padded = bucket - 1 > smaller
        # Of bucket + 1 rows a different one is left out, so even the sum over the batch is another.
        yield [(1 + place) % (bucket + 1) for place in range(bucket - is_padded)]


def _classify(answers: Sequence[Mapping[int, set[bytes]]]) -> str:
    if all(len(set().union(*by_bucket.values())) == 1 for by_bucket in answers):
        return "bitwise"
    is_bucketed = all(len(found) == 1 for by_bucket in answers for found in by_bucket.values())
    return "bucketed" if is_bucketed else "tolerance"


def random_rows(engine: RolloutEngine, count: int, jobs: Sequence[Conditioning] = ()) -> list[StepRow]:
    """Make rows of jobs, by default of two random ones, each at its own time."""
    rng = np.random.default_rng(_SEED)
    given = jobs or [_random_conditioning(engine, rng) for _ in range(2)]
    return [
        _random_row(engine, given[number % len(given)], number, 1 - number / (2 * count)) for number in range(count)
    ]


def point_at_zero(engine: RolloutEngine, rows: Sequence[StepRow], states: Sequence[StepState]) -> list[Latents]:
    """Return where stepped rows point at time 0: latents that can be decoded."""
    return [
        engine.denoise(row.latents, state, row.time, row.next_time) for row, state in zip(rows, states, strict=True)
    ]


def _random_conditioning(engine: RolloutEngine, rng: np.random.Generator) -> Conditioning:
    contract = engine.contract
    shape = (contract.context_frames, contract.camera.height, contract.camera.width, 3)
    context = rng.integers(0, 256, shape, dtype=np.uint8)
    return engine.condition(engine.encode(context), _random_states(engine, rng))


def _random_states(engine: RolloutEngine, rng: np.random.Generator) -> Float32[np.ndarray, "n d"]:
    schema, num_rows = engine.contract.state, engine.contract.context_frames + engine.contract.horizon
    return schema.mean + schema.std * rng.standard_normal((num_rows, schema.dim), dtype=np.float32)


def _random_row(engine: RolloutEngine, conditioning: Conditioning, number: int, time: float) -> StepRow:
    noise = member_noise(_SEED, number, engine.noise_shape(), NoisePlan.IID)
    return StepRow(engine.initial_latents(conditioning, noise), time, time / 2, conditioning)
