import contextlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from foreframe_engines.types import TokenContext, TokenHistory
from foreframe_server.errors import Gone, TooExpensive
from foreframe_server.observations import ObservationStore, StoredObservation


def observation_of(num_bytes):
    """An observation whose arrays hold so many bytes."""
    return StoredObservation(np.zeros((1, 1, (num_bytes - 12) // 3, 3), np.uint8), np.zeros((1, 3), np.float32))


@pytest.fixture
def store(fake_clock):
    return ObservationStore(10.0, 300, fake_clock)


def test_what_was_put_comes_back_under_its_own_id(store):
    observations = [observation_of(90) for _ in range(3)]
    ids = [store.put(observation) for observation in observations]

    assert len(set(ids)) == 3
    assert [store.get(each) for each in ids] == observations
    assert (len(store), store.num_bytes) == (3, 270)


def test_ids_cannot_be_guessed_and_fit_a_path():
    store = ObservationStore(10.0, 10_000, lambda: 0.0)
    ids = [store.put(observation_of(90)) for _ in range(50)]

    assert all(len(each) == 24 and each.replace("-", "").replace("_", "").isalnum() for each in ids)
    assert len(set(ids)) == 50


@pytest.mark.parametrize("unknown", ["", "made up", "\u00e9", "x" * 10_000])
def test_what_never_was_is_gone(store, unknown):
    with pytest.raises(Gone) as gone:
        store.get(unknown)
    assert gone.value.reasons[0].pointer == "/observation_id"


def test_age_ends_an_observation_and_use_does_not_prolong_it(store, fake_clock):
    mine, short = store.put(observation_of(90)), store.put(observation_of(90), ttl_s=2.0)
    fake_clock.now += 2.0
    with pytest.raises(Gone):
        store.get(short)
    assert (len(store), store.num_bytes) == (1, 90)
    fake_clock.now += 7.9
    store.get(mine)
    fake_clock.now += 0.1
    with pytest.raises(Gone):
        store.get(mine)
    assert store.num_bytes == 0


def test_the_least_used_goes_when_memory_is_short(store):
    first, second, third = (store.put(observation_of(90)) for _ in range(3))
    store.get(first)
    store.put(observation_of(90))

    with pytest.raises(Gone):
        store.get(second)
    assert store.get(first)
    assert store.get(third)
    assert store.num_bytes <= store.max_bytes


def test_one_larger_than_the_budget_is_refused_with_numbers_and_costs_nobody(store):
    held = store.put(observation_of(90))

    with pytest.raises(TooExpensive) as refusal:
        store.put(observation_of(303))

    assert (refusal.value.reasons[0].expected, refusal.value.reasons[0].received) == (
        "at most 300 bytes",
        "303 bytes",
    )
    assert store.get(held)


def test_a_deleted_one_is_gone_and_deleting_twice_is_gone(store):
    held = store.put(observation_of(90))
    store.delete(held)

    for action in (store.get, store.delete):
        with pytest.raises(Gone):
            action(held)
    assert store.num_bytes == 0


def test_every_array_counts_and_none_can_be_written(store):
    history = TokenHistory((np.zeros((1, 1, 1, 4, 1), np.float32),), (np.zeros((1, 1, 1, 4, 1), np.float32),))
    tokens = TokenContext(history, np.zeros(4, np.int64), np.zeros(3, np.float32))
    plain = observation_of(90)
    whole = StoredObservation(plain.frames, plain.states, np.zeros((1, 3, 1, 1), np.float32), tokens)
    store.put(whole)

    assert store.num_bytes == 90 + 12 + 32 + 32 + 12
    assert whole.models == ("rollout", "likelihood")
    assert plain.models == ()
    with pytest.raises(ValueError, match="read-only"):
        whole.frames[0] = 1


def test_any_thread_may_put_get_and_delete():
    store = ObservationStore(10.0, 1000, lambda: 0.0)

    def work(_):
        for _ in range(200):
            held = store.put(observation_of(90))
            with contextlib.suppress(Gone):  # others may have pushed it out
                store.get(held)
                store.delete(held)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))

    assert store.num_bytes == 0
