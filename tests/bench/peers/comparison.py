"""One server after another by one plan: each is started on its cores, measured from others, and ended."""

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from peers.catalogue import FOLDER, ROOT, Peer
from peers.doors import open_door
from peers.errors import Invalid
from peers.hosting import hosted
from peers.install import pinned_version
from peers.ledger import Ledger
from peers.measuring import measure
from peers.plan import Plan
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
        with on_cores(self.server_cores):
            largest = max(plan.bulk_members, plan.quality_members)
            self._truths = Truths.make(plan.clips, largest, self.ledger.folder, plan.arrangement, plan.threads)
        os.sched_setaffinity(0, set(self.asker_cores))

    async def measure(self, peer: Peer) -> Mapping[str, object]:
        """Return all that is said of one server. Raises Invalid, also when it takes too long."""
        with on_cores(self.server_cores):
            engine_s = time_answers(self.plan.arrangement, self.plan.threads, self.plan.members)
        facts = {
            "version": pinned_version(peer),
            "engine_ms": round(_MS * engine_s, 3),
            "load_average": round(os.getloadavg()[0], 2),
        }
        try:
            async with asyncio.timeout(_LIMIT_S + 2 * self.plan.seconds):
                found = await self._measure_world(peer)
        except TimeoutError as error:
            raise Invalid("it took too long") from error
        if peer.stub_command is None:
            return {**facts, **found}
        return {
            **facts,
            **found,
            "stub": measure_stub(peer, self._environment(peer), self.server_cores, self.plan, self._tell(peer)),
        }

    async def _measure_world(self, peer: Peer) -> Mapping[str, object]:
        port = free_port()
        told = {**self._environment(peer), hosted.PORT: str(port)}
        steps = Bundle.open(builtin_bundle()).contract.sampler.steps
        assert self._truths is not None
        with running(peer.command(port), told, self.server_cores, port=port, cwd=peer.folder) as server:
            self._tell(peer)("starts")
            async with open_door(port, peer.wire, self._truths, steps) as door:
                return await measure(server, door, self.plan, peer.name, self._tell(peer))

    def _environment(self, peer: Peer) -> dict[str, str]:
        plan = self.plan
        return {
            "PYTHONPATH": os.pathsep.join([str(ROOT / "engines"), str(FOLDER.parent)]),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
            hosted.MODEL: hosted.WORLD,
            hosted.ARRANGEMENT: plan.arrangement,
            hosted.THREADS: str(plan.threads),
            hosted.MAX_BATCH: str(plan.max_batch),
            hosted.WAIT_MS: str(plan.wait_ms),
            **peer.environment,
        }

    def _tell(self, peer: Peer) -> Callable[[str], None]:
        return lambda text: self._note(f"{peer.name}: {text}")
