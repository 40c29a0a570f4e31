"""Strategies and sizes: members drawn once a plan, prefixes of them, measured at the last frame and over all."""

from dataclasses import asdict, replace
from functools import partial

import numpy as np
import pytest

from foreframe_engines import EnsembleSpec, NoisePlan, Reducer, Strategy, reduce_members, sample, summarise
from foreframe_server.cli.console import format_json
from foreframe_server.evaluation import clip_query
from foreframe_server.experiments.ensembles import SIZES, ensembles_chart, measure_ensembles, summarise_ensembles
from foreframe_server.measures import gradient_energy, psnr_db
from foreframe_server.plots import plot_curves

FEW = (1, 2, 6)


def report_of(predict, contract, clips):
    return summarise_ensembles(contract, list(measure_ensembles(predict, contract, clips, FEW)))


def answer_of(report, strategy, size=1, noise=None):
    (found,) = (
        each
        for each in report.answers
        if (each.strategy, each.size) == (strategy, size) and noise in {None, each.noise}
    )
    return found


def test_a_smaller_ensemble_is_the_first_members(rollout_engine, clips):
    contract = rollout_engine.contract
    report = report_of(partial(sample, rollout_engine), contract, clips)
    for plan in NoisePlan:
        for reducer in (Reducer.MEAN, Reducer.MEDIAN, Reducer.MEDOID):
            by_hand = []
            for clip in clips:
                query = clip_query(contract, clip, 6)
                drawn = sample(rollout_engine, replace(query, ensemble=EnsembleSpec(6, noise=plan)))
                frames = reduce_members(drawn.members[:2], EnsembleSpec(2, reducer, plan))
                by_hand.append(psnr_db(frames, clip.frames[4:]))
            found = answer_of(report, reducer.value, 2, plan.value)
            assert found.last_frame.psnr_db.mean == pytest.approx(np.mean(by_hand, axis=0)[-1], abs=1e-4)
            assert found.all_frames.psnr_db.mean == pytest.approx(np.mean(by_hand), abs=1e-4)
            assert found.evaluations == 2 * contract.sampler.steps
            single = answer_of(report, "sample", 1, plan.value).last_frame.psnr_db.mean
            assert found.psnr_gain_db.mean == pytest.approx(found.last_frame.psnr_db.mean - single, abs=2e-5)


def test_members_are_drawn_once_for_each_plan(rollout_engine, clips):
    asked = []

    def predict(query):
        asked.append((query.sampling.strategy, query.ensemble.size, query.ensemble.noise))
        return sample(rollout_engine, query)

    report_of(predict, rollout_engine.contract, clips[:1])
    sample_, posterior = Strategy.SAMPLE, Strategy.POSTERIOR_MEAN
    assert sorted(asked) == [
        (posterior, 1, NoisePlan.ANTITHETIC),
        (sample_, 6, NoisePlan.ANTITHETIC),
        (sample_, 6, NoisePlan.IID),
    ]


def test_sharpness_is_the_energy_over_that_of_the_truth(rollout_engine, clips):
    report = report_of(partial(sample, rollout_engine), rollout_engine.contract, clips)
    copied = np.mean([gradient_energy(clip.frames[3:4]) for clip in clips])
    true = np.mean([gradient_energy(clip.frames[-1:]) for clip in clips])
    sharpness = answer_of(report, "copy_last", 0).last_frame.sharpness_ratio
    assert sharpness.mean == pytest.approx(copied / true, abs=1e-4)


def test_averaging_gains_psnr_and_loses_sharpness_where_it_must(rollout_engine, clips):
    """Members that are the truth and independent noise: the law is known."""
    rng = np.random.default_rng(0)
    truths = {clip_query(rollout_engine.contract, clip).sampling.seed: clip.frames[4:] for clip in clips}

    def predict(query):
        truth = truths[query.sampling.seed].astype(float)
        drawn = rng.normal(np.clip(truth, 60, 195), 20, (query.ensemble.size, *truth.shape))
        members = np.clip(np.round(drawn), 0, 255).astype(np.uint8)
        return summarise(members, query.frame_indices, query.sampling, query.ensemble)

    report = report_of(predict, rollout_engine.contract, clips)
    single, mean, medoid = (
        answer_of(report, *key) for key in (("sample", 1, "iid"), ("mean", 6, "iid"), ("medoid", 6, "iid"))
    )
    assert mean.last_frame.psnr_db.low > single.last_frame.psnr_db.high
    assert mean.last_frame.sharpness_ratio.high < single.last_frame.sharpness_ratio.low
    assert mean.last_frame.ssim.mean > single.last_frame.ssim.mean
    assert medoid.last_frame.sharpness_ratio.mean == pytest.approx(single.last_frame.sharpness_ratio.mean, rel=0.1)


def test_the_report_is_json_and_one_chart_of_three_panels(rollout_engine, clips, tmp_path):
    report = report_of(partial(sample, rollout_engine), rollout_engine.contract, clips)
    format_json(asdict(report))
    chart = ensembles_chart(report)
    assert len(chart["panels"]) == 3
    for panel in chart["panels"]:
        assert [len(curve["x"]) for curve in panel["series"]] == [3] * 6 + [2]
    plot_curves(chart, tmp_path / "chart.png")


def test_sizes_beyond_the_serving_limit_are_drawn(rollout_engine, clips):
    contract = rollout_engine.contract
    (measured,) = measure_ensembles(partial(sample, rollout_engine), contract, clips[:1])
    assert SIZES[-1] > contract.sampler.max_ensemble_size
    assert {answer.size for answer in measured.answers if answer.strategy == "mean"} == set(SIZES[1:])
