import json
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from foreframe_engines import (
    BundleError,
    GraphFiles,
    StateStatistics,
    TokenSpec,
    contract_from_json,
    contract_to_json,
    statistics_from_json,
    statistics_to_json,
)
from foreframe_engines.contract_json import NO_LATENTS, NO_SAMPLER
from foreframe_engines.testing import toy_contract, toy_tokens

GRAPHS = GraphFiles("e.onnx", "c.onnx", "s.onnx", "d.onnx")
BOTH_GRAPHS = replace(GRAPHS, tokenize="t.onnx", detokenize="dt.onnx", frame_step="f.onnx", top_k="k.onnx")
COSMOS = toy_tokens(levels=(8, 8, 8, 5, 5, 5), grid=(32, 32), window_frames=17, window_grids=3)


def make_statistics() -> StateStatistics:
    rng = np.random.default_rng(0)
    low, q01, q99, high = np.sort(rng.standard_normal((4, 3)).astype(np.float32), axis=0)
    mean = rng.standard_normal(3).astype(np.float32)
    return StateStatistics(mean, np.full(3, 0.1, np.float32), low, high, q01, q99)


STATISTICS_TEXT = statistics_to_json(make_statistics())


def edited(text: str, path: str, value: Any) -> str:
    """Set (or, for ..., delete) what lies at a slash-separated path."""
    document = json.loads(text)
    *parents, key = [int(part) if part.isdigit() else part for part in path.split("/")]
    place = document
    for parent in parents:
        place = place[parent]
    if value is ...:
        del place[key]
    else:
        place[key] = value
    return json.dumps(document)


def test_statistics_come_back_exactly() -> None:
    statistics, again = make_statistics(), statistics_from_json(STATISTICS_TEXT)
    for field in fields(StateStatistics):
        values = getattr(again, field.name)
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values, getattr(statistics, field.name))


@pytest.mark.parametrize(("tokens", "graphs"), [(None, GRAPHS), (toy_tokens(), BOTH_GRAPHS), (COSMOS, BOTH_GRAPHS)])
def test_a_contract_comes_back_as_it_was(tokens: TokenSpec | None, graphs: GraphFiles) -> None:
    statistics = make_statistics()
    schema = replace(
        toy_contract().state, mean=statistics.mean, std=statistics.std, low=statistics.low, high=statistics.high
    )
    contract = replace(toy_contract(tokens=tokens), state=schema)
    file = contract_from_json(contract_to_json(contract, graphs, STATISTICS_TEXT), STATISTICS_TEXT)
    assert file.graphs == graphs
    for field in fields(contract):
        if field.name != "state":
            assert getattr(file.contract, field.name) == getattr(contract, field.name), field.name
    for field in fields(schema):
        np.testing.assert_array_equal(getattr(file.contract.state, field.name), getattr(schema, field.name))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("model", ..., "'model' is missing"),
        ("extra", 1, "'extra' is unknown"),
        ("model", "", "model: expected a string"),
        ("revision", "a b", "revision: expected 1 to 64"),
        ("fps", 0, "fps: expected a number above 0"),
        ("fps", "10", "fps: expected a finite number"),
        ("horizon", 0, "horizon: expected an integer"),
        ("horizon", True, "horizon: expected an integer"),
        ("context_frames", 4.0, "context_frames: expected an integer"),
        ("alignment", "none", "alignment: only"),
        ("cameras", [], "cameras: expected a list"),
        ("cameras/0/height", -8, "cameras: height: expected an integer"),
        ("cameras/0/depth", 1, "cameras: key 'depth' is unknown"),
        ("state", [], "state: expected an object"),
        ("state/names", ["a", "a", "b"], "names: a name stands twice"),
        ("state/units", ["rad"], "differ in length"),
        ("state/statistics_sha256", "0" * 64, "statistics_sha256: stats.json is another"),
        ("sampler/steps", 51, "steps: more than max_steps"),
        ("sampler/ensemble_size", 33, "ensemble_size: more than"),
        ("sampler/shift", -1, "shift: expected a number above 0"),
        ("latent_shape", [3, 4], "latent_shape: expected three"),
        ("capabilities", ["fly"], "capabilities: 'fly' is unknown"),
        ("buckets", [1, 4, 2], "buckets: expected ascending"),
        ("buckets", [1, 1], "buckets: expected ascending"),
        ("graphs/step", ..., "graphs: key 'step' is missing"),
        ("graphs/other", "x", "graphs: key 'other' is unknown"),
        ("tokens", ..., "'tokens' is missing"),
        ("graphs/frame_step", "f.onnx", "graphs: key 'frame_step' is unknown"),
        ("capabilities", ["predict", "likelihood"], "capabilities: 'likelihood' is there exactly when tokens are"),
    ],
)
def test_a_wrong_contract_is_refused_by_key(path: str, value: object, message: str) -> None:
    text = contract_to_json(toy_contract(), GRAPHS, STATISTICS_TEXT)
    with pytest.raises(BundleError, match=message) as caught:
        contract_from_json(edited(text, path, value), STATISTICS_TEXT)
    assert str(caught.value).startswith("contract.json: ")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("tokens", None, "capabilities: 'likelihood' is there exactly when tokens are"),
        ("tokens", 64000, "tokens: expected an object"),
        ("tokens/levels", ..., "tokens: key 'levels' is missing"),
        ("tokens/width", 1, "tokens: key 'width' is unknown"),
        ("tokens/levels", [8, 0], "tokens: levels: expected an integer"),
        ("tokens/grid", [4], "tokens: grid: expected two integers"),
        ("tokens/window_frames", 0, "tokens: window_frames: expected an integer"),
        ("tokens/window_frames", 16, "window_grids: the frames of a window"),
        ("tokens/window_grids", 4, "window_grids: the frames of a window"),
        ("tokens/window_grids", 18, "window_grids: the frames of a window"),
        ("tokens/max_grids", 1.5, "tokens: max_grids: expected an integer"),
        ("tokens/max_candidates", "9", "tokens: max_candidates: expected an integer"),
        ("capabilities", ["predict"], "capabilities: 'likelihood' is there exactly when tokens are"),
        ("graphs/top_k", ..., "graphs: key 'top_k' is missing"),
        ("graphs/frame_step", None, "graphs: frame_step: expected a string"),
    ],
)
def test_a_wrong_contract_of_a_likelihood_model_is_refused_by_key(path: str, value: object, message: str) -> None:
    text = contract_to_json(toy_contract(tokens=COSMOS), BOTH_GRAPHS, STATISTICS_TEXT)
    contract_from_json(text, STATISTICS_TEXT)
    with pytest.raises(BundleError, match=message):
        contract_from_json(edited(text, path, value), STATISTICS_TEXT)


def test_the_cosmos_tokenizer_has_64000_ids_and_three_grids_a_window() -> None:
    assert (COSMOS.vocabulary, COSMOS.tokens, COSMOS.frames_per_grid) == (64000, 1024, (1, 8, 8))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("mean", ..., "'mean' is missing"),
        ("median", [0, 0, 0], "'median' is unknown"),
        ("mean", [0, 0], "differ in length"),
        ("mean", [0, 0, "0"], "mean: expected a finite number"),
        ("std", [1, 0, 1], "std: expected numbers above 0"),
        ("low", [9, 9, 9], "expected low <= q01"),
    ],
)
def test_wrong_statistics_are_refused_by_key(path: str, value: object, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        statistics_from_json(edited(STATISTICS_TEXT, path, value))


LIKELIHOOD_GRAPHS = GraphFiles(tokenize="t.onnx", detokenize="dt.onnx", frame_step="f.onnx", top_k="k.onnx")
LIKELIHOOD_CONTRACT = replace(
    toy_contract(tokens=COSMOS), capabilities=("likelihood",), sampler=NO_SAMPLER, latent_shape=NO_LATENTS
)


def test_a_contract_of_likelihoods_alone_comes_back_without_sampler_and_latents() -> None:
    text = contract_to_json(LIKELIHOOD_CONTRACT, LIKELIHOOD_GRAPHS, STATISTICS_TEXT)
    document = json.loads(text)
    assert [document[key] for key in ("sampler", "latent_shape", "frames_per_latent")] == [None, None, None]
    file = contract_from_json(text, STATISTICS_TEXT)
    assert file.graphs == LIKELIHOOD_GRAPHS
    assert file.graphs.step is None
    assert (file.contract.sampler, file.contract.latent_shape) == (NO_SAMPLER, NO_LATENTS)
    assert file.contract.tokens == COSMOS


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("sampler", {"steps": 1}, "sampler: is there exactly when 'predict' is a capability"),
        ("latent_shape", [1, 1, 1], "latent_shape: is there exactly when 'predict' is a capability"),
        ("frames_per_latent", 1, "frames_per_latent: is there exactly when 'predict' is a capability"),
        ("capabilities", ["score"], "capabilities: neither 'predict' nor 'likelihood' is there"),
        ("capabilities", ["predict", "likelihood"], "sampler: expected an object"),
        ("graphs/step", "s.onnx", "graphs: key 'step' is unknown"),
        ("graphs/tokenize", ..., "graphs: key 'tokenize' is missing"),
        ("tokens", None, "capabilities: 'likelihood' is there exactly when tokens are"),
    ],
)
def test_a_wrong_contract_of_likelihoods_alone_is_refused_by_key(path: str, value: object, message: str) -> None:
    text = contract_to_json(LIKELIHOOD_CONTRACT, LIKELIHOOD_GRAPHS, STATISTICS_TEXT)
    with pytest.raises(BundleError, match=message):
        contract_from_json(edited(text, path, value), STATISTICS_TEXT)
