"""How many bits each grid of held-out clips costs, teacher-forced: what a calibration is made of."""

import math
from collections.abc import Iterable, Iterator, Sequence

from foreframe_engines.engine import LikelihoodEngine
from foreframe_engines.episodes import Clip
from foreframe_server.experiments.compression import teacher_forced_costs
from foreframe_server.experiments.token_clips import Split, TokenClip


def bits_of_clips(engine: LikelihoodEngine, clips: Iterable[Clip], split: Split) -> Iterator[Sequence[float]]:
    """Return the bits of each target grid, clip by clip."""
    for clip in clips:
        nats_per_token = teacher_forced_costs(engine, TokenClip.of(engine, clip, split))
        yield (nats_per_token * engine.tokens.tokens / math.log(2)).tolist()
