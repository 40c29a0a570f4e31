import threading

import numpy as np
import pytest

from foreframe_server.quarantine import Deaths, Quarantine, digest_arrays, digest_query

PATIENCE_S = 20


@pytest.fixture
def quarantine(fake_clock):
    return Quarantine(fake_clock, block_s=60.0)


def test_what_engines_died_of_is_remembered_for_a_while(quarantine, fake_clock):
    assert quarantine.is_empty
    quarantine.note(b"a")
    fake_clock.now += 59.0
    quarantine.note(b"a")
    assert (quarantine.num_deaths(b"a"), quarantine.num_deaths(b"b")) == (2, 0)
    fake_clock.now += 59.9
    assert quarantine.num_deaths(b"a") == 2
    fake_clock.now += 0.2
    assert quarantine.num_deaths(b"a") == 0
    assert quarantine.is_empty


def test_what_ran_to_its_end_is_acquitted_unless_it_is_blocked(quarantine):
    for digest, num_deaths in ((b"once", 1), (b"twice", 2)):
        for _ in range(num_deaths):
            quarantine.note(digest)
        quarantine.acquit(digest)
    quarantine.acquit(b"never")
    assert (quarantine.num_deaths(b"once"), quarantine.num_deaths(b"twice")) == (0, 2)


def run_beside(quarantine, deaths):
    """Whether a second call of a request begins while its first one runs, and that it begins afterwards."""
    has_begun = threading.Event()

    def second():
        with quarantine.running([deaths]):
            has_begun.set()

    thread = threading.Thread(target=second)
    with quarantine.running([deaths]):
        thread.start()
        is_beside = has_begun.wait(0.2 if deaths.num else PATIENCE_S)
    assert has_begun.wait(PATIENCE_S)
    thread.join()
    return is_beside


def test_a_request_runs_in_several_places_until_an_engine_died_of_it(quarantine):
    assert run_beside(quarantine, Deaths())
    assert not run_beside(quarantine, Deaths(num=1))


def test_one_request_in_two_rows_of_a_call_does_not_wait_for_itself(quarantine):
    deaths = Deaths(num=1)
    with quarantine.running([deaths, deaths]):
        assert deaths.num_running == 1
    assert deaths.num_running == 0


def test_digests_tell_shapes_and_types_and_labels_apart():
    flat, words = np.zeros(8, np.uint8), np.zeros(2, np.float32)
    digests = {digest_arrays(label, [array]) for label in "ab" for array in (flat, flat.reshape(2, 4), words)}
    assert len(digests) == 6


def test_a_querys_digest_is_of_its_content_and_not_of_its_size(make_query):
    assert digest_query(make_query(1, size=2)) == digest_query(make_query(1, size=9, frame_indices=(1,)))
    others = [make_query(1), make_query(2), make_query(2, content=1), make_query(1, steps=5)]
    assert len({digest_query(query) for query in others}) == 4
