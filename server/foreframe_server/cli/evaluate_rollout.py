"""`foreframe eval states`, `ensembles`, `noise` and `spread`: experiments on a rollout model, in this process."""

import contextlib
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from foreframe_engines import Bundle, Contract, sample
from foreframe_engines.episodes import Clip
from foreframe_server.cli.clips import check_clips, drawn_clips, shipped_clips
from foreframe_server.cli.console import track
from foreframe_server.cli.experiments import Finding
from foreframe_server.cli.facts import ModelFacts, bundle_path, open_engine, open_likelihood
from foreframe_server.cli.faults import Fault
from foreframe_server.experiments.ensembles import SIZES, ensembles_chart, measure_ensembles, summarise_ensembles
from foreframe_server.experiments.noise import Scale, measure_noise, summarise_noise
from foreframe_server.experiments.noise_chart import noise_chart
from foreframe_server.experiments.spread_checks import Reader, check_spread, spread_chart, summarise_checks
from foreframe_server.experiments.states import measure_states, states_chart, summarise_states
from foreframe_server.settings import Settings


def run_states(settings: Settings, data: Path | None, count: int | None) -> Finding:
    """Compare true, average and another episode's states. Raises BundleError, DatasetError or RuntimeUnavailable."""
    with closing(open_engine(settings)) as engine:
        clips = _clips(settings, engine.contract, data, count)
        found = measure_states(partial(sample, engine), engine.contract, clips)
        report = summarise_states(engine.contract, list(track(found, "clips", len(clips))))
    return Finding(asdict(report), states_chart(report))


def run_ensembles(settings: Settings, data: Path | None, count: int | None, largest: int) -> Finding:
    """Compare strategies at the ensemble sizes up to the largest.

    Raises BundleError, DatasetError or RuntimeUnavailable.
    """
    with closing(open_engine(settings)) as engine:
        clips = _clips(settings, engine.contract, data, count)
        sizes = [size for size in SIZES if size <= largest]
        found = measure_ensembles(partial(sample, engine), engine.contract, clips, sizes)
        report = summarise_ensembles(engine.contract, list(track(found, "clips", len(clips))))
    return Finding(asdict(report), ensembles_chart(report))


def run_noise(
    settings: Settings, data: Path | None, count: int | None, reference_members: int, steps: int | None
) -> Finding:
    """Compare noise plans with each other and at equal compute.

    Raises BundleError, DatasetError or RuntimeUnavailable.
    """
    with closing(open_engine(settings)) as engine:
        clips = _clips(settings, engine.contract, data, count)
        scale = Scale(reference_members=reference_members)
        sampler = engine.contract.sampler
        contract = replace(engine.contract, sampler=replace(sampler, steps=steps or sampler.steps))
        found = measure_noise(partial(sample, engine), contract, clips, scale)
        report = summarise_noise(contract, list(track(found, "clips", len(clips))), reference_members)
    return Finding(asdict(report), noise_chart(report))


def run_spread(settings: Settings, data: Path | None, count: int | None) -> Finding:
    """Check the calibration of the spread. Raises BundleError, DatasetError, RuntimeUnavailable, or Fault without."""
    folder = bundle_path(settings)
    bundle = Bundle.open(folder)
    calibration, surprise = bundle.calibration.spread, bundle.calibration.surprise
    if calibration is None:
        raise Fault("the model's spread is not calibrated; `foreframe calibrate` measures what is usual")
    with contextlib.ExitStack() as opened:
        engine = opened.enter_context(closing(open_engine(settings)))
        reader = None
        if surprise is not None:
            reader = Reader(opened.enter_context(closing(open_likelihood(folder, settings))), surprise)
        clips = _clips(settings, engine.contract, data, count)
        found = check_spread(partial(sample, engine), engine.contract, clips, calibration, reader)
        report = summarise_checks(engine.contract, list(track(found, "clips", len(clips))), calibration)
    return Finding(asdict(report), spread_chart(report))


def _clips(settings: Settings, contract: Contract, data: Path | None, count: int | None) -> Sequence[Clip]:
    facts = ModelFacts.of(contract)
    clips = drawn_clips(data, facts, count) if data else shipped_clips(bundle_path(settings), count)
    check_clips(clips, facts)
    return clips
