import asyncio
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foreframe_engines import EnsembleSpec, NoisePlan, OnDeadline, Query, Sampling, Strategy
from foreframe_engines.ensemble import converged_size
from foreframe_engines.schedule import get_schedule
from foreframe_server.flights import Flight, Satisfaction
from foreframe_server.jobs import Job
from foreframe_server.tickets import Ticket


def draw_members(count, seed=0, noise=30.0):
    """Draw noisy members in pairs that go opposite ways, so that both plans have something to gain."""
    rng = np.random.default_rng(seed)
    deviations = noise * rng.standard_normal(((count + 1) // 2, 1, 4, 4, 3))
    pairs = np.stack([deviations, -0.8 * deviations], axis=1).reshape(-1, 1, 4, 4, 3)
    return list(np.clip(128 + pairs[:count], 0, 255).astype(np.uint8))


def in_flight(scenario, query, call):
    """Run a scenario on a flight of its own, inside an event loop, and return what it returns."""

    async def run():
        return scenario(Flight(query, call))

    return asyncio.run(run())


def test_a_flight_counts_what_was_known_and_what_was_computed(make_query, make_call):
    def scenario(flight):
        flight.adopt(draw_members(2))
        flight.on_members(draw_members(3))
        return flight.size, len(flight.members), flight.num_cached, flight.num_computed

    assert in_flight(scenario, make_query(size=8), make_call()) == (8, 5, 2, 3)


def test_only_more_members_are_adopted(make_query, make_call):
    members = draw_members(4)

    def scenario(flight):
        flight.adopt(members[:3])
        flight.adopt(members[:2])
        fewer = len(flight.members), flight.num_cached
        flight.adopt(members)
        return fewer, (len(flight.members), flight.num_cached)

    assert in_flight(scenario, make_query(size=8), make_call()) == ((3, 3), (4, 4))


def test_being_accepted_is_told_to_whoever_looked_before(make_query, make_call):
    def scenario(flight):
        before, seen = flight.is_accepted, flight.changed
        flight.accept()
        return before, seen.done(), flight.is_accepted

    assert in_flight(scenario, make_query(), make_call()) == (False, True, True)


@pytest.mark.parametrize("news", ["adopt", "on_members", "on_estimate"])
def test_all_news_is_told_to_whoever_looked_before(make_query, make_call, news):
    def scenario(flight):
        seen = flight.changed
        getattr(flight, news)(draw_members(2))
        return seen.done(), flight.changed.done()

    assert in_flight(scenario, make_query(size=8), make_call()) == (True, False)


def test_what_changes_nothing_is_not_told(make_query, make_call):
    def scenario(flight):
        flight.adopt([])
        return flight.changed.done()

    assert not in_flight(scenario, make_query(), make_call())


def test_an_estimate_is_no_member(make_query, make_call):
    (frames,) = draw_members(1)

    def scenario(flight):
        flight.on_estimate(frames)
        return flight.estimate is frames, len(flight.members)

    assert in_flight(scenario, make_query(), make_call()) == (True, 0)


def test_a_flight_lasts_for_the_most_patient_of_its_riders(make_query, make_call):
    def scenario(flight):
        flight.stretch(make_query(size=2), make_call(deadline_s=3.0, on_deadline=OnDeadline.PARTIAL))
        first = flight.size, flight.terms.deadline_s, flight.terms.on_deadline
        flight.stretch(make_query(size=9), make_call(deadline_s=None, on_deadline=OnDeadline.FAIL))
        return first, (flight.size, flight.terms.deadline_s, flight.terms.on_deadline)

    call = make_call(deadline_s=5.0, on_deadline=OnDeadline.FAIL)
    assert in_flight(scenario, make_query(size=4), call) == (
        (4, 5.0, OnDeadline.PARTIAL),
        (9, None, OnDeadline.PARTIAL),
    )


def test_a_flight_grows_in_nothing_but_its_size(make_query, make_call):
    def scenario(flight):
        before = flight.query
        flight.stretch(make_query(size=9), make_call())
        return replace(before, ensemble=replace(before.ensemble, size=9)), flight.query

    expected, grown = in_flight(scenario, make_query(size=4), make_call())
    assert grown.ensemble == expected.ensemble
    assert grown.context is expected.context
    assert grown.sampling == expected.sampling


@pytest.mark.parametrize(
    ("strategy", "num_asked", "num_taken", "is_shortened"),
    [
        (Strategy.SAMPLE, 4, None, False),
        (Strategy.SAMPLE, 4, 4, False),
        (Strategy.SAMPLE, 4, 1, True),
        (Strategy.POSTERIOR_MEAN, 4, 1, False),
    ],
)
def test_a_flight_knows_whether_its_members_take_fewer_steps(
    make_query, make_call, strategy, num_asked, num_taken, is_shortened
):
    query = make_query(steps=num_asked, strategy=strategy)

    def scenario(flight):
        if num_taken is not None:
            job = Job("job", query, get_schedule(num_taken, 5.0))
            flight.ticket = Ticket(job, asyncio.get_running_loop().create_future(), 0.0)
        return flight.is_shortened

    assert in_flight(scenario, query, make_call()) is is_shortened


def ask_for(size, tolerance=None, noise=NoisePlan.ANTITHETIC):
    return Query(
        model="toy",
        context=np.zeros((4, 4, 4, 3), np.uint8),
        states=np.zeros((8, 1), np.float32),
        frame_indices=(1,),
        sampling=Sampling(Strategy.SAMPLE, 4, 0),
        ensemble=EnsembleSpec(size, noise=noise, tolerance=tolerance),
    )


def test_without_a_tolerance_a_rider_has_enough_at_its_size():
    satisfaction = Satisfaction(ask_for(3))
    members = draw_members(5)
    assert satisfaction.is_cheap
    assert [satisfaction.enough(members[:count]) for count in range(6)] == [None, None, None, 3, 3, 3]


def test_a_rider_with_a_tolerance_leaves_at_the_first_prefix_that_meets_it():
    members = draw_members(20)
    query = ask_for(20, tolerance=0.02)
    expected = converged_size(np.stack(members), query.ensemble)
    assert expected is not None
    assert 4 <= expected < 20
    satisfaction = Satisfaction(query)
    assert not satisfaction.is_cheap
    seen = [satisfaction.enough(members[:count]) for count in range(21)]
    assert seen == [None] * expected + [expected] * (21 - expected)


def test_a_tolerance_that_is_never_met_ends_at_the_size():
    satisfaction = Satisfaction(ask_for(6, tolerance=1e-9))
    members = draw_members(8)
    assert [satisfaction.enough(members[:count]) for count in (4, 5, 6, 8)] == [None, None, 6, 6]


def test_members_beyond_its_size_do_not_tell_a_rider_anything():
    members = draw_members(20)
    met_at = converged_size(np.stack(members), ask_for(20, tolerance=0.02).ensemble)
    assert Satisfaction(ask_for(met_at - 2, tolerance=0.02)).enough(members) == met_at - 2


@settings(max_examples=60, deadline=None)
@given(
    looks=st.lists(st.integers(1, 5), min_size=1, max_size=12),
    size=st.integers(1, 16),
    tolerance=st.sampled_from([0.005, 0.02, 0.05, 0.2]),
    noise=st.sampled_from(NoisePlan),
    seed=st.integers(0, 20),
)
def test_what_a_rider_takes_does_not_depend_on_how_its_members_came(looks, size, tolerance, noise, seed):
    query = ask_for(size, tolerance, noise)
    members = draw_members(sum(looks), seed)
    satisfaction, at_once = Satisfaction(query), Satisfaction(query).enough(members)
    seen = [satisfaction.enough(members[:count]) for count in np.cumsum(looks)]
    assert [count for count in seen if count is not None][:1] == ([] if at_once is None else [at_once])
