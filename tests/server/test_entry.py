import subprocess
import sys
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foreframe_engines import EnsembleSpec, NoisePlan, Priority, Query, Reducer, Sampling, Strategy
from foreframe_engines.sampling import sample
from foreframe_engines.testing import ToyRolloutEngine
from foreframe_server.entry import CacheKey, CorruptEntry, cache_key, decode_entry, encode_entry

SECRET = b"s" * 32
BASE = Query(
    model="toy",
    context=np.arange(4 * 8 * 8 * 3, dtype=np.uint8).reshape(4, 8, 8, 3),
    states=np.linspace(-1, 1, 36, dtype=np.float32).reshape(12, 3),
    frame_indices=(1, 2),
    sampling=Sampling(Strategy.SAMPLE, 4, 5),
    ensemble=EnsembleSpec(3),
)
CHANGES = {
    "model": [replace(BASE, model="other")],
    "context": [
        replace(BASE, context=BASE.context ^ np.uint8(1)),
        replace(BASE, context=BASE.context.reshape(4, 4, 16, 3)),
        replace(BASE, context=BASE.context.view(np.int8)),
    ],
    "states": [
        replace(BASE, states=BASE.states + np.float32(1)),
        replace(BASE, states=BASE.states.reshape(9, 4)),
        replace(BASE, states=BASE.states.view(np.uint32)),
    ],
    "frame_indices": [replace(BASE, frame_indices=(1,)), replace(BASE, frame_indices=(12,))],
    "sampling": [
        replace(BASE, sampling=replace(BASE.sampling, strategy=Strategy.POSTERIOR_MEAN)),
        replace(BASE, sampling=replace(BASE.sampling, steps=5)),
        replace(BASE, sampling=replace(BASE.sampling, seed=4)),
        replace(BASE, sampling=replace(BASE.sampling, guidance=2.0)),
    ],
    "ensemble": [
        replace(BASE, ensemble=replace(BASE.ensemble, size=4)),
        replace(BASE, ensemble=replace(BASE.ensemble, reducer=Reducer.MEDIAN)),
        replace(BASE, ensemble=replace(BASE.ensemble, noise=NoisePlan.IID)),
    ],
}
SAME = {
    "priority": replace(BASE, priority=Priority.BULK),
    "stream_id": replace(BASE, stream_id="arm"),
    "context_latents": replace(BASE, context_latents=np.zeros((4, 3, 4, 4), np.float32)),
}


def test_every_field_of_a_query_is_in_the_key_or_known_not_to_matter():
    assert {field.name for field in fields(Query)} == CHANGES.keys() | SAME.keys()
    assert sum(len(fields(part)) for part in (Sampling, EnsembleSpec)) == len(CHANGES["sampling"] + CHANGES["ensemble"])


def test_queries_that_differ_in_one_field_have_different_keys():
    queries = [BASE, *(query for changed in CHANGES.values() for query in changed)]
    keys = {cache_key(query, "engine") for query in queries}
    keys |= {cache_key(BASE, "other engine"), cache_key(BASE, "engine", "tenant"), cache_key(BASE, "", "engine")}
    assert len(keys) == len(queries) + 3


def test_who_asks_and_how_urgently_is_not_in_the_key():
    assert {cache_key(query, "engine") for query in SAME.values()} == {cache_key(BASE, "engine")}


def test_memory_layout_is_not_in_the_key():
    strided = replace(BASE, context=np.asfortranarray(BASE.context))
    assert cache_key(strided, "engine") == cache_key(BASE, "engine")


@settings(max_examples=200, deadline=None)
@given(st.tuples(st.text(), st.text(), st.text()), st.tuples(st.text(), st.text(), st.text()))
def test_words_cannot_slide_from_one_field_into_the_next(one, other):
    keys = [cache_key(replace(BASE, model=model), engine, tenant) for model, engine, tenant in (one, other)]
    assert (keys[0] == keys[1]) == (one == other)


def test_another_process_makes_the_same_key():
    code = f"""
import numpy as np
from foreframe_engines import EnsembleSpec, Query, Sampling, Strategy
from foreframe_server.entry import cache_key
context = np.arange(4 * 8 * 8 * 3, dtype=np.uint8).reshape(4, 8, 8, 3)
states = np.linspace(-1, 1, 36, dtype=np.float32).reshape(12, 3)
query = Query("toy", context, states, (1, 2), Sampling(Strategy.SAMPLE, 4, 5), EnsembleSpec(3))
assert cache_key(query, "engine").digest.hex() == "{cache_key(BASE, "engine").digest.hex()}"
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture(scope="module")
def prediction():
    return sample(ToyRolloutEngine(), BASE)


def test_an_entry_reads_back_as_the_same_prediction(prediction):
    key = cache_key(BASE, "engine")
    read = decode_entry(key, BASE, encode_entry(key, prediction, SECRET), SECRET)
    for name in ("frames", "members", "variance"):
        assert getattr(read, name).tobytes() == getattr(prediction, name).tobytes()
        assert getattr(read, name).shape == getattr(prediction, name).shape
        assert getattr(read, name).dtype == getattr(prediction, name).dtype
    assert read.spread_per_frame == prediction.spread_per_frame
    assert (read.frame_indices, read.sampling, read.ensemble) == (BASE.frame_indices, BASE.sampling, BASE.ensemble)


def is_refused(key, blob, secret=SECRET):
    try:
        decode_entry(key, BASE, blob, secret)
    except CorruptEntry:
        return True
    return False


def test_entries_of_other_keys_and_other_secrets_are_refused(prediction):
    key = cache_key(BASE, "engine")
    blob = encode_entry(key, prediction, SECRET)
    assert not is_refused(key, blob)
    assert is_refused(CacheKey(b"x" * 32), blob)
    assert is_refused(key, blob, b"t" * 32)


def test_every_flip_and_every_cut_is_refused(prediction):
    key = cache_key(BASE, "engine")
    blob = encode_entry(key, prediction, SECRET)
    rng = np.random.default_rng(0)
    for place in (*range(60), *rng.integers(0, len(blob), 200)):
        flipped = bytearray(blob)
        flipped[place] ^= 1 << int(rng.integers(8))
        assert is_refused(key, bytes(flipped))
    for length in (0, 1, 31, 32, 33, 75, len(blob) - 1):
        assert is_refused(key, blob[:length])
    assert is_refused(key, blob + b"\0")


def test_a_signed_entry_that_cannot_be_parsed_is_refused(prediction, monkeypatch):
    key = cache_key(BASE, "engine")
    monkeypatch.setattr("foreframe_server.entry.json.dumps", lambda header: '{"shapes": {}}')
    assert is_refused(key, encode_entry(key, prediction, SECRET))
