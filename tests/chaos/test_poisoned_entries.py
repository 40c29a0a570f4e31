"""A thousand broken entries of every kind: each is counted, deleted and missed, and none is served."""

import asyncio
import random
import struct
from collections import Counter

from foreframe_server.calls import CacheResult
from foreframe_server.entry import SCHEMA_VERSION, encode_entry
from foreframe_server.metrics import Metrics

SECRET = b"s" * 32
NUM_ENTRIES = 1000


def flip(blob, rng, _):
    place = rng.randrange(len(blob))
    return blob[:place] + bytes([blob[place] ^ (1 << rng.randrange(8))]) + blob[place + 1 :]


def truncate(blob, rng, _):
    return blob[: rng.randrange(len(blob))]


def extend(blob, rng, _):
    return blob + rng.randbytes(rng.randrange(1, 100))


def swap(_, rng, foreign):
    return foreign


def claim_more(blob, rng, _):
    return blob[:38] + struct.pack(">I", rng.randrange(4, 2**32)) + blob[42:]


def age(blob, rng, _):
    return blob[:4] + struct.pack(">H", SCHEMA_VERSION - 1) + blob[6:]


def invent(blob, rng, _):
    return rng.randbytes(rng.randrange(1, 2 * len(blob)))


def empty(blob, rng, _):
    return b""


DAMAGES = (flip, truncate, extend, swap, claim_more, age, invent, empty)


def name(key):
    return b"foreframe:members:" + key.digest.hex().encode()


def test_a_thousand_of_a_thousand_are_counted_deleted_and_missed(
    redis_server, connect_tier, make_key, make_members, events
):
    async def scenario():
        rng = random.Random(0)
        metrics = Metrics()
        tier = connect_tier(redis_server.url, metrics)
        client = tier._link._client
        keys = [make_key(number) for number in range(NUM_ENTRIES)]
        members = make_members(3)
        for number, key in enumerate(keys):
            own, foreign = encode_entry(key, members, SECRET), encode_entry(make_key(10**6), members, SECRET)
            await client.set(name(key), DAMAGES[number % len(DAMAGES)](own, rng, foreign))
        looks = [await tier.get(key) for key in keys]
        assert Counter(found.result for found in looks) == {CacheResult.MISS: NUM_ENTRIES}
        assert all(found.members is None for found in looks)
        assert events(metrics) == {"corrupt": NUM_ENTRIES}
        assert await client.dbsize() == 0
        await tier.close()

    asyncio.run(scenario())


def test_entries_of_another_secret_and_of_another_type_are_refused_too(
    redis_server, connect_tier, make_key, make_members, events
):
    async def scenario():
        metrics = Metrics()
        tier = connect_tier(redis_server.url, metrics)
        client = tier._link._client
        await client.set(name(make_key(0)), encode_entry(make_key(0), make_members(3), b"t" * 32))
        await client.lpush(name(make_key(1)), "item")
        await client.hset(name(make_key(2)), "field", "value")
        for number in range(3):
            assert (await tier.get(make_key(number))).result is CacheResult.MISS
        assert events(metrics)["corrupt"] == 3
        assert await client.dbsize() == 0
        await tier.close()

    asyncio.run(scenario())


def test_the_same_entries_without_damage_are_served(redis_server, connect_tier, make_key, make_members, events):
    """The control: what is refused above is the damage."""

    async def scenario():
        metrics = Metrics()
        tier = connect_tier(redis_server.url, metrics)
        for number in range(20):
            key = make_key(number)
            await tier._link._client.set(name(key), encode_entry(key, make_members(3), SECRET))
            assert (await tier.get(key)).members.tolist() == make_members(3).tolist()
        assert events(metrics) == {"hit": 20}
        await tier.close()

    asyncio.run(scenario())
