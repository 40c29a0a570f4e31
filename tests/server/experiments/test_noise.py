"""Noise plans compared on members whose law is known, and on the toy; the whole report and its chart."""

from dataclasses import asdict, replace
from functools import partial

import numpy as np
import pytest

from foreframe_engines import NoisePlan, Query, sample, summarise
from foreframe_server.cli.console import format_json
from foreframe_server.evaluation import clip_query
from foreframe_server.experiments.noise import Scale, measure_noise, summarise_noise
from foreframe_server.experiments.noise_chart import noise_chart
from foreframe_server.plots import plot_curves

FEW = Scale(reference_members=64, drawn=8, sizes=(1, 2, 4, 8), steps=(1, 2, 8), evaluations=(2, 4))
SIGMA, RHO = 12.0, -0.8
PLACES = (16, 16, 3)


def draw_law(query: Query, mean: float, sigma: np.ndarray | float = SIGMA) -> np.ndarray:
    """Members around a mean, of correlation RHO within antithetic pairs and 0 otherwise."""
    plan, size = query.ensemble.noise, query.ensemble.size
    rng = np.random.default_rng((query.sampling.seed, query.sampling.steps, list(NoisePlan).index(plan)))
    first, other = rng.standard_normal((2, (size + 1) // 2, 1, *PLACES))
    correlation = RHO if plan is NoisePlan.ANTITHETIC else 0.0
    second = correlation * first + np.sqrt(1 - correlation**2) * other
    noise = np.stack([first, second], axis=1).reshape(-1, 1, *PLACES)[:size]
    return np.rint(mean + sigma * noise).clip(0, 255).astype(np.uint8)


def predict_law(query: Query):
    return summarise(draw_law(query, 128), query.frame_indices, query.sampling, query.ensemble)


def with_mask(clip, columns):
    masks = clip.masks.copy()
    masks[..., :columns] = 1
    return replace(clip, masks=masks)


@pytest.fixture
def many(make_clip):
    """Clips of 30 episodes; one of them has no uncertain pixel."""
    return [with_mask(make_clip(8_000_000 + episode), 4 if episode else 0) for episode in range(30)]


def report_of(predict, contract, clips, scale=FEW):
    return summarise_noise(contract, list(measure_noise(predict, contract, clips, scale)), scale.reference_members)


def found(region, plan, members):
    (one,) = (each for each in region.errors if (each.noise, each.members) == (plan, members))
    return one


def test_the_error_of_the_mean_is_that_of_the_law(rollout_engine, many):
    report = report_of(predict_law, rollout_engine.contract, many)
    for region in (report.overall, report.inside_masks):
        for size in FEW.sizes:
            gain = 1 + RHO if size > 1 else 1
            assert found(region, "antithetic", size).error.mean == pytest.approx(gain * SIGMA**2 / size, rel=0.1)
            assert found(region, "iid", size).error.mean == pytest.approx(SIGMA**2 / size, rel=0.1)
        assert found(region, "antithetic", 2).over_largest_iid.mean == pytest.approx(4 * (1 + RHO), rel=0.1)
        assert found(region, "iid", 8).over_largest_iid.mean == 1
        assert region.correlation.mean == pytest.approx(RHO, abs=0.02)


def test_standard_errors_that_ensembles_claim_are_true(rollout_engine, many):
    region = report_of(predict_law, rollout_engine.contract, many).overall
    for plan, sizes in (("antithetic", (4, 8)), ("iid", (2, 4, 8))):
        for size in sizes:
            assert found(region, plan, size).claimed_over_true.mean == pytest.approx(1, abs=0.1)
    assert found(region, "antithetic", 2).claimed_over_true is None
    assert found(region, "iid", 1).claimed_over_true is None


def test_the_spread_of_pairs_is_unbiased_from_two_pairs_on(rollout_engine, many):
    spread = {
        each.members: each.ratio.mean for each in report_of(predict_law, rollout_engine.contract, many).overall.spread
    }
    assert spread[4] == pytest.approx(1, abs=0.02)
    assert spread[8] == pytest.approx(1, abs=0.02)
    # One pair cannot tell its correlation and takes it for -1: the root of (1 - rho) / 2.
    assert spread[2] == pytest.approx(np.sqrt(0.9), abs=0.02)


def test_members_that_spread_in_the_masks_alone_err_there_alone(rollout_engine, many):
    sigma = np.zeros(PLACES)
    sigma[:, :4] = SIGMA

    def predict(query):
        return summarise(draw_law(query, 128, sigma), query.frame_indices, query.sampling, query.ensemble)

    report = report_of(predict, rollout_engine.contract, many)
    inside, overall = (found(region, "iid", 4).error.mean for region in (report.inside_masks, report.overall))
    assert report.inside_masks.clips == 29
    assert inside == pytest.approx(SIGMA**2 / 4, rel=0.1)
    assert overall == pytest.approx(inside / 4, rel=0.05)


def test_the_reference_shares_no_draw_with_what_is_measured(rollout_engine, many):
    """Were it one of the reference's own draws, a single member would seem nearer than it is."""
    asked = []

    def predict(query):
        asked.append(query)
        return predict_law(query)

    report_of(predict, rollout_engine.contract, many[:2])
    reference = {query.sampling.seed for query in asked if query.ensemble.size == 64}
    others = {query.sampling.seed for query in asked if query.ensemble.size != 64}
    assert len(reference) == len(others) == 2
    assert not reference & others


def test_evaluations_are_spent_in_every_way_that_fits(rollout_engine, clips):
    def predict(query):
        """The truth plus what few steps miss; more members average their own noise away."""
        offset = 16 / query.sampling.steps
        return summarise(draw_law(query, 128 + offset), query.frame_indices, query.sampling, query.ensemble)

    grey = [replace(clip, frames=np.full_like(clip.frames, 128)) for clip in clips]
    report = report_of(predict, rollout_engine.contract, grey)
    spent = {(each.noise, each.members, each.steps) for each in report.spent}
    ways = {(2, 1), (4, 1), (1, 2), (2, 2)}
    assert spent == {(plan.value, *way) for plan in NoisePlan for way in ways}
    assert [each.evaluations for each in report.best_by_psnr] == [2, 4]
    assert {(each.noise, each.members, each.steps) for each in report.best_by_psnr[1:]} == {("antithetic", 2, 2)}
    bias = (16 - 16 / rollout_engine.contract.sampler.steps) ** 2
    (one_step,) = (each for each in report.spent if (each.noise, each.members, each.steps) == ("iid", 4, 1))
    assert one_step.error.mean == pytest.approx(bias + SIGMA**2 / 4, rel=0.05)


def test_without_uncertain_pixels_there_is_nothing_inside(rollout_engine, clips):
    assert report_of(partial(sample, rollout_engine), rollout_engine.contract, clips).inside_masks is None


def test_the_report_is_json_and_one_chart_of_four_panels(rollout_engine, many, tmp_path):
    report = report_of(partial(sample, rollout_engine), rollout_engine.contract, many[:4])
    format_json(asdict(report))
    chart = noise_chart(report)
    assert [len(panel["series"]) for panel in chart["panels"]] == [4, 2, 4, 4]
    plot_curves(chart, tmp_path / "chart.png")


def test_a_clip_is_measured_as_its_own_query(rollout_engine, clips):
    contract, asked = rollout_engine.contract, []

    def predict(query):
        asked.append(query)
        return sample(rollout_engine, query)

    report_of(predict, contract, clips[:1])
    own = clip_query(contract, clips[0])
    assert {query.frame_indices for query in asked} == {(contract.horizon,)}
    assert own.sampling.seed in {query.sampling.seed for query in asked}
