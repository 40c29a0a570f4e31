"""A bundle that only tells likelihoods: opened, read and tokenised on ONNX Runtime as on torch; refused if mixed."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from foreframe_engines import Bundle, BundleError, StateStatistics, open_likelihood_engine
from foreframe_engines.errors import CheckpointError
from foreframe_engines.likelihood import GraphLikelihoodEngine
from foreframe_engines.reading import first_row, greedy_rollout, grid_states, read_history, teacher_forced
from foreframe_models.config_json import ModelConfig, config_to_json
from foreframe_models.cosmos_tokenizer import convert_tokenizer, open_tokenizer
from foreframe_models.cosmos_toy import write_toy_archives
from foreframe_models.likelihood_bundle import export_likelihood_bundle, likelihood_contract, model_card
from foreframe_models.reference import open_reference_engine, open_reference_likelihood_engine
from foreframe_models.st_transformer import StConfig, StTransformer
from foreframe_models.state_branch import StateBranchConfig
from foreframe_models.token_checkpoint import TokenCheckpoint, load_token_model

SIZE, TOKENS = 16, 4
CONFIG = StConfig(StateBranchConfig(hidden=16), num_layers=1, num_heads=2, width=16, tokens=TOKENS)


@dataclass(frozen=True, slots=True, eq=False)
class Exported:
    tokenizer: Path
    checkpoint: TokenCheckpoint
    bundle: Path


def make_statistics(dim: int = 25) -> StateStatistics:
    ones = np.ones(dim, np.float32)
    return StateStatistics(0.25 * ones, 0.5 * ones, -3 * ones, 3 * ones, -2 * ones, 2 * ones)


def make_checkpoint(config: StConfig = CONFIG) -> TokenCheckpoint:
    torch.manual_seed(5)
    model = StTransformer(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
        model.states_mean.fill_(0.25)
        model.states_std.fill_(0.5)
    return TokenCheckpoint(model.eval(), make_statistics(config.state.num_states))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("likelihood")
    archives = write_toy_archives(folder, size=SIZE)
    facts = convert_tokenizer(archives.encoder, archives.decoder, folder / "tokenizer", size=SIZE)
    checkpoint = make_checkpoint()
    contract = likelihood_contract(facts, checkpoint.statistics)
    card = {"README.md": model_card(checkpoint.model, facts).encode()}
    export_likelihood_bundle(folder / "bundle", checkpoint, folder / "tokenizer", contract, extra_files=card)
    return Exported(folder / "tokenizer", checkpoint, folder / "bundle")


@pytest.fixture(scope="module")
def engine(exported: Exported) -> Iterator[GraphLikelihoodEngine]:
    engine = open_likelihood_engine(Bundle.open(exported.bundle), num_threads=1)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def reference(exported: Exported) -> Iterator[GraphLikelihoodEngine]:
    engine = open_reference_likelihood_engine(exported.bundle)
    yield engine
    engine.close()


def draw_clip() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (34, 2, 2, 3), dtype=np.uint8)
    frames = coarse.repeat(SIZE // 2, axis=1).repeat(SIZE // 2, axis=2)
    return frames, rng.standard_normal((34, 25), dtype=np.float32)


def test_the_bundle_tells_what_it_can_and_what_it_has_not(exported: Exported) -> None:
    opened = Bundle.open(exported.bundle)
    assert opened.contract.capabilities == ("likelihood", "score")
    assert opened.contract.tokens is not None
    assert opened.contract.tokens.vocabulary == 64_000
    assert opened.contract.state.names[0] == "HIP_YAW"
    written = json.loads((exported.bundle / "contract.json").read_text())
    assert [written[key] for key in ("sampler", "latent_shape", "frames_per_latent")] == [None] * 3
    assert sorted(written["graphs"]) == ["detokenize", "frame_step", "tokenize", "top_k"]
    with pytest.raises(BundleError, match="no step graph"):
        opened.graph_path("step")
    with pytest.raises(BundleError, match="has no rollout model"):
        open_reference_engine(exported.bundle)


def test_windows_become_three_grids_and_come_back(engine: GraphLikelihoodEngine) -> None:
    frames, _ = draw_clip()
    ids = engine.tokenize(frames)
    assert (ids.shape, ids.dtype) == ((6, TOKENS), np.int64)
    assert len(np.unique(ids)) > 6
    assert engine.detokenize(ids).shape == frames.shape


def test_a_future_is_scored_as_torch_scores_it(engine: GraphLikelihoodEngine, reference: GraphLikelihoodEngine) -> None:
    frames, states = draw_clip()
    ids, rows = engine.tokenize(frames), grid_states(states, engine.tokens)
    scores = []
    for each in (engine, reference):
        context = read_history(each, ids[:3], rows[:3])
        scores.append((teacher_forced(each, context, ids[3:], rows[3:], 500), greedy_rollout(each, context, rows[3:])))
    (ours, free), (expected, expected_free) = scores
    np.testing.assert_allclose(ours.log_probability, expected.log_probability, atol=1e-4)
    np.testing.assert_allclose(ours.top_log_mass, expected.top_log_mass, atol=1e-4)
    np.testing.assert_array_equal(ours.is_in_top, expected.is_in_top)
    np.testing.assert_array_equal(free.greedy, expected_free.greedy)
    (swapped,) = engine.read([first_row(read_history(engine, ids[:3], rows[2::-1]), rows[3], ids[3])])
    assert np.abs(swapped.log_probability - ours.log_probability[0]).max() > 1e-3  # wrong states are noticed


@torch.no_grad()
def test_it_is_the_models_own_likelihood(exported: Exported, engine: GraphLikelihoodEngine) -> None:
    frames, states = draw_clip()
    ids, rows = engine.tokenize(frames), grid_states(states, engine.tokens)
    model = exported.checkpoint.model
    hidden = model(torch.from_numpy(ids[None, :-1]), model.normalise(torch.from_numpy(rows[None])))
    expected = model.head.log_probability(hidden, torch.from_numpy(ids[None, 1:]))[0, 2:].numpy()
    found = teacher_forced(engine, read_history(engine, ids[:3], rows[:3]), ids[3:], rows[3:])
    np.testing.assert_allclose(found.log_probability, expected, atol=1e-4)


def test_a_model_of_other_ids_or_grids_is_refused(exported: Exported, tmp_path: Path) -> None:
    facts = open_tokenizer(exported.tokenizer)
    contract = likelihood_contract(facts, make_statistics())
    for config, message in (
        (replace(CONFIG, factors=(60,)), "the model knows 60 ids, the tokenizer makes 64000"),
        (replace(CONFIG, tokens=9), "the model's grids have 9 tokens, the tokenizer's 4"),
    ):
        out = tmp_path / "out"
        with pytest.raises(BundleError, match=message):
            export_likelihood_bundle(out, make_checkpoint(config), exported.tokenizer, contract, extra_files={})
        assert not out.exists()


def test_states_of_other_robots_are_numbered(exported: Exported) -> None:
    contract = likelihood_contract(open_tokenizer(exported.tokenizer), make_statistics(3))
    assert contract.state.names == ("state_0", "state_1", "state_2")


SMALL = StConfig(StateBranchConfig(num_states=3, raw_states=(), hidden=8), 1, 1, 8, tokens=2, factors=(9,))


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(SMALL)
    checkpoint.save(tmp_path)
    again = TokenCheckpoint.load(tmp_path)
    assert again.model.config == SMALL
    for name, tensor in checkpoint.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor)
    np.testing.assert_array_equal(again.statistics.q99, checkpoint.statistics.q99)


def test_a_checkpoint_that_does_not_fit_is_refused_by_name(tmp_path: Path) -> None:
    make_checkpoint(SMALL).save(tmp_path)
    right = config_to_json(ModelConfig(likelihood=SMALL))
    for config, message in (
        (replace(SMALL, num_layers=2), r"tensor 'blocks\.1\.\S+' is missing"),
        (replace(SMALL, width=16), r"tensor '\S+' is \(.*\), the model's is \(.*\)"),
        (replace(SMALL, factors=(3, 3)), "is missing"),
    ):
        (tmp_path / "model.json").write_text(config_to_json(ModelConfig(likelihood=config)))
        with pytest.raises(CheckpointError, match=message):
            load_token_model(tmp_path)
    (tmp_path / "model.json").write_text(config_to_json(ModelConfig()))
    with pytest.raises(CheckpointError, match="likelihood: there is no such model"):
        load_token_model(tmp_path)
    (tmp_path / "model.json").write_text(right)
    assert load_token_model(tmp_path).config == SMALL


def test_a_pickle_in_the_place_of_weights_is_not_opened(tmp_path: Path) -> None:
    make_checkpoint(SMALL).save(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"model\.pt, a pickle, which is never opened"):
        TokenCheckpoint.load(tmp_path)


def test_statistics_of_other_states_are_refused(tmp_path: Path) -> None:
    replace(make_checkpoint(SMALL), statistics=make_statistics(4)).save(tmp_path)
    with pytest.raises(CheckpointError, match="is of 4 states, the model takes 3"):
        TokenCheckpoint.load(tmp_path)
