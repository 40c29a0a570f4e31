"""The numbers of an evaluation: against hand computations, planted models and a type checker."""

import subprocess
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from foreframe_engines import DatasetError, NoisePlan, Strategy, sample, summarise
from foreframe_engines.episodes import Clip
from foreframe_engines.testing import ToyRolloutEngine
from foreframe_server.evaluation import (
    ENSEMBLE_SIZES,
    LARGEST,
    clip_query,
    measure_clips,
    measure_noise_plans,
    measure_reconstruction,
    pair_clips,
    psnr,
    squared_errors,
    summarise_measures,
)

ENGINE = ToyRolloutEngine()
CONTRACT = ENGINE.contract
CONTEXT, HORIZON = CONTRACT.context_frames, CONTRACT.horizon
SHAPE = (CONTEXT + HORIZON, 8, 8)


def make_clip(seed, *, start=0, mask_rows=2):
    rng = np.random.default_rng((seed, start))
    masks = np.zeros(SHAPE, np.uint8)
    masks[:, :mask_rows] = 3
    states = rng.standard_normal((SHAPE[0], 3), dtype=np.float32)
    return Clip(seed, start, rng.integers(0, 256, (*SHAPE, 3), dtype=np.uint8), states, masks)


CLIPS = [make_clip(8_000_000), make_clip(8_000_001, mask_rows=5)]


class Recorder:
    """Passes queries on and keeps them."""

    def __init__(self, predict):
        self.predict, self.queries = predict, []

    def __call__(self, query):
        self.queries.append(query)
        return self.predict(query)


def report_of(predict, clips=CLIPS):
    return summarise_measures(CONTRACT, list(measure_clips(predict, CONTRACT, clips)), 40.0)


def members_around(centres, deviation, rng):
    """Answer like a model that knows each clip's centre and draws around it; frames differ a clip, not a query."""

    def predict(query):
        centre = centres[query.sampling.seed]
        drawn = rng.normal(centre, deviation, (query.ensemble.size, HORIZON, 8, 8, 3))
        members = np.clip(np.round(drawn), 0, 255).astype(np.uint8)
        return summarise(members, query.frame_indices, query.sampling, replace(query.ensemble, noise=NoisePlan.IID))

    return predict


def reliable_world(rng, count, deviation):
    """Make clips whose truth is one more draw of the same distribution that `members_around` draws from."""
    clips = [make_clip(8_000_000 + index) for index in range(count)]
    centres = {}
    for clip in clips:
        centre = rng.uniform(80, 170, (HORIZON, 8, 8, 3))
        clip.frames[CONTEXT:] = np.round(rng.normal(centre, deviation)).astype(np.uint8)
        centres[clip_query(CONTRACT, clip).sampling.seed] = centre
    return clips, centres


def test_psnr_is_the_mean_of_each_errors_own():
    assert psnr([0.01, 0.0001]) == 30.0
    assert psnr([0.0]) == 100.0


def test_squared_errors_are_a_frame_each_where_white_is_one():
    truth = np.zeros((2, 4, 4, 3), np.uint8)
    frames = truth.copy()
    frames[1, 0, 0] = 255
    np.testing.assert_allclose(squared_errors(frames, truth), [0, 1 / 16])


def test_copying_is_measured_as_by_hand():
    report = report_of(partial(sample, ENGINE))
    by_hand = []
    for clip in CLIPS:
        last_seen, last = clip.frames[CONTEXT - 1].astype(float), clip.frames[-1].astype(float)
        by_hand.append(10 * np.log10(255**2 / ((last_seen - last) ** 2).mean()))
    assert report.psnr_copy_last == pytest.approx(np.mean(by_hand), abs=1e-3)
    assert report.curves["copy_last"][-1] == report.psnr_copy_last


def test_the_curve_of_ensembles_is_that_of_prefixes():
    report = report_of(partial(sample, ENGINE))
    assert tuple(report.psnr_ensemble) == ENSEMBLE_SIZES
    assert report.psnr_ensemble[1] == report.psnr_sample
    by_hand = []
    for clip in CLIPS:
        mean = sample(ENGINE, clip_query(CONTRACT, clip, LARGEST)).members[:5, -1].astype(float).mean(axis=0)
        by_hand.append(10 * np.log10(255**2 / ((mean - clip.frames[-1]) ** 2).mean()))
    assert report.psnr_ensemble[5] == pytest.approx(np.mean(by_hand), abs=1e-3)


def test_each_comparison_changes_one_thing():
    recorder = Recorder(partial(sample, ENGINE))
    report_of(recorder)
    drawn, posterior, no_states, shuffled = recorder.queries[:4]
    assert drawn.ensemble.size == LARGEST
    assert posterior.sampling.strategy is Strategy.POSTERIOR_MEAN
    np.testing.assert_array_equal(no_states.states, np.tile(CONTRACT.state.mean, (SHAPE[0], 1)))
    np.testing.assert_array_equal(shuffled.states, CLIPS[1].states)
    for query in (posterior, no_states, shuffled):
        np.testing.assert_array_equal(query.context, CLIPS[0].frames[:CONTEXT])
        assert query.sampling.seed == drawn.sampling.seed
        assert query.ensemble.size == 1


def test_a_model_that_ignores_states_shows():
    blind = report_of(lambda query: sample(ENGINE, replace(query, states=np.zeros_like(query.states))))
    assert blind.psnr_zero_states == blind.psnr_shuffled_states == blind.psnr_sample
    seeing = report_of(partial(sample, ENGINE))
    assert seeing.psnr_zero_states != seeing.psnr_sample
    assert seeing.psnr_shuffled_states != seeing.psnr_sample


def test_states_are_borrowed_from_another_episode():
    clips = [make_clip(seed, start=start) for seed in (1, 2) for start in range(3)]
    clips.insert(0, make_clip(1, start=9))
    for clip, other in pair_clips(clips):
        assert other.seed != clip.seed


def test_clips_of_one_episode_are_refused():
    with pytest.raises(DatasetError, match="two episodes"):
        list(pair_clips([make_clip(1, start=start) for start in range(4)]))


def test_errors_inside_masks_are_pooled_over_pixels():
    report = report_of(partial(sample, ENGINE))
    total, pixels = 0.0, 0
    for clip in CLIPS:
        first = sample(ENGINE, clip_query(CONTRACT, clip, LARGEST)).members[0, -1].astype(float)
        inside = clip.masks[-1] > 0
        total += (((first - clip.frames[-1]) / 255) ** 2).mean(axis=-1)[inside].sum()
        pixels += inside.sum()
    assert report.psnr_in_masks[1] == pytest.approx(-10 * np.log10(total / pixels), abs=1e-3)


def test_without_a_mask_there_is_nothing_to_say_about_masks():
    report = report_of(partial(sample, ENGINE), [make_clip(1, mask_rows=0), make_clip(2, mask_rows=0)])
    assert report.psnr_in_masks is None
    assert report.variance_in_masks_over_outside is None


def test_the_variance_ratio_compares_a_pixel_inside_with_one_outside():
    deviation = np.full((HORIZON, 8, 8, 3), 4.0)
    deviation[:, :2] = 16.0
    rng = np.random.default_rng(0)
    clips, centres = reliable_world(rng, 8, 5.0)
    report = report_of(members_around(centres, deviation, rng), clips)
    assert report.variance_in_masks_over_outside == pytest.approx(16, rel=0.1)


@pytest.mark.parametrize("told", [5.0, 10.0, 20.0])
def test_spread_skill_is_one_for_the_right_spread_and_tells_wrong_ones(told):
    rng, true = np.random.default_rng(0), 10.0
    clips, centres = reliable_world(rng, 12, true)
    report = report_of(members_around(centres, told, rng), clips)
    expected = np.sqrt((LARGEST + 1) / LARGEST * told**2 / (true**2 + told**2 / LARGEST))
    assert {5.0: expected < 0.6, 10.0: expected == 1, 20.0: expected > 1.8}[told]
    np.testing.assert_allclose(report.spread_skill, np.full(HORIZON, expected), rtol=0.06)


def test_reconstruction_predicts_nothing():
    blocks = np.random.default_rng(0).integers(0, 256, (SHAPE[0], 4, 4, 3), dtype=np.uint8)
    clip = replace(CLIPS[0], frames=blocks.repeat(2, axis=1).repeat(2, axis=2))
    assert measure_reconstruction(ENGINE, [clip]) > 50
    assert measure_reconstruction(ENGINE, CLIPS) < 20  # noise does not survive the toy's pooling


def test_noise_plans_are_compared_by_the_error_of_their_means():
    plans = measure_noise_plans(ENGINE, iter(CLIPS), 128)
    assert (plans.clips, plans.reference_members) == (2, 128)
    assert plans.iid[20] < plans.iid[4]
    assert plans.antithetic[10] < plans.iid[10]
    assert plans.pair_correlation < -0.5


def test_arrays_are_what_the_annotations_say():
    code = """
import numpy as np
from functools import partial
from jaxtyping import install_import_hook
with install_import_hook(["foreframe_server.evaluation", "foreframe_server.pictures"], "beartype.beartype"):
    from foreframe_server import evaluation, pictures
from foreframe_engines import sample
from foreframe_engines.episodes import Clip
from foreframe_engines.testing import ToyRolloutEngine
engine, rng = ToyRolloutEngine(), np.random.default_rng(0)
frames, states = rng.integers(0, 256, (12, 8, 8, 3), dtype=np.uint8), rng.standard_normal((12, 3), dtype=np.float32)
clips = [Clip(seed, 0, frames, states, (frames[..., 0] > 99).astype(np.uint8)) for seed in (1, 2)]
list(evaluation.measure_clips(partial(sample, engine), engine.contract, clips))
evaluation.measure_reconstruction(engine, clips)
evaluation.measure_noise_plans(engine, clips[:1], 16)
drawn = sample(engine, evaluation.clip_query(engine.contract, clips[0], 4))
drawing = pictures.Drawing(clips[0], "mean of 4", drawn.frames, drawn.members[0], drawn.variance)
pictures.contact_sheet([drawing], fps=10.0, title="")
pictures.film([drawing], fps=10.0)
pictures.strip(drawing, fps=10.0, title="")
try:
    pictures.HeatScale(1.0).paint(drawn.variance)
except Exception as error:
    print(type(error).__name__)
"""
    # -B: what a hooked import imports in passing would be kept unchecked, where a later hook takes it for checked.
    done = subprocess.run([sys.executable, "-B", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "TypeCheckError"), done.stderr[-2000:]
