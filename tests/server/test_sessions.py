"""Sessions as values: what follows from steps and frames, what is forgotten, and what is shared."""

import numpy as np
import pytest

from foreframe_engines import EnsembleSpec, Prediction, Sampling, Strategy
from foreframe_server.calls import Answer, CacheResult, Timings
from foreframe_server.errors import Gone, InvalidRequest, StepOutOfOrder
from foreframe_server.sessions import (
    Session,
    SessionSeed,
    StepAsk,
    StepSampling,
    check_turn,
    first_stretch,
    own_stretch,
    tail,
)

CONTEXT = 4


def frames_of(*values):
    return np.array(values, np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)


def states_of(*values):
    return np.array(values, np.float32)[:, None] * np.ones((1, 3), np.float32)


def make_session(**changes):
    start = first_stretch(SessionSeed(frames_of(0, 1, 2, 3), states_of(0, 1, 2, 3)), CONTEXT)
    return Session(session_id="s", tenant="", seed=7, ttl_s=10.0, start=start, seen=start, **changes)


def make_answer(*values):
    frames = frames_of(*values)
    prediction = Prediction(
        frame_indices=tuple(range(1, len(frames) + 1)),
        frames=frames,
        members=frames[None].copy(),
        variance=np.zeros(frames.shape[:3], np.float32),
        spread_per_frame=(0.0,) * len(frames),
        sampling=Sampling(Strategy.SAMPLE, 4, 7),
        ensemble=EnsembleSpec(),
    )
    return Answer(prediction, CacheResult.BYPASS, 0, Timings(), deadline_met=True, degraded=None, determinism="bitwise")


def after(session, *values, max_ahead=8):
    """The session after one step that predicted frames of these values."""
    return session.stepped(StepAsk(states_of(*values)), make_answer(*values), max_ahead=max_ahead)


def values_of(stretch):
    assert stretch.frames[:, 0, 0, 0].tolist() == stretch.states[:, 0].tolist()
    return stretch.frames[:, 0, 0, 0].tolist()


def arrived(*values):
    return own_stretch(0, frames_of(*values), states_of(*values))


def test_a_step_moves_the_context_by_its_frames():
    session = after(after(make_session(), 10), 11, 12)

    assert values_of(session.context) == [3, 10, 11, 12]
    assert (session.step_id, session.num_frames) == (2, 3)


def test_a_step_of_more_frames_than_a_context_leaves_its_last_ones():
    assert values_of(after(make_session(), 10, 11, 12, 13, 14, 15).context) == [12, 13, 14, 15]


def test_a_step_changes_nothing_of_the_session_before_it():
    session = make_session()
    after(session, 10)

    assert (session.step_id, values_of(session.context)) == (0, [0, 1, 2, 3])


class TestRollback:
    def test_goes_to_every_step_that_was_made(self):
        sessions = [make_session()]
        for value in (10, 11, 12):
            sessions.append(after(sessions[-1], value))

        for step_id, expected in enumerate(sessions):
            back = sessions[-1].rolled_back(step_id)
            assert values_of(back.context) == values_of(expected.context)
            assert (back.step_id, back.num_frames) == (step_id, expected.num_frames)

    def test_makes_other_steps_possible(self):
        session = after(after(after(make_session(), 10), 11).rolled_back(1), 20)

        assert values_of(session.context) == [2, 3, 10, 20]
        assert session.step_id == 2

    def test_refuses_what_was_not_made(self):
        with pytest.raises(StepOutOfOrder):
            after(make_session(), 10).rolled_back(2)

    def test_refuses_what_was_forgotten_and_not_where_it_began(self):
        session = make_session()
        for value in range(10, 20):
            session = after(session, value)
        session = session.trimmed(6 * session.steps[0].num_bytes)

        assert (len(session.steps), session.first_step_id) == (6, 8)
        assert values_of(session.rolled_back(8).context) == [14, 15, 16, 17]
        with pytest.raises(Gone):
            session.rolled_back(7)
        start = session.rolled_back(0)
        assert (values_of(start.context), start.num_frames) == ([0, 1, 2, 3], 0)


def test_history_is_trimmed_down_to_the_context_and_no_further():
    session = make_session()
    for value in range(10, 20):
        session = after(session, value)

    trimmed = session.trimmed(0)
    assert values_of(trimmed.context) == values_of(session.context)
    assert len(trimmed.steps) == CONTEXT
    assert make_session().trimmed(0).context is not None


class TestPush:
    def test_frames_that_arrived_replace_those_that_were_predicted(self):
        pushed = after(make_session(), 10, 11, 12).pushed(arrived(20)).session

        assert values_of(pushed.context) == [1, 2, 3, 20]
        assert (pushed.num_frames, pushed.step_id) == (1, 1)

    def test_each_is_compared_with_the_frame_that_was_predicted_for_it(self):
        session = after(after(make_session(), 10), 20)
        first = session.pushed(arrived(10))
        second = first.session.pushed(arrived(20, 30))

        assert first.compared[0].psnr_db == 100
        assert [each.psnr_db for each in second.compared] == [100, None]
        assert second.session.shadow.count == 2
        assert second.session.shadow.total_db == 200

    def test_the_baseline_is_the_frame_that_arrived_before(self):
        (compared,) = after(make_session(), 10).pushed(arrived(3)).compared

        assert compared.baseline_db == 100
        assert compared.psnr_db < 60

    def test_a_step_after_it_is_what_the_next_one_is_compared_with(self):
        session = after(make_session(), 10, 99).pushed(arrived(10)).session
        pushed = after(session, 50).pushed(arrived(50))

        assert [each.psnr_db for each in pushed.compared] == [100]
        assert values_of(pushed.session.context) == [2, 3, 10, 50]

    def test_before_any_step_it_only_moves_the_context(self):
        pushed = make_session().pushed(arrived(20, 21))

        assert [each.psnr_db for each in pushed.compared] == [None, None]
        assert values_of(pushed.session.context) == [2, 3, 20, 21]

    def test_no_more_predictions_wait_than_a_horizon(self):
        session = make_session()
        for value in range(10, 20):
            session = after(session, value, max_ahead=3)

        assert [each.psnr_db for each in session.pushed(arrived(10, 11, 12, 13)).compared] == [100, 100, 100, None]

    def test_a_rolled_back_step_is_compared_with_nothing(self):
        session = after(after(make_session(), 10), 11).rolled_back(1)
        assert [each.psnr_db for each in session.pushed(arrived(10, 11)).compared] == [100, None]


def test_a_restart_is_the_start_with_its_steps_still_to_be_made():
    session = after(make_session(), 10).pushed(arrived(20)).session
    again = session.restarted(session.start, session.seed)

    assert (again.step_id, again.num_frames, again.steps, again.last) == (0, 0, (), None)
    assert values_of(again.context) == [0, 1, 2, 3]


class TestTurn:
    def test_the_next_step_and_one_without_a_number_are_new(self):
        session = after(make_session(), 10)
        assert not check_turn(session, StepAsk(states_of(11), step_id=2))
        assert not check_turn(session, StepAsk(states_of(10)))

    def test_the_last_step_asked_again_is_a_repeat(self):
        assert check_turn(after(make_session(), 10), StepAsk(states_of(10), step_id=1))

    @pytest.mark.parametrize("step_id", [3, 99])
    def test_a_step_that_leaves_one_out_is_refused(self, step_id):
        with pytest.raises(StepOutOfOrder) as refusal:
            check_turn(after(make_session(), 10), StepAsk(states_of(11), step_id=step_id))
        assert refusal.value.reasons[0].pointer == "/step_id"

    def test_an_old_step_and_one_with_another_content_are_refused(self):
        session = after(after(make_session(), 10), 11)
        for ask in (
            StepAsk(states_of(10), step_id=1),
            StepAsk(states_of(12), step_id=2),
            StepAsk(states_of(11), step_id=2, sampling=StepSampling(seed=1)),
            StepAsk(states_of(11), step_id=2, ensemble=EnsembleSpec(size=2)),
        ):
            with pytest.raises(StepOutOfOrder):
                check_turn(session, ask)

    def test_a_step_that_was_rolled_back_to_cannot_be_repeated(self):
        with pytest.raises(StepOutOfOrder):
            check_turn(after(after(make_session(), 10), 11).rolled_back(1), StepAsk(states_of(10), step_id=1))


def test_a_start_is_copied_so_that_no_body_is_kept_and_nobody_writes_into_it():
    frames, states = frames_of(*range(6)), states_of(*range(6))
    start = first_stretch(SessionSeed(frames, states), CONTEXT)
    frames[:] = 0

    assert values_of(start) == [2, 3, 4, 5]
    assert not start.frames.flags.writeable


def test_too_short_a_start_is_refused():
    with pytest.raises(InvalidRequest, match="few frames"):
        first_stretch(SessionSeed(frames_of(1, 2), states_of(1, 2)), CONTEXT)


def test_a_tail_that_is_one_stretch_is_not_copied():
    stretch = arrived(1, 2, 3, 4)
    assert tail([arrived(0), stretch], 4) is stretch
