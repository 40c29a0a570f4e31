"""The bundle that ships: its size, its contract, its held-out clips, and that both runtimes agree on it."""

from dataclasses import fields
from itertools import pairwise

import numpy as np
import pytest

from foreframe_engines import (
    Bundle,
    Contract,
    EnsembleSpec,
    Query,
    Sampling,
    StepRow,
    Strategy,
    builtin_bundle,
    get_schedule,
    member_noise,
    open_rollout_engine,
    sample,
)
from foreframe_engines.episodes import FIRST_TEST_SEED, load_clips
from foreframe_engines.likelihood import open_likelihood_engine
from foreframe_engines.reading import read_history, teacher_forced
from foreframe_models.embedded import embedded_contract
from foreframe_models.reference import load_models, open_reference_engine, open_reference_likelihood_engine
from foreframe_models.rollout import eve_tabletop_config
from foreframe_models.st_transformer import eve_tabletop_st_config

MAX_WEIGHT_BYTES = 32 * 10**6
MAX_LIKELIHOOD_WEIGHTS = 6 * 10**6
MAX_CLIP_BYTES = 2 * 10**6


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.open(builtin_bundle())


def test_weights_and_clips_are_small_enough_to_ship(bundle: Bundle) -> None:
    assert (bundle.path / "model.safetensors").stat().st_size <= MAX_WEIGHT_BYTES
    assert (bundle.path / "clips.npz").stat().st_size <= MAX_CLIP_BYTES


def test_the_clips_are_held_out_and_fit_the_contract(bundle: Bundle) -> None:
    clips = load_clips(bundle.path / "clips.npz")
    assert len(clips) >= 16
    assert len({clip.seed for clip in clips}) >= 16
    for clip in clips:
        assert clip.seed >= FIRST_TEST_SEED
        assert clip.frames.shape == (12, 64, 64, 3)
        assert clip.states.shape == (12, bundle.contract.state.dim)


def test_the_contract_is_what_the_exporter_writes_today(bundle: Bundle) -> None:
    shipped = bundle.contract
    models = load_models(bundle.path)
    assert models.config.rollout == eve_tabletop_config()
    assert models.config.likelihood == eve_tabletop_st_config()
    written = embedded_contract(models, bundle.statistics, shipped.revision)
    assert written.state.names == shipped.state.names
    for field in fields(Contract):
        if field.name != "state":
            assert getattr(written, field.name) == getattr(shipped, field.name)


def test_the_likelihood_half_is_small_and_can_be_scored_against_what_is_usual(bundle: Bundle) -> None:
    models = load_models(bundle.path)
    assert models.tokens is not None
    assert sum(tensor.numel() for tensor in models.tokens.likelihood.state_dict().values()) <= MAX_LIKELIHOOD_WEIGHTS
    assert bundle.calibration.surprise is not None
    assert bundle.calibration.surprise.std > 0


def test_zeroed_states_are_the_training_mean(bundle: Bundle) -> None:
    models = load_models(bundle.path)
    assert models.tokens is not None
    for model in (models.rollout, models.tokens.likelihood):
        np.testing.assert_allclose(model.states_mean.numpy(), bundle.contract.state.mean, atol=1e-3)


def test_the_card_says_data_recipe_time_and_quality(bundle: Bundle) -> None:
    card = (bundle.path / "README.md").read_text(encoding="utf-8")
    for word in (
        "episodes",
        "foreframe train rollout",
        "foreframe train likelihood",
        "min on",
        "psnr_posterior_mean",
        "Limits",
    ):
        assert word in card


def test_onnx_runtime_equals_torch_from_the_same_noise(bundle: Bundle) -> None:
    engines = open_rollout_engine(bundle, num_threads=1), open_reference_engine(bundle.path)
    clip = load_clips(bundle.path / "clips.npz")[0]
    latents = []
    for engine in engines:
        conditioning = engine.condition(engine.encode(clip.frames[:4]), clip.states)
        noise = member_noise(1, 0, engine.noise_shape(), EnsembleSpec().noise)
        member = engine.initial_latents(conditioning, noise)
        times = get_schedule(8, bundle.contract.sampler.shift)
        for time, next_time in pairwise(times):
            (member,) = engine.step([StepRow(member, time, next_time, conditioning)])
        latents.append(member)
    assert np.abs(latents[0] - latents[1]).max() <= 1e-3
    query = Query("eve-tabletop", clip.frames[:4], clip.states, (1, 8), Sampling(Strategy.POSTERIOR_MEAN, 1, 1))
    ours, theirs = (sample(engine, query).frames.astype(int) for engine in engines)
    assert np.abs(ours - theirs).max() <= 1


def test_the_likelihood_half_gives_the_same_on_both_runtimes(bundle: Bundle) -> None:
    engines = open_likelihood_engine(bundle, num_threads=1), open_reference_likelihood_engine(bundle.path)
    clip = load_clips(bundle.path / "clips.npz")[0]
    ours, theirs = (engine.tokenize(clip.frames) for engine in engines)
    assert (ours == theirs).mean() > 0.999  # an id may turn where a latent lies on the edge of a level
    assert len(np.unique(ours)) > 50
    scores = []
    for engine in engines:
        context = read_history(engine, theirs[:4], clip.states[:4])
        scores.append(teacher_forced(engine, context, theirs[4:], clip.states[4:]).log_probability)
    assert np.abs(scores[0] - scores[1]).max() <= 1e-3
    assert scores[0].mean() > -np.log(bundle.contract.tokens.vocabulary) + 2.0  # better than guessing
