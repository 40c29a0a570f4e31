"""`foreframe bench http single-stream`, `server` and `offline`: the reference's answers, and then the load."""

from contextlib import closing
from dataclasses import replace

from foreframe_engines import EnsembleSpec, Query, RolloutEngine, sample
from foreframe_engines.episodes import Clip
from foreframe_server.cli.bench_http import Target, run_preset
from foreframe_server.cli.clips import shipped_clips
from foreframe_server.cli.console import print_note
from foreframe_server.cli.facts import bundle_path, open_engine
from foreframe_server.cli.overrides import read_private
from foreframe_server.evaluation import clip_query, posterior_query
from foreframe_server.load.exam import Sheet
from foreframe_server.load.findings import Findings
from foreframe_server.load.scenarios import ScenarioPlan, measure_scenario
from foreframe_server.load.traces import Ask


def run_scenario(target: Target, plan: ScenarioPlan) -> Findings:
    """Compute what is right with the bundle's weights in a plain loop here, and measure a server against it.

    Raises BundleError, DatasetError or Fault.
    """
    sheets = write_sheets(target, plan)
    return run_preset(target, lambda bench: measure_scenario(bench, plan, sheets))


def write_sheets(target: Target, plan: ScenarioPlan) -> list[Sheet]:
    """Answer the first clips of the bundle. Raises BundleError, RuntimeUnavailable or DatasetError."""
    settings = read_private(target.bundle)
    clips = shipped_clips(bundle_path(settings), plan.exam.clips)
    print_note(f"the reference answers {len(clips)} clips ...")
    with closing(open_engine(settings)) as engine:
        return [_write_sheet(engine, clip, plan.ask) for clip in clips]


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
