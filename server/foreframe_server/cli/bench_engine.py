"""`foreframe bench engine`: what each part of a prediction takes on the backends that are here, in turns.

Beside it stand how far answers are apart, and how near each part comes to what the device can do, measured in the run.
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from foreframe_engines import Bundle, BundleError, EngineError, RolloutEngine, open_rollout_engine
from foreframe_server.cli.bench_roofline import Roof, count_stages, measure_roof
from foreframe_server.cli.bench_stages import Answers, Stages, step_of, time_in_turns
from foreframe_server.cli.facts import bundle_path
from foreframe_server.cli.faults import Fault, needs_torch
from foreframe_server.load.findings import Bar
from foreframe_server.plots import Chart, Panel, Value
from foreframe_server.reports.report import Report
from foreframe_server.reports.samples import Samples
from foreframe_server.settings import Settings

if TYPE_CHECKING:
    from foreframe_models.roofline import Work
    from foreframe_models.torch_engine import TorchOptions

USUAL = ("onnxruntime", "torch", "torch-cuda", "torch-cuda-compiled")
"""The first that is here is what the others are compared with."""
BACKENDS = (*USUAL, "torch-compiled")
"""The last compiles for minutes on a CPU: it has to be asked for."""

_OWN, _EAGER = "onnxruntime", "torch"
_SHARE_OF_PEAK, _GAIN = 0.55, 1.3

Times: TypeAlias = Mapping[str, Sequence[float]]
"""Milliseconds of every round, by stage."""


@dataclass(frozen=True, slots=True)
class EngineAsk:
    """What to measure: backends by name, none for the usual ones that are here, members of a large step, rounds.

    members: None for the largest batch that the model has.
    """

    backends: tuple[str, ...] = ()
    members: int | None = None
    rounds: int = 5


def run_engine(settings: Settings, ask: EngineAsk) -> Report:
    """Time every stage of a prediction on every backend, in turns. Raises BundleError, or Fault when none is here."""
    bundle = Bundle.open(bundle_path(settings))
    members = ask.members or bundle.contract.buckets[-1]
    with ExitStack() as stack:
        engines, missing = _open_all(bundle, ask.backends or USUAL, settings.engine.num_threads, stack)
        if not engines or (ask.backends and missing):
            raise Fault("; ".join(f"{name}: {reason}" for name, reason in missing.items()))
        roofs = _measure_roofs(bundle.path, engines, settings.engine.num_threads)
        stages = {name: Stages(engine, bundle, members) for name, engine in engines.items()}
        products = {_product(name): {step_of(members): roof.product} for name, roof in roofs.items()}
        taken = time_in_turns({name: each.ways() for name, each in stages.items()} | products, ask.rounds)
        answers = {name: each.answers() for name, each in stages.items()}
    works = count_stages(bundle.path, members) if roofs else {}
    reference = next(iter(answers))
    backends: dict[str, Mapping[str, object]] = {}
    for name in engines:
        fractions = _say_fractions(works, roofs[name], taken[name]) if name in roofs else {}
        found = {**_say_times(taken[name], taken[reference]), **_compare(answers[name], answers[reference])}
        backends[name] = {**found, **fractions}
    bars = list(_bars(taken, works.get(step_of(members)), roofs, step_of(members)))
    record = {
        "num_threads": settings.engine.num_threads,
        "members": members,
        "compared_with": reference,
        "bars": [{**asdict(bar), "is_met": bar.is_met} for bar in bars],
        "backends": backends,
        "missing": missing,
    }
    plan = {"backends": list(engines), "members": members, "rounds": ask.rounds}
    samples = [
        Samples(f"{stage}, {name}", "ms", "lower", tuple(times), (), "median")
        for name in engines
        for stage, times in taken[name].items()
    ]
    charts = [_chart({name: taken[name] for name in engines})]
    return Report(
        "bench engine", {**plan, "num_threads": settings.engine.num_threads}, record, samples, charts, seeds=(0,)
    )


def _product(backend: str) -> str:
    """Name the product that is timed in the same rounds as a backend's step."""
    return f"product beside {backend}"


def _measure_roofs(folder: Path, engines: Mapping[str, RolloutEngine], num_threads: int) -> dict[str, Roof]:
    """Measure the device of every backend in its precision; not without torch, nor for models that it does not know."""
    known: dict[TorchOptions, Roof] = {}
    try:
        import torch

        torch.set_num_threads(num_threads)
        return {name: _roof(folder, _options(name), known) for name in engines}
    except (ModuleNotFoundError, BundleError):
        return {}


def _roof(folder: Path, options: "TorchOptions", known: "dict[TorchOptions, Roof]") -> Roof:
    plain = type(options)(device=options.device, precision=options.precision)
    if plain not in known:
        known[plain] = measure_roof(folder, plain)
    return known[plain]


def _open_all(
    bundle: Bundle, names: Sequence[str], num_threads: int, stack: ExitStack
) -> tuple[dict[str, RolloutEngine], dict[str, str]]:
    engines: dict[str, RolloutEngine] = {}
    missing: dict[str, str] = {}
    for name in names:
        try:
            engines[name] = stack.enter_context(closing(_open(bundle, name, num_threads)))
        except (EngineError, Fault) as error:
            missing[name] = str(error)
    return engines, missing


def _open(bundle: Bundle, name: str, num_threads: int) -> RolloutEngine:
    if name == _OWN:
        return open_rollout_engine(bundle, num_threads=num_threads)
    with needs_torch():
        import torch

        from foreframe_models.torch_engine import open_torch_engine

    torch.set_num_threads(num_threads)
    return open_torch_engine(bundle, _options(name))


def _options(name: str) -> "TorchOptions":
    from foreframe_engines.runtime.typed_graph import Precision
    from foreframe_models.torch_engine import TorchOptions

    is_on_gpu = name.startswith("torch-cuda")
    return TorchOptions(
        device="cuda" if is_on_gpu else "cpu",
        precision=Precision.BF16 if is_on_gpu else Precision.FP32,
        is_compiled=name.endswith("-compiled"),
    )


def _say_times(taken: Mapping[str, Sequence[float]], reference: Mapping[str, Sequence[float]]) -> dict[str, object]:
    """Return medians in ms, and by how much a backend is faster than the one that it is compared with."""
    found: dict[str, object] = {}
    for stage, values in taken.items():
        ratio = statistics.median(other / own for own, other in zip(values, reference[stage], strict=True))
        found[f"{stage}, ms"] = round(statistics.median(values), 3)
        found[f"{stage}, times faster"] = round(ratio, 3)
    return found


def _say_fractions(works: "Mapping[str, Work]", roof: Roof, taken: Times) -> dict[str, float]:
    """Return how near every stage comes to the least time that its device could take."""
    return {
        f"{stage}, fraction of the floor": round(work.floor_ms(roof.ceilings) / statistics.median(taken[stage]), 4)
        for stage, work in works.items()
    }


def _bars(taken: Mapping[str, Times], work: "Work | None", roofs: Mapping[str, Roof], stage: str) -> Iterator[Bar]:
    """Hold ONNX Runtime's step against the fastest product of the same rounds, and against torch as it comes."""
    if _OWN in roofs and work is not None:
        shares = tuple(_shares_of_peak(taken, work, roofs[_OWN], stage))
        yield Bar(f"{stage}, share of the fastest product", _typical(shares), at_least=_SHARE_OF_PEAK, rounds=shares)
    if _OWN in taken and _EAGER in taken:
        pairs = zip(taken[_EAGER][stage], taken[_OWN][stage], strict=True)
        gains = tuple(round(eager / own, 4) for eager, own in pairs)
        yield Bar(f"{stage}, times faster than torch", _typical(gains), at_least=_GAIN, rounds=gains)


def _shares_of_peak(taken: Mapping[str, Times], work: "Work", roof: Roof, stage: str) -> Iterator[float]:
    """Give every round's operations a second of a step, over those of the product beside it."""
    for step_ms, product_ms in zip(taken[_OWN][stage], taken[_product(_OWN)][stage], strict=True):
        yield round(work.total / step_ms / (roof.product_operations / product_ms), 4)


def _typical(values: Sequence[float]) -> float:
    return round(statistics.median(values), 4)


def _chart(taken: Mapping[str, Times]) -> Chart:
    return {
        "title": "Milliseconds of every stage",
        "note": "the range is of all rounds",
        "x_label": "",
        "panels": [_panel(taken, stage) for stage in next(iter(taken.values()))],
    }


def _panel(taken: Mapping[str, Times], stage: str) -> Panel:
    values = [_value(name, times[stage], colour) for colour, (name, times) in enumerate(taken.items())]
    return {"title": stage, "x_label": "ms", "values": values}


def _value(name: str, times: Sequence[float], colour: int) -> Value:
    return {"label": name, "value": statistics.median(times), "low": min(times), "high": max(times), "colour": colour}


def _compare(answers: Answers, reference: Answers) -> dict[str, float]:
    states, expected = np.stack(answers.states), np.stack(reference.states)
    apart = np.linalg.norm(states - expected) / np.linalg.norm(expected)
    levels = np.abs(answers.frames.astype(int) - reference.frames).max()
    return {"states apart, share": float(apart), "largest difference of pixels": int(levels)}


def read_backends(text: str | None) -> tuple[str, ...]:
    """Read names with commas between them. Raises Fault for one that is none."""
    names = tuple(text.split(",")) if text else ()
    for name in names:
        if name not in BACKENDS:
            raise Fault(f"there is no backend {name!r}; there are {', '.join(BACKENDS)}")
    return names
