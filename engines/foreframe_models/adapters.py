"""Adapters of a rollout model by peft: LoRA on the transformer and the state branch that was trained with it.

An attached adapter leaves the base's weights as they are, so that changing adapters and going back is exact.
Several may be attached, one is active. Files are adapter_files'.
"""

import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from peft import LoraConfig, PeftConfig
from peft.functional import delete_adapter, inject_adapter_in_model, set_adapter
from peft.tuners.lora import Linear as LoraLinear
from peft.utils import ModulesToSaveWrapper
from torch import nn

from foreframe_engines.errors import CheckpointError
from foreframe_models.adapter_files import Adapter, AdapterFacts, LoraPair, read_adapter, write_adapter
from foreframe_models.checkpoints import digest_tensors
from foreframe_models.rollout import RolloutModel

__all__ = [
    "Adapter",
    "AdapterFacts",
    "LoraPair",
    "Unmerged",
    "activate",
    "active_adapter",
    "attach",
    "attached",
    "detach",
    "digest_base",
    "merge",
    "merge_reversibly",
    "read_adapter",
    "save_adapter",
    "start_adapter",
    "unmerge",
]

BRANCH = "state_branch"
RANK = 32
TARGETS = (
    *(f"attn{number}.{layer}" for number in (1, 2) for layer in ("to_q", "to_k", "to_v", "to_out.0")),
    "ffn.net.0.proj",
    "ffn.net.2",
)
"""The layers of a block that the paper adapts."""


@dataclass(frozen=True, slots=True, eq=False)
class Unmerged:
    """What `merge_reversibly` took out of a model: as much memory as the layers that it replaced."""

    modules: Mapping[str, nn.Module]
    configs: Mapping[str, PeftConfig]


def start_adapter(model: RolloutModel, rank: int = RANK, alpha: float = RANK, seed: int = 0) -> Adapter:
    """Return an untrained adapter of the paper's ten layers a block and of the model's own state branch.

    It changes nothing until it is trained: the second factor of every pair is zero.
    """
    generator = torch.Generator().manual_seed(seed)
    lora = {}
    for index in range(model.config.transformer.num_layers):
        for target in TARGETS:
            layer = f"blocks.{index}.{target}"
            lora[layer] = _untrained_pair(_base_linear(model, layer), rank, generator)
    branch = {name: tensor.detach().clone() for name, tensor in _base_branch(model).state_dict().items()}
    return Adapter(lora, branch, AdapterFacts(alpha, state=model.config.state), "a new adapter")


def attach(
    model: RolloutModel,
    adapter: Adapter,
    name: str,
    *,
    base_digest: str | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Put an adapter beside those that are there, and leave active which is.

    base_digest: of the model's base, where it is known; otherwise it is computed when the adapter names its own.
    dtype: of the low-rank factors; None takes their layers', training may want more.
    Raises CheckpointError when the adapter was made for another base or does not fit, ValueError for a taken name; the
    model is then as it was.
    """
    if name in attached(model) or not name.isidentifier():
        raise ValueError(f"adapter name {name!r} is taken or not an identifier")
    _check_fit(model, adapter)
    _check_base(model, adapter, base_digest)
    before = active_adapter(model)
    _inject(model, adapter, name)
    for layer, pair in adapter.lora.items():
        _fill(cast("LoraLinear", model.transformer.get_submodule(layer)), pair, name, dtype)
    if adapter.branch:
        _branch_of(model, name).load_state_dict(adapter.branch)
    activate(model, before)


def activate(model: RolloutModel, name: str | None, *, is_trainable: bool = False) -> None:
    """Run with one attached adapter from now on, or with the bare base. Raises ValueError for an unknown name.

    is_trainable: gradients reach this adapter's LoRA and state branch, and nothing else.
    """
    if name is not None and name not in attached(model):
        raise ValueError(f"no adapter {name!r} is attached, only {', '.join(attached(model)) or 'none'}")
    for _, layer in _adapted(model):
        layer.enable_adapters(name is not None)
    if name is not None:
        set_adapter(model, name, inference_mode=not is_trainable)


def detach(model: RolloutModel, name: str) -> None:
    """Forget an attached adapter; the bare base runs where it was active. Raises ValueError for an unknown name."""
    others = [other for other in attached(model) if other != name]
    if len(others) == len(attached(model)):
        raise ValueError(f"no adapter {name!r} is attached")
    after = active_adapter(model) if active_adapter(model) != name else None
    activate(model, others[0] if others else None)
    if others:
        delete_adapter(model, name, prefix="lora_")
        del _configs(model)[name]
        activate(model, after)
    else:
        merge(model)


def attached(model: RolloutModel) -> tuple[str, ...]:
    """Return the names of the attached adapters."""
    return tuple(_configs(model))


def active_adapter(model: RolloutModel) -> str | None:
    """Return the name of the adapter that runs, None for the bare base."""
    branch = cast("nn.Module", model.state_branch)
    if not isinstance(branch, ModulesToSaveWrapper) or branch.disable_adapters or not branch.active_adapters:
        return None
    return branch.active_adapters[0]


def merge(model: RolloutModel) -> None:
    """Work the active adapter into the base's weights for good: a plain model again, one matrix of memory at a time."""
    for _ in _replace_adapted(model):
        pass
    _forget_configs(model)


def merge_reversibly(model: RolloutModel) -> Unmerged:
    """Merge, and return what `unmerge` needs to make the model exactly what it was."""
    configs = dict(_configs(model))
    unmerged = Unmerged(dict(_replace_adapted(model)), configs)
    _forget_configs(model)
    return unmerged


def unmerge(model: RolloutModel, unmerged: Unmerged) -> None:
    """Put back what a merge took out, bit for bit."""
    for name, module in unmerged.modules.items():
        model.set_submodule(name, module)
    model.__dict__["peft_config"] = dict(unmerged.configs)


def save_adapter(model: RolloutModel, path: Path, base_digest: str | None) -> None:
    """Write the active adapter and the digest of its base. Raises ValueError when none is active."""
    name = active_adapter(model)
    if name is None:
        raise ValueError("no adapter is active")
    lora = {key.removeprefix("transformer."): layer for key, layer in _adapted(model) if isinstance(layer, LoraLinear)}
    lora = {key: layer for key, layer in lora.items() if name in layer.lora_A}
    pairs = {key: _pair_of(layer, name) for key, layer in lora.items()}
    (alpha,) = {float(layer.lora_alpha[name]) for layer in lora.values()}
    facts = AdapterFacts(alpha, base_digest, model.config.state)
    write_adapter(Adapter(pairs, _branch_of(model, name).state_dict(), facts, str(path)), path)


def digest_base(model: RolloutModel) -> str:
    """Return the digest of the transformer without its adapters."""
    tensors = model.transformer.state_dict()
    return digest_tensors({_base_name(name): tensors[name] for name in tensors if ".lora_" not in name})


def _base_name(name: str) -> str:
    return name.replace(".base_layer.", ".")


def _configs(model: RolloutModel) -> dict[str, PeftConfig]:
    """Return peft's own record of what is attached, which it keeps on the model."""
    return model.__dict__.get("peft_config", {})


def _forget_configs(model: RolloutModel) -> None:
    model.__dict__.pop("peft_config", None)


def _adapted(model: RolloutModel) -> list[tuple[str, LoraLinear | ModulesToSaveWrapper]]:
    kinds = (LoraLinear, ModulesToSaveWrapper)
    return [(name, module) for name, module in model.named_modules() if isinstance(module, kinds)]


def _base_linear(model: RolloutModel, layer: str) -> nn.Linear | None:
    """Return a linear layer of the transformer under its adapters, None where there is none of that name."""
    try:
        module = model.transformer.get_submodule(layer)
    except AttributeError:
        return None
    base = module.get_base_layer() if isinstance(module, LoraLinear) else module
    return base if isinstance(base, nn.Linear) else None


def _base_branch(model: RolloutModel) -> nn.Module:
    branch = cast("nn.Module", model.state_branch)
    return branch.original_module if isinstance(branch, ModulesToSaveWrapper) else branch


def _branch_of(model: RolloutModel, name: str) -> nn.Module:
    return cast("ModulesToSaveWrapper", cast("nn.Module", model.state_branch)).modules_to_save[name]


def _untrained_pair(layer: nn.Linear | None, rank: int, generator: torch.Generator) -> LoraPair:
    if layer is None:
        raise TypeError("the model lacks one of the paper's layers")
    reach = 1.0 / math.sqrt(layer.in_features)
    down = torch.rand(rank, layer.in_features, generator=generator) * (2.0 * reach) - reach
    return LoraPair(down, torch.zeros(layer.out_features, rank))


def _pair_of(layer: LoraLinear, name: str) -> LoraPair:
    down, up = (cast("nn.Linear", half[name]) for half in (layer.lora_A, layer.lora_B))
    return LoraPair(down.weight, up.weight)


def _check_fit(model: RolloutModel, adapter: Adapter) -> None:
    for layer, pair in adapter.lora.items():
        base = _base_linear(model, layer)
        if base is None:
            raise CheckpointError(f"{adapter.source}: the model has no linear layer {layer}")
        rank, given = adapter.rank, (tuple(pair.down.shape), tuple(pair.up.shape))
        if given != ((rank, base.in_features), (base.out_features, rank)):
            raise CheckpointError(
                f"{adapter.source}: layer {layer} is {base.in_features} to {base.out_features}, its "
                f"LoRA of rank {rank} is {given[0]} and {given[1]}"
            )
    if adapter.branch:
        _check_branch(model, adapter)


def _check_branch(model: RolloutModel, adapter: Adapter) -> None:
    own = _base_branch(model).state_dict()
    if missing := sorted(own.keys() - adapter.branch.keys()):
        raise CheckpointError(f"{adapter.source}: tensor {missing[0]!r} of the state branch is missing")
    if extra := sorted(adapter.branch.keys() - own.keys()):
        raise CheckpointError(f"{adapter.source}: the model's state branch has no tensor {extra[0]!r}")
    for name, tensor in own.items():
        if (shape := adapter.branch[name].shape) != tensor.shape:
            raise CheckpointError(
                f"{adapter.source}: tensor {name!r} is {tuple(shape)}, the model's {tuple(tensor.shape)}"
            )
    if adapter.facts.state not in (None, model.config.state):
        raise CheckpointError(
            f"{adapter.source}: its state branch is {adapter.facts.state}, the model's {model.config.state}"
        )


def _check_base(model: RolloutModel, adapter: Adapter, base_digest: str | None) -> None:
    named = adapter.facts.base_digest
    if named is None:
        return
    own = base_digest or digest_base(model)
    if own != named:
        raise CheckpointError(f"{adapter.source} was made for the base {named[:12]}, this model is {own[:12]}")


def _inject(model: RolloutModel, adapter: Adapter, name: str) -> None:
    config = LoraConfig(
        r=adapter.rank,
        lora_alpha=cast("int", adapter.alpha),  # a factor like any other
        target_modules=[f"transformer.{layer}" for layer in adapter.lora],
        modules_to_save=[BRANCH],
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")  # several are meant
        inject_adapter_in_model(config, model, name, low_cpu_mem_usage=True)  # no random start, so no seed is moved


def _fill(layer: LoraLinear, pair: LoraPair, name: str, dtype: torch.dtype | None) -> None:
    weight = cast("nn.Linear", layer.get_base_layer()).weight
    for part, values in ((layer.lora_A[name], pair.down), (layer.lora_B[name], pair.up)):
        part.weight = nn.Parameter(values.to(weight.device, dtype or weight.dtype, copy=True), requires_grad=False)


def _replace_adapted(model: RolloutModel) -> Iterator[tuple[str, nn.Module]]:
    """Replace layer after layer by what it does now; yield each name and the layer that stood there."""
    name = active_adapter(model)
    for key in [key for key, _ in _adapted(model)]:
        layer = model.get_submodule(key)
        if isinstance(layer, LoraLinear):
            model.set_submodule(key, _merged(layer, name))
        else:
            model.set_submodule(key, _base_branch(model) if name is None else _branch_of(model, name))
        yield key, layer


@torch.no_grad()
def _merged(layer: LoraLinear, name: str | None) -> nn.Module:
    base = cast("nn.Linear", layer.get_base_layer())
    if name is None or name not in layer.lora_A:
        return base
    with torch.device("meta"):
        merged = nn.Linear(base.in_features, base.out_features, bias=base.bias is not None)
    pair = _pair_of(layer, name)
    change = pair.up.float() @ pair.down.float() * layer.scaling[name]  # one rounding, at the end
    merged.weight = nn.Parameter((base.weight.float() + change).to(base.weight.dtype), requires_grad=False)
    merged.bias = base.bias
    return merged.train(base.training)
