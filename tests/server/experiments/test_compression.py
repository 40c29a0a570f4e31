"""The compression table: against hand computations and planted models."""

import math
from dataclasses import asdict, replace
from itertools import pairwise

import numpy as np
import pytest

from foreframe_engines import DatasetError
from foreframe_engines.nats import TopKDefinition
from foreframe_engines.reading import greedy_rollout, read_history, teacher_forced
from foreframe_engines.testing import ToyLikelihoodEngine
from foreframe_server.cli.console import format_json
from foreframe_server.experiments.compression import Setting, compression_chart, measure_costs, summarise_costs
from foreframe_server.experiments.token_clips import Split
from foreframe_server.plots import plot_curves
from foreframe_server.token_baselines import Places, fit_baselines

SPLIT = Split(4, 8)


class Blind(ToyLikelihoodEngine):
    """Sees no states."""

    def read(self, rows):
        return super().read([replace(row, states=np.zeros_like(row.states)) for row in rows])


class Knowing(ToyLikelihoodEngine):
    """Gives every target a quarter."""

    def read(self, rows):
        scores = super().read(rows)
        return [replace(score, log_probability=np.full_like(score.log_probability, math.log(0.25))) for score in scores]


def setting_for(engine, clips, top_k=2):
    train = [engine.tokenize(clip.frames) for clip in clips]
    return Setting(SPLIT, fit_baselines(train, train[::2], engine.tokens.vocabulary), train, top_k)


def report_of(engine, clips):
    setting = setting_for(engine, clips)
    return summarise_costs(engine, list(measure_costs(engine, clips, setting)), setting)


def test_costs_are_those_of_the_plain_loop(likelihood_engine, clips):
    report, engine = report_of(likelihood_engine, clips), likelihood_engine
    true, greedy = [], []
    for clip in clips:
        ids = engine.tokenize(clip.frames)
        context = read_history(engine, ids[:4], clip.states[:4])
        true.append(-teacher_forced(engine, context, ids[4:], clip.states[4:]).log_probability)
        greedy.append(-greedy_rollout(engine, context, clip.states[4:], ids[4:]).log_probability)
    assert report.teacher_forced.mean == pytest.approx(np.mean(true), abs=1e-5)
    assert report.autoregressive.mean == pytest.approx(np.mean(greedy), abs=1e-5)
    by_step = np.mean(true, axis=(0, 2))
    np.testing.assert_allclose([each.mean for each in report.teacher_forced_per_step], by_step, atol=1e-5)
    assert report.autoregressive_per_step[0] == report.teacher_forced_per_step[0]
    gap = report.autoregressive_minus_teacher_forced.mean
    assert gap == pytest.approx(np.mean(greedy) - np.mean(true), abs=1e-5)
    assert (report.clips, report.episodes) == (6, 3)


def test_states_are_replaced_in_context_and_target(likelihood_engine, clips):
    report, engine = report_of(likelihood_engine, clips), likelihood_engine
    zero = []
    for clip in clips:
        ids, states = engine.tokenize(clip.frames), np.tile(engine.contract.state.mean, (12, 1))
        context = read_history(engine, ids[:4], states[:4])
        zero.append(-teacher_forced(engine, context, ids[4:], states[4:]).log_probability)
    assert report.states.zero_states.mean == pytest.approx(np.mean(zero), abs=1e-5)
    difference = report.states.zero_minus_true.mean
    assert difference == pytest.approx(np.mean(zero) - report.teacher_forced.mean, abs=2e-5)
    assert report.states.shuffled_minus_true.mean != 0


def test_a_model_that_ignores_states_shows(likelihood_engine, clips):
    states = report_of(Blind(likelihood_engine.contract), clips).states
    for difference in (states.zero_minus_true, states.shuffled_minus_true):
        assert (difference.mean, difference.low, difference.high) == (0, 0, 0)


def test_baselines_are_scored_on_the_same_tokens(likelihood_engine, clips):
    report = report_of(likelihood_engine, clips)
    setting = setting_for(likelihood_engine, clips)
    places = [(ids[3:-1], ids[4:]) for ids in setting.train]
    for baseline in setting.baselines:
        by_hand = np.mean([baseline.nats(Places(previous, ids)) for previous, ids in places])
        assert report.baselines[baseline.name].nats_per_token.mean == pytest.approx(by_hand, abs=1e-5)
    assert report.baselines["uniform"].nats_per_token.mean == pytest.approx(math.log(6), abs=1e-5)


def test_what_a_model_saves_is_a_share_of_the_baseline(likelihood_engine, clips):
    report = report_of(Knowing(likelihood_engine.contract), clips)
    saved = report.baselines["uniform"].saved_by_model_ratio
    assert saved.mean == pytest.approx(1 - math.log(4) / math.log(6), abs=1e-4)
    assert report.code_length.bits_per_token.mean == pytest.approx(2, abs=1e-4)
    assert report.code_length.bits_per_frame.mean == pytest.approx(2 * 4, abs=1e-4)
    assert report.code_length.bits_per_pixel.mean == pytest.approx(2 * 4 / 16**2, abs=1e-4)
    assert report.code_length.flat_bits_per_pixel == pytest.approx(math.log2(6) * 4 / 16**2, abs=1e-4)


def test_every_definition_of_top_k_stands_in_the_table(likelihood_engine, clips):
    report = report_of(likelihood_engine, clips)
    found = {each.definition: each for each in report.top_k_teacher_forced}
    assert set(found) == set(TopKDefinition)
    full = found[TopKDefinition.FULL_VOCABULARY]
    assert full.value == pytest.approx(report.teacher_forced.mean, abs=1e-4)
    assert full.k == 2
    assert 0 < full.escape_mass < 1
    assert found[TopKDefinition.TOPK_RENORMALISED].value < full.value


def test_the_tokenizer_is_described(likelihood_engine, clips):
    report = report_of(likelihood_engine, clips)
    ids = np.stack([likelihood_engine.tokenize(clip.frames) for clip in clips])
    _, counts = np.unique(ids, return_counts=True)
    shares = counts / counts.sum()
    assert report.tokenizer.ids_used_train == report.tokenizer.ids_used_test == len(counts)
    assert report.tokenizer.perplexity_train == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), abs=0.1)
    repeated = np.mean([(before == after).mean() for clip in ids for before, after in pairwise(clip)])
    assert report.tokenizer.repeated_from_previous_grid_ratio.mean == pytest.approx(repeated, abs=1e-5)
    assert 5 < report.tokenizer.psnr_db.mean < 30


def test_windows_of_several_frames_are_counted_by_frames(window_engine, make_clip):
    clips = [make_clip(seed, num_frames=20) for seed in range(3)]
    setting = replace(setting_for(window_engine, clips), split=Split(6, 6))
    report = summarise_costs(window_engine, list(measure_costs(window_engine, clips, setting)), setting)
    per_token = report.code_length.bits_per_token.mean
    assert report.code_length.bits_per_frame.mean == pytest.approx(per_token * 6 * 4 / 10, abs=1e-4)


def test_clips_of_one_episode_are_refused(likelihood_engine, make_clip):
    clips = [make_clip(1, start=start) for start in range(3)]
    with pytest.raises(DatasetError, match="two episodes"):
        report_of(likelihood_engine, clips)


def test_the_report_is_json_and_a_chart(likelihood_engine, clips, tmp_path):
    report = report_of(likelihood_engine, clips)
    format_json(asdict(report))
    plot_curves(compression_chart(report), tmp_path / "chart.png")
    assert (tmp_path / "chart.png").stat().st_size > 10_000
