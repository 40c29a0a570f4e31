"""The comparison's record as Markdown tables, and what a reader must know of them. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from peers.passes import AGAIN, PLAIN
from peers.plan import MAIN_LOAD

Result: TypeAlias = Mapping[str, Any]
_HEAD = """# Beside other servers

`make peers` hosts one bundle in foreframe and in other servers, each as its users would, with its own dynamic batching
on and its best wire format; asks all of them the same questions; checks that their answers are equal; and writes this
page. The numbers are those of [the last run](results/peers.json), the servers on two cores of {machine}, what asks on
two others. How it is measured stands below the tables.
"""
_RULE = """
Robots ask {rate_hz:g} times a second for {members} members with a deadline of {deadline_ms} ms, planners for
{bulk_members} at random times; together they ask for {offered} of what the engine can do in process. Goodput counts the
robots' answers in hand within the deadline, counted from when the question was due, with all members at all steps.
Degraded answers, which foreframe gives and says so, are counted beside it and never as whole ones. Every answer was
compared with the right one after the clock had stopped, but for those of a shortened schedule. No two questions to a
server share a context, so every server encodes each. "engine ms" is the same answer in process just before and just
after: how steady the machine was. foreframe is measured first and last, and the worse counts.
"""
_ENGINE = """
The peers run foreframe's own engine, in the faster of its two arrangements on this machine. That is generous to them:
with one engine below all, the ratio of throughputs can hardly exceed 1. Rows on plain ONNX Runtime host the same graphs
as one would without that engine: sessions with all threads, and members as one batch. Of these throughput alone is
measured.
"""
_ORIGIN = """
All rows are of commit {commit} and one digest of weights, taken from {first} to {last}. Ratios are within these rows;
none of the numbers can be compared with another machine's.
"""
_UNSTEADY = """
† cannot be relied on, nor can ratios with it: just before or after this server the engine took more than 20 % longer or
shorter than the median of all such times, so the machine was busy with something else.
"""


def write_markdown(record: Result) -> str:
    """Lay the record out for people."""
    servers = record["servers"]
    whole = [server for server in servers if server["kind"] != PLAIN]
    parts = [
        _HEAD.format(machine=record["machine"]).strip(),
        "## What it comes to",
        _bar_table(record["bars"]),
        "## Eight members",
        _world_table(servers),
        "## Robots and planners",
        _load_table(whole),
        "## The door alone",
        _stub_table(servers),
        "## The same quality",
        _quality_table(whole),
        "## How it is measured",
        _could_not([server for server in servers if not server["kind"]]),
        *_not_measured(record["not_measured"]),
        *_remarks(record),
    ]
    return "\n\n".join(parts)


def _remarks(record: Result) -> list[str]:
    servers, plan = record["servers"], record["plan"]
    offered = ", ".join(f"{share:.0%}" for share in plan["offered"].values())
    taken = sorted(server["taken_at"] for server in servers)
    texts = [
        _RULE.format(**{**plan, "offered": offered}),
        _ENGINE,
        _ORIGIN.format(commit=str(record["commit"])[:10], first=taken[0], last=taken[-1]),
    ]
    if not all(server["is_steady"] for server in servers):
        texts.append(_UNSTEADY)
    if record["is_changed_between"]:
        texts.append("The code was changed between the first server and the last.")
    return [" ".join(text.split()) for text in texts]


def _not_measured(missing: Mapping[str, str]) -> list[str]:
    if not missing:
        return []
    return ["Not measured, so no best peer here:\n\n" + "\n".join(f"- {reason}" for reason in missing.values())]


def _world_table(servers: Sequence[Result]) -> str:
    head = (
        "server", "wire", "answers/s", "useful after ms", "CPU s an answer", "idle CPU s", "RSS MB",
        "engine ms before / after", "start s",
    )  # fmt: skip
    return _table(head, [_world_row(server) for server in servers])


def _world_row(server: Result) -> list[str]:
    alone, saturated, engine_ms = server.get("alone"), server["saturated"], server["engine_ms"]
    return [
        _title(server),
        server["wire"],
        f"{saturated['answers_per_s']:.2f}",
        "–" if alone is None else f"{alone['useful_ms']:.0f}",
        f"{saturated['cpu_s_per_answer']:.3f}",
        "–" if alone is None else f"{alone['idle_cpu_s']:.2f}",
        f"{saturated['rss_bytes'] / 1e6:.0f}",
        f"{engine_ms['before']:.0f} / {engine_ms['after']:.0f}",
        f"{server['start_s']:.1f}",
    ]


def _load_table(servers: Sequence[Result]) -> str:
    head = (
        "mixed trace of", "server", "robots p50 / p99 ms", "goodput/s", "whole · degraded · late or none",
        "planners answered",
    )  # fmt: skip
    parts = sorted(
        ((index, server) for server in servers for index in range(len(server["mixed"]))), key=lambda part: part[0]
    )
    return _table(head, [_load_row(server, server["mixed"][index]) for index, server in parts])


def _load_row(server: Result, part: Result) -> list[str]:
    found = part["goodput"]
    robots = found["robots_ms"]
    missed = found["robots_asked"] - found["whole"] - found["degraded"]
    return [
        f"{part['offered']:.0%}" + (" (main)" if part["load"] == MAIN_LOAD else ""),
        _title(server),
        "–" if robots is None else f"{robots['p50']:.0f} / {robots['p99']:.0f}",
        f"{found['goodput_per_s']:.2f}",
        f"{found['whole']} · {found['degraded']} · {missed}",
        f"{found['planners_answered']} of {found['planners_asked']}",
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
        return "nothing to compare with" + (" **missed**" if _limit(bar) != "–" else "")
    rounds = " and ".join("nothing" if each is None else f"{each:.3g}" for each in bar["rounds"])
    beside = f" (first and last: {rounds})" if len(bar["rounds"]) > 1 else ""
    return f"{bar['value']:.3g}{beside}" + ("" if bar["is_met"] else " **missed**")


def _could_not(servers: Sequence[Result]) -> str:
    lines = [f"- **{server['name']}**: {'; '.join(server['could_not'])}." for server in servers if server["could_not"]]
    return "What the peers could not be set to do:\n\n" + "\n".join(lines)


def _title(server: Result) -> str:
    title = server["name"] if server["version"] is None else f"{server['name']} {server['version']}"
    ends = {AGAIN: ", last", PLAIN: " on plain ONNX Runtime, members as one batch"}
    appendix = " (appendix)" if server["is_appendix"] else ""
    return f"{title}{ends.get(server['kind'], '')}{appendix}" + ("" if server["is_steady"] else " †")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
