"""A bundle served by torch: the flags that can run on a CPU run, the others say in one line what is missing."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from foreframe_engines import (
    Bundle,
    BundleError,
    Query,
    RuntimeUnavailable,
    StepRow,
    open_rollout_engine,
    sample,
    write_manifest,
)
from foreframe_engines.runtime.typed_graph import Precision
from foreframe_models.reference import open_reference_engine
from foreframe_models.rollout import RolloutModel
from foreframe_models.torch_engine import (
    TorchOptions,
    compile_blocks,
    lower_transformer,
    open_torch_engine,
    place_rollout,
)


def test_it_predicts_what_the_reference_predicts_and_keeps_states_in_place(exported, query: Query) -> None:
    engine, reference = (
        open_torch_engine(Bundle.open(exported.folder), TorchOptions()),
        open_reference_engine(exported.folder),
    )
    assert engine.is_resident
    assert not reference.is_resident
    assert sample(engine, query).members.tobytes() == sample(reference, query).members.tobytes()
    traffic = engine.sessions["step"].memory.traffic
    assert traffic.downloaded_bytes == 0


def test_weights_that_do_not_fit_are_refused(exported, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exported.folder, tmp_path / "bundle"))
    tree = json.loads((folder / "model.json").read_text())
    for key, value in (("prompt_length", 5), ("has_negative_prompt", True)):
        (folder / "model.json").write_text(json.dumps({**tree, "rollout": {**tree["rollout"], key: value}}))
        write_manifest(folder)
        with pytest.raises(BundleError, match=r"model\.safetensors does not fit model\.json"):
            open_torch_engine(Bundle.open(folder), TorchOptions())
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "rollout.more": tensors["rollout.prompt"].clone()}, folder / "model.safetensors")
    (folder / "model.json").write_text(json.dumps(tree))
    write_manifest(folder)
    with pytest.raises(BundleError, match=r"holds 'rollout\.more', which model\.json has no use for"):
        open_torch_engine(Bundle.open(folder), TorchOptions())


def test_compiled_blocks_give_what_onnx_runtime_gives(exported, query: Query) -> None:
    options = TorchOptions(is_compiled=True, compiler="eager")  # traced and guarded as for any compiler
    engine = open_torch_engine(Bundle.open(exported.folder), options)
    other = open_rollout_engine(Bundle.open(exported.folder), num_threads=1)
    difference = sample(engine, query).members.astype(int) - sample(other, query).members
    assert np.abs(difference).max() <= 1


def test_nothing_is_compiled_while_a_request_waits(exported, query: Query) -> None:
    graphs = []

    def count(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> object:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    engine = open_torch_engine(Bundle.open(exported.folder), TorchOptions(is_compiled=True, compiler=count))  # type: ignore[arg-type]
    opened = len(graphs)
    assert opened == 2 * len(engine.contract.buckets), "a middle block and the last one, for each bucket"
    for size in (1, 2, 3, 4, 7):
        sample(engine, replace(query, ensemble=replace(query.ensemble, size=size)))
    assert len(graphs) == opened


def test_equal_blocks_share_what_is_compiled(make_model) -> None:
    graphs = []
    model: RolloutModel = make_model()
    torch._dynamo.reset()

    def count(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> object:
        graphs.append(graph)
        return graph.forward

    compile_blocks(model.transformer, count)  # type: ignore[arg-type]
    latents = torch.zeros(1, model.config.num_latents, model.config.transformer.out_channels, 2, 2)
    with torch.inference_mode():
        modulation, bias = model.condition(torch.zeros(1, model.config.num_latents, 6))
        for _ in range(2):
            model.velocity(latents, torch.ones(1, model.config.num_latents), modulation, bias)
    assert model.config.transformer.num_layers == 2
    assert len(graphs) == 1


def test_half_precision_leaves_islands_of_single_precision(make_model) -> None:
    model: RolloutModel = make_model()
    place_rollout(model, TorchOptions(precision=Precision.BF16))
    kinds = {name: parameter.dtype for name, parameter in model.named_parameters()}
    half = {name for name, kind in kinds.items() if kind == torch.bfloat16}
    assert {"transformer.blocks.0.attn1.to_q.weight", "transformer.proj_out.weight"} <= half
    assert all(name.startswith("transformer.") for name in half)
    assert not any(part in name for name in half for part in ("norm", "time_", "scale_shift_table"))
    assert model.states_mean.dtype == torch.float32


def test_half_precision_is_near_single_and_not_it(exported, query: Query) -> None:
    engine = open_torch_engine(Bundle.open(exported.folder), TorchOptions(precision=Precision.BF16))
    reference = open_reference_engine(exported.folder)
    conditioning = reference.condition(reference.encode(query.context), query.states)
    noise = np.random.default_rng(0).standard_normal(engine.noise_shape(), dtype=np.float32)
    row = StepRow(reference.initial_latents(conditioning, noise), 1.0, 0.5, conditioning)
    (ours,), (expected,) = engine.step([row]), reference.step([row])
    error = np.linalg.norm(np.asarray(ours) - expected) / np.linalg.norm(expected)
    assert 0 < error < 1e-2


def test_lowering_rounds_once(make_model) -> None:
    model: RolloutModel = make_model()
    weight = model.transformer.proj_out.weight.detach().clone()
    lower_transformer(model.transformer, Precision.BF16)
    assert torch.equal(model.transformer.proj_out.weight, weight.bfloat16())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (TorchOptions(device="cuda:9"), "'cuda:9' was asked for"),
        (TorchOptions(graph_buckets=(1,)), "CUDA graphs need a CUDA device"),
        (TorchOptions(precision=Precision.FP8), "fp32 or bf16, not fp8"),
    ],
    ids=["device", "graphs", "precision"],
)
def test_what_is_missing_is_said_in_one_line_before_a_weight_is_read(exported, options, message) -> None:
    bundle = replace(Bundle.open(exported.folder), path=Path("nothing"))
    with pytest.raises(RuntimeUnavailable, match=message) as caught:
        open_torch_engine(bundle, options)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("is_compiled", [False, True])
def test_a_gpu_gives_what_the_cpu_gives(exported, query: Query, is_compiled: bool) -> None:
    options = TorchOptions("cuda", Precision.FP32, is_compiled, graph_buckets=(1, 2))
    engine, reference = open_torch_engine(Bundle.open(exported.folder), options), open_reference_engine(exported.folder)
    difference = sample(engine, query).members.astype(int) - sample(reference, query).members
    assert np.abs(difference).max() <= 1
