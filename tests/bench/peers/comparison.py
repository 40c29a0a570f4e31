"""One server after another by one plan: each is started on its cores, measured from others, and ended."""

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from peers.catalogue import FOLDER, ROOT
from peers.doors import open_door
from peers.errors import Invalid
from peers.facts import code_digest
from peers.hosting import hosted
from peers.hosting.world import ROWS
from peers.install import pinned_version
from peers.ledger import Ledger
from peers.measuring import measure, measure_throughput
from peers.passes import PLAIN, Pass
from peers.plan import Plan, known_questions
from peers.servers import free_port, on_cores, running
from peers.stub_run import fit_rounds, measure_stub
from peers.truths import Truths, fastest_arrangement, time_answers

from foreframe_engines import Bundle, builtin_bundle

_LIMIT_S = 100.0
"""What a server may take beside the plan's seconds."""

_MS = 1000


def make_plan(cores: Sequence[int], wanted: Mapping[str, Any]) -> Plan:
    """Measure this machine and make a plan for it. Raises Invalid when nobody could keep the deadline on it."""
    sizes = Plan(answer_s=1.0, arrangement="", **wanted)
    with on_cores(cores):
        arrangement, seconds = fastest_arrangement(sizes.threads, sizes.members)
        rounds = fit_rounds()
    answer_s = seconds[arrangement]
    if _MS * answer_s > sizes.deadline_ms:
        taken = f"{sizes.members} members take {_MS * answer_s:.0f} ms in process"
        raise Invalid(f"{taken}: nobody can answer in {sizes.deadline_ms} ms")
    return Plan(answer_s=round(answer_s, 5), arrangement=arrangement, stub_rounds=rounds, **wanted)


class Comparison:
    """Runs servers by a plan. note: told what is going on."""

    plan: Plan

    def __init__(
        self, ledger: Ledger, server_cores: Sequence[int], asker_cores: Sequence[int], note: Callable[[str], None]
    ) -> None:
        self.ledger = ledger
        self.server_cores, self.asker_cores = server_cores, asker_cores
        self._note = note
        self._truths: Truths | None = None

    def follow(self, plan: Plan) -> None:
        """Go by a plan, and keep to the askers' cores from now on."""
        self.plan = plan
        self._note("the right answers")
        with on_cores(self.server_cores):
            self._truths = Truths(plan.clips, self.ledger.folder, plan.arrangement, plan.threads)
            self._truths.prepare(known_questions(plan))
        os.sched_setaffinity(0, set(self.asker_cores))

    async def measure(self, each: Pass) -> Mapping[str, object]:
        """Return all that is said of one server. Raises Invalid, also when it takes too long."""
        peer, plan = each.peer, self.plan
        load_average, code, before_ms = os.getloadavg()[0], code_digest(), self._time_engine()
        try:
            async with asyncio.timeout(_LIMIT_S + 2 * plan.seconds * (1 + len(plan.loads))):
                found = await self._measure_world(each)
        except TimeoutError as error:
            raise Invalid("it took too long") from error
        engine_ms = {"before": before_ms, "after": self._time_engine()}
        if peer.stub_command is not None and not each.kind:
            told = self._environment(each)
            found = {**found, "stub": measure_stub(peer, told, self.server_cores, plan, self._tell(each))}
        facts = {"version": pinned_version(peer), "code": code, "load_average": round(load_average, 2)}
        return {**facts, "engine_ms": engine_ms, **found}

    def _time_engine(self) -> float:
        with on_cores(self.server_cores):
            seconds = time_answers(self.plan.arrangement, self.plan.threads, self.plan.members)
        return round(_MS * seconds, 3)

    async def _measure_world(self, each: Pass) -> Mapping[str, object]:
        port, peer = free_port(), each.peer
        told = {**self._environment(each), hosted.PORT: str(port)}
        steps = Bundle.open(builtin_bundle()).contract.sampler.steps
        tell = self._tell(each)
        assert self._truths is not None
        with running(peer.command(port), told, self.server_cores, port=port, cwd=peer.folder) as server:
            tell("starts")
            async with open_door(port, peer.wire, self._truths, steps) as door:
                if each.kind == PLAIN:
                    return await measure_throughput(server, door, self.plan, tell)
                return await measure(server, door, self.plan, peer.name, tell)

    def _environment(self, each: Pass) -> dict[str, str]:
        plan = self.plan
        return {
            "PYTHONPATH": os.pathsep.join([str(ROOT / "engines"), str(FOLDER.parent)]),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
            hosted.MODEL: hosted.WORLD,
            hosted.ARRANGEMENT: ROWS if each.kind == PLAIN else plan.arrangement,
            hosted.THREADS: str(plan.threads),
            hosted.MAX_BATCH: str(plan.max_batch),
            hosted.WAIT_MS: str(plan.wait_ms),
            **each.peer.environment,
        }

    def _tell(self, each: Pass) -> Callable[[str], None]:
        return lambda text: self._note(f"{each.name}: {text}")
