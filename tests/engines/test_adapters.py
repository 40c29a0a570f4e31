"""An adapter makes of a bundle another one, which anything can open; what it cannot change it refuses by name."""

import hashlib
import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from foreframe_engines import Bundle, builtin_bundle, get_schedule, open_rollout_engine
from foreframe_engines.adapters import FACTS_KEY, WEIGHTS, write_adapted
from foreframe_engines.errors import BundleError
from foreframe_engines.selftest import random_rows
from foreframe_engines.types import StepRow

LAYER = "blocks.2.attn1.to_q"
OTHER = "blocks.0.ffn.net.2"
STORED = "rollout.transformer.{}.weight"
BIAS = "r_embedding.0.bias"


@pytest.fixture(scope="module")
def base() -> Bundle:
    return Bundle.open(builtin_bundle())


@pytest.fixture(scope="module")
def stored(base: Bundle) -> Mapping[str, np.ndarray]:
    return load_file(base.path / WEIGHTS)


def lora(stored: Mapping[str, np.ndarray], layer: str, *, seed: int = 0, rank: int = 2) -> dict[str, np.ndarray]:
    rows, columns = stored[STORED.format(layer)].shape
    rng = np.random.default_rng(seed)
    down = rng.standard_normal((rank, columns), dtype=np.float32) * np.float32(0.3)
    up = rng.standard_normal((rows, rank), dtype=np.float32) * np.float32(0.3)
    return {f"transformer.{layer}.lora_A.weight": down, f"transformer.{layer}.lora_B.weight": up}


def write_adapter(path: Path, tensors: Mapping[str, np.ndarray], base_digest: str, alpha: float | None = 4.0) -> Path:
    facts = {"alpha": alpha, "base_digest": base_digest, "state": None}
    save_file(dict(tensors), path, {FACTS_KEY: json.dumps(facts)})
    return path


def adapt(base: Bundle, tensors: Mapping[str, np.ndarray], tmp_path: Path, **facts: float | None) -> Bundle:
    folder = tmp_path / "adapted"
    folder.mkdir()
    write_adapted(base, write_adapter(tmp_path / "a.safetensors", tensors, base.digest, **facts), folder, "9-a")
    return Bundle.open(folder)


def step_bytes(bundle: Bundle) -> bytes:
    """Roll two members out and digest where they end."""
    engine = open_rollout_engine(bundle, num_threads=1)
    try:
        rows = random_rows(engine, 2)
        for time, next_time in pairwise(get_schedule(2, 5.0)):
            rows = [
                StepRow(state, time, next_time, row.conditioning)
                for row, state in zip(rows, engine.step(rows), strict=True)
            ]
        return hashlib.sha256(b"".join(np.asarray(row.latents).tobytes() for row in rows)).digest()
    finally:
        engine.close()


def test_a_layer_is_merged_in_the_file_and_nothing_else_moves(base, stored, tmp_path) -> None:
    tensors = lora(stored, LAYER) | lora(stored, OTHER, seed=1)
    adapted = adapt(base, tensors, tmp_path)
    after = load_file(adapted.path / WEIGHTS)
    changed = {name for name in stored if stored[name].tobytes() != after[name].tobytes()}
    assert changed == {STORED.format(LAYER), STORED.format(OTHER)}
    down, up = (tensors[f"transformer.{LAYER}.lora_{half}.weight"].astype(np.float64) for half in "AB")
    expected = stored[STORED.format(LAYER)] + up @ down * (4.0 / 2)
    np.testing.assert_array_equal(after[STORED.format(LAYER)], expected.astype(np.float16))


def test_the_merged_bundle_is_another_that_says_so(base, stored, tmp_path) -> None:
    adapted = adapt(base, lora(stored, LAYER), tmp_path)
    assert adapted.digest != base.digest
    assert (adapted.contract.model, adapted.contract.revision) == (base.contract.model, "9-a")


def test_answers_change_with_the_adapter_and_come_back_without_it(base, stored, tmp_path) -> None:
    before = step_bytes(base)
    adapted = adapt(base, lora(stored, LAYER), tmp_path)
    assert step_bytes(adapted) != before
    assert step_bytes(Bundle.open(base.path)) == before


def test_an_adapter_that_changes_nothing_gives_the_bytes_of_its_base(base, stored, tmp_path) -> None:
    tensors = lora(stored, LAYER)
    tensors[f"transformer.{LAYER}.lora_B.weight"][:] = 0
    assert step_bytes(adapt(base, tensors, tmp_path)) == step_bytes(base)


def test_a_small_tensor_of_the_state_branch_is_changed_where_it_lies(base, stored, tmp_path) -> None:
    bias = stored[f"rollout.state_branch.{BIAS}"].astype(np.float32) + 1
    adapted = adapt(base, lora(stored, LAYER) | {BIAS: bias}, tmp_path)
    own, before = (open_rollout_engine(bundle, num_threads=1) for bundle in (adapted, base))
    states = np.repeat(base.contract.state.mean[None], base.contract.num_frames, axis=0)
    shape = (base.contract.context_latents, *base.contract.latent_shape)
    tables, others = (engine.condition(np.zeros(shape, np.float32), states).tables for engine in (own, before))
    assert any(not np.array_equal(tables[name], others[name]) for name in tables)
    own.close()
    before.close()


def foreign_base(tensors: dict[str, np.ndarray], path: Path, digest: str) -> Path:
    return write_adapter(path, tensors, "0" * 64)


def silent_base(tensors: dict[str, np.ndarray], path: Path, digest: str) -> Path:
    save_file(tensors, path)
    return path


def half_a_pair(tensors: dict[str, np.ndarray], path: Path, digest: str) -> Path:
    return write_adapter(path, {f"transformer.{LAYER}.lora_A.weight": np.zeros((2, 192), np.float32)}, digest)


def other_size(tensors: dict[str, np.ndarray], path: Path, digest: str) -> Path:
    wide = {f"transformer.{LAYER}.lora_A.weight": np.zeros((2, 7), np.float32)}
    return write_adapter(path, tensors | wide, digest)


def unknown_layer(tensors: dict[str, np.ndarray], path: Path, digest: str) -> Path:
    halves = {name.replace(LAYER, "blocks.99.attn1.to_q"): tensor for name, tensor in tensors.items()}
    return write_adapter(path, halves, digest)


def not_finite(tensors: dict[str, np.ndarray], path: Path, digest: str) -> Path:
    name = f"transformer.{LAYER}.lora_B.weight"
    return write_adapter(path, tensors | {name: tensors[name] * np.inf}, digest)


def too_large(tensors: dict[str, np.ndarray], path: Path, digest: str) -> Path:
    return write_adapter(path, {name: tensor * 1e4 for name, tensor in tensors.items()}, digest)


def integers(tensors: dict[str, np.ndarray], path: Path, digest: str) -> Path:
    return write_adapter(path, {name: tensor.astype(np.int32) for name, tensor in tensors.items()}, digest)


def folded_layer(tensors: dict[str, np.ndarray], path: Path, digest: str) -> Path:
    layer = "condition_embedder.text_embedder.linear_1"
    down, up = np.ones((2, 32), np.float32), np.ones((192, 2), np.float32)
    names = (f"transformer.{layer}.lora_A.weight", f"transformer.{layer}.lora_B.weight")
    return write_adapter(path, dict(zip(names, (down, up), strict=True)), digest)


def a_pickle(tensors: dict[str, np.ndarray], path: Path, digest: str) -> Path:
    path.write_bytes(b"\x80\x04cos\nsystem\n")
    return path


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (foreign_base, "was made for the base"),
        (silent_base, "does not say which base"),
        (half_a_pair, "lora_B of layer"),
        (other_size, LAYER),
        (unknown_layer, "blocks.99"),
        (not_finite, "not finite"),
        (too_large, "would not be finite as F16"),
        (integers, "not F16, BF16, F32"),
        (folded_layer, "text_embedder.linear_1"),
        (a_pickle, "not a whole safetensors file"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(base, stored, tmp_path, spoil, words) -> None:
    path = spoil(lora(stored, LAYER), tmp_path / "a.safetensors", base.digest)
    folder = tmp_path / "adapted"
    folder.mkdir()
    with pytest.raises(BundleError, match=words.replace(".", r"\.")):
        write_adapted(base, path, folder, "9-a")
    assert not list(folder.iterdir())
