"""Every scenario of hostile bytes: how many are sent, and what none of them may cause. Data only."""

from collections.abc import Mapping

from harness.scenario import Check, Event, Scenario
from harness.servers import ServerSpec
from wire import fuzz, giants, schema, values

_LIMITS = {
    "HTTP__HEADER_TIMEOUT_S": "0.5", "HTTP__BODY_TIMEOUT_S": "0.5", "HTTP__KEEP_ALIVE_S": "0.5",
    "CACHE__MAX_BYTES": str(2**20), "OBSERVATIONS__MAX_BYTES": str(2**20), "SESSIONS__MAX_BYTES": str(2**20),
    "SESSIONS__MAX_SESSIONS": "32",
}  # fmt: skip


def server(parser: str = "httptools", environment: Mapping[str, str] | None = None, **settings: str) -> ServerSpec:
    """Say how a server of a calm oracle in a worker process is started."""
    return ServerSpec(
        processes=1, settings={"HTTP__PARSER": parser, **settings}, environment=environment or {}, module="wire.launch"
    )


def wire_scenarios(is_full: bool) -> list[Scenario]:
    """Return the scenarios, in the order of their rows."""
    return [scenario for part in (_fuzzes, _schema, _giants, _values) for scenario in part(is_full)]


def _fuzzes(is_full: bool) -> list[Scenario]:
    count = 10_000 if is_full else 300
    never = tuple(Check(f"num_{fault}", at_most=0) for fault in fuzz.FAULTS)
    checks = (
        *never, Check("worker_deaths", at_most=0), Check("tracebacks", at_most=0), Check("rss_growth", at_most=0.05),
        Check("fuzz_s", at_most=60), Check("answered_ok", at_least=count / 50), Check("is_ready", at_least=1),
    )  # fmt: skip
    return [
        *(Scenario(
            f"fuzz_{parser}", f"Damaged requests on raw sockets, read by {parser}", server(parser, **_LIMITS), checks,
            events=(Event(0, fuzz.fuzz, {"count": count}),), rows=(1, 5, 48),
        ) for parser in ("h11", "httptools")),
        Scenario(
            "control_echo", "Planted fault: a handler that echoes raw bytes is found out",
            server(environment={"WIRE_FAULT": "echo"}, **_LIMITS),
            (Check("num_server_error", at_least=1), Check("num_leak", at_least=1)),
            events=(Event(0, fuzz.fuzz, {"count": 300, "keeps": False}),), rows=(1,),
        ),
    ]  # fmt: skip


def _schema(is_full: bool) -> list[Scenario]:
    terms = {"examples": 60, "phases": "coverage,fuzzing,stateful"} if is_full else {"examples": 2, "phases": "fuzzing"}
    return [
        Scenario(
            "schema_fuzz", "Good and bad cases drawn from the OpenAPI document, with the checks of a schema fuzzer",
            server(CACHE__MAX_BYTES=str(2**20)),
            (*(Check(f"num_{kind}", at_most=0) for kind in ("failures", "errors", "server_errors", "undocumented")),
             Check("num_bad_accepted", at_most=0), Check("untested", at_most=0),
             Check("cases", at_least=10_000 if is_full else 60)),
            events=(Event(0, schema.fuzz_schema, terms),), rows=(1, 11), limit_s=900,
        ),
        Scenario(
            "control_schema", "Planted fault: a document that promises less than the server takes is found out",
            server(), (Check("num_failures", at_least=1),),
            events=(Event(0, schema.fuzz_narrowed, {"examples": 20}),), rows=(1,), limit_s=120,
        ),
    ]  # fmt: skip


_REFUSED = (Check("not_refused", at_most=0), Check("faulty", at_most=0))


def _giants(is_full: bool) -> list[Scenario]:
    rounds = 3 if is_full else 1
    return [
        Scenario(
            "wrong_giants", "The largest bodies that are read, full of wrong values", server(),
            (*_REFUSED, Check("reply_bytes", at_most=4096), Check("health_added_ms", at_most=50)),
            events=(Event(0, giants.send_wrong_giants, {"rounds": rounds}),), rows=(2, 22),
        ),
        Scenario(
            "right_giants", "The largest requests that are answered", server(),
            (Check("not_answered", at_most=0), Check("health_added_ms", at_most=50)),
            events=(Event(0, giants.send_right_giants, {"rounds": rounds}),), rows=(22,),
        ),
        *(Scenario(
            f"chunk_flood_{parser}", f"A body in chunks of one byte, read by {parser}", server(parser),
            (*_REFUSED, Check("cpu_s", at_most=2), Check("peak_added_mb", at_most=32)),
            events=(Event(0, giants.send_chunk_flood, {"megabytes": 16 if is_full else 1}),), rows=(6,),
        ) for parser in ("h11", "httptools")),
        Scenario(
            "deflate_bombs", "A gigabyte of zeros, deflated", server(),
            (*_REFUSED, Check("refused_ms", at_most=50), Check("peak_added_mb", at_most=32)),
            events=(Event(0, giants.send_deflate_bombs, {"megabytes": 1024 if is_full else 64}),), rows=(7,),
        ),
        Scenario(
            "pictures", "Pictures that are no frame of a camera", server(),
            (*_REFUSED, Check("pictures", at_least=20), Check("refused_ms", at_most=20),
             Check("peak_added_mb", at_most=16), Check("worker_deaths", at_most=0)),
            events=(Event(0, giants.send_pictures, {"tries": 3 if is_full else 1}),), rows=(8,),
        ),
    ]  # fmt: skip


def _values(is_full: bool) -> list[Scenario]:
    return [
        Scenario(
            "lying_arrays", "Arrays whose type, shape and bytes do not agree", server(CACHE__MAX_BYTES=str(2**20)),
            (Check("lies_believed", at_most=0), Check("exact_refused", at_most=0), Check("faulty", at_most=0),
             Check("exact", at_least=1), Check("peak_added_mb", at_most=8)),
            events=(Event(0, values.send_lying_arrays, {"count": 5000 if is_full else 300}),), rows=(9,),
        ),
        Scenario(
            "specials", "States that hold a number that is none, by every way in", server(),
            (*_REFUSED, Check("vectors", at_least=400 if is_full else 80), Check("reached_engine", at_most=0),
             Check("good_reached_engine", at_least=1)),
            events=(Event(0, values.send_specials, {"count": 400 if is_full else 80}),), rows=(10,),
        ),
        Scenario(
            "wrong_requests", "Requests that fit the wire's form and not the model", server(),
            (*_REFUSED, Check("drawn", at_least=2000 if is_full else 200), Check("worker_exceptions", at_most=0),
             Check("worker_deaths", at_most=0), Check("reached_engine", at_most=0)),
            events=(Event(0, values.send_wrong_requests, {"count": 2000 if is_full else 200}),), rows=(11,),
        ),
        Scenario(
            "json_tricks", "What JSON lets one say in two ways", server(),
            (Check("other_status", at_most=0), Check("faulty", at_most=0), Check("bodies", at_least=30)),
            events=(Event(0, values.send_tricks),), rows=(12,),
        ),
    ]  # fmt: skip
