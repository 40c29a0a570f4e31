"""What is right: the answers of a plain loop in this process to clips that ship with a bundle."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path

from foreframe_engines import EnsembleSpec, Query, RolloutEngine, sample
from foreframe_engines.episodes import Clip
from foreframe_server.cli.clips import shipped_clips
from foreframe_server.cli.console import print_note
from foreframe_server.cli.facts import bundle_path, open_engine
from foreframe_server.cli.overrides import read_private
from foreframe_server.evaluation import clip_query, posterior_query
from foreframe_server.load.exam import Sheet
from foreframe_server.load.traces import Ask


def write_sheets(bundle: Path | None, ask: Ask, num_clips: int) -> list[Sheet]:
    """Answer the first clips of the bundle. Raises BundleError, RuntimeUnavailable or DatasetError."""
    settings = read_private(bundle)
    clips = shipped_clips(bundle_path(settings), num_clips)
    print_note(f"the reference answers {len(clips)} clips ...")
    with closing(open_engine(settings)) as engine:
        return [_write_sheet(engine, clip, ask) for clip in clips]


def _write_sheet(engine: RolloutEngine, clip: Clip, ask: Ask) -> Sheet:
    query = ask_query(engine, clip, ask)
    return Sheet(clip, query.sampling.seed, sample(engine, query).frames)


def ask_query(engine: RolloutEngine, clip: Clip, ask: Ask) -> Query:
    """Write what a server makes of the same question."""
    if ask.strategy == "posterior_mean":
        return posterior_query(engine.contract, clip)
    query = clip_query(engine.contract, clip)
    steps = ask.steps or query.sampling.steps
    return replace(query, sampling=replace(query.sampling, steps=steps), ensemble=EnsembleSpec(ask.members))
