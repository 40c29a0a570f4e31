"""Cost on true and on own histories: one model, two models, two tokenizers."""

from dataclasses import asdict, replace

import numpy as np
import pytest

from foreframe_engines.testing import ToyLikelihoodEngine, toy_tokens
from foreframe_server.cli.console import format_json
from foreframe_server.experiments.rollouts import measure_rollouts, rollouts_chart, summarise_rollouts
from foreframe_server.experiments.token_clips import Split
from foreframe_server.plots import plot_curves

SPLIT = Split(4, 8)


class Worse(ToyLikelihoodEngine):
    """Pays half a nat more for every token."""

    def read(self, rows):
        scores = super().read(rows)
        return [replace(score, log_probability=score.log_probability - np.float32(0.5)) for score in scores]


def report_of(engines, clips):
    measured = [list(measure_rollouts(engine, clips, SPLIT)) for engine in engines]
    labelled = [(f"model {index}", engine.contract) for index, engine in enumerate(engines)]
    return summarise_rollouts(labelled, measured, SPLIT)


def test_the_gap_is_zero_at_the_first_step_and_the_difference_after(likelihood_engine, clips):
    (model,) = report_of([likelihood_engine], clips).models
    assert model.exposure_gap_per_step[0].mean == 0
    assert any(each.mean != 0 for each in model.exposure_gap_per_step[1:])
    for gap, own, true in zip(
        model.exposure_gap_per_step, model.autoregressive_per_step, model.teacher_forced_per_step, strict=True
    ):
        assert gap.mean == pytest.approx(own.mean - true.mean, abs=2e-5)
    assert model.exposure_gap.mean == pytest.approx(
        np.mean([each.mean for each in model.exposure_gap_per_step]), abs=1e-5
    )


def test_two_models_of_one_tokenizer_are_compared(likelihood_engine, clips):
    report = report_of([likelihood_engine, Worse(likelihood_engine.contract)], clips)
    assert report.second_minus_first.teacher_forced.mean == pytest.approx(0.5, abs=1e-4)
    assert report.second_minus_first.autoregressive.low == pytest.approx(0.5, abs=1e-4)


def test_two_tokenizers_are_not_compared(likelihood_engine, clips):
    other = ToyLikelihoodEngine(replace(likelihood_engine.contract, tokens=toy_tokens(levels=(3, 3))))
    report = report_of([likelihood_engine, other], clips)
    assert report.second_minus_first is None
    assert len(report.models) == 2
    assert report_of([likelihood_engine], clips).second_minus_first is None


def test_the_report_is_json_and_a_chart(likelihood_engine, clips, tmp_path):
    report = report_of([likelihood_engine, Worse(likelihood_engine.contract)], clips)
    format_json(asdict(report))
    chart = rollouts_chart(report)
    assert [curve["label"] for curve in chart["series"]][:2] == ["model 0, autoregressive", "model 0, teacher-forced"]
    plot_curves(chart, tmp_path / "chart.png")
