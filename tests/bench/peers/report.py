"""What was measured, as one JSON object, with what the comparison is to reach. Pure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

from peers.catalogue import OURS
from peers.passes import AGAIN, PLAIN, Pass
from peers.plan import MAIN_LOAD
from peers.steadiness import find_unsteady

from foreframe_server.load.findings import Bar, over

Result: TypeAlias = Mapping[str, Any]
_QUALITY_DB = 0.3
_GOODPUT, _THROUGHPUT, _STUB, _COMPUTE, _IDLE_S = 2.0, 1.2, 1.0, 10.0, 0.05
_STUB_PEER = "mosec"
_MEAN = "throughput of the 8-member mean"


def write_record(
    results: Mapping[str, Result], passes: Sequence[Pass], missing: Mapping[str, str], facts: Result
) -> Result:
    """Return all of it as one JSON object. missing: why servers were not measured."""
    unsteady = find_unsteady(results)
    known = [each for each in passes if each.name in results]
    codes = {result["code"] for result in results.values()}
    return {
        "experiment": "peers",
        **facts,
        "is_changed_between": len(codes) > 1,
        "bars": [_bar_record(bar) for bar in find_bars(results)],
        "servers": [
            {
                "name": each.peer.name,
                "kind": each.kind,
                "wire": each.peer.wire.name,
                **results[each.name],
                "is_steady": each.name not in unsteady,
                "could_not": list(each.peer.notes),
                "is_appendix": each.peer.is_appendix,
            }
            for each in known
        ],
        "not_measured": dict(missing),
    }


def find_bars(results: Mapping[str, Result]) -> list[Bar]:
    """Hold foreframe against the best peer of each measure; nothing where either is missing.

    foreframe is measured first and last: the worse of both counts, and `rounds` has both.
    """
    ours = [results[name] for name in (OURS, f"{OURS}-{AGAIN}") if name in results]
    named = {name: result for name, result in results.items() if not name.startswith(OURS)}
    others = [result for name, result in named.items() if not name.endswith(f"-{PLAIN}")]
    plain = [result for name, result in named.items() if name.endswith(f"-{PLAIN}")]
    if not ours or not others:
        return []
    rounds = [_bars_of(each, others, plain) for each in ours]
    return [*_stub_bars(results), *(_worst(bars) for bars in zip(*rounds, strict=True))]


def _bars_of(ours: Result, others: Sequence[Result], plain: Sequence[Result]) -> list[Bar]:
    return [
        *(bar for index in range(len(ours["mixed"])) for bar in _goodput_bars(ours, others, index)),
        _ratio(f"{_MEAN} / best peer on foreframe's engine", ours, others, _throughput, _THROUGHPUT),
        *([_ratio(f"{_MEAN} / best peer on plain ONNX Runtime", ours, plain, _throughput, None)] if plain else []),
        *_quality_bars(ours, others),
        Bar("processor seconds in the second after a request", ours["alone"]["idle_cpu_s"], at_most=_IDLE_S),
    ]


def _goodput_bars(ours: Result, others: Sequence[Result], index: int) -> list[Bar]:
    load = ours["mixed"][index]["load"]
    whole, useful = partial(_goodput, index, "goodput_per_s"), partial(_goodput, index, "with_degraded_per_s")
    at_least = _GOODPUT if load == MAIN_LOAD else None
    best = max(map(whole, others))
    return [
        _ratio(f"goodput at {load:g}, whole answers only / best peer", ours, others, whole, at_least),
        Bar(f"goodput at {load:g} with degraded answers / best peer", over(useful(ours), best)),
    ]


def _worst(bars: Sequence[Bar]) -> Bar:
    """Make rounds of one measure into one. A missing value is the worst there is."""
    first = bars[0]
    values = tuple(bar.value for bar in bars)
    known = [value for value in values if value is not None]
    worst = (min if first.at_most is None else max)(known) if len(known) == len(values) else None
    return replace(first, value=worst, rounds=values)


def _ratio(
    measure: str, ours: Result, others: Sequence[Result], value: Callable[[Result], float], at_least: float | None
) -> Bar:
    best = max(map(value, others))
    return Bar(measure, over(value(ours), best), at_least=at_least)


def _stub_bars(results: Mapping[str, Result]) -> list[Bar]:
    ours, other = (results.get(name, {}).get("stub") for name in (OURS, _STUB_PEER))
    if ours is None or other is None:
        return []
    value = over(ours["answers_per_s"], other["answers_per_s"])
    return [Bar(f"requests per second of the stub / {_STUB_PEER}", value, at_least=_STUB)]


def _quality_bars(ours: Result, others: Sequence[Result]) -> list[Bar]:
    quality = ours["quality"]
    gap = round(quality["plain_psnr_db"] - quality["psnr_db"], 4)
    least_s = min(other["quality"]["cpu_s_per_answer"] for other in others)
    return [
        Bar("PSNR of the plain loop's 20-member mean above the posterior mean's, dB", gap, at_most=_QUALITY_DB),
        Bar(
            "processor seconds of the best peer's plain loop / posterior mean",
            over(least_s, quality["cpu_s_per_answer"]),
            at_least=_COMPUTE,
        ),
    ]


def _goodput(index: int, name: str, result: Result) -> float:
    return float(result["mixed"][index]["goodput"][name])


def _throughput(result: Result) -> float:
    return float(result["saturated"]["answers_per_s"])


def _bar_record(bar: Bar) -> Result:
    return {
        "measure": bar.measure,
        "value": bar.value,
        "at_least": bar.at_least,
        "at_most": bar.at_most,
        "is_met": bar.is_met,
        "rounds": list(bar.rounds),
    }
