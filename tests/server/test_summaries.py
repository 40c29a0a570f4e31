import asyncio
from dataclasses import replace

import numpy as np
import pytest

from foreframe_engines import EnsembleSpec, NoisePlan, Reducer
from foreframe_engines.ensemble import summarise
from foreframe_server.summaries import Summaries

DIGEST = bytes(32)
OTHER_DIGEST = bytes([1]) * 32


@pytest.fixture
def members():
    return list(np.random.default_rng(0).integers(0, 256, (6, 3, 8, 8, 3), dtype=np.uint8))


def ask(summaries, query, members, *, steps=4, digest=DIGEST):
    return asyncio.run(summaries.summarise(query, members, steps=steps, digest=digest))


def is_same(one, other):
    """Tell whether two predictions are one piece of work: their arrays are the very same."""
    return one.frames is other.frames and one.members is other.members


def test_a_summary_is_what_its_members_say(make_query, members):
    query = make_query(size=6)
    expected = summarise(np.stack(members), query.frame_indices, query.sampling, query.ensemble)
    found = ask(Summaries(), query, members)
    for name in ("frames", "members", "variance", "spread_per_frame"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert (found.standard_error, found.correlation) == (expected.standard_error, expected.correlation)


def test_a_summary_tells_how_many_steps_were_taken(make_query, members):
    assert ask(Summaries(), make_query(steps=4), members, steps=2).sampling.steps == 2


def test_who_asks_again_gets_the_work_that_was_done(make_query, members):
    summaries = Summaries()
    assert is_same(ask(summaries, make_query(), members), ask(summaries, make_query(), members))


def test_size_and_tolerance_change_only_what_was_asked_for(make_query, members):
    summaries, query = Summaries(), make_query(size=6)
    exact = replace(query, ensemble=EnsembleSpec(20, tolerance=0.01))
    one, other = ask(summaries, query, members), ask(summaries, exact, members)
    assert is_same(one, other)
    assert (one.ensemble, other.ensemble) == (query.ensemble, exact.ensemble)


@pytest.mark.parametrize(
    "changes",
    [
        {"ensemble": EnsembleSpec(6, Reducer.MEDIAN)},
        {"ensemble": EnsembleSpec(6, noise=NoisePlan.IID)},
        {"num_members": 4},
        {"steps": 2},
        {"digest": OTHER_DIGEST},
        {"digest": None},
    ],
    ids=["reducer", "noise plan", "number of members", "steps", "members", "nothing known of the members"],
)
def test_what_changes_the_summary_is_worked_out_anew(make_query, members, changes):
    summaries, query = Summaries(), make_query(size=6)
    other = replace(query, ensemble=changes.get("ensemble", query.ensemble))
    facts = {"steps": changes.get("steps", 4), "digest": changes.get("digest", DIGEST)}
    first = ask(summaries, query, members)
    second = ask(summaries, other, members[: changes.get("num_members", 6)], **facts)
    assert not is_same(first, second)
    assert second.num_members == changes.get("num_members", 6)


def test_all_who_ask_at_once_share_the_work(make_query, members):
    async def scenario():
        summaries = Summaries()
        asked = [summaries.summarise(make_query(), members, steps=4, digest=DIGEST) for _ in range(20)]
        return await asyncio.gather(*asked)

    first, *others = asyncio.run(scenario())
    assert all(is_same(first, other) for other in others)


def test_who_stops_waiting_does_not_stop_the_others(make_query, members):
    async def scenario():
        summaries = Summaries()
        asked = [
            asyncio.create_task(summaries.summarise(make_query(), members, steps=4, digest=DIGEST)) for _ in range(3)
        ]
        await asyncio.sleep(0)
        asked[0].cancel()
        return await asyncio.gather(*asked, return_exceptions=True)

    left, one, other = asyncio.run(scenario())
    assert isinstance(left, asyncio.CancelledError)
    assert is_same(one, other)


def test_a_failure_reaches_all_who_wait_and_is_not_kept(make_query, members):
    async def scenario():
        summaries = Summaries()
        broken = [members[0], members[1][:1]]
        asked = [summaries.summarise(make_query(), broken, steps=4, digest=DIGEST) for _ in range(3)]
        failures = await asyncio.gather(*asked, return_exceptions=True)
        return failures, await summaries.summarise(make_query(), members[:2], steps=4, digest=DIGEST)

    failures, prediction = asyncio.run(scenario())
    assert all(isinstance(failure, ValueError) for failure in failures)
    assert prediction.num_members == 2


def test_what_does_not_fit_is_not_kept(make_query, members):
    summaries = Summaries(max_bytes=100)
    assert not is_same(ask(summaries, make_query(), members), ask(summaries, make_query(), members))


def test_what_was_asked_longest_ago_is_forgotten_first(make_query, members):
    num_bytes = sum(
        getattr(ask(Summaries(), make_query(), members), name).nbytes for name in ("frames", "members", "variance")
    )
    summaries = Summaries(max_bytes=2 * num_bytes)
    first = ask(summaries, make_query(), members)
    second = ask(summaries, make_query(), members, steps=3)
    assert is_same(first, ask(summaries, make_query(), members))
    ask(summaries, make_query(), members, steps=2)
    assert is_same(first, ask(summaries, make_query(), members))
    assert not is_same(second, ask(summaries, make_query(), members, steps=3))
