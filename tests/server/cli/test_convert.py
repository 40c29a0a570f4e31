"""`train likelihood --config 1x-cosmos` and `convert`, from shards and archives to a bundle that an engine opens."""

import json

import numpy as np
import pytest

from foreframe_client import CapabilityMissing, Client, Objective
from foreframe_engines import Bundle, open_likelihood_engine
from foreframe_models.cosmos_toy import write_toy_archives
from foreframe_models.data.token_shards import save_token_shard
from foreframe_models.training.token_shards import cosmos_recipe
from foreframe_server.cli.overrides import read_private
from foreframe_server.cli.serving import running_server
from foreframe_server.cli.train_tokens import Ask, change_recipe

TINY = {
    "model": {"state": {"hidden": 8}, "num_layers": 1, "num_heads": 2, "width": 8, "tokens": 4},
    "loop": {"steps": 3, "lr": 0.01, "log_every": 1},
    "batch_size": 4,
    "num_grids": 6,
    "context_grids": 3,
}


@pytest.fixture
def shards(tmp_path):
    """A folder of tokenised shards of two-by-two grids, and a recipe of their size."""
    rng = np.random.default_rng(0)
    for index in range(2):
        ids = rng.integers(0, 64_000, (6, 3, 2, 2)).astype(np.int32)
        states = rng.standard_normal((17 * 6, 25)).astype(np.float32)
        save_token_shard(tmp_path / "shards", index, ids, states, np.zeros(len(states), np.int32))
    (tmp_path / "recipe.json").write_text(json.dumps(TINY))
    return tmp_path / "shards"


@pytest.fixture
def archives(tmp_path):
    return write_toy_archives(tmp_path, size=16)


def test_shards_and_archives_become_a_bundle_that_tells_likelihoods(run_json, shards, archives, tmp_path):
    train = ("train", "likelihood", "--config", "1x-cosmos", "--data", shards, "--validation", shards, "--out", "run")
    trained = run_json(*train, "--recipe", "recipe.json", "--micro-batch-size", 2)
    assert (trained["clips"], trained["steps"], trained["likelihood"]["step"]) == (10, 3, 3)
    assert trained["likelihood"]["true_nats"] > 9.0  # the ids are noise
    facts = run_json("convert", "cosmos-tokenizer", archives.encoder, archives.decoder, "--size", 16, "--out", "tokens")
    assert (facts["equal_ids"], facts["grid"]) == (1.0, [2, 2])
    made = run_json("convert", "st-transformer", "run", "--tokenizer", "tokens", "--out", "bundle", "--revision", "7")
    bundle = Bundle.open(tmp_path / "bundle")
    assert (made["digest"], bundle.contract.revision) == (bundle.digest, "7")
    assert "100.00% of golden ids equal" in (tmp_path / "bundle" / "README.md").read_text()
    engine = open_likelihood_engine(bundle, num_threads=1)
    frames = np.random.default_rng(1).integers(0, 256, (17, 16, 16, 3), dtype=np.uint8)
    assert engine.tokenize(frames).shape == (3, 4)
    engine.close()
    check_served(tmp_path / "bundle", frames)


def check_served(bundle, frames):
    """Ask a server of the bundle alone for likelihoods and a ranking, and for what it cannot do."""
    rng = np.random.default_rng(2)
    states = rng.standard_normal((17, 25)).astype(np.float32)
    with running_server(read_private(bundle)) as address, Client(address) as client:
        seen = client.likelihood(frames, states, frames[::-1].copy(), states)
        plans = rng.standard_normal((3, 17, 25)).astype(np.float32)
        ranked = client.score(frames, states, plans, objectives=[Objective.likelihood()])
        with pytest.raises(CapabilityMissing):
            client.predict(frames, states, states)
    assert seen.tokens == 3 * 4
    assert 0 < seen.nats_per_token < 100
    assert len({candidate.cost for candidate in ranked.candidates}) == 3


def test_a_run_goes_on_where_it_was(run_json, shards):
    train = (
        "train",
        "likelihood",
        "--config",
        "1x-cosmos",
        "--data",
        shards,
        "--out",
        "run",
        "--recipe",
        "recipe.json",
    )
    assert run_json(*train)["likelihood"]["step"] == 3
    assert run_json(*train)["likelihood"] == {}
    assert run_json(*train, "--steps", 5)["likelihood"]["step"] == 5


@pytest.mark.parametrize(("asked", "steps"), [((), 200), (("--epochs", 2), 5), (("--steps", 7), 7)])
def test_epochs_count_passes_over_the_clips(shards, tmp_path, asked, steps):
    values = dict(zip(asked[::2], asked[1::2], strict=True))
    ask = Ask(None, values.get("--epochs"), values.get("--steps"), 4, None, 0.0, 0)
    recipe = change_recipe(cosmos_recipe(), ask, num_clips=10, is_half=True)
    assert (recipe.loop.steps, recipe.is_half) == (steps, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "likelihood", "--config", "1x-cosmos", "--data", "nothing", "--out", "x"), "holds no metadata_"),
        (("convert", "cosmos-tokenizer", "a.jit", "b.jit", "--out", "x"), "a.jit is missing"),
        (("convert", "cosmos-tokenizer", "recipe.json", "b.jit", "--out", "x"), "is not a TorchScript archive"),
        (("convert", "st-transformer", "run", "--tokenizer", "shards", "--out", "x"), "holds no converted tokenizer"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_with_exit_code_3(run, shards, tmp_path, arguments, message):
    result = run(*arguments)
    assert result.exit_code == 3
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("foreframe: ")
    assert message in last
    assert not (tmp_path / "x").exists()


def test_a_recipe_with_a_wrong_key_is_refused_by_it(run, shards, tmp_path):
    (tmp_path / "recipe.json").write_text(json.dumps({**TINY, "batch": 4}))
    result = run(
        "train", "likelihood", "--config", "1x-cosmos", "--data", shards, "--out", "x", "--recipe", "recipe.json"
    )
    assert result.exit_code == 3
    assert "recipe.json: key 'batch' is unknown" in result.stderr


def test_options_of_the_other_model_are_refused(run, shards):
    result = run("train", "likelihood", "--data", shards, "--validation", shards, "--out", "x", "--epochs", 3)
    assert result.exit_code == 2
    assert "means nothing to eve-tabletop" in result.stderr
