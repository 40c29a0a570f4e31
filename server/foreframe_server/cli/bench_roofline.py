"""`foreframe bench roofline`: what this device can do, measured now, and how near a step on torch comes to it."""

import statistics
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from foreframe_engines import Bundle
from foreframe_server.cli.bench_engine import Stages, time_in_turns
from foreframe_server.cli.facts import bundle_path
from foreframe_server.cli.faults import needs
from foreframe_server.settings import Settings

if TYPE_CHECKING:
    from foreframe_models.rollout import RolloutConfig
    from foreframe_models.roofline import Ceilings
    from foreframe_models.torch_engine import TorchOptions


@dataclass(frozen=True, slots=True)
class RooflineAsk:
    """What to measure: a device as torch names it, a precision, rounds."""

    device: str = "cpu"
    precision: str = "fp32"
    rounds: int = 5


def run_roofline(settings: Settings, ask: RooflineAsk) -> dict[str, object]:
    """Measure ceilings with the model's shapes, then its step. Raises EngineError, or Fault without torch."""
    folder = bundle_path(settings)
    with needs("torch", "pip install 'foreframe[models]'"):
        import torch

        from foreframe_engines.runtime.typed_graph import Precision
        from foreframe_models.reference import build_models
        from foreframe_models.roofline import own_work
        from foreframe_models.torch_engine import TorchOptions, open_torch_engine, require_options

    options = TorchOptions(device=ask.device, precision=Precision(ask.precision))
    require_options(options)
    torch.set_num_threads(settings.engine.num_threads)
    bundle = Bundle.open(folder)
    with torch.device("meta"):
        config = build_models(folder).rollout.config
    ceilings = _measure(config, options)
    with closing(open_torch_engine(folder, options)) as engine:
        sizes = sorted({1, bundle.contract.buckets[-1]})
        stages = {members: Stages(engine, bundle, members).ways()[f"step of {members}"] for members in sizes}
        taken = time_in_turns({"": {str(members): stages[members] for members in sizes}}, ask.rounds)[""]
    times = {members: statistics.median(taken[str(members)]) for members in sizes}
    return {
        "experiment": "bench roofline",
        "model": bundle.contract.model,
        "revision": bundle.contract.revision,
        "device": ask.device,
        "precision": ask.precision,
        "ceilings, per s": dict(ceilings.measured),
        "steps": _say_steps(times, {members: own_work(config, members).floor_ms(ceilings) for members in sizes}),
    }


def _measure(config: "RolloutConfig", options: "TorchOptions") -> "Ceilings":
    import torch

    from foreframe_models.roofline import Shapes, measure_ceilings
    from foreframe_models.torch_engine import DTYPES

    frames, rows, columns = config.token_grid
    shapes = Shapes(config.transformer, (frames * rows * columns,))
    device = torch.device(options.device)
    if device.type != "cuda":
        shapes = Shapes(config.transformer, shapes.tokens, square=1024, copy_bytes=2**26, picture=16)
    return measure_ceilings(device, DTYPES[options.precision], shapes)


def _say_steps(times: Mapping[int, float], floors: Mapping[int, float]) -> dict[str, object]:
    return {
        f"of {members}": {
            "floor, ms": round(floors[members], 4),
            "taken, ms": round(times[members], 4),
            "fraction of the floor": round(floors[members] / times[members], 4),
        }
        for members in times
    }
