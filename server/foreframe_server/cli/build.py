"""`foreframe build`: engines for a machine, held against torch, and the fastest way to run a bundle there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from foreframe_server.cli.console import print_json, print_note, print_pretty
from foreframe_server.cli.facts import bundle_path
from foreframe_server.cli.faults import needs_torch
from foreframe_server.settings import Settings

if TYPE_CHECKING:
    from foreframe_engines.choice import Choice
    from foreframe_models.build import BuildReport, GraphReport


@dataclass(frozen=True, slots=True)
class Wish:
    """What a person asked for; what is empty or None is left to the bundle and the machine."""

    backends: tuple[str, ...]
    device: str | None
    precision: str
    buckets: tuple[int, ...]
    cache: Path | None


def build_model(settings: Settings, wish: Wish, *, is_json: bool) -> None:
    """Build and print what became of every graph. Raises EngineError, or Fault without torch."""
    with needs_torch():
        from foreframe_engines.runtime.typed_graph import Precision
        from foreframe_models.build import Backend, BuildAsk, build_bundle
    ask = BuildAsk(
        tuple(map(Backend, wish.backends)),
        wish.device,
        Precision(wish.precision),
        wish.buckets,
        wish.cache or settings.engine.cache,
        settings.engine.num_threads,
    )
    print_note("building ...")
    report = build_bundle(bundle_path(settings), ask)
    if is_json:
        print_json(_record(report))
        return
    print_pretty(_graphs_table(report))
    if report.choice is not None:
        print_pretty(_choice_table(report.choice))
    print_note(f"engines and measurements lie in {report.folder}")


def _record(report: BuildReport) -> dict[str, object]:
    choice = report.choice
    return {
        "model": report.model,
        "digest": report.digest,
        "device": report.device,
        "folder": str(report.folder),
        "buckets": list(report.buckets),
        "graphs": [asdict(graph) for graph in report.graphs],
        "measured": {} if choice is None else {name: asdict(took) for name, took in choice.measured.items()},
        "steps": {} if choice is None else {str(bucket): name for bucket, name in choice.steppers.items()},
        "decode": None if choice is None else choice.decoder,
    }


def _graphs_table(report: BuildReport) -> Table:
    title = f"{report.model} on {report.device}, buckets {', '.join(map(str, report.buckets))}"
    table = Table("graph", "on", "in", "against torch", "", title=title, title_justify="left", header_style="bold")
    for graph in report.graphs:
        table.add_row(graph.graph, graph.backend, graph.precision, _parity(graph), ", ".join(_notes(graph)))
    return table


def _parity(graph: GraphReport) -> str:
    if graph.parity is None:
        return "not compared"
    return f"{graph.parity.share:.2%} of what is allowed, {graph.parity.max_abs:.2g} at most"


def _notes(graph: GraphReport) -> Iterator[str]:
    if graph.refusal:
        yield f"refused, stays on onnxruntime: {graph.refusal}"
    if graph.num_bytes is not None:
        yield f"{graph.num_bytes / 2**20:.1f} MiB"
    if graph.seconds is not None:
        yield f"was built in {graph.seconds:.1f} s before" if graph.is_from_cache else f"built in {graph.seconds:.1f} s"


def _choice_table(choice: Choice) -> Table:
    sizes = [f"step of {bucket}" for bucket in choice.key.buckets]
    table = Table("ms", *sizes, "decode", title=choice.key.machine, title_justify="left", header_style="bold")
    steppers, decoder = choice.steppers, choice.decoder
    for name, took in choice.measured.items():
        steps = [_cell(took.step_ms[bucket], steppers[bucket] == name) for bucket in choice.key.buckets]
        table.add_row(name, *steps, _cell(took.decode_ms, decoder == name))
    return table


def _cell(ms: float, is_chosen: bool) -> str:  # noqa: FBT001 - whether it is marked
    return f"[bold green]{ms:.1f}[/]" if is_chosen else f"{ms:.1f}"
