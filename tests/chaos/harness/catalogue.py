"""Every scenario: what is started, what happens to it and what must hold. Data only, in a full and a short form."""

from dataclasses import replace

from harness import actions, pressure
from harness.actions import at_random
from harness.load import Load
from harness.proxy import TOXICS
from harness.scenario import Check, Event, Scenario
from harness.servers import ServerSpec
from wire.catalogue import wire_scenarios

NO_HARM = (Check("violations", at_most=0), Check("wrong", at_most=0), Check("lost", at_most=0))
NO_FAILURE = (*NO_HARM, Check("failed", at_most=0), Check("expired", at_most=0))
COUNTED = (*NO_FAILURE, Check("uncounted", at_most=0))
ALONE = ServerSpec()
WORKERS = ServerSpec(processes=2, row_ms=1.0)
SHARED = ServerSpec(row_ms=2.0, has_redis=True)
NO_MEMORY_CACHE = {"CACHE__MAX_BYTES": "0"}
# Limits that depend on how busy the machine is: by what their measure ends with, and how much wider the short form is;
# what is counted within so many seconds, or found in a Redis that is given up when it is slow; and how long a server
# may take for its work. Other limits of seconds are of ends and restarts, which are far shorter beside other tests too.
_EASED = {"ms": 25, "s": 3, "ratio": 10, "growth": 3, "1000": 10}
_TIMED = frozenset({"goodput", "starts", "damaged", "settled_s", "fuzz_s"})


def catalogue(*, is_full: bool) -> list[Scenario]:
    """Return all scenarios, in the order of their rows."""
    parts = (wire_scenarios, _time_and_cost, _processes, _endings, _redis, _clients, _controls)
    scenarios = [scenario for part in parts for scenario in part(is_full)]
    return scenarios if is_full else [_eased(scenario) for scenario in scenarios]


def _eased(scenario: Scenario) -> Scenario:
    """Widen the limits that depend on how busy the machine is: the short form runs beside other tests."""
    return replace(scenario, checks=tuple(_ease(check) for check in scenario.checks))


def _ease(check: Check) -> Check:
    if check.at_least is not None:
        return replace(check, at_least=check.at_least / 2) if check.measure == "goodput" else check
    return replace(check, at_most=check.at_most * _EASED.get(check.measure.rsplit("_", 1)[-1], 1))


def is_alone(scenario: Scenario) -> bool:
    """Tell whether a limit holds only while nothing else is busy; others are of counts, bytes and many seconds."""
    measures = {check.measure for check in scenario.checks}
    return bool(measures & _TIMED) or any(measure.rsplit("_", 1)[-1] in _EASED.keys() - {"s"} for measure in measures)


def _time_and_cost(is_full: bool) -> list[Scenario]:
    return [
        Scenario(
            "too_expensive", "More than one request may have is refused before anything is allocated", ALONE,
            (Check("not_refused", at_most=0), Check("refusal_p99_ms", at_most=10), Check("rss_added_mb", at_most=8)),
            events=(Event(0, pressure.ask_too_much, {"count": 1000 if is_full else 100}),), rows=(14,),
        ),
        Scenario(
            "overload", "Five times the capacity is offered, then half of it",
            ServerSpec(row_ms=40.0, settings={"SCHEDULER__MAX_PENDING_S": "1.0"}),
            (*NO_HARM, Check("failed", at_most=0), Check("goodput", at_least=0.9), Check("shed_p99_ms", at_most=20),
             Check("after_ratio", at_most=2), Check("after_ok", at_least=0.99)),
            events=(Event(0, pressure.overload, {"seconds": 20 if is_full else 2, "factor": 5}),), rows=(16,),
        ),
        Scenario(
            "lateness", "Deadlines of 20 to 500 ms while every core is kept busy", ServerSpec(row_ms=3.0),
            (*NO_HARM, Check("failed", at_most=0), Check("late_p99_added_ms", at_most=10),
             Check("late_max_added_ms", at_most=30)),
            events=(Event(0, pressure.meet_deadlines, {"count": 2000 if is_full else 200, "rate_hz": 50, "hogs": 4}),),
            rows=(17,),
        ),
    ]  # fmt: skip


def _processes(is_full: bool) -> list[Scenario]:
    seconds, kills = (64.0, 20) if is_full else (8.0, 2)
    stops = 3 if is_full else 1
    deaths = at_random(actions.kill_worker, kills, first_s=2, last_s=seconds - 3, apart_s=2.5, seed=1)
    halts = at_random(actions.stop_worker, stops, first_s=3, last_s=3.1 + 9 * (stops - 1), apart_s=9, seed=2)
    crash_s = 60.0 if is_full else 4.0
    starts = {"ORACLE_STARTS": "starts", "ORACLE_BROKEN": "broken"}
    return [
        Scenario(
            "memory_runs_out", "A worker is asked for more memory than it may have", WORKERS,
            (*NO_FAILURE, Check("refused_memory", at_least=1), Check("same_workers", at_least=1)),
            events=(Event(0, actions.ask_much_memory, {"megabytes": 4000, "after": 100 if is_full else 40}),),
            rows=(15,),
        ),
        Scenario(
            "worker_killed", "Workers are killed with signal 9 at random moments under 50 questions a second", WORKERS,
            (*COUNTED, Check("strikes", at_least=kills), Check("recovery_s", at_most=3),
             Check("worker_back_s", at_most=3)),
            Load(50, seconds, {"deadline_ms": 15_000}), deaths, rows=(23,),
        ),
        Scenario(
            "worker_stopped", "Workers are stopped with SIGSTOP under load", WORKERS,
            (*COUNTED, Check("strikes", at_least=stops), Check("replaced_s", at_most=4),
             Check("recovery_s", at_most=4)),
            Load(30, 9.0 * stops + (2 if is_full else -2), {"deadline_ms": 15_000}), halts, rows=(24,),
        ),
        Scenario(
            "poison", "A question that kills whoever computes it is sent again and again, beside others", WORKERS,
            (*NO_FAILURE, Check("deaths", at_most=2), Check("poison_other", at_most=0),
             Check("poison_answered", at_most=0)),
            Load(20, 12 if is_full else 6, {"deadline_ms": 15_000}),
            (Event(1, actions.resend_poison, {"times": 100 if is_full else 20}),), rows=(25,),
        ),
        Scenario(
            "crash_loop", "The model aborts whenever it is opened again, and is mended later",
            replace(WORKERS, processes=1, environment=starts),
            (Check("starts", at_most=6), Check("starts", at_least=1), Check("ready", at_most=0),
             Check("lives", at_least=1), *((Check("mended_s", at_most=90),) if is_full else ())),
            events=(
                Event(0, actions.break_model, {"seconds": crash_s}),
                *((Event(crash_s + 1, actions.mend_model, {"seconds": 90}),) if is_full else ()),
            ), rows=(26,), limit_s=200,
        ),
        Scenario(
            "nan", "An engine answers with NaN", WORKERS,
            (Check("nan_delivered", at_most=0), Check("nan_faults", at_least=200 if is_full else 40)),
            events=(Event(0, actions.emit_nan, {"times": 100 if is_full else 20}),), rows=(10,),
        ),
    ]  # fmt: skip


def _endings(is_full: bool) -> list[Scenario]:
    rounds = 20 if is_full else 1
    fleet = Load(40, 3, heeds_readiness=True)
    ended = (*NO_FAILURE, Check("exit_status", at_most=0), Check("exit_s", at_most=25), Check("orphans", at_most=0))
    return [
        Scenario(
            "terminated", "SIGTERM under load", WORKERS, (*ended, Check("strikes", at_least=rounds)), fleet,
            (Event(1, actions.terminate),), rows=(29,), rounds=rounds, limit_s=60,
        ),
        Scenario(
            "terminated_twice", "A second SIGTERM while work is running", WORKERS,
            (Check("second_exit_s", at_most=3), Check("workers_gone_s", at_most=2)),
            Load(20, 1.5, {"members": 16, "steps": 50, "deadline_ms": 20_000}),
            (Event(1, actions.terminate_twice, {"apart_s": 0.5}),), rows=(29,), limit_s=60,
        ),
        Scenario(
            "parent_killed", "The server itself is killed with signal 9", WORKERS,
            (Check("workers", at_least=2), Check("workers_gone_s", at_most=2), Check("answered_after", at_least=1)),
            events=(Event(0.5, actions.kill_parent),), rows=(30,), rounds=5 if is_full else 1,
        ),
        Scenario(
            "disk_full", "No file may grow by a byte", WORKERS, (*NO_FAILURE, Check("strikes", at_least=1)),
            Load(30, 10 if is_full else 4), (Event(2, actions.fill_disk),), rows=(32,),
        ),
        Scenario(
            "clock_stepped", "The wall clock jumps an hour ahead", replace(WORKERS, environment={"CHAOS_CLOCK_S": "2"}),
            NO_FAILURE, Load(30, 8 if is_full else 4), rows=(32,),
        ),
        Scenario(
            "few_files", "256 files, and as many idle connections",
            replace(WORKERS, environment={"CHAOS_FILES": "256"}),
            (Check("wrong", at_most=0), Check("failed", at_most=0), Check("ok", at_least=1)),
            Load(20, 10 if is_full else 4), (Event(1, actions.hold_connections, {"count": 300, "seconds": 2}),),
            rows=(32,),
        ),
    ]  # fmt: skip


def _redis(is_full: bool) -> list[Scenario]:
    before_s, after_s = (8.0, 16.0) if is_full else (2.0, 4.5)
    added = (Check("first_second_added_ms", at_most=25), Check("later_added_ms", at_most=2 if is_full else 25))
    back = (Check("reconnected_s", at_most=3),)
    broken = [
        Scenario(
            f"redis_{name}", f"Redis is {name} under load and comes back", SHARED, (*COUNTED, *added, *back),
            Load(50, after_s + (4 if is_full else 1.5)),
            (Event(before_s, strike), Event(after_s, actions.revive_redis, {"is_killed": name == "killed"})),
            rows=(row,),
        )
        for name, strike, row in (("killed", actions.kill_redis, 33), ("stopped", actions.stop_redis, 34))
    ]  # fmt: skip
    each_s = 4.0 if is_full else 0.6
    toxics = [Event(1 + number * each_s, actions.set_toxic, {"toxic": toxic}) for number, toxic in enumerate(TOXICS)]
    return [
        *broken,
        Scenario(
            "toxics", "Seven faults of the network between server and Redis", SHARED,
            (*NO_FAILURE, Check("strikes", at_least=len(TOXICS))),
            Load(40, 2 + len(TOXICS) * each_s), tuple(toxics), rows=(35,), has_proxy=True,
        ),
        Scenario(
            "corrupt_entries", "Entries in Redis are flipped, cut short and swapped",
            replace(SHARED, settings=NO_MEMORY_CACHE),
            (*NO_FAILURE, Check("damaged", at_least=1000 if is_full else 100), Check("served_damaged", at_most=0),
             Check("detected", at_least=950 if is_full else 90)),
            events=(Event(0, actions.corrupt_entries, {"count": 1000 if is_full else 100}),), rows=(36,),
        ),
        Scenario(
            "redis_full", "More results than Redis has memory for",
            replace(SHARED, row_ms=0.0, settings=NO_MEMORY_CACHE,
                    redis_options=("maxmemory=16mb" if is_full else "maxmemory=2mb", "maxmemory-policy=allkeys-lfu")),
            (*NO_FAILURE, Check("evicted", at_least=1)),
            events=(Event(0, actions.fill_redis, {"count": 5000 if is_full else 500}),), rows=(41,), limit_s=240,
        ),
    ]  # fmt: skip


def _clients(is_full: bool) -> list[Scenario]:
    leavers = 1600 if is_full else 200
    slow = {"count": 200, "seconds": 12.0} if is_full else {"count": 40, "seconds": 7.0}
    return [
        Scenario(
            "leak", "What the processes hold while many different questions are answered",
            ServerSpec(processes=1, settings={"CACHE__MAX_BYTES": str(2**20)}),
            (*NO_FAILURE, Check("rss_mb_per_1000", at_most=0.2), Check("rss_growth", at_most=0.05),
             Check("files_added", at_most=0), Check("threads_added", at_most=2), Check("shared_added", at_most=0)),
            events=(Event(0, actions.watch_footprint, _soak(is_full)),), rows=(27,), limit_s=400,
        ),
        Scenario(
            "hang_ups", "Clients leave 0.2 to 10 ms after they asked, beside others that stay", SHARED,
            (*NO_FAILURE, Check("hung_up", at_least=leavers), Check("settled_s", at_most=1)),
            Load(20, 14 if is_full else 4),
            (*(Event(0.5, actions.hang_up, {"count": leavers // 8}) for _ in range(8)),
             Event(15 if is_full else 5, actions.measure_settling)), rows=(18, 38),
        ),
        Scenario(
            "stampede", "200 equal questions at once", WORKERS, (*COUNTED, Check("computations", at_most=1)),
            events=(Event(0, actions.stampede, {"count": 200, "kills": False}),), rows=(40,),
        ),
        Scenario(
            "stampede_killed", "200 equal questions at once, and the worker that computes is killed",
            replace(WORKERS, row_ms=20.0), (*NO_FAILURE, Check("computations", at_most=2)),
            events=(Event(0, actions.stampede, {"count": 200, "kills": True}),), rows=(40,),
        ),
        Scenario(
            "slow_sockets", "Sockets that send nothing, or a byte at a time, beside a robot",
            ServerSpec(row_ms=2.0),
            (*NO_FAILURE, Check("open_after_11_s", at_most=0), Check("p99_ratio", at_most=1.2)),
            events=(Event(0, pressure.hold_slow_sockets, slow),),
            rows=(3, 4),
        ),
    ]  # fmt: skip


def _soak(is_full: bool) -> dict[str, int]:
    return {"warm_up": 3000, "count": 20_000, "points": 20} if is_full else {"warm_up": 300, "count": 1000, "points": 5}


def _controls(is_full: bool) -> list[Scenario]:
    """Planted faults: these hold when the harness notices."""
    soak = _soak(is_full) | ({"count": 6000} if is_full else {})
    return [
        Scenario(
            "control_mixed_up", "Planted fault: an engine that swaps two rows of a batch is found out",
            ServerSpec(row_ms=4.0, environment={"ORACLE_FAULT": "mixed"}), (Check("wrong", at_least=1),),
            Load(60, 6 if is_full else 3),
        ),
        Scenario(
            "control_leak", "Planted fault: a leak of 1 kB a question is found out",
            ServerSpec(processes=1, settings={"CACHE__MAX_BYTES": str(2**20)}, environment={"ORACLE_FAULT": "leak"}),
            (Check("rss_mb_per_1000", at_least=0.5),),
            events=(Event(0, actions.watch_footprint, soak),), rows=(27,), limit_s=400,
        ),
    ]  # fmt: skip
