"""What states are worth: each answer differs in its states alone, and a blind model shows."""

from dataclasses import asdict, replace
from functools import partial

import numpy as np
import pytest

from foreframe_engines import sample
from foreframe_server.cli.console import format_json
from foreframe_server.evaluation import clip_query, pair_clips
from foreframe_server.experiments.states import measure_states, states_chart, summarise_states
from foreframe_server.measures import psnr_db, ssim
from foreframe_server.plots import plot_curves


def report_of(predict, contract, clips):
    return summarise_states(contract, list(measure_states(predict, contract, clips)))


def test_each_answer_is_measured_frame_by_frame(rollout_engine, clips):
    contract = rollout_engine.contract
    report = report_of(partial(sample, rollout_engine), contract, clips)
    by_hand = {name: [] for name in report.answers}
    for clip, other in pair_clips(clips):
        query, truth = clip_query(contract, clip), clip.frames[4:]
        none = np.tile(contract.state.mean, (12, 1))
        for name, states in (("true_states", clip.states), ("zero_states", none), ("shuffled_states", other.states)):
            by_hand[name].append(psnr_db(sample(rollout_engine, replace(query, states=states)).frames, truth))
        by_hand["copy_last"].append(psnr_db(np.repeat(clip.frames[3:4], 8, axis=0), truth))
    for name, values in by_hand.items():
        found = [each.mean for each in report.answers[name].psnr_db]
        np.testing.assert_allclose(found, np.mean(values, axis=0), atol=1e-4)
    copied = np.mean([ssim(np.repeat(clip.frames[3:4], 8, axis=0), clip.frames[4:]) for clip in clips], axis=0)
    np.testing.assert_allclose([each.mean for each in report.answers["copy_last"].ssim], copied, atol=1e-4)


def test_differences_are_paired(rollout_engine, clips):
    report = report_of(partial(sample, rollout_engine), rollout_engine.contract, clips)
    for frame, gain in enumerate(report.true_minus_zero.psnr_db):
        true, zero = (report.answers[name].psnr_db[frame].mean for name in ("true_states", "zero_states"))
        assert gain.mean == pytest.approx(true - zero, abs=2e-5)
    assert report.true_minus_shuffled.psnr_db[-1].mean != 0


def test_a_model_that_ignores_states_shows(rollout_engine, clips):
    def blind(query):
        return sample(rollout_engine, replace(query, states=np.zeros_like(query.states)))

    report = report_of(blind, rollout_engine.contract, clips)
    for gain in (*report.true_minus_zero.psnr_db, *report.true_minus_shuffled.ssim):
        assert (gain.low, gain.mean, gain.high) == (0, 0, 0)


def test_the_report_is_json_and_a_chart(rollout_engine, clips, tmp_path):
    report = report_of(partial(sample, rollout_engine), rollout_engine.contract, clips)
    format_json(asdict(report))
    plot_curves(states_chart(report), tmp_path / "chart.png")
