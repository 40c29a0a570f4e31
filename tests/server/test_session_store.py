import numpy as np
import pytest

from foreframe_server.errors import Gone, TooExpensive
from foreframe_server.metrics import Metrics
from foreframe_server.session_store import SessionLimits, SessionStore
from foreframe_server.sessions import Session, Stretch, UnknownSession

START_BYTES = 12 + 4


def stretch(step_id=0):
    return Stretch(step_id, np.zeros((1, 2, 2, 3), np.uint8), np.zeros((1, 1), np.float32))


def make_session(session_id="a", tenant="", ttl_s=10.0, steps=()):
    start = stretch()
    return Session(session_id, tenant, 7, ttl_s, start, start, steps=tuple(steps), step_id=len(steps))


def events(metrics):
    return {
        sample.labels["event"]: sample.value
        for metric in metrics.registry.collect()
        for sample in metric.samples
        if sample.name == "foreframe_session_events_total"
    }


@pytest.fixture
def metrics():
    return Metrics()


@pytest.fixture
def make_store(metrics, fake_clock):
    return lambda **limits: SessionStore(SessionLimits(**limits), metrics, fake_clock)


def test_a_session_is_there_for_its_own_caller_only(make_store):
    store = make_store()
    session = make_session(tenant="mine")
    store.put(session)

    assert store.get("a", "mine") is session
    for session_id, tenant in (("a", ""), ("a", "other"), ("b", "mine")):
        with pytest.raises(UnknownSession):
            store.get(session_id, tenant)


def test_use_lets_a_session_live_on_and_time_ends_it(make_store, metrics, fake_clock):
    store = make_store()
    store.put(make_session())
    for _ in range(3):
        fake_clock.now += 9.0
        store.get("a", "")
    fake_clock.now += 10.0

    with pytest.raises(Gone) as gone:
        store.get("a", "")
    assert gone.value.reasons[0].message.endswith("expired")
    assert (len(store), store.num_bytes, events(metrics)) == (0, 0, {"expired": 1})


def test_that_a_session_has_ended_is_told_to_its_own_caller_only(make_store):
    store = make_store()
    store.put(make_session(tenant="mine"))
    store.delete("a", "mine")

    with pytest.raises(Gone):
        store.get("a", "mine")
    with pytest.raises(UnknownSession):
        store.get("a", "other")


def test_what_sessions_share_is_counted_once(make_store):
    store = make_store()
    session = make_session(steps=[stretch(1)])
    fork = Session("b", "", 7, 10.0, session.start, session.seen, steps=session.steps, step_id=1)
    store.put(session)
    store.put(fork)
    assert store.num_bytes == 2 * START_BYTES

    grown = Session("b", "", 7, 10.0, fork.start, fork.seen, steps=(*fork.steps, stretch(2)), step_id=2)
    store.replace(grown)
    assert store.num_bytes == 3 * START_BYTES
    store.delete("a", "")
    assert store.num_bytes == 3 * START_BYTES
    store.delete("b", "")
    assert store.num_bytes == 0


def test_when_memory_is_short_the_session_used_longest_ago_goes(make_store, metrics):
    store = make_store(max_bytes=3 * START_BYTES)
    for name in "abc":
        store.put(make_session(name))
    store.get("a", "")
    store.put(make_session("d"))

    assert events(metrics) == {"evicted": 1}
    with pytest.raises(Gone, match="not held"):
        store.get("b", "")
    assert [store.get(name, "").session_id for name in "acd"] == ["a", "c", "d"]


def test_a_session_that_grows_pushes_others_out_and_never_itself(make_store):
    store = make_store(max_bytes=3 * START_BYTES)
    store.put(make_session("a"))
    store.put(make_session("b"))
    store.replace(make_session("a", steps=[stretch(1), stretch(2)]))

    assert store.peek("a") is not None
    assert store.peek("b") is None


def test_only_so_many_sessions_are_held(make_store):
    store = make_store(max_sessions=2)
    for name in "abc":
        store.put(make_session(name))

    assert (len(store), store.peek("a")) == (2, None)


def test_a_session_larger_than_one_may_be_is_refused_and_leaves_no_trace(make_store):
    store = make_store(max_session_bytes=START_BYTES)
    store.put(make_session())
    with pytest.raises(TooExpensive):
        store.replace(make_session(steps=[stretch(1)]))
    with pytest.raises(TooExpensive):
        store.put(make_session("b", steps=[stretch(1)]))

    assert (len(store), store.num_bytes, store.get("a", "").step_id) == (1, START_BYTES, 0)


def test_a_session_that_ended_meanwhile_is_not_brought_back_by_its_step(make_store):
    store = make_store()
    store.put(make_session())
    store.delete("a", "")

    with pytest.raises(Gone):
        store.replace(make_session(steps=[stretch(1)]))
    assert (len(store), store.num_bytes) == (0, 0)
