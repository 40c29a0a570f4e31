"""What was measured, as one JSON object and as Markdown tables, with what the comparison is to reach. Pure."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from peers.catalogue import OURS, Peer

from foreframe_server.load.findings import Bar, over

Result: TypeAlias = Mapping[str, Any]
_QUALITY_DB = 0.3
_GOODPUT, _THROUGHPUT, _STUB, _COMPUTE, _IDLE_S = 2.0, 1.2, 1.0, 10.0, 0.05
_STUB_PEER = "mosec"
_RULE = """
Robots ask {rate_hz:g} times a second for {members} members with a deadline of {deadline_ms} ms, planners for
{bulk_members} at random times; together they are {load:.0%} of what the engine can do in process. Goodput counts the
robots' answers in hand within the deadline, counted from when the question was due, with all members at all steps.
Degraded answers, which foreframe gives and says so, are counted beside it and never as whole ones. Every answer was
compared with the right one, but for those of a shortened schedule. "engine ms" is the same answer in process just
before: how steady the machine was. Ratios are within this run; none of the numbers can be compared with another
machine's.
"""


def write_record(results: Mapping[str, Result], peers: Sequence[Peer], facts: Result) -> Result:
    """Return all of it as one JSON object."""
    known = [peer for peer in peers if peer.name in results]
    return {
        "experiment": "peers",
        **facts,
        "bars": [_bar_record(bar) for bar in find_bars(results)],
        "servers": [{"name": peer.name, "wire": peer.wire.name, **results[peer.name], "could_not": list(peer.notes),
                     "is_appendix": peer.is_appendix} for peer in known],
    }  # fmt: skip


def find_bars(results: Mapping[str, Result]) -> list[Bar]:
    """Hold foreframe against the best peer of each measure; nothing where either is missing."""
    ours = results.get(OURS)
    others = [result for name, result in results.items() if name != OURS]
    if ours is None or not others:
        return []
    return [
        _ratio("goodput, whole answers only / best peer", ours, others, _goodput, _GOODPUT),
        Bar("goodput with degraded answers / best peer", over(_useful(ours), max(map(_goodput, others)))),
        _ratio("throughput of the 8-member mean / best peer", ours, others, _throughput, _THROUGHPUT),
        *_stub_bars(results),
        *_quality_bars(ours, others),
        Bar("processor seconds in the second after a request", ours["alone"]["idle_cpu_s"], at_most=_IDLE_S),
    ]


def write_markdown(record: Result) -> str:
    """Lay the record out for people."""
    return "\n\n".join(
        [
            _world_table(record["servers"]),
            _stub_table(record["servers"]),
            _quality_table(record["servers"]),
            _bar_table(record["bars"]),
            _could_not(record["servers"]),
            " ".join(_RULE.format(**record["plan"]).split()),
        ]
    )


def _ratio(
    measure: str, ours: Result, others: Sequence[Result], value: Callable[[Result], float], at_least: float
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


def _goodput(result: Result) -> float:
    return float(result["mixed"]["goodput"]["goodput_per_s"])


def _useful(result: Result) -> float:
    return float(result["mixed"]["goodput"]["with_degraded_per_s"])


def _throughput(result: Result) -> float:
    return float(result["saturated"]["answers_per_s"])


def _bar_record(bar: Bar) -> Result:
    return {
        "measure": bar.measure,
        "value": bar.value,
        "at_least": bar.at_least,
        "at_most": bar.at_most,
        "is_met": bar.is_met,
    }


def _world_table(servers: Sequence[Result]) -> str:
    head = (
        "server", "wire", "answers/s", "robots p50 / p99 ms", "goodput/s", "whole · degraded · late or none",
        "planners answered", "useful after ms", "CPU s an answer", "idle CPU s", "RSS MB", "engine ms", "start s",
    )  # fmt: skip
    return _table(head, [_world_row(server) for server in servers])


def _world_row(server: Result) -> list[str]:
    found, alone, saturated = server["mixed"]["goodput"], server["alone"], server["saturated"]
    robots = found["robots_ms"]
    missed = found["robots_asked"] - found["whole"] - found["degraded"]
    return [
        _title(server),
        server["wire"],
        f"{saturated['answers_per_s']:.2f}",
        "–" if robots is None else f"{robots['p50']:.0f} / {robots['p99']:.0f}",
        f"{found['goodput_per_s']:.2f}",
        f"{found['whole']} · {found['degraded']} · {missed}",
        f"{found['planners_answered']} of {found['planners_asked']}",
        f"{alone['useful_ms']:.0f}",
        f"{saturated['cpu_s_per_answer']:.3f}",
        f"{alone['idle_cpu_s']:.2f}",
        f"{saturated['rss_bytes'] / 1e6:.0f}",
        f"{server['engine_ms']:.0f}",
        f"{server['start_s']:.1f}",
    ]


def _stub_table(servers: Sequence[Result]) -> str:
    head = ("stub of 0.6 ms, 209 KB in, 98 KB out", "way", "requests/s", "p50 / p99 ms", "CPU ms a request")
    rows = [
        [_title(server), way, f"{each['answers_per_s']:.0f}", f"{each['p50_ms']:.1f} / {each['p99_ms']:.1f}",
         f"{each['server_cpu_ms_per_answer']:.2f}"]
        for server in servers
        for way, each in server.get("stub", {}).get("ways", {}).items()
    ]  # fmt: skip
    return _table(head, rows)


def _quality_table(servers: Sequence[Result]) -> str:
    head = ("same quality", "how", "PSNR dB", "ms", "CPU s an answer")
    rows = [
        [_title(server), _way(quality), f"{quality['psnr_db']:.2f}", f"{quality['answer_ms']:.0f}",
         f"{quality['cpu_s_per_answer']:.4f}"]
        for server in servers
        for quality in [server["quality"]]
    ]  # fmt: skip
    return _table(head, rows)


def _way(quality: Result) -> str:
    return "posterior mean" if quality["strategy"] != "sample" else f"mean of {quality['members']}"


def _bar_table(bars: Sequence[Result]) -> str:
    rows = [[bar["measure"], _limit(bar), _value(bar)] for bar in bars]
    return _table(("measure", "wanted", "measured"), rows)


def _limit(bar: Result) -> str:
    signs = (("≥", bar["at_least"]), ("≤", bar["at_most"]))
    return ", ".join(f"{sign} {limit:g}" for sign, limit in signs if limit is not None) or "–"


def _value(bar: Result) -> str:
    if bar["value"] is None:
        return "nothing to compare with **missed**"
    return f"{bar['value']:.3g}" + ("" if bar["is_met"] else " **missed**")


def _could_not(servers: Sequence[Result]) -> str:
    lines = [f"- **{server['name']}**: {'; '.join(server['could_not'])}." for server in servers if server["could_not"]]
    return "What the peers could not be set to do:\n\n" + "\n".join(lines)


def _title(server: Result) -> str:
    title = server["name"] if server["version"] is None else f"{server['name']} {server['version']}"
    return f"{title} (appendix)" if server["is_appendix"] else title


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
