"""The study times what it says it times, and notices a saving that changes the answer."""

from dataclasses import replace

import pytest
import torch

from foreframe_models.rollout import RolloutModel
from foreframe_models.studies.savings import (
    Workload,
    compare,
    measure_savings,
    measure_shared_conditions,
    measure_time_terms,
    random_model,
    twenty_million_config,
)

WORKLOAD = Workload(members=2, steps=2, rounds=1)


@pytest.fixture
def model() -> RolloutModel:
    full = twenty_million_config()
    wan = replace(full.transformer, num_layers=1, num_attention_heads=2, attention_head_dim=24, ffn_dim=64)
    return random_model(replace(full, transformer=wan, latent_size=(4, 4)))


def test_the_model_that_is_measured_has_20_million_parameters_and_512_tokens() -> None:
    config = twenty_million_config()
    with torch.device("meta"):
        transformer = RolloutModel(config).transformer
    assert sum(parameter.numel() for parameter in transformer.parameters()) == pytest.approx(20e6, rel=0.05)
    frames, rows, columns = config.token_grid
    assert frames * rows * columns == 512


def test_every_saving_is_measured_and_exact(model: RolloutModel) -> None:
    found = [*measure_savings(model, WORKLOAD), *measure_time_terms(model, WORKLOAD)]
    found.append(measure_shared_conditions(model, WORKLOAD))
    assert [saved.name for saved in found] == [
        "folds_prompt",
        "keeps_time_tables",
        "skips_equal_branch",
        "drops_context_queries",
        "all",
        "time terms by frame",
        "time terms by schedule",
        "one condition",
    ]
    for saved in found:
        assert saved.max_difference <= 1e-4
        assert min(saved.plain_s, saved.saved_s, saved.ratio) > 0


def test_two_ways_that_differ_are_told_apart() -> None:
    saved = compare("none", lambda: torch.zeros(2), lambda: torch.full((2,), 0.5), rounds=1)
    assert saved.max_difference == 0.5
