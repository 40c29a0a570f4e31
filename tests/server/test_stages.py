import numpy as np
import pytest

from foreframe_engines import ModelFault
from foreframe_engines.schedule import get_schedule
from foreframe_engines.testing import ToyRolloutEngine
from foreframe_server.calls import Timings
from foreframe_server.cost_model import CostModel
from foreframe_server.jobs import Job, Member, Row
from foreframe_server.metrics import Metrics
from foreframe_server.rescue import Rescue
from foreframe_server.stages import JobStages

SHIFT = 5.0


@pytest.fixture
def stages(fake_clock):
    engine = ToyRolloutEngine()
    rescue = Rescue(Metrics(), clock=fake_clock)
    return JobStages(engine, CostModel(engine.contract.buckets), rescue, fake_clock, max_context_bytes=2**20)


@pytest.mark.parametrize("num_taken", [1, 2, 3, 4])
def test_the_estimate_of_a_straight_flow_is_its_end_after_any_step(stages, make_query, num_taken):
    job = Job("job", make_query(), get_schedule(4, SHIFT))
    data, noise = np.random.default_rng(0).standard_normal((2, 1, 2, 3, 3))
    member = Member(0, noise)
    for time in job.times[1 : num_taken + 1]:
        member.previous, member.latents = member.latents, (1 - time) * data + time * noise
        member.step += 1
    np.testing.assert_allclose(stages.point(job, member), data, atol=1e-12)


def test_a_member_without_a_step_points_nowhere(stages, make_query):
    job = Job("job", make_query(), (1.0, 0.0))
    with pytest.raises(RuntimeError, match="points nowhere"):
        stages.point(job, Member(0, np.zeros((1, 1, 1, 1), np.float32)))


def test_the_estimate_after_one_step_is_the_posterior_mean(stages, make_query):
    engine, query = ToyRolloutEngine(), make_query(steps=4)
    job = Job("job", query, get_schedule(4, SHIFT))
    stages.condition(job, Timings())
    member = job.members[0]
    stages.draw(job, [member])
    whole_way = Row(Job("mean", query, (1.0, 0.0), conditioning=job.conditioning), Member(0, member.latents))
    job.book(member, engine.step([Row(job, member).step_row()])[0])
    (mean,) = engine.step([whole_way.step_row()])
    np.testing.assert_allclose(stages.point(job, member), mean, atol=1e-5)


def test_noise_is_drawn_only_for_a_job_that_is_conditioned(stages, make_query):
    job = Job("job", make_query(), (1.0, 0.0))
    with pytest.raises(RuntimeError, match="before the job was conditioned"):
        stages.draw(job, job.members)


def test_a_step_is_told_the_times_before_it_and_the_guidance(stages, make_query):
    job = Job("job", make_query(steps=3), get_schedule(3, SHIFT))
    stages.condition(job, Timings())
    member = job.members[0]
    stages.draw(job, [member])
    member.step = 2
    row = Row(job, member).step_row()
    assert (*row.earlier_times, row.time, row.next_time) == job.times
    assert row.guidance == 1.0


def test_encoded_contexts_that_are_not_finite_are_refused_and_not_kept(stages, make_query, monkeypatch):
    engine, context = stages._engine, make_query().context
    sound = engine.encode(context)
    monkeypatch.setattr(engine, "encode", lambda _: np.full_like(sound, np.nan))
    with pytest.raises(ModelFault, match="not finite"):
        stages.encode(context)
    monkeypatch.undo()
    assert np.array_equal(stages.encode(context), sound)


def test_latents_that_are_not_finite_are_not_decoded_even_where_no_frame_shows_them(stages, make_query):
    job = Job("job", make_query(frame_indices=(1,)), (1.0, 0.0))
    latents = np.zeros((12, 3, 4, 4), np.float32)
    latents[-1, 0, 0, 0] = np.inf
    with pytest.raises(ModelFault, match="not finite"):
        stages.decode(job, [latents], Timings())
