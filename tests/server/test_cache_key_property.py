"""What a stored answer is found under: 10,000 pairs of queries that differ in exactly one thing, none with one key."""

import random
import subprocess
import sys
from dataclasses import replace
from hashlib import sha256

import numpy as np

from foreframe_engines import EnsembleSpec, NoisePlan, Priority, Query, Reducer, Sampling, Strategy
from foreframe_server.entry import cache_key

NUM_PAIRS = 10_000
ENGINES = ("bundle-a onnxruntime fp32 bitwise", "bundle-b onnxruntime fp32 bitwise", "bundle-a tensorrt fp16 bucketed")
TENANTS = ("", "acme", "acme2", "acm", "main")


def draw_ask(rng):
    """Everything that a key is made of."""
    arrays = np.random.default_rng(rng.randrange(2**32))
    height, width = rng.choice([(3, 10), (10, 3), (6, 5), (5, 6)])
    rows, dim = rng.choice([(12, 3), (9, 4), (6, 6)])
    query = Query(
        model=rng.choice(("toy", "eve", "to")),
        context=arrays.integers(0, 256, (4, height, width, 3), dtype=np.uint8),
        states=arrays.standard_normal((rows, dim)).astype(np.float32),
        frame_indices=tuple(sorted(rng.sample(range(1, 9), rng.randint(1, 8)))),
        sampling=Sampling(rng.choice(list(Strategy)), rng.randint(1, 64), rng.randrange(2**53), guidance=rng.random()),
        ensemble=EnsembleSpec(rng.randint(1, 32), noise=rng.choice(list(NoisePlan))),
    )
    return {"query": query, "engine": rng.choice(ENGINES), "tenant": rng.choice(TENANTS)}


def key_of(ask):
    return cache_key(ask["query"], ask["engine"], ask["tenant"])


def other(rng, values, value):
    return rng.choice([each for each in values if each != value])


def change_bit(rng, array):
    changed = array.copy()
    raw = changed.view(np.uint8).reshape(-1)
    raw[rng.randrange(raw.size)] ^= 1 << rng.randrange(8)
    return changed


def change_shape(array):
    """The same bytes as pictures of another shape."""
    count, height, width, channels = array.shape
    return array.reshape(count, width, height, channels)


def in_query(field, change):
    return lambda rng, ask: {**ask, "query": replace(ask["query"], **{field: change(rng, ask["query"])})}


def in_sampling(field, change):
    return in_query(
        "sampling", lambda rng, query: replace(query.sampling, **{field: change(rng, getattr(query.sampling, field))})
    )


CHANGES = {
    "model": in_query("model", lambda rng, query: other(rng, ("toy", "eve", "to", "toyb"), query.model)),
    "pixel": in_query("context", lambda rng, query: change_bit(rng, query.context)),
    "picture's shape": in_query("context", lambda rng, query: change_shape(query.context)),
    "picture's type": in_query("context", lambda rng, query: query.context.view(np.int8)),
    "state": in_query("states", lambda rng, query: change_bit(rng, query.states)),
    "states' shape": in_query("states", lambda rng, query: query.states.reshape(-1, 1)),
    "states' type": in_query("states", lambda rng, query: query.states.view(np.uint32)),
    "frames": in_query(
        "frame_indices",
        lambda rng, query: query.frame_indices[1:] if len(query.frame_indices) > 1 else (*query.frame_indices, 9),
    ),
    "strategy": in_sampling("strategy", lambda rng, value: other(rng, list(Strategy), value)),
    "steps": in_sampling("steps", lambda rng, value: value + rng.randint(1, 9)),
    "seed": in_sampling("seed", lambda rng, value: value ^ 1 << rng.randrange(53)),
    "guidance": in_sampling("guidance", lambda rng, value: float(np.nextafter(value, 2))),
    "noise": in_query(
        "ensemble",
        lambda rng, query: replace(query.ensemble, noise=other(rng, list(NoisePlan), query.ensemble.noise)),
    ),
    "engine": lambda rng, ask: {**ask, "engine": other(rng, ENGINES, ask["engine"])},
    "tenant": lambda rng, ask: {**ask, "tenant": other(rng, TENANTS, ask["tenant"])},
    "letter between engine and tenant": lambda rng, ask: {
        **ask, "engine": ask["engine"] + "x", "tenant": ask["tenant"].removeprefix("x")
    },
}  # fmt: skip


def find_equal_pairs(key_of, num_pairs, seed=7):
    """The names of what may be changed without another key."""
    rng, names, equal = random.Random(seed), sorted(CHANGES), []
    for index in range(num_pairs):
        name = names[index % len(names)]
        ask = draw_ask(rng)
        changed = CHANGES[name](rng, ask)
        if key_of(ask) == key_of(changed):
            equal.append(name)
    return equal


def test_no_two_asks_that_differ_in_one_thing_have_one_key():
    assert find_equal_pairs(key_of, NUM_PAIRS) == []


def test_a_key_without_shapes_or_tenant_is_caught():
    def careless(ask):
        query = ask["query"]
        return sha256(query.context.tobytes() + query.states.tobytes() + repr(query.sampling).encode()).digest()

    equal = set(find_equal_pairs(careless, 200))
    assert {"picture's shape", "states' shape", "tenant", "engine", "noise", "frames"} <= equal
    assert "pixel" not in equal


def test_equal_asks_have_one_key_however_they_are_held():
    rng = random.Random(11)
    for _ in range(200):
        ask = draw_ask(rng)
        query = ask["query"]
        same = replace(
            query,
            context=np.asfortranarray(query.context),
            states=np.repeat(query.states, 2, axis=0)[::2],
            ensemble=replace(query.ensemble, size=query.ensemble.size + 1, reducer=Reducer.MEDIAN),
            priority=Priority.BULK,
            stream_id="arm",
        )
        assert key_of(ask) == key_of({**ask, "query": same})


_OTHER_PROCESS = """
import random, runpy, sys
names = runpy.run_path(sys.argv[1])
rng = random.Random(5)
print(" ".join(names["key_of"](names["draw_ask"](rng)).digest.hex() for _ in range(50)))
"""


def test_another_process_finds_the_same_keys():
    rng = random.Random(5)
    mine = [key_of(draw_ask(rng)).digest.hex() for _ in range(50)]
    for seed in ("1", "2"):
        run = subprocess.run(
            [sys.executable, "-c", _OTHER_PROCESS, __file__], env={"PYTHONHASHSEED": seed}, capture_output=True,
            check=True, text=True,
        )  # fmt: skip
        assert run.stdout.split() == mine


def test_a_field_s_end_cannot_be_shifted_into_the_next():
    query = draw_ask(random.Random(3))["query"]
    assert cache_key(query, "ab", "c") != cache_key(query, "b", "ca")
    assert cache_key(query, "ab", "") != cache_key(replace(query, model="b" + query.model), "a", "")
