"""What a prediction's quality costs: members x solver steps x noise plan, by evaluations of the network and by time.

Quality is that of the last frame: PSNR against what happened, and the error of the mean against very many members.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median

from foreframe_engines import Contract, EnsembleSpec, Query
from foreframe_server.experiments.noise import (
    Ensemble,
    Scale,
    SpentMeasures,
    SpentNoise,
    group_equal,
    summarise_spent,
)
from foreframe_server.intervals import Resamples
from foreframe_server.plots import Chart, Curve
from foreframe_server.reports.report import Report
from foreframe_server.reports.samples import Samples, are_comparable

_NOISES = ("antithetic", "iid")


@dataclass(frozen=True, slots=True)
class Size:
    """How much one answer computes; the noise plan makes no difference to it."""

    members: int
    steps: int


@dataclass(frozen=True, slots=True)
class CostPlan:
    """How much is measured: clips, what is drawn for each, and rounds of timing."""

    clips: int
    scale: Scale
    rounds: int


def time_sizes(
    run: Callable[[Query], object],
    query: Query,
    sizes: Sequence[Size],
    rounds: int,
    clock: Callable[[], float],
) -> dict[Size, list[float]]:
    """Answer a query at every size once a round, in turns, after a round that does not count; milliseconds."""
    taken: dict[Size, list[float]] = {size: [] for size in sizes}
    for number in range(rounds + 1):
        for size in sizes:
            sampling = replace(query.sampling, steps=size.steps)
            started_s = clock()
            run(replace(query, sampling=sampling, ensemble=EnsembleSpec(size.members)))
            if number:
                taken[size].append(1000 * (clock() - started_s))
    return taken


def sizes_of(spent: Mapping[Ensemble, SpentNoise]) -> list[Size]:
    """List the sizes that ensembles have."""
    return list(dict.fromkeys(Size(each.members, each.steps) for each in spent))


def report_costs(
    contract: Contract,
    plan: CostPlan,
    seeds: Sequence[int],
    measured: Sequence[Mapping[Ensemble, SpentNoise]],
    taken: Mapping[Size, Sequence[float]],
) -> Report:
    """Put quality and time together; `seeds` are the clips' episodes."""
    spent = summarise_spent(measured, Resamples.of(seeds))
    costs = [_cost(each, taken) for each in spent]
    equal = group_equal(spent)
    record = {
        "clips": len(seeds),
        "episodes": len(set(seeds)),
        "frame": contract.horizon,
        "unit": "PSNR in dB; error in squared grey levels (0..255); ms of a whole answer in this process",
        "costs": costs,
        "best_by_psnr": [_cost(max(each, key=lambda one: one.psnr_db.mean), taken) for each in equal],
        "best_by_error": [_cost(min(each, key=lambda one: one.error.mean), taken) for each in equal],
    }
    samples = [*_time_samples(taken), *_error_samples(seeds, measured)]
    return Report("bench ensemble", asdict(plan), record, samples, [_chart(contract, spent, taken)], (0,))


def _cost(spent: SpentMeasures, taken: Mapping[Size, Sequence[float]]) -> dict[str, object]:
    return {**asdict(spent), "ms": round(_ms(spent, taken), 3)}


def _ms(spent: SpentMeasures, taken: Mapping[Size, Sequence[float]]) -> float:
    return median(taken[Size(spent.members, spent.steps)])


def _time_samples(taken: Mapping[Size, Sequence[float]]) -> list[Samples]:
    return [
        Samples(f"{size.members} members, {size.steps} steps", "ms", "lower", tuple(times), statistic="median")
        for size, times in taken.items()
    ]


def _error_samples(seeds: Sequence[int], measured: Sequence[Mapping[Ensemble, SpentNoise]]) -> list[Samples]:
    """Take what can be divided: an error that was estimated to be below 0 cannot."""
    found = []
    for each in measured[0]:
        values = tuple(10 ** (-clip[each].psnr_db / 10) for clip in measured)
        name = f"squared error, {each.members} {each.noise} members, {each.steps} steps"
        if are_comparable(values):
            found.append(Samples(name, "of white", "lower", values, tuple(seeds)))
    return found


def _chart(contract: Contract, spent: Sequence[SpentMeasures], taken: Mapping[Size, Sequence[float]]) -> Chart:
    titles = {"psnr_db": ("closeness to what happened", "PSNR, dB"), "error": ("error of the mean", "grey levels²")}
    return {
        "title": f"{contract.model} {contract.revision}: quality against cost",
        "note": "a curve is one number of solver steps, with more and more members; dashed: independent noise",
        "x_label": "",
        "panels": [
            {
                "title": title,
                "x_label": "ms of an answer",
                "y_label": label,
                "x_scale": "log",
                "series": _curves(spent, measure, taken),
            }
            for measure, (title, label) in titles.items()
        ],
    }


def _curves(spent: Sequence[SpentMeasures], measure: str, taken: Mapping[Size, Sequence[float]]) -> list[Curve]:
    steps = sorted({each.steps for each in spent})
    curves: list[Curve] = []
    for noise in _NOISES:
        for colour, count in enumerate(steps):
            chosen = [each for each in spent if (each.noise, each.steps) == (noise, count)]
            curves.append(
                {
                    "label": f"{count} steps, {noise}",
                    "x": [_ms(each, taken) for each in chosen],
                    "y": [getattr(each, measure).mean for each in chosen],
                    "colour": colour,
                    "line": "dashed" if noise == "iid" else "solid",
                }
            )
    return curves
