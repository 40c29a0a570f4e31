"""One model on a replica: opened as in a server of its own, and asked by messages. Knows no Ray."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Self

from foreframe_server.calls import Call
from foreframe_server.devices import Devices, open_devices, start_devices
from foreframe_server.errors import CapabilityMissing, ServiceError
from foreframe_server.metrics import Metrics
from foreframe_server.opening import OpenEngines
from foreframe_server.processes.answering import answer
from foreframe_server.processes.channel import Message
from foreframe_server.processes.frames import CorruptFrame
from foreframe_server.processes.messages import Arrays, ConditioningReply, DetokenizeCall, Hello, ReadCall, TokenizeCall
from foreframe_server.processes.notes import describe
from foreframe_server.processes.parcels import Parcel
from foreframe_server.quotas import charge_nobody
from foreframe_server.ray.envelopes import Letter, write_letter
from foreframe_server.ray.messages import (
    Body,
    ContextCall,
    Cost,
    Estimate,
    Extend,
    Glance,
    Grow,
    JobCall,
    Members,
    Nothing,
    Standing,
)
from foreframe_server.ray.translation import read_job, write_error, write_result
from foreframe_server.settings import EngineSettings, SchedulerSettings
from foreframe_server.tickets import Frames, Ticket
from foreframe_server.worker import EngineWorker


@dataclass(slots=True, eq=False)
class _Teller:
    """Hears of a job's progress and writes it down."""

    model: str
    wants_estimate: bool
    news: asyncio.Queue[bytes | None]
    ticket: Ticket | None = None
    num_told: int = 0

    def on_estimate(self, frames: Frames) -> None:
        parcel = Parcel()
        self._tell(Estimate(frames=parcel.put(frames)), parcel)

    def on_members(self, frames: Sequence[Frames]) -> None:
        parcel = Parcel()
        steps = 0 if self.ticket is None else self.ticket.num_steps
        self.num_told += len(frames)
        self._tell(Members(frames=tuple(parcel.put(each) for each in frames), steps=steps), parcel)

    def _tell(self, body: Body, parcel: Parcel) -> None:
        self.news.put_nowait(write_letter(self.model, body, parcel))


@dataclass(slots=True, eq=False, weakref_slot=True)
class ReplicaModel:
    """A model that is open: `open`, then any number of calls, then `stop`."""

    name: str
    devices: Devices
    hello: Hello
    _tickets: dict[str, Ticket] = field(default_factory=dict)

    @classmethod
    async def open(
        cls, name: str, open_engines: OpenEngines, settings: EngineSettings, limits: SchedulerSettings
    ) -> Self:
        """Open a model on this replica's device and run everything once. Raises what opening and engines raise."""
        metrics = Metrics()
        one_device = settings.model_copy(update={"processes": min(1, settings.processes)})
        opened = await open_devices(open_engines, one_device, metrics)
        model = cls(name, start_devices(opened, limits, metrics, charge_nobody), describe(opened.engines[0]))
        try:
            if model.devices.workers is not None:
                await model.devices.workers.warm_up()
        except BaseException:
            await model.stop(0.0)
            raise
        return model

    @property
    def pending_s(self) -> float:
        """Predicted seconds of predictions that wait."""
        worker = self.devices.workers
        return worker.pending_s if isinstance(worker, EngineWorker) else 0.0

    def standing(self, replica: str) -> Standing:
        """Tell how the model stands."""
        worker = self.devices.workers
        known = () if worker is None else worker.known_costs()
        is_ready = self.devices.threads[0].is_ready if worker is None else worker.is_ready
        return Standing(
            replica=replica,
            is_ready=is_ready,
            pending_s=self.pending_s,
            determinism="" if worker is None else worker.determinism,
            costs=tuple(
                Cost.model_validate({"work": kind, "rows": rows, "seconds": quantile.value})
                for kind, rows, quantile in known
            ),
            hello=self.hello,
        )

    async def run(self, letter: Letter) -> AsyncIterator[bytes]:
        """Run a job and tell of it; ends with its result or with what it raised. Closing it cancels the job."""
        body = letter.body
        if not isinstance(body, JobCall):
            raise CorruptFrame("a message is no job")
        teller = _Teller(self.name, body.wants_estimate, asyncio.Queue())
        try:
            ticket = self._admit(letter, body, teller)
        except ServiceError as error:
            yield write_letter(self.name, write_error(error))
            return
        waiting = asyncio.ensure_future(self._worker().wait(ticket))
        waiting.add_done_callback(lambda _: teller.news.put_nowait(None))
        try:
            while (news := await teller.news.get()) is not None:
                yield news
            parcel = Parcel()
            try:
                result: Body = write_result(await waiting, teller.num_told, parcel)
            except ServiceError as error:
                result = write_error(error)
            yield write_letter(self.name, result, parcel)
        finally:
            waiting.cancel()
            with contextlib.suppress(asyncio.CancelledError, ServiceError):
                await waiting
            self._tickets.pop(body.job, None)

    async def control(self, letter: Letter) -> bytes:
        """Change a job that runs, or look at it; one that has ended stays as it is."""
        body = letter.body
        if not isinstance(body, Extend | Grow | Glance):
            raise CorruptFrame("a message changes no job")
        ticket = self._tickets.get(body.job)
        if ticket is None:
            return write_letter(self.name, Nothing())
        match body:
            case Extend():
                deadline_s = None if body.left_s is None else time.monotonic() + body.left_s
                self._worker().extend(ticket, deadline_s, body.on_deadline)
            case Grow():
                if self._worker().grow(ticket, body.size):
                    return write_letter(self.name, Arrays())
            case Glance():
                result = await self._worker().estimate(ticket)
                if result is not None:
                    parcel = Parcel()
                    return write_letter(self.name, write_result(result, 0, parcel), parcel)
        return write_letter(self.name, Nothing())

    async def encode(self, letter: Letter) -> bytes:
        """Encode a context."""
        body = letter.body
        if not isinstance(body, ContextCall):
            raise CorruptFrame("a message has no context")
        now, parcel = time.monotonic(), Parcel()
        deadline_s = None if body.left_s is None else now + body.left_s
        try:
            latents = await self._worker().encode(letter.array(body.context), Call("", now, deadline_s))
        except ServiceError as error:
            return write_letter(self.name, write_error(error))
        return write_letter(self.name, Arrays(arrays=(parcel.put(latents),)), parcel)

    async def call_engine(self, letter: Letter) -> bytes:
        """Run a call of the likelihood engine between the device's other work."""
        body = letter.body
        if not isinstance(body, TokenizeCall | DetokenizeCall | ReadCall):
            raise CorruptFrame("a message is no call of an engine")
        message = Message(0, body, letter.arrays)
        try:
            answered = await self.devices.threads[0].run(partial(answer, self.devices.opened.engines[0], message))
        except Exception as error:  # noqa: BLE001 - the border of the replica: whoever asked hears of it
            return write_letter(self.name, write_error(error))
        if isinstance(answered.body, ConditioningReply):
            raise CorruptFrame("a likelihood engine answered with a conditioning")
        return write_letter(self.name, answered.body, answered.parcel)

    async def stop(self, drain_s: float) -> None:
        """Let what runs end for so long, and free the device."""
        await self.devices.stop(drain_s)

    def _admit(self, letter: Letter, body: JobCall, teller: _Teller) -> Ticket:
        order = read_job(letter, body, time.monotonic())
        ticket = self._worker().admit(
            order.query,
            order.call,
            first_member=order.first_member,
            listener=teller if body.is_told else None,
            share=order.share,
        )
        self._tickets[body.job] = teller.ticket = ticket
        return ticket

    def _worker(self) -> EngineWorker:
        worker = self.devices.workers
        if not isinstance(worker, EngineWorker):
            raise CapabilityMissing("The model has no rollout half, so it predicts no futures.")
        return worker
