import asyncio

import pytest

from foreframe_engines import Priority
from foreframe_server.turns import Turns


async def take_in_order(turns, asked):
    """Ask for turns while one is held; return the names in the order in which they came."""
    order, release = [], asyncio.Event()

    async def hold():
        async with turns.taking(Priority.CONTROLLER, None):
            await release.wait()

    async def take(name, priority, deadline_s):
        async with turns.taking(priority, deadline_s):
            order.append(name)

    holder = asyncio.create_task(hold())
    await asyncio.sleep(0)
    tasks = {name: asyncio.create_task(take(name, *urgency)) for name, urgency in asked.items()}
    await asyncio.sleep(0)
    return order, release, holder, tasks


def test_controllers_come_first_then_the_earliest_deadline_then_who_asked_first():
    async def scenario():
        order, release, holder, tasks = await take_in_order(
            Turns(),
            {
                "bulk": (Priority.BULK, 1.0),
                "none": (Priority.CONTROLLER, None),
                "late": (Priority.CONTROLLER, 9.0),
                "soon": (Priority.CONTROLLER, 2.0),
                "soon too": (Priority.CONTROLLER, 2.0),
            },
        )
        release.set()
        await asyncio.gather(holder, *tasks.values())
        return order

    assert asyncio.run(scenario()) == ["soon", "soon too", "late", "none", "bulk"]


def test_who_leaves_the_line_is_passed_over():
    async def scenario():
        order, release, holder, tasks = await take_in_order(
            Turns(), {"first": (Priority.CONTROLLER, 1.0), "second": (Priority.CONTROLLER, 2.0)}
        )
        tasks["first"].cancel()
        release.set()
        await asyncio.gather(holder, *tasks.values(), return_exceptions=True)
        return order

    assert asyncio.run(scenario()) == ["second"]


def test_a_turn_that_came_to_somebody_who_left_goes_on():
    async def scenario():
        turns, order = Turns(), []

        async def take(name):
            async with turns.taking(Priority.CONTROLLER, None):
                order.append(name)

        async with turns.taking(Priority.CONTROLLER, None):
            first, second = (asyncio.create_task(take(name)) for name in ("first", "second"))
            await asyncio.sleep(0)
        first.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        return order

    assert asyncio.run(scenario()) == ["second"]


def test_a_failure_ends_its_turn():
    async def fail(turns):
        async with turns.taking(Priority.CONTROLLER, None):
            raise ValueError("planted")

    async def scenario():
        turns = Turns()
        with pytest.raises(ValueError, match="planted"):
            await fail(turns)
        async with asyncio.timeout(5), turns.taking(Priority.BULK, None):
            return True

    assert asyncio.run(scenario())
