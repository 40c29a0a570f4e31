"""Adapters change a model by what they hold, leave no trace when they go, and are refused where they do not fit."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from foreframe_engines.errors import BundleError, CheckpointError
from foreframe_models.adapter_files import infer_state_config, write_adapter
from foreframe_models.adapters import (
    TARGETS,
    Adapter,
    AdapterFacts,
    LoraPair,
    activate,
    active_adapter,
    attach,
    attached,
    detach,
    digest_base,
    merge,
    merge_reversibly,
    read_adapter,
    save_adapter,
    start_adapter,
    unmerge,
)
from foreframe_models.rollout import RolloutConfig, RolloutModel
from foreframe_models.state_branch import Combination, StateBranchConfig, full_rate_states
from foreframe_models.wan import WanConfig

STATE = StateBranchConfig(hidden=16)
WAN = WanConfig(
    num_layers=2,
    num_attention_heads=2,
    attention_head_dim=12,
    ffn_dim=40,
    freq_dim=16,
    text_dim=8,
    in_channels=4,
    out_channels=4,
)
CONFIG = RolloutConfig(transformer=WAN, state=STATE, latent_size=(4, 4), prompt_length=3)
QUERY = "blocks.0.attn1.to_q"
ORIGINAL = {
    "attn1.to_q": "self_attn.q",
    "attn1.to_k": "self_attn.k",
    "attn1.to_v": "self_attn.v",
    "attn1.to_out.0": "self_attn.o",
    "attn2.to_q": "cross_attn.q",
    "attn2.to_k": "cross_attn.k",
    "attn2.to_v": "cross_attn.v",
    "attn2.to_out.0": "cross_attn.o",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
}


def make_model(config: RolloutConfig = CONFIG) -> RolloutModel:
    torch.manual_seed(0)
    model = RolloutModel(config).eval().requires_grad_(requires_grad=False)
    model.prompt.normal_()
    return model


def make_adapter(model: RolloutModel, seed: int = 1, rank: int = 4, alpha: float = 8.0) -> Adapter:
    """Draw an adapter that moves everything it may."""
    start = start_adapter(model, rank, alpha, seed)
    generator = torch.Generator().manual_seed(seed)
    draw = lambda tensor: 0.2 * torch.randn(tensor.shape, generator=generator)  # noqa: E731
    lora = {layer: LoraPair(pair.down, draw(pair.up)) for layer, pair in start.lora.items()}
    branch = {name: tensor + draw(tensor) for name, tensor in start.branch.items()}
    return replace(start, lora=lora, branch=branch)


@torch.no_grad()
def predict(model: RolloutModel) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(2, 6, 4, 4, 4, generator=generator)
    states = torch.randn(2, 21, 25, generator=generator)
    time = torch.tensor([[0.0, 0.0, 0.7, 0.7, 0.7, 0.7]] * 2)
    return model.velocity(latents, time, *model.condition(states))


@pytest.fixture
def model() -> RolloutModel:
    return make_model()


@pytest.fixture
def adapter(model: RolloutModel) -> Adapter:
    return make_adapter(model)


@torch.no_grad()
def test_an_adapter_adds_its_scaled_product_to_ten_layers_a_block_and_brings_its_branch(
    model: RolloutModel, adapter: Adapter
) -> None:
    assert len(adapter.lora) == len(TARGETS) * WAN.num_layers == 20
    by_hand = make_model()
    weights = by_hand.state_dict()
    for layer, pair in adapter.lora.items():
        weights[f"transformer.{layer}.weight"] += 8.0 / 4 * pair.up @ pair.down
    by_hand.state_branch.load_state_dict(adapter.branch)
    attach(model, adapter, "a")
    activate(model, "a")
    torch.testing.assert_close(predict(model), predict(by_hand), atol=1e-4, rtol=0.0)
    assert (predict(model) - predict(make_model())).abs().max() > 0.1


def test_going_to_another_adapter_and_back_is_exact(model: RolloutModel, adapter: Adapter) -> None:
    bare = predict(model)
    attach(model, adapter, "a")
    assert active_adapter(model) is None
    assert torch.equal(predict(model), bare)
    activate(model, "a")
    first = predict(model)
    attach(model, make_adapter(model, seed=2, rank=2, alpha=2.0), "b")
    assert (attached(model), active_adapter(model)) == (("a", "b"), "a")
    assert torch.equal(predict(model), first)
    activate(model, "b")
    assert (predict(model) - first).abs().max() > 0.1
    activate(model, "a")
    assert torch.equal(predict(model), first)
    activate(model, None)
    assert torch.equal(predict(model), bare)


def test_merged_and_unmerged_predict_the_same(model: RolloutModel, adapter: Adapter) -> None:
    names = list(model.state_dict())
    attach(model, adapter, "a")
    activate(model, "a")
    unmerged = predict(model)
    merge(model)
    assert list(model.state_dict()) == names
    assert (attached(model), active_adapter(model)) == ((), None)
    torch.testing.assert_close(predict(model), unmerged, atol=1e-4, rtol=0.0)
    assert (predict(model) - predict(make_model())).abs().max() > 0.1


def test_unmerging_is_exact(model: RolloutModel, adapter: Adapter) -> None:
    attach(model, adapter, "a")
    attach(model, make_adapter(model, seed=2), "b")
    activate(model, "a")
    before = predict(model)
    kept = merge_reversibly(model)
    assert not torch.equal(
        model.transformer.state_dict()[f"{QUERY}.weight"], make_model().transformer.state_dict()[f"{QUERY}.weight"]
    )
    unmerge(model, kept)
    assert attached(model) == ("a", "b")
    assert torch.equal(predict(model), before)
    activate(model, None)
    assert torch.equal(predict(model), predict(make_model()))


def test_merging_rounds_once_in_half_precision(model: RolloutModel, adapter: Adapter) -> None:
    model.transformer.to(torch.bfloat16)
    base = model.transformer.state_dict()[f"{QUERY}.weight"].clone()
    attach(model, adapter, "a", dtype=torch.float32)
    activate(model, "a")
    merge(model)
    merged = model.transformer.state_dict()[f"{QUERY}.weight"]
    pair = adapter.lora[QUERY]
    assert merged.dtype == torch.bfloat16
    assert torch.equal(merged, (base.float() + 2.0 * (pair.up @ pair.down)).to(torch.bfloat16))


def test_detached_adapters_leave_nothing_behind(model: RolloutModel, adapter: Adapter) -> None:
    names = list(model.state_dict())
    attach(model, adapter, "a")
    attach(model, make_adapter(model, seed=2), "b")
    activate(model, "b")
    second = predict(model)
    detach(model, "a")
    assert (attached(model), active_adapter(model)) == (("b",), "b")
    assert torch.equal(predict(model), second)
    detach(model, "b")
    assert (attached(model), active_adapter(model)) == ((), None)
    assert list(model.state_dict()) == names
    assert torch.equal(predict(model), predict(make_model()))


def test_detaching_the_active_one_runs_the_base(model: RolloutModel, adapter: Adapter) -> None:
    attach(model, adapter, "a")
    attach(model, make_adapter(model, seed=2), "b")
    activate(model, "b")
    detach(model, "b")
    assert active_adapter(model) is None
    assert torch.equal(predict(model), predict(make_model()))
    with pytest.raises(ValueError, match="no adapter 'b'"):
        detach(model, "b")


def test_attaching_draws_no_random_numbers(model: RolloutModel, adapter: Adapter) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    attach(model, adapter, "a")
    assert torch.equal(torch.rand(3), expected)


def test_names_are_given_once(model: RolloutModel, adapter: Adapter) -> None:
    attach(model, adapter, "a")
    for name in ("a", "a.b", ""):
        with pytest.raises(ValueError, match="taken or not an identifier"):
            attach(model, adapter, name)
    with pytest.raises(ValueError, match="no adapter 'c' is attached, only a"):
        activate(model, "c")


def test_an_untrained_adapter_is_nothing_and_only_it_learns(model: RolloutModel) -> None:
    bare = predict(model)
    attach(model, start_adapter(model), "new")
    activate(model, "new", is_trainable=True)
    assert torch.equal(predict(model), bare)
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(".lora_" in name or "state_branch.modules_to_save.new." in name for name in learning)
    assert len(learning) == 2 * 20 + len(list(make_model().state_branch.parameters()))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=4e-4)
    latents, states = torch.randn(2, 6, 4, 4, 4), torch.randn(2, 21, 25)
    losses = []
    for _ in range(8):
        loss = (model.velocity(latents, torch.full((2, 6), 0.5), *model.condition(states)) - 1.0).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    activate(model, None)
    assert torch.equal(predict(model), bare)


def test_the_papers_lora_has_80_6_million_parameters() -> None:
    with torch.device("meta"):
        model = RolloutModel(RolloutConfig(state=STATE))
    shapes = {name: tensor.shape for name, tensor in model.transformer.state_dict().items()}
    layers = [f"blocks.{index}.{target}.weight" for index in range(30) for target in TARGETS]
    assert sum(32 * sum(shapes[layer]) for layer in layers) == 80_609_280


def test_a_saved_adapter_comes_back_bit_for_bit(tmp_path: Path, model: RolloutModel, adapter: Adapter) -> None:
    attach(model, adapter, "a")
    attach(model, make_adapter(model, seed=2), "b")
    activate(model, "a")
    path, digest = tmp_path / "run" / "adapter.safetensors", digest_base(model)
    save_adapter(model, path, digest)
    assert [file.name for file in path.parent.iterdir()] == ["adapter.safetensors"]
    back = read_adapter(path)
    assert back.facts == AdapterFacts(8.0, digest, STATE)
    assert (back.rank, back.alpha) == (4, 8.0)
    assert all(torch.equal(pair.up, adapter.lora[layer].up) for layer, pair in back.lora.items())
    other = make_model()
    attach(other, back, "a")
    activate(other, "a")
    assert torch.equal(predict(other), predict(model))


def test_only_an_active_adapter_is_saved(tmp_path: Path, model: RolloutModel) -> None:
    with pytest.raises(ValueError, match="no adapter is active"):
        save_adapter(model, tmp_path / "adapter.safetensors", None)


def written(tmp_path: Path, adapter: Adapter) -> Path:
    path = tmp_path / "adapter.safetensors"
    write_adapter(adapter, path)
    return path


def prediction_with(adapter: Adapter, config: RolloutConfig = CONFIG) -> Tensor:
    model = make_model(config)
    attach(model, adapter, "a")
    activate(model, "a")
    return predict(model)


def test_the_authors_file_holds_lora_and_branch_in_one(tmp_path: Path, model: RolloutModel) -> None:
    adapter = make_adapter(model, rank=4, alpha=4.0)
    tensors = {}
    for layer, pair in adapter.lora.items():
        block, index, target = layer.split(".", 2)
        name = f"pipe.dit.{block}.{index}.{ORIGINAL[target]}"
        tensors |= {f"{name}.lora_A.default.weight": pair.down, f"{name}.lora_B.default.weight": pair.up}
    for name, tensor in adapter.branch.items():
        root, _, index = name.partition(".")
        tensors[f"blocks.{index}.robot_modulation" if root == "robot_modulation" else name] = tensor
    path = tmp_path / "step-23000.safetensors"
    save_file(tensors, path)
    found = read_adapter(path)
    assert (found.alpha, found.rank) == (4.0, 4)  # scale 1 where the file says nothing
    assert found.branch.keys() == adapter.branch.keys()
    assert torch.equal(prediction_with(found), prediction_with(adapter))
    without = {name.removeprefix("pipe.dit."): tensor for name, tensor in tensors.items()}
    save_file(without, path)
    assert torch.equal(prediction_with(read_adapter(path)), prediction_with(adapter))


def test_a_folder_of_peft_keeps_its_alpha(tmp_path: Path, model: RolloutModel, adapter: Adapter) -> None:
    wrapped = get_peft_model(make_model().transformer, LoraConfig(r=4, lora_alpha=8, target_modules=list(TARGETS)))
    weights = wrapped.state_dict()
    for layer, pair in adapter.lora.items():
        weights[f"base_model.model.{layer}.lora_A.default.weight"].copy_(pair.down)
        weights[f"base_model.model.{layer}.lora_B.default.weight"].copy_(pair.up)
    wrapped.save_pretrained(tmp_path)
    found = read_adapter(tmp_path)
    assert (found.alpha, found.branch) == (8.0, {})
    expected = replace(adapter, branch={})
    assert torch.equal(prediction_with(found), prediction_with(expected))
    # The positive control: without the file that states alpha, the change is half as large.
    (tmp_path / "adapter_config.json").unlink()
    assert (prediction_with(read_adapter(tmp_path)) - prediction_with(expected)).abs().max() > 0.01


def diffusers_transformer() -> WanTransformer3DModel:
    sizes = asdict(WAN)
    known = sizes.keys() & WanTransformer3DModel.__init__.__annotations__.keys()
    other = WanTransformer3DModel(**{name: sizes[name] for name in known})
    other.load_state_dict(make_model().transformer.state_dict())
    return other.eval()


def test_diffusers_file_loads_here(tmp_path: Path, adapter: Adapter) -> None:
    other = diffusers_transformer()
    other.add_adapter(LoraConfig(r=4, lora_alpha=8, target_modules=list(TARGETS)))
    weights = other.state_dict()
    for layer, pair in adapter.lora.items():
        weights[f"{layer}.lora_A.default.weight"].copy_(pair.down)
        weights[f"{layer}.lora_B.default.weight"].copy_(pair.up)
    other.save_lora_adapter(tmp_path)
    found = read_adapter(tmp_path)
    assert found.alpha == 8.0
    assert torch.equal(prediction_with(found), prediction_with(replace(adapter, branch={})))


@torch.no_grad()
def test_a_saved_adapter_loads_in_diffusers(tmp_path: Path, model: RolloutModel, adapter: Adapter) -> None:
    other = diffusers_transformer()
    path = written(tmp_path, adapter)
    other.load_lora_adapter(tmp_path, weight_name=path.name, use_safetensors=True)
    attach(model, adapter, "a")
    activate(model, "a")
    latents, prompt = torch.randn(1, 4, 2, 4, 4), torch.randn(1, 3, 8)
    expected = model.transformer(latents, torch.full((1, 2), 500.0), prompt)
    theirs = other(latents, torch.tensor([500.0]), prompt, return_dict=False)[0]
    torch.testing.assert_close(theirs, expected, atol=1e-4, rtol=0.0)
    assert (expected - make_model().transformer(latents, torch.full((1, 2), 500.0), prompt)).abs().max() > 0.01


def test_an_adapter_of_lora_alone_keeps_the_bases_branch(model: RolloutModel, adapter: Adapter) -> None:
    with torch.no_grad():
        for parameter in model.state_branch.parameters():
            parameter.normal_(std=0.1)
    own = dict(model.state_branch.state_dict())
    attach(model, replace(adapter, branch={}), "a")
    activate(model, "a")
    merge(model)
    assert all(torch.equal(tensor, own[name]) for name, tensor in model.state_branch.state_dict().items())


def test_another_base_is_refused_by_its_digest(model: RolloutModel, adapter: Adapter) -> None:
    named = replace(adapter, facts=replace(adapter.facts, base_digest=digest_base(model)))
    attach(model, named, "a")
    activate(model, "a")
    attach(model, named, "again")  # adapters are no part of the base
    other = make_model()
    with torch.no_grad():
        other.transformer.patch_embedding.weight.add_(0.1)
    before = predict(other)
    with pytest.raises(CheckpointError, match=f"was made for the base {digest_base(model)[:12]}, this model is "):
        attach(other, named, "a")
    assert attached(other) == ()
    assert torch.equal(predict(other), before)


Tensors = dict[str, Tensor]
A, B = f"transformer.{QUERY}.lora_A.weight", f"transformer.{QUERY}.lora_B.weight"
CONV = "robot_temporal_compression.0.weight"
WRONG_FILES: dict[str, Callable[[Tensors], object]] = {
    f"lora_B of layer {QUERY} is missing": lambda tensors: tensors.pop(B),
    f"lora_A of layer {QUERY} is missing": lambda tensors: tensors.pop(A),
    f"layer {QUERY}: .* are no low-rank pair": lambda tensors: tensors.update({A: torch.zeros(3, 24)}),
    "tensor 'transformer.blocks.0.attn1.to_q.diff' is neither LoRA nor of a state branch": lambda tensors: (
        tensors.update({"transformer.blocks.0.attn1.to_q.diff": torch.zeros(2)})
    ),
    f"tensor {B!r} holds values that are not finite": lambda tensors: tensors[B].view(-1)[3:4].fill_(torch.nan),
    f"tensor {A!r} is I64": lambda tensors: tensors.update({A: tensors[A].long()}),
    "is there twice": lambda tensors: tensors.update(
        {"pipe.dit.blocks.0.self_attn.q.lora_A.default.weight": tensors[A].clone()}
    ),
    "holds no LoRA tensors": lambda tensors: [tensors.pop(name) for name in list(tensors) if ".lora_" in name],
}
WRONG_FITS: dict[str, Callable[[Tensors], object]] = {
    "the model has no linear layer blocks.7.attn1.to_q": lambda tensors: tensors.update(
        {A.replace("blocks.0", "blocks.7"): tensors[A].clone(), B.replace("blocks.0", "blocks.7"): tensors[B].clone()}
    ),
    rf"layer {QUERY} is 24 to 24, its LoRA of rank 4 is \(4, 20\)": lambda tensors: tensors.update(
        {A: torch.zeros(4, 20)}
    ),
    rf"layer {QUERY} is 24 to 24, its LoRA of rank 4 is \(2, 24\)": lambda tensors: tensors.update(
        {A: torch.zeros(2, 24), B: torch.zeros(24, 2)}
    ),
    f"tensor {CONV!r} of the state branch is missing": lambda tensors: tensors.pop(CONV),
    "the model's state branch has no tensor 'no_states_token'": lambda tensors: tensors.update(
        no_states_token=torch.zeros(1, 1, 16)
    ),
    rf"tensor {CONV!r} is \(16, 16, 5\), the model's \(16, 16, 3\)": lambda tensors: tensors.update(
        {CONV: torch.zeros(16, 16, 5)}
    ),
}


def rewrite(path: Path, edit: Callable[[Tensors], object], **metadata: str) -> None:
    with safe_open(path, framework="pt") as file:
        kept = {**file.metadata(), **metadata}
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    edit(tensors)
    save_file(tensors, path, kept)


@pytest.mark.parametrize("message", WRONG_FILES)
def test_wrong_files_are_refused_by_name(tmp_path: Path, adapter: Adapter, message: str) -> None:
    path = written(tmp_path, adapter)
    rewrite(path, WRONG_FILES[message])
    with pytest.raises(CheckpointError, match=message):
        read_adapter(path)


@pytest.mark.parametrize("message", WRONG_FITS)
def test_what_does_not_fit_leaves_the_running_model_alone(
    tmp_path: Path, model: RolloutModel, adapter: Adapter, message: str
) -> None:
    attach(model, adapter, "a")
    activate(model, "a")
    before = predict(model)
    path = written(tmp_path, replace(adapter, lora=dict(sorted(adapter.lora.items(), reverse=True))))
    rewrite(path, WRONG_FITS[message])
    with pytest.raises(CheckpointError, match=message):
        attach(model, last_first(read_adapter(path)), "b")
    assert (attached(model), active_adapter(model)) == (("a",), "a")
    assert torch.equal(predict(model), before)


def last_first(adapter: Adapter) -> Adapter:
    """Put the layers the other way round, so that a layer's rank is not what the adapter's is told by."""
    return replace(adapter, lora=dict(sorted(adapter.lora.items(), reverse=True)))


def test_a_branch_that_combines_otherwise_is_refused(adapter: Adapter) -> None:
    product = make_model(replace(CONFIG, state=replace(STATE, combination=Combination.MULTIPLICATIVE)))
    with pytest.raises(CheckpointError, match=r"its state branch is .*additive.*, the model's .*multiplicative"):
        attach(product, adapter, "a")


METADATA = {
    "use_dora is True, which plain LoRA does not do": {"use_dora": True},
    "use_rslora is True": {"use_rslora": True},
    "rank_pattern is": {"rank_pattern": {"to_q": 8}},
    "says rank 5, its tensors have 4": {"r": 5},
    "lora_alpha: expected a finite number": {"lora_alpha": "eight"},
}


@pytest.mark.parametrize("message", METADATA)
def test_another_kind_of_lora_is_refused(tmp_path: Path, adapter: Adapter, message: str) -> None:
    path = tmp_path / "pytorch_lora_weights.safetensors"
    config = {"r": 4, "lora_alpha": 8, "peft_type": "LORA"} | METADATA[message]
    pair = adapter.lora[QUERY]
    save_file({A: pair.down, B: pair.up}, path, {"lora_adapter_metadata": json.dumps(config)})
    with pytest.raises(BundleError, match=message):
        read_adapter(tmp_path)


def test_damaged_facts_are_refused(tmp_path: Path, adapter: Adapter) -> None:
    path = written(tmp_path, adapter)
    rewrite(path, lambda tensors: None, foreframe_adapter='{"alpha": "much"}')
    with pytest.raises(BundleError, match="foreframe_adapter: alpha: expected"):
        read_adapter(path)


@pytest.mark.parametrize("name", ["adapter_model.bin", "pytorch_lora_weights.bin", "lora.ckpt", "lora.pt"])
def test_pickles_are_named_and_never_opened(tmp_path: Path, name: str) -> None:
    opened = tmp_path.with_name("opened")
    (tmp_path / name).write_bytes(f"cposix\nsystem\n(S'touch {opened}'\ntR.".encode())
    with pytest.raises(CheckpointError, match=f"{name}, a pickle, which is never opened"):
        read_adapter(tmp_path)
    with pytest.raises(CheckpointError, match=f"{name} is a pickle"):
        read_adapter(tmp_path / name)
    assert not opened.exists()


def test_a_missing_file_and_another_one_are_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"absent\.safetensors is missing"):
        read_adapter(tmp_path / "absent.safetensors")
    (tmp_path / "text.safetensors").write_text("no tensors here")
    with pytest.raises(CheckpointError, match="is not a whole safetensors file"):
        read_adapter(tmp_path)


STATES = [
    STATE,
    replace(full_rate_states(), hidden=16),
    replace(STATE, has_no_states_token=True, combination=Combination.MULTIPLICATIVE),
]


@pytest.mark.parametrize("state", STATES, ids=["21 rows", "77 rows", "token, product"])
def test_a_branchs_configuration_is_told_by_its_shapes(state: StateBranchConfig) -> None:
    adapter = start_adapter(make_model(replace(CONFIG, state=state)))
    assert infer_state_config(adapter) == state
    unnamed: Mapping[str, Tensor] = adapter.branch
    assert infer_state_config(Adapter(adapter.lora, unnamed), state.combination) == state


def test_an_unknown_branch_is_not_guessed(adapter: Adapter) -> None:
    conv = {name: tensor[..., :2] for name, tensor in adapter.branch.items() if name == CONV}
    with pytest.raises(CheckpointError, match="kernels"):
        infer_state_config(Adapter(adapter.lora, {**adapter.branch, **conv}))
