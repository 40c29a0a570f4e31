"""`foreframe eval compression`: a likelihood model against counting, in this process."""

from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

from foreframe_engines.engine import LikelihoodEngine
from foreframe_server.cli.console import print_note, track
from foreframe_server.cli.experiments import Finding
from foreframe_server.cli.facts import bundle_path, open_likelihood
from foreframe_server.cli.faults import Fault
from foreframe_server.cli.token_data import episode_ids, token_clips
from foreframe_server.experiments.compression import Setting, compression_chart, measure_costs, summarise_costs
from foreframe_server.experiments.token_clips import Split
from foreframe_server.settings import Settings
from foreframe_server.token_baselines import fit_baselines


@dataclass(frozen=True, slots=True)
class Ask:
    """Which data sets, how much of them, and what is scored; None leaves a number to its default."""

    data: Path
    train: Path
    validation: Path
    clips: int | None
    train_episodes: int | None
    split: Split
    top_k: int


def run_compression(settings: Settings, ask: Ask) -> Finding:
    """Fit the counting models, then score every clip. Raises BundleError, DatasetError or Fault."""
    with closing(open_likelihood(bundle_path(settings), settings)) as engine:
        if ask.top_k > engine.tokens.vocabulary:
            raise Fault(f"the model has {engine.tokens.vocabulary} ids; --top-k {ask.top_k} is more")
        clips = token_clips(engine, ask.data, ask.split, ask.clips)
        setting = _fit(engine, ask)
        found = measure_costs(engine, clips, setting)
        report = summarise_costs(engine, list(track(found, "clips", len(clips))), setting)
    return Finding(asdict(report), compression_chart(report))


def _fit(engine: LikelihoodEngine, ask: Ask) -> Setting:
    train = episode_ids(engine, ask.train, "training episodes", ask.train_episodes)
    validation = episode_ids(engine, ask.validation, "validation episodes")
    print_note("fitting the counting models")
    baselines = fit_baselines(train, validation, engine.tokens.vocabulary)
    return Setting(ask.split, baselines, train, ask.top_k)
