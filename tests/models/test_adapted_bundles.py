"""What the server merges without torch is what torch merges, and the graphs compute with it."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from foreframe_engines import Bundle, builtin_bundle, get_schedule, open_rollout_engine
from foreframe_engines.adapters import WEIGHTS, write_adapted
from foreframe_engines.engine import RolloutEngine
from foreframe_engines.errors import CheckpointError
from foreframe_engines.selftest import random_rows
from foreframe_engines.types import StepRow
from foreframe_models.adapter_files import read_adapter, write_adapter
from foreframe_models.adapters import (
    Adapter,
    AdapterFacts,
    LoraPair,
    activate,
    attach,
    digest_base,
    merge,
    start_adapter,
)
from foreframe_models.reference import load_models, open_reference_engine

ULP_OF_HALF = 2**-10


def draw_adapter(models, digest: str | None) -> Adapter:
    """Return an adapter of all the paper's layers, and of the state branch, that moves everything a little."""
    start = start_adapter(models.rollout, rank=3, alpha=3.0)
    generator = torch.Generator().manual_seed(4)
    draw = lambda tensor: 0.03 * torch.randn(tensor.shape, generator=generator)  # noqa: E731
    lora = {layer: LoraPair(pair.down, draw(pair.up)) for layer, pair in start.lora.items()}
    branch = {name: tensor + draw(tensor) for name, tensor in start.branch.items()}
    return Adapter(lora, branch, AdapterFacts(3.0, digest, models.rollout.config.state), "drawn")


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    """The built-in bundle with an adapter: its folder, and torch's model merged from the same file."""
    folder = tmp_path_factory.mktemp("adapted")
    models = load_models(builtin_bundle())
    path = folder / "drawn.safetensors"
    write_adapter(draw_adapter(models, digest_base(models.rollout)), path)
    bundle = folder / "bundle"
    bundle.mkdir()
    write_adapted(Bundle.open(builtin_bundle()), path, bundle, "1-drawn")
    attach(models.rollout, read_adapter(path), "drawn")
    activate(models.rollout, "drawn")
    merge(models.rollout)
    return bundle, models.rollout


def test_the_weights_are_torch_s(adapted) -> None:
    folder, rollout = adapted
    stored, before = load_file(folder / WEIGHTS), load_file(builtin_bundle() / WEIGHTS)
    changed = 0
    for name, tensor in rollout.state_dict().items():
        own = stored[f"rollout.{name}"].astype(np.float32)
        np.testing.assert_allclose(own, tensor.float().numpy(), rtol=ULP_OF_HALF, atol=1e-6)
        changed += not np.array_equal(stored[f"rollout.{name}"], before[f"rollout.{name}"])
    assert changed > 60


def final_latents(engine: RolloutEngine) -> np.ndarray:
    rows = random_rows(engine, 2)
    for time, next_time in pairwise(get_schedule(2, engine.contract.sampler.shift)):
        states = engine.step(rows)
        rows = [StepRow(state, time, next_time, row.conditioning) for row, state in zip(rows, states, strict=True)]
    return np.stack([np.asarray(row.latents) for row in rows])


def test_the_graphs_compute_with_all_of_it(adapted) -> None:
    folder, _ = adapted
    engines = (
        open_rollout_engine(Bundle.open(folder), num_threads=1),
        open_reference_engine(folder),
        open_rollout_engine(Bundle.open(builtin_bundle()), num_threads=1),
    )
    served, torch_s, base = (final_latents(engine) for engine in engines)
    for engine in engines:
        engine.close()
    assert np.abs(served - torch_s).max() < 1e-3
    assert np.abs(served - base).max() > 1e-2


def test_an_adapter_of_another_base_is_refused(tmp_path) -> None:
    models = load_models(builtin_bundle())
    path = tmp_path / "drawn.safetensors"
    write_adapter(draw_adapter(models, "0" * 64), path)
    with pytest.raises(CheckpointError, match="was made for the base"):
        write_adapted(Bundle.open(builtin_bundle()), path, tmp_path, "1-drawn")
