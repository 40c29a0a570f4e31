"""`foreframe bench history`: what a long history costs, in this process."""

import time
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

from foreframe_engines.reading import grid_states
from foreframe_server.benchmarks import measure_history
from foreframe_server.cli.facts import bundle_path, open_likelihood
from foreframe_server.cli.token_data import long_clip
from foreframe_server.reports.samples import Samples
from foreframe_server.settings import Settings


def run_history(settings: Settings, data: Path | None, repeats: int) -> dict[str, object]:
    """Time a new grid after 1, 2, ... as many grids as the model reads. Raises BundleError, DatasetError or Fault."""
    folder = bundle_path(settings)
    with closing(open_likelihood(folder, settings)) as engine:
        clip = long_clip(engine, data, folder, engine.tokens.max_grids)
        ids, states = engine.tokenize(clip.frames), grid_states(clip.states, engine.tokens)
        kept = slice(engine.tokens.max_grids)
        measures = measure_history(engine, ids[kept], states[kept], repeats, time.perf_counter)
        contract = engine.contract
    facts = {"experiment": "bench history", "model": contract.model, "revision": contract.revision}
    samples = [
        Samples("a new grid, history kept", "ms", "lower", tuple(measures.kept_ms)),
        Samples("a new grid, history read again", "ms", "lower", tuple(measures.read_again_ms)),
    ]
    record = {**facts, "num_threads": settings.engine.num_threads, **asdict(measures)}
    return {**record, "samples": [each.record() for each in samples]}
