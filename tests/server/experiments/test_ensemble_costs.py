"""Quality against cost on the toy: every way to spend is measured and timed, in turns."""

from functools import partial

import numpy as np
import pytest

from foreframe_engines import sample
from foreframe_server.cli.console import format_json
from foreframe_server.experiments.ensemble_costs import CostPlan, Size, report_costs, sizes_of, time_sizes
from foreframe_server.experiments.noise import Scale, last_frame_query, measure_noise, measure_spent

SCALE = Scale(reference_members=16, drawn=8, sizes=(1, 2), steps=(1, 2), evaluations=(2, 4))


def test_each_way_to_spend_has_quality_and_time(rollout_engine, clips):
    contract = rollout_engine.contract
    measured = [measure_spent(partial(sample, rollout_engine), contract, clip, SCALE) for clip in clips]
    sizes = sizes_of(measured[0])
    assert set(sizes) == {Size(2, 1), Size(4, 1), Size(1, 2), Size(2, 2)}
    taken = {size: [1.0 * size.members * size.steps] * 3 for size in sizes}
    report = report_costs(contract, CostPlan(len(clips), SCALE, 3), [clip.seed for clip in clips], measured, taken)
    costs = report.record["costs"]
    assert len(costs) == 8
    assert all(cost["ms"] == cost["evaluations"] for cost in costs)
    assert [best["evaluations"] for best in report.record["best_by_psnr"]] == [2, 4]
    assert len(report.samples) == 4 + 8
    format_json(report.record)


def test_what_is_measured_is_what_the_experiment_on_noise_measures(rollout_engine, clips):
    predict = partial(sample, rollout_engine)
    (whole,) = measure_noise(predict, rollout_engine.contract, clips[:1], SCALE)
    assert measure_spent(predict, rollout_engine.contract, clips[0], SCALE) == whole.spent


def test_sizes_are_timed_in_turns(rollout_engine, clips):
    asked, ticks = [], iter(np.arange(100.0))
    query = last_frame_query(rollout_engine.contract, clips[0])
    sizes = [Size(1, 2), Size(3, 1)]
    taken = time_sizes(
        lambda each: asked.append((each.ensemble.size, each.sampling.steps)), query, sizes, 2, lambda: next(ticks)
    )
    assert asked == [(1, 2), (3, 1)] * 3
    assert all(times == pytest.approx([1000, 1000]) for times in taken.values())
