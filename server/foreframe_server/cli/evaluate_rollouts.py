"""`foreframe eval rollouts`: teacher-forced against autoregressive cost, for one bundle or two."""

from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

from foreframe_server.cli.console import track
from foreframe_server.cli.experiments import Finding
from foreframe_server.cli.facts import bundle_path, open_likelihood
from foreframe_server.cli.token_data import token_clips
from foreframe_server.experiments.rollouts import measure_rollouts, rollouts_chart, summarise_rollouts
from foreframe_server.experiments.token_clips import Split
from foreframe_server.settings import Settings


@dataclass(frozen=True, slots=True)
class Ask:
    """Which clips of which data set, and which second bundle; `labels` are the models' names in the chart."""

    data: Path
    clips: int | None
    split: Split
    against: Path | None
    labels: tuple[str, str]


def run_rollouts(settings: Settings, ask: Ask) -> Finding:
    """Measure each bundle on the same clips. Raises BundleError, DatasetError or Fault."""
    paths = [bundle_path(settings), *([ask.against] if ask.against else [])]
    models, measured = [], []
    for label, path in zip(ask.labels, paths, strict=False):
        with closing(open_likelihood(path, settings)) as engine:
            clips = token_clips(engine, ask.data, ask.split, ask.clips)
            found = measure_rollouts(engine, clips, ask.split)
            measured.append(list(track(found, f"clips, {label}", len(clips))))
            models.append((label, engine.contract))
    report = summarise_rollouts(models, measured, ask.split)
    return Finding(asdict(report), rollouts_chart(report))
