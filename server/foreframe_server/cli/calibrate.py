"""`foreframe calibrate`: what spread and what surprise are usual on held-out episodes, written into the bundle."""

from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from os import W_OK, access
from pathlib import Path

from foreframe_engines import Bundle, SpreadCalibration, SurpriseCalibration, calibrate_surprise, sample, write_manifest
from foreframe_engines.bundle import BUILTIN
from foreframe_engines.calibration import CALIBRATION, Calibration, calibration_to_json
from foreframe_server.cli.clips import check_clips, drawn_clips
from foreframe_server.cli.console import print_json, print_pretty, table_of, track
from foreframe_server.cli.facts import ModelFacts, bundle_path, open_engine, open_likelihood
from foreframe_server.cli.faults import Fault
from foreframe_server.cli.token_data import token_clips
from foreframe_server.experiments.spread import calibrate_spread, measure_spreads
from foreframe_server.experiments.surprise import bits_of_clips
from foreframe_server.experiments.token_clips import Split
from foreframe_server.reports.lines import flat_lines
from foreframe_server.settings import Settings


@dataclass(frozen=True, slots=True)
class Ask:
    """Which clips of which data set, what is scored, what bounds hold for, and whether the built-in may be changed."""

    data: Path
    clips: int | None
    split: Split
    coverage: float
    is_in_place: bool


def calibrate_bundle(settings: Settings, ask: Ask, *, is_json: bool) -> None:
    """Measure what the model can do, write `calibration.json` and the manifest, and print the calibration.

    Raises BundleError, DatasetError, or Fault for a folder that may not be written and for clips that tell too little.
    """
    folder = bundle_path(settings)
    _check_writable(folder, is_in_place=ask.is_in_place)
    contract = Bundle.open(folder).contract
    try:
        calibration = Calibration(
            spread=_measure_spread(settings, ask) if "predict" in contract.capabilities else None,
            surprise=None if contract.tokens is None else _measure_surprise(settings, folder, ask),
        )
    except ValueError as error:
        raise Fault(str(error)) from error
    _write(folder, calibration)
    _print(folder, calibration, is_json=is_json)


def _check_writable(folder: Path, *, is_in_place: bool) -> None:
    if folder.resolve().is_relative_to(BUILTIN.resolve()) and not is_in_place:
        raise Fault("the built-in bundle is left as it is; --bundle names a copy, --in-place changes this one")
    if folder.is_dir() and not access(folder, W_OK):
        raise Fault(f"{folder} may not be written")


def _measure_spread(settings: Settings, ask: Ask) -> SpreadCalibration:
    with closing(open_engine(settings)) as engine:
        facts = ModelFacts.of(engine.contract)
        clips = drawn_clips(ask.data, facts, ask.clips)
        check_clips(clips, facts)
        found = measure_spreads(partial(sample, engine), engine.contract, clips)
        return calibrate_spread(engine.contract, list(track(found, "spread", len(clips))), ask.coverage)


def _measure_surprise(settings: Settings, folder: Path, ask: Ask) -> SurpriseCalibration:
    with closing(open_likelihood(folder, settings)) as engine:
        clips = token_clips(engine, ask.data, ask.split, ask.clips)
        found = track(bits_of_clips(engine, clips, ask.split), "surprise", len(clips))
        return calibrate_surprise([bits for clip in found for bits in clip])


def _write(folder: Path, calibration: Calibration) -> None:
    """Put the file there whole; until the manifest is written too, the bundle does not open."""
    partial_file = folder / f"{CALIBRATION}.partial"
    partial_file.write_text(calibration_to_json(calibration), encoding="utf-8")
    partial_file.replace(folder / CALIBRATION)
    write_manifest(folder)


def _print(folder: Path, calibration: Calibration, *, is_json: bool) -> None:
    record = {**asdict(calibration), "bundle": str(folder), "digest": Bundle.open(folder).digest}
    if is_json:
        print_json(record)
        return
    surprise = calibration.surprise
    shown = record | {"surprise": None if surprise is None else {**asdict(surprise), "quantiles": None}}
    print_pretty(table_of(dict(flat_lines(shown)), "calibration: spread with white as 1, surprise in bits a grid"))
