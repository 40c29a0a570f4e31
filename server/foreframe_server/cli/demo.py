"""`foreframe demo`: held-out clips through a real server and the real client, as pictures and numbers."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from foreframe_engines import Contract
from foreframe_engines.episodes import Clip
from foreframe_server.cli.clips import check_clips, shipped_clips
from foreframe_server.cli.console import format_json, print_note, track
from foreframe_server.cli.facts import ModelFacts, bundle_path, open_engine, read_contract
from foreframe_server.cli.remote import connected, measure_latency, predict_over
from foreframe_server.cli.report import print_report, report_record
from foreframe_server.cli.serving import running_server, wait_for_signal
from foreframe_server.codec.pictures import encode_png
from foreframe_server.codec.video import encode_mp4
from foreframe_server.evaluation import (
    LARGEST,
    Report,
    clip_query,
    measure_clip,
    measure_reconstruction,
    pair_clips,
    summarise_measures,
)
from foreframe_server.pictures import Drawing, contact_sheet, film
from foreframe_server.settings import Settings

if TYPE_CHECKING:
    from foreframe_client import Client

_FILM_FPS = 5.0


@dataclass(frozen=True, slots=True, eq=False)
class _Shown:
    """What the clips brought."""

    drawings: Sequence[Drawing]
    report: Report


def show_demo(settings: Settings, out: Path, count: int, *, is_kept: bool, is_json: bool) -> None:
    """Write `contact_sheet.png`, `rollout.mp4` and `report.json` into a folder and print the report.

    Raises BundleError, DatasetError or Fault.
    """
    contract = read_contract(settings)
    clips = shipped_clips(bundle_path(settings), count)
    check_clips(clips, ModelFacts.of(contract))
    with closing(open_engine(settings)) as engine:
        ceiling = measure_reconstruction(engine, clips)
    with running_server(settings) as address, connected(address) as client:
        print_note(f"{contract.model} {contract.revision} answers at {address}")
        shown = _ask_about(client, contract, clips, ceiling)
        _write(out, shown, contract)
        print_report(shown.report, is_json=is_json)
        print_note(f"wrote {out / 'contact_sheet.png'}, {out / 'rollout.mp4'} and {out / 'report.json'}")
        if is_kept:
            print_note(f"the server keeps running at {address} (Ctrl-C stops it); its start page: {address}/")
            wait_for_signal()


def _ask_about(client: "Client", contract: Contract, clips: Sequence[Clip], ceiling: float) -> _Shown:
    predict = partial(predict_over, client)
    drawings, measures = [], []
    for clip, other in track(pair_clips(clips), "clips over HTTP", len(clips)):
        drawn = predict(clip_query(contract, clip, LARGEST))
        drawings.append(Drawing(clip, f"mean of {LARGEST}", drawn.frames, drawn.members[0], drawn.variance))
        measures.append(measure_clip(predict, contract, clip, other, drawn))
    report = summarise_measures(contract, measures, ceiling)
    latency = measure_latency(client, clips[0], contract.context_frames)
    return _Shown(drawings, replace(report, latency_ms=latency))


def _write(out: Path, shown: _Shown, contract: Contract) -> None:
    out.mkdir(parents=True, exist_ok=True)
    ahead_s = contract.horizon / contract.fps
    title = f"{contract.model}: {ahead_s:.2f} s ahead of the robot"
    sheet = contact_sheet(shown.drawings, fps=contract.fps, title=title)
    (out / "contact_sheet.png").write_bytes(encode_png(sheet))
    (out / "rollout.mp4").write_bytes(encode_mp4(film(shown.drawings, fps=contract.fps), _FILM_FPS))
    (out / "report.json").write_text(format_json(report_record(shown.report)) + "\n", encoding="utf-8")
