"""`foreframe eval`: quality in this process, latency over HTTP."""

from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

from foreframe_engines import sample
from foreframe_server.cli.clips import check_clips, drawn_clips, shipped_clips
from foreframe_server.cli.console import track
from foreframe_server.cli.facts import ModelFacts, bundle_path, open_engine
from foreframe_server.cli.remote import connected, measure_latency
from foreframe_server.cli.serving import running_server
from foreframe_server.evaluation import (
    Report,
    measure_clips,
    measure_noise_plans,
    measure_reconstruction,
    summarise_measures,
)
from foreframe_server.settings import Settings

_NOISE_PLAN_CLIPS = 2
_REFERENCE_MEMBERS = 256


def evaluate_model(settings: Settings, data: Path | None, count: int | None, *, has_noise_plans: bool) -> Report:
    """Measure the model of the settings on clips of a data set, by default on those that come with it.

    Raises BundleError, DatasetError or Fault.
    """
    with closing(open_engine(settings)) as engine:
        contract, facts = engine.contract, ModelFacts.of(engine.contract)
        clips = drawn_clips(data, facts, count) if data else shipped_clips(bundle_path(settings), count)
        check_clips(clips, facts)
        measures = list(track(measure_clips(partial(sample, engine), contract, clips), "clips", len(clips)))
        report = summarise_measures(contract, measures, measure_reconstruction(engine, clips))
        if has_noise_plans:
            few = clips[:_NOISE_PLAN_CLIPS]
            plans = measure_noise_plans(engine, track(few, "noise plans", len(few)), _REFERENCE_MEMBERS)
            report = replace(report, noise_plans=plans)
    with running_server(settings) as address, connected(address) as client:
        return replace(report, latency_ms=measure_latency(client, clips[0], contract.context_frames))
