import hmac
import struct
import subprocess
import sys
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foreframe_engines import EnsembleSpec, NoisePlan, Priority, Query, Reducer, Sampling, Strategy
from foreframe_server.entry import (
    COUNT_FORMAT,
    IDENTITY_BYTES,
    SCHEMA_VERSION,
    CorruptEntry,
    cache_key,
    decode_entry,
    encode_entry,
)
from foreframe_server.known_contexts import context_digest

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
    "ensemble": [replace(BASE, ensemble=replace(BASE.ensemble, noise=NoisePlan.IID))],
}
SAME = {
    "priority": [replace(BASE, priority=Priority.BULK)],
    "stream_id": [replace(BASE, stream_id="arm")],
    "context_latents": [replace(BASE, context_latents=np.zeros((4, 3, 4, 4), np.float32))],
    "ensemble": [
        replace(BASE, ensemble=replace(BASE.ensemble, size=4)),
        replace(BASE, ensemble=replace(BASE.ensemble, reducer=Reducer.MEDIAN)),
    ],
}
GROWTH = {"size", "reducer", "tolerance"}


def test_every_field_of_a_query_is_in_the_key_or_known_not_to_matter():
    assert {field.name for field in fields(Query)} == CHANGES.keys() | SAME.keys()
    assert len(fields(Sampling)) == len(CHANGES["sampling"])
    assert {field.name for field in fields(EnsembleSpec)} - GROWTH == {"noise"}


def test_queries_that_differ_in_one_field_have_different_keys():
    queries = [BASE, *(query for changed in CHANGES.values() for query in changed)]
    keys = {cache_key(query, "engine", "") for query in queries}
    keys |= {cache_key(BASE, "other engine", ""), cache_key(BASE, "engine", "tenant"), cache_key(BASE, "", "engine")}
    assert len(keys) == len(queries) + 3


def test_who_asks_how_urgently_and_for_how_many_is_not_in_the_key():
    keys = {cache_key(query, "engine", "") for same in SAME.values() for query in same}

    assert keys == {cache_key(BASE, "engine", "")}


def test_memory_layout_is_not_in_the_key():
    strided = replace(BASE, context=np.asfortranarray(BASE.context))
    assert cache_key(strided, "engine", "") == cache_key(BASE, "engine", "")


def test_a_context_whose_digest_is_known_makes_the_same_key():
    key = cache_key(BASE, "engine", "")
    assert cache_key(BASE, "engine", "", context_digest(BASE.context)) == key
    assert cache_key(BASE, "engine", "", context_digest(BASE.context[1:])) != key


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
query = Query("toy", context, states, (1, 2), Sampling(Strategy.SAMPLE, 4, 5), EnsembleSpec(12))
assert cache_key(query, "engine", "").digest.hex() == "{cache_key(BASE, "engine", "").digest.hex()}"
"""
    subprocess.run([sys.executable, "-B", "-c", code], check=True)


@pytest.mark.parametrize("count", [1, 3, 32])
def test_an_entry_reads_back_as_the_same_members(make_key, make_members, count):
    members = make_members(count)
    read = decode_entry(make_key(), encode_entry(make_key(), members, SECRET), SECRET)
    assert (read.dtype, read.shape, read.tobytes()) == (members.dtype, members.shape, members.tobytes())
    assert not read.flags.writeable


def test_a_store_reads_identity_and_count_without_a_parser(make_key, make_members):
    fewer, more = (encode_entry(make_key(), make_members(count), SECRET) for count in (3, 300))
    assert fewer[:IDENTITY_BYTES] == more[:IDENTITY_BYTES]
    assert [struct.unpack_from(COUNT_FORMAT, blob, IDENTITY_BYTES)[0] for blob in (fewer, more)] == [3, 300]


def is_refused(key, blob, secret=SECRET):
    try:
        decode_entry(key, blob, secret)
    except CorruptEntry:
        return True
    return False


def test_entries_of_other_keys_and_other_secrets_are_refused(make_key, make_members):
    blob = encode_entry(make_key(), make_members(3), SECRET)
    assert not is_refused(make_key(), blob)
    assert is_refused(make_key(1), blob)
    assert is_refused(make_key(), blob, b"t" * 32)


def test_every_flip_and_every_cut_is_refused(make_key, make_members):
    blob = encode_entry(make_key(), make_members(3), SECRET)
    rng = np.random.default_rng(0)
    for place in range(len(blob)):
        flipped = bytearray(blob)
        flipped[place] ^= 1 << int(rng.integers(8))
        assert is_refused(make_key(), bytes(flipped))
    assert all(is_refused(make_key(), blob[:length]) for length in range(len(blob)))
    assert is_refused(make_key(), blob + b"\0")


def sign(body):
    return body + hmac.digest(SECRET, body, "sha256")


@pytest.mark.parametrize("shape", [(2, 2, 4, 4), (0, 2, 4, 4), (3, 0, 4, 4), (2**32 - 1,) * 4])
def test_a_signed_entry_of_another_size_is_refused(make_key, make_members, shape):
    body = struct.pack(">4sH32s4I", b"FFPR", SCHEMA_VERSION, make_key().digest, *shape) + make_members(3).tobytes()
    assert is_refused(make_key(), sign(body))


@pytest.mark.parametrize("identity", [(b"FFPR", SCHEMA_VERSION + 1), (b"FFPX", SCHEMA_VERSION)])
def test_a_signed_entry_of_another_version_or_format_is_refused(make_key, make_members, identity):
    body = struct.pack(">4sH32s4I", *identity, make_key().digest, 3, 2, 4, 4) + make_members(3).tobytes()
    assert is_refused(make_key(), sign(body))


def test_a_signed_entry_made_by_hand_is_read(make_key, make_members):
    """The two tests above plant faults into this very entry."""
    body = struct.pack(">4sH32s4I", b"FFPR", SCHEMA_VERSION, make_key().digest, 3, 2, 4, 4)
    assert decode_entry(make_key(), sign(body + make_members(3).tobytes()), SECRET).tolist() == make_members(3).tolist()


def test_members_of_another_dtype_or_axis_are_caught():
    code = """
import numpy as np
from jaxtyping import TypeCheckError, install_import_hook
with install_import_hook(["foreframe_server.entry"], "beartype.beartype"):
    from foreframe_server.entry import CacheKey, decode_entry, encode_entry
key, members = CacheKey(b"k" * 32), np.zeros((3, 2, 4, 4, 3), np.uint8)
decode_entry(key, encode_entry(key, members, b"s"), b"s")
for wrong in (members.astype(np.float32), members[0]):
    try:
        encode_entry(key, wrong, b"s")
    except TypeCheckError:
        print("caught")
"""
    done = subprocess.run([sys.executable, "-B", "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["caught", "caught"], done.stderr[-2000:]
