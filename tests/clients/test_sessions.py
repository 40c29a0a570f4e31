"""Sessions of both clients over a scripted server: what is sent, what is read, and what is not sent twice."""

from __future__ import annotations

import asyncio
import inspect

import httpx
import numpy as np
import pytest

from foreframe_client import (
    AsyncClient,
    AsyncSession,
    Client,
    InvalidRequest,
    NonFinite,
    Observation,
    Overloaded,
    Session,
    StepOutOfOrder,
)

STATUS = {
    "session_id": "s-1",
    "model": "toy",
    "revision": "r1",
    "committed_step_id": 0,
    "rollback_from": 0,
    "frames": 0,
    "state": [0.5] * 25,
    "seed": 7,
    "expires_in_s": 600.0,
    "bytes": 1000,
    "shadow": {"count": 0, "mean_psnr_db": None, "mean_baseline_db": None},
    "warnings": [],
}


def blocking(server, arguments, story, **options):
    """Open a session of a fresh Client and tell what each call of a story returned."""
    with Client(transport=httpx.MockTransport(server), sleep=lambda _: None) as client:
        session = client.open_session(*arguments, **options)
        return [getattr(session, method)(*given, **named) for method, given, named in story], session


def awaiting(server, arguments, story, **options):
    """Do the same with an AsyncClient."""

    async def sleep(_seconds: float) -> None:
        return

    async def tell():
        async with AsyncClient(transport=httpx.MockTransport(server), sleep=sleep) as client:
            session = await client.open_session(*arguments, **options)
            return [await getattr(session, method)(*given, **named) for method, given, named in story], session

    return asyncio.run(tell())


@pytest.fixture(params=[blocking, awaiting])
def tell(request):
    return request.param


@pytest.fixture
def status(answer):
    return lambda **changes: answer({**STATUS, **changes})


@pytest.fixture
def stepped(answer, prediction):
    def step(step_id=1, **changes):
        ids = {"session_id": "s-1", "step_id": step_id, "committed_step_id": step_id, "is_repeat": False}
        return answer({**prediction, **ids, **changes})

    return step


def test_a_session_is_opened_stepped_and_closed(tell, server, scene, status, stepped):
    server.script = [status(), stepped(1), stepped(2), httpx.Response(204)]
    rows = scene.future_states
    told, session = tell(
        server, scene.arrays[:2], [("step", (rows,), {}), ("step", (rows,), {"seed": 3}), ("close", (), {})], seed=7
    )

    assert server.paths() == ["/v1/models", "/v1/sessions"] + ["/v1/sessions/s-1/steps"] * 2 + ["/v1/sessions/s-1"]
    start, first, second = server.posted()
    assert (start["seed"], start["model"], first["step_id"], second["step_id"]) == (7, "toy", 1, 2)
    assert "seed" not in first["sampling"]
    assert second["sampling"]["seed"] == 3
    assert told[0].frames[:, 0, 0, 0].tolist() == [10, 20]
    assert (told[1].step_id, session.committed_step_id, session.session_id) == (2, 2, "s-1")


def test_a_step_whose_answer_was_lost_is_asked_for_again_as_the_same_step(tell, server, scene, status, stepped, refuse):
    server.script = [status(), refuse("overloaded", 503, retryable=True), stepped(1, is_repeat=True)]
    (step,), _ = tell(server, scene.arrays[:2], [("step", (scene.future_states,), {})])

    assert [body["step_id"] for body in server.posted()[1:]] == [1, 1]
    assert step.is_repeat


def test_a_step_that_failed_is_still_the_next_one(server, scene, status, stepped, refuse):
    server.script = [status(), refuse("step_out_of_order", 409, retryable=False), stepped(1)]
    with Client(transport=httpx.MockTransport(server)) as client:
        session = client.open_session(*scene.arrays[:2])
        with pytest.raises(StepOutOfOrder):
            session.step(scene.future_states)
        session.step(scene.future_states)

    assert [body["step_id"] for body in server.posted()[1:]] == [1, 1]


def test_a_fork_has_an_id_and_steps_of_its_own(tell, server, scene, status, stepped):
    server.script = [status(), stepped(1), status(session_id="s-2", committed_step_id=1)]
    told, session = tell(server, scene.arrays[:2], [("step", (scene.future_states,), {}), ("fork", (), {})])

    fork = told[1]
    assert isinstance(fork, (Session, AsyncSession))
    assert (fork.session_id, fork.committed_step_id, session.session_id) == ("s-2", 1, "s-1")


def test_a_rollback_and_a_reset_set_the_next_step(tell, server, scene, status, stepped):
    server.script = [status(), stepped(5), status(committed_step_id=2), status(committed_step_id=0)]
    story = [("step", (scene.future_states,), {}), ("rollback", (2,), {}), ("reset", (), {})]
    told, session = tell(server, scene.arrays[:2], story)

    assert [each.committed_step_id for each in told] == [5, 2, 0]
    assert session.committed_step_id == 0
    assert server.posted()[2:] == [{"step_id": 2}, {}]


def test_frames_that_arrived_are_sent_and_their_comparison_read(tell, server, scene, status, answer):
    compared = [{"psnr_db": 21.5, "baseline_db": 18.0}, {"psnr_db": None, "baseline_db": 40.0}]
    server.script = [status(), answer({**STATUS, "compared": compared})]
    (pushed,), _ = tell(server, scene.arrays[:2], [("push", scene.arrays[:2], {})])

    assert [(each.psnr_db, each.baseline_db) for each in pushed] == [(21.5, 18.0), (None, 40.0)]
    assert set(server.posted()[1]) == {"observation"}


def test_frames_that_arrived_are_not_sent_twice(tell, server, scene, status, refuse):
    server.script = [status(), refuse("overloaded", 503, retryable=True)]
    with pytest.raises(Overloaded):
        tell(server, scene.arrays[:2], [("push", scene.arrays[:2], {})])

    assert len(server.posted()) == 2


def test_names_and_units_hold_for_all_that_a_session_sends(tell, server, scene, status, stepped, answer):
    seen, rows = scene.arrays[:2], scene.future_states
    server.script = [status(), stepped(1), answer({**STATUS, "compared": []}), status(), status(session_id="s-2")]
    story = [("step", (rows,), {}), ("push", seen, {}), ("reset", seen, {}), ("fork", (), {})]
    told, _ = tell(server, seen, story, state_names=["a"], state_units=["deg"])

    start, step, push, reset, _ = server.posted()
    written = [
        start["observation"]["state"],
        step["future"],
        push["observation"]["state"],
        reset["observation"]["state"],
    ]
    assert [(each["names"], each["units"]) for each in written] == [(["a"], ["deg"])] * 4
    assert told[3]._opened.layout.units == ["deg"]


@pytest.mark.parametrize("start", [{"clip": 3}, {"observation": Observation("o-1", 60.0)}])
def test_what_starts_without_states_may_say_how_those_that_follow_are_written(
    tell, server, scene, status, stepped, start
):
    server.script = [status(), stepped(1)]
    tell(server, (), [("step", (scene.future_states,), {})], state_units=["deg"], **start)
    assert server.posted()[1]["future"]["units"] == ["deg"]


def test_a_step_asks_for_a_variance_where_there_can_be_one(tell, server, scene, status, stepped):
    server.script = [status(), stepped(1), stepped(2)]
    rows = scene.future_states
    tell(server, scene.arrays[:2], [("step", (rows,), {}), ("step", (rows,), {"ensemble": 4})])
    assert [body["return"]["variance"] for body in server.posted()[1:]] == ["none", "map"]


def test_a_session_from_nothing_is_answered_with_what_there_could_be(tell, server):
    with pytest.raises(InvalidRequest, match=r"^give frames and states, an observation, or a clip$"):
        tell(server, (), [])
    assert server.requests == []


def test_a_clip_starts_a_session_without_frames(tell, server, status):
    server.script = [status()]
    tell(server, (), [], clip=3)
    assert server.posted() == [{"clip": 3}]


@pytest.mark.parametrize("options", [{"clip": 3}, {"clip": 1.5}])
def test_a_clip_stands_alone(server, scene, options):
    with Client(transport=httpx.MockTransport(server)) as client, pytest.raises(InvalidRequest):
        client.open_session(*(scene.arrays[:2] if options["clip"] == 3 else ()), **options)
    assert server.requests == []


def test_states_that_are_not_finite_are_not_sent(server, scene, status):
    server.script = [status()]
    with Client(transport=httpx.MockTransport(server)) as client:
        session = client.open_session(*scene.arrays[:2])
        with pytest.raises(NonFinite, match="states"):
            session.step(np.full((1, 25), np.nan))


def test_the_end_of_the_block_ends_the_session_even_when_it_is_gone(server, scene, status, refuse):
    server.script = [status(), refuse("gone", 410, retryable=False)]
    with Client(transport=httpx.MockTransport(server)) as client, client.open_session(*scene.arrays[:2]):
        pass
    assert server.requests[-1].method == "DELETE"


def test_both_sessions_have_the_same_methods():
    def signatures(kind):
        return {
            name: list(inspect.signature(method).parameters)
            for name, method in inspect.getmembers(kind, inspect.isfunction)
            if not name.startswith("_")
        }

    assert signatures(Session) == signatures(AsyncSession)
    assert set(signatures(Session)) == {"step", "push", "fork", "rollback", "reset", "status", "close"}
    assert str(inspect.signature(Client.open_session).return_annotation) == "Session"
