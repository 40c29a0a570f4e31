"""Replicas in this process: real models and real messages, and a link that can be cut."""

import asyncio
from collections import Counter

from foreframe_server.processes.parcels import ReceivedArrays
from foreframe_server.ray.envelopes import read_letter, write_letter
from foreframe_server.ray.replica_model import ReplicaModel
from foreframe_server.ray.replicas import ReplicaLost
from foreframe_server.settings import EngineSettings, SchedulerSettings

NAME = "built-in"


class LocalReplica:
    """A model, and what arrays it knows."""

    def __init__(self, name, model):
        self.name = name
        self.model = model
        self.links: dict[str, ReceivedArrays] = {}
        self.is_dead = False
        self.death = asyncio.Event()
        self.calls = Counter()

    def kill(self):
        self.is_dead = True
        self.death.set()

    def read(self, place, data):
        if self.is_dead or place != self.name:
            raise ReplicaLost("dead")
        return read_letter(data, self.links)


class LocalLink:
    """Carries messages to replicas in this process; see `Link`.

    on_news: hears of each message of a job, and may kill a replica then.
    """

    def __init__(self, replicas, loop):
        self.replicas = {replica.name: replica for replica in replicas}
        self.on_news = lambda replica: None
        self._loop = loop

    async def broadcast(self, data):
        name = read_letter(data).model
        alive = [replica for replica in self.replicas.values() if not replica.is_dead]
        return [write_letter(name, replica.model.standing(replica.name)) for replica in alive]

    async def run(self, place, data):
        replica = self.replicas[place]
        replica.calls["run"] += 1
        stream = replica.model.run(replica.read(place, data))
        try:
            while True:
                news, death = asyncio.ensure_future(anext(stream, None)), asyncio.ensure_future(replica.death.wait())
                await asyncio.wait({news, death}, return_when=asyncio.FIRST_COMPLETED)
                death.cancel()
                if replica.is_dead:
                    news.cancel()
                    await asyncio.gather(news, return_exceptions=True)
                    raise ReplicaLost("dead")
                if (told := await news) is None:
                    return
                yield told
                self.on_news(replica)
        finally:
            await stream.aclose()

    async def ask(self, method, place, data):
        replica = self.replicas[place]
        replica.calls[method] += 1
        return await getattr(replica.model, method)(replica.read(place, data))

    def ask_now(self, method, place, data, limit_s):
        return asyncio.run_coroutine_threadsafe(self.ask(method, place, data), self._loop).result(limit_s)


async def open_replica(name, open_engines):
    """Open a model on a replica of this process."""
    settings = EngineSettings(processes=0, num_threads=1)
    return LocalReplica(name, await ReplicaModel.open(NAME, open_engines, settings, SchedulerSettings()))
