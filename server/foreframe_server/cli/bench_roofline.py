"""What this device can do, measured now with a model's shapes, and what every stage of a prediction needs of it."""

import statistics
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from foreframe_engines import Bundle
from foreframe_server.cli.bench_stages import Stages, time_in_turns
from foreframe_server.cli.facts import bundle_path
from foreframe_server.cli.faults import needs_torch
from foreframe_server.reports.report import Report
from foreframe_server.reports.samples import Samples
from foreframe_server.settings import Settings

if TYPE_CHECKING:
    from foreframe_models.roofline import Ceilings, Shapes, Work
    from foreframe_models.torch_engine import TorchOptions

_GIGA = 1e9


@dataclass(frozen=True, slots=True)
class RooflineAsk:
    """What to measure: a device as torch names it, a precision, rounds."""

    device: str = "cpu"
    precision: str = "fp32"
    rounds: int = 5


@dataclass(frozen=True, slots=True, eq=False)
class Roof:
    """A device's ceilings. product: the fastest matrix product, to be run again, of so many operations."""

    ceilings: "Ceilings"
    product: Callable[[], object]
    product_operations: float


def run_roofline(settings: Settings, ask: RooflineAsk) -> Report:
    """Measure ceilings with the model's shapes, then its stages on torch. Raises EngineError or Fault."""
    folder = bundle_path(settings)
    with needs_torch():
        import torch

        from foreframe_engines.runtime.typed_graph import Precision
        from foreframe_models.torch_engine import TorchOptions, open_torch_engine, require_options

    options = TorchOptions(device=ask.device, precision=Precision(ask.precision))
    require_options(options)
    torch.set_num_threads(settings.engine.num_threads)
    bundle = Bundle.open(folder)
    roof = measure_roof(folder, options)
    with closing(open_torch_engine(bundle, options)) as engine:
        ways = Stages(engine, bundle, bundle.contract.buckets[-1]).ways()
        taken = time_in_turns({"": ways}, ask.rounds)[""]
    works = count_stages(folder, bundle.contract.buckets[-1])
    record = {
        "device": ask.device,
        "precision": ask.precision,
        "num_threads": settings.engine.num_threads,
        "ceilings, per s": dict(roof.ceilings.measured),
        "stages": {
            name: {**say_work(works[name], roof.ceilings), **_say_fraction(works[name], roof.ceilings, times)}
            for name, times in taken.items()
        },
    }
    samples = [Samples(f"{stage}, torch", "ms", "lower", tuple(times), (), "median") for stage, times in taken.items()]
    plan = {"device": ask.device, "precision": ask.precision, "rounds": ask.rounds}
    return Report("bench roofline", {**plan, "num_threads": settings.engine.num_threads}, record, samples)


def measure_roof(folder: Path, options: "TorchOptions") -> Roof:
    """Measure a device with a model's shapes. Raises BundleError."""
    import torch

    from foreframe_models.roofline import fastest_product, measure_ceilings
    from foreframe_models.torch_engine import DTYPES

    device, dtype = torch.device(options.device), DTYPES[options.precision]
    shapes = _shapes(folder, device.type)
    ceilings = measure_ceilings(device, dtype, shapes)
    return Roof(ceilings, *fastest_product(device, dtype, shapes, ceilings))


def _shapes(folder: Path, device: str) -> "Shapes":
    import torch

    from foreframe_models.reference import build_models
    from foreframe_models.roofline import Shapes

    with torch.device("meta"):
        config = build_models(folder).rollout.config
    frames, rows, columns = config.token_grid
    tokens = (frames * rows * columns,)
    if device == "cuda":
        return Shapes(config.transformer, tokens)
    return Shapes(config.transformer, tokens, square=1024, copy_bytes=2**26, picture=16)


def count_stages(folder: Path, members: int) -> dict[str, "Work"]:
    """Count what every stage computes, on torch in float32 on the CPU, whose answers the others give too."""
    from foreframe_models.counting import open_counted_engine

    engine, tally = open_counted_engine(folder)
    with closing(engine):
        ways = Stages(engine, Bundle.open(folder), members).ways()
        return {name: tally.of(run) for name, run in ways.items()}


def say_work(work: "Work", ceilings: "Ceilings") -> dict[str, float]:
    """Write what a stage needs of a device."""
    parts = {"products": work.products, "attention": work.attention, "convolutions": work.convolutions}
    counts = {f"{name}, GFLOP": round(count / _GIGA, 5) for name, count in parts.items()}
    return {**counts, "floor, ms": round(work.floor_ms(ceilings), 4)}


def _say_fraction(work: "Work", ceilings: "Ceilings", times: list[float]) -> Mapping[str, float]:
    taken_ms = statistics.median(times)
    return {"taken, ms": round(taken_ms, 4), "fraction of the floor": round(work.floor_ms(ceilings) / taken_ms, 4)}
