from dataclasses import replace

import pytest

from foreframe_models.studies import savings
from foreframe_server.cli.bench_savings import run_savings


@pytest.fixture
def tiny(monkeypatch):
    full = savings.twenty_million_config()
    wan = replace(full.transformer, num_layers=1, num_attention_heads=2, attention_head_dim=24, ffn_dim=64)
    small = replace(full, transformer=wan, latent_size=(4, 4))
    monkeypatch.setattr(savings, "twenty_million_config", lambda: small)


def test_every_saving_is_timed_with_its_parity(tiny):
    record = run_savings(rounds=1, batch=2)
    found = {row["name"]: row for row in record["savings"]}
    assert {"folds_prompt", "keeps_time_tables", "skips_equal_branch", "drops_context_queries", "all"} <= found.keys()
    assert {"cone decode", "one condition", "onnxruntime, the same graph"} <= found.keys()
    assert all(row["max_difference"] < 1e-4 for row in found.values())
    assert all(row["plain_s"] > 0 and row["saved_s"] > 0 for row in found.values())
