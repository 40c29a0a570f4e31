"""`foreframe calibrate`: what surprise is usual on held-out episodes, written into the bundle."""

from contextlib import closing
from dataclasses import asdict, dataclass
from os import W_OK, access
from pathlib import Path

from foreframe_engines import Bundle, write_manifest
from foreframe_engines.bundle import BUILTIN
from foreframe_engines.calibration import CALIBRATION, Calibration, calibrate, calibration_to_json
from foreframe_engines.engine import LikelihoodEngine
from foreframe_server.cli.console import print_json, print_pretty, table_of, track
from foreframe_server.cli.facts import bundle_path, open_likelihood
from foreframe_server.cli.faults import Fault
from foreframe_server.cli.token_data import token_clips
from foreframe_server.experiments.surprise import bits_of_clips
from foreframe_server.experiments.token_clips import Split
from foreframe_server.settings import Settings


@dataclass(frozen=True, slots=True)
class Ask:
    """Which clips of which data set, what is scored, and whether the built-in bundle may be changed."""

    data: Path
    clips: int | None
    split: Split
    is_in_place: bool


def calibrate_bundle(settings: Settings, ask: Ask, *, is_json: bool) -> None:
    """Measure, write `calibration.json` and the manifest, and print the calibration.

    Raises BundleError, DatasetError, or Fault for a folder that may not be written.
    """
    folder = bundle_path(settings)
    _check_writable(folder, is_in_place=ask.is_in_place)
    with closing(open_likelihood(folder, settings)) as engine:
        calibration = _measure(engine, ask)
    _write(folder, calibration)
    record = {
        **asdict(calibration),
        "unit": "bits per grid",
        "bundle": str(folder),
        "digest": Bundle.open(folder).digest,
    }
    if is_json:
        print_json(record)
    else:
        print_pretty(table_of({**record, "quantiles": None}, "calibration"))


def _check_writable(folder: Path, *, is_in_place: bool) -> None:
    if folder.resolve().is_relative_to(BUILTIN.resolve()) and not is_in_place:
        raise Fault("the built-in bundle is left as it is; --bundle names a copy, --in-place changes this one")
    if folder.is_dir() and not access(folder, W_OK):
        raise Fault(f"{folder} may not be written")


def _measure(engine: LikelihoodEngine, ask: Ask) -> Calibration:
    clips = token_clips(engine, ask.data, ask.split, ask.clips)
    bits = [bits for clip in track(bits_of_clips(engine, clips, ask.split), "clips", len(clips)) for bits in clip]
    try:
        return calibrate(bits)
    except ValueError as error:
        raise Fault(str(error)) from error


def _write(folder: Path, calibration: Calibration) -> None:
    """Put the file there whole; until the manifest is written too, the bundle does not open."""
    partial = folder / f"{CALIBRATION}.partial"
    partial.write_text(calibration_to_json(calibration), encoding="utf-8")
    partial.replace(folder / CALIBRATION)
    write_manifest(folder)
