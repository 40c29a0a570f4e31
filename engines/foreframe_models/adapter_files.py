"""Adapters on disk: LoRA and a state branch in one safetensors file, by peft, diffusers, the authors or this package.

It writes diffusers' names for LoRA and the authors' for the branch. Knows no model and no peft.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from foreframe_engines.errors import CheckpointError
from foreframe_engines.strict_json import Json, JsonRecord, parse_json
from foreframe_models.checkpoint_files import (
    PICKLE_SUFFIXES,
    SUFFIX,
    StoredTensor,
    read_header,
    read_json,
    read_metadata,
    refuse_pickle,
)
from foreframe_models.checkpoint_names import branch_name, lora_name, published_branch_name, strip_prefix
from foreframe_models.config_json import read_config
from foreframe_models.state_branch import Combination, StateBranchConfig, full_rate_states

FACTS_KEY = "foreframe_adapter"
DIFFUSERS_KEY = "lora_adapter_metadata"
PEFT_FILE, PEFT_CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"
DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
PREFIX = "transformer."

# What peft can do besides plain LoRA, and the values that leave it off.
_PLAIN: Mapping[str, tuple[Json, ...]] = {
    "peft_type": (None, "LORA"),
    "bias": (None, "none"),
    "use_dora": (None, False),
    "use_rslora": (None, False),
    "lora_bias": (None, False),
    "fan_in_fan_out": (None, False),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
}


@dataclass(frozen=True, slots=True, eq=False)
class LoraPair:
    """The low-rank change of one layer: `up` `out r` times `down` `r in`."""

    down: Tensor
    up: Tensor


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    """What an adapter's file says besides tensors. The change counts `alpha` / rank times; None: as much as it is."""

    alpha: float | None = None
    base_digest: str | None = None
    state: StateBranchConfig | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """LoRA by the transformer's layer, and a state branch by its own tensors' names (empty where there is none)."""

    lora: Mapping[str, LoraPair]
    branch: Mapping[str, Tensor]
    facts: AdapterFacts = AdapterFacts()
    source: str = "adapter"

    @property
    def rank(self) -> int:
        """Rank r of every pair."""
        return len(next(iter(self.lora.values())).down)

    @property
    def alpha(self) -> float:
        """Scale times rank; the rank itself where the file says nothing, as the authors' trainer has it."""
        return float(self.rank) if self.facts.alpha is None else self.facts.alpha


def read_adapter(path: Path) -> Adapter:
    """Read an adapter's file, or the one in a folder of peft or diffusers.

    Raises BundleError naming the file and tensor: pickles, halves of pairs, other kinds than plain LoRA.
    """
    path = _find_file(path)
    stored = read_header(path)
    rank, facts = _read_facts(path)
    lora, branch = _read_lora(path, stored), _read_branch(stored)
    if extra := [name for name in stored if lora_name(name) is None and branch_name(strip_prefix(name)) is None]:
        raise CheckpointError(f"{path}: tensor {extra[0]!r} is neither LoRA nor of a state branch")
    adapter = Adapter(lora, branch, facts, str(path))
    if rank not in (None, adapter.rank):
        raise CheckpointError(f"{path} says rank {rank}, its tensors have {adapter.rank}")
    return adapter


def write_adapter(adapter: Adapter, path: Path) -> None:
    """Write an adapter in one go: a file that is there is whole."""
    tensors = {published_branch_name(name): tensor for name, tensor in adapter.branch.items()}
    for layer, pair in adapter.lora.items():
        tensors |= {f"{PREFIX}{layer}.lora_A.weight": pair.down, f"{PREFIX}{layer}.lora_B.weight": pair.up}
    lora_config = {"r": adapter.rank, "lora_alpha": adapter.alpha, "target_modules": sorted(adapter.lora)}
    metadata = {
        "format": "pt",
        FACTS_KEY: json.dumps(asdict(replace(adapter.facts, alpha=adapter.alpha))),
        DIFFUSERS_KEY: json.dumps({f"{PREFIX}{key}": value for key, value in lora_config.items()}),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, part, metadata)
    part.replace(path)


def infer_state_config(adapter: Adapter, combination: Combination = Combination.ADDITIVE) -> StateBranchConfig:
    """Return the configuration of an adapter's state branch: the one it names, or what its shapes say.

    `combination` is for files of the authors, whose tensors are the same in either. Raises CheckpointError.
    """
    if adapter.facts.state is not None:
        return adapter.facts.state
    kernels = [t.shape[-1] for name, t in adapter.branch.items() if name.startswith("robot_temporal") and t.ndim == 3]
    known = {str([config.kernel] * 2): config for config in (StateBranchConfig(), full_rate_states())}
    if (config := known.get(str(kernels))) is None:
        raise CheckpointError(f"{adapter.source}: temporal convolutions of kernels {kernels} are none of the paper's")
    hidden, features = adapter.branch["robot_state_compression.0.weight"].shape
    if features != config.num_features:
        raise CheckpointError(f"{adapter.source}: {features} state features, the paper's are {config.num_features}")
    has_token = "no_states_token" in adapter.branch
    return replace(config, hidden=hidden, combination=combination, has_no_states_token=has_token)


def _find_file(path: Path) -> Path:
    if not path.is_dir():
        refuse_pickle(path)
        return path
    found = sorted(path.glob(f"*{SUFFIX}"))
    usual = [file for file in found if file.name in (PEFT_FILE, DIFFUSERS_FILE)] or found
    if len(usual) == 1:
        return usual[0]
    pickles = sorted(file.name for file in path.iterdir() if file.suffix.lower() in PICKLE_SUFFIXES)
    instead = f" but {pickles[0]}, a pickle, which is never opened" if pickles else ""
    raise CheckpointError(f"{path} holds {len(usual)} adapter files{instead}; expected one {SUFFIX} file")


def _read_lora(path: Path, stored: Mapping[str, StoredTensor]) -> dict[str, LoraPair]:
    halves: dict[str, dict[str, StoredTensor]] = {}
    for name, tensor in stored.items():
        if found := lora_name(name):
            layer, half = found
            if halves.setdefault(layer, {}).setdefault(half, tensor) is not tensor:
                raise CheckpointError(f"{path}: tensor {name!r} is there twice under two names")
    if not halves:
        raise CheckpointError(f"{path} holds no LoRA tensors")
    return {layer: _read_pair(path, layer, pair) for layer, pair in sorted(halves.items())}


def _read_pair(path: Path, layer: str, pair: Mapping[str, StoredTensor]) -> LoraPair:
    if missing := {"A", "B"} - pair.keys():
        raise CheckpointError(f"{path}: lora_{missing.pop()} of layer {layer} is missing")
    down, up = pair["A"], pair["B"]
    if len(down.shape) != 2 or len(up.shape) != 2 or down.shape[0] != up.shape[1]:
        raise CheckpointError(f"{path}: layer {layer}: {down.shape} and {up.shape} are no low-rank pair")
    return LoraPair(_read_finite(down), _read_finite(up))


def _read_branch(stored: Mapping[str, StoredTensor]) -> dict[str, Tensor]:
    names = {name: branch_name(strip_prefix(name)) for name in stored}
    return {own: _read_finite(stored[name]) for name, own in names.items() if own is not None}


def _read_finite(stored: StoredTensor) -> Tensor:
    tensor = stored.read()
    if not torch.isfinite(tensor).all():
        raise CheckpointError(f"{stored.path}: tensor {stored.name!r} holds values that are not finite")
    return tensor


def _read_facts(path: Path) -> tuple[int | None, AdapterFacts]:
    """Return the rank that the file states, if it does, and the rest."""
    metadata = read_metadata(path)
    if FACTS_KEY in metadata:
        return None, read_config(AdapterFacts, metadata[FACTS_KEY], f"{path}: {FACTS_KEY}")
    if DIFFUSERS_KEY in metadata:
        values = parse_json(metadata[DIFFUSERS_KEY], f"{path}: {DIFFUSERS_KEY}")
        return _read_lora_config(values, f"{path}: {DIFFUSERS_KEY}")
    config = path.with_name(PEFT_CONFIG_FILE)
    if path.name == PEFT_FILE and config.exists():
        return _read_lora_config(dict(read_json(config)), str(config))
    return None, AdapterFacts()


def _read_lora_config(values: Json, where: str) -> tuple[int, AdapterFacts]:
    """Read peft's settings. What would make another change of the same tensors is refused."""
    values = {key.removeprefix(PREFIX): item for key, item in values.items()} if isinstance(values, dict) else {}
    for key, plain in _PLAIN.items():
        if values.get(key) not in plain:
            raise CheckpointError(f"{where}: {key} is {values[key]!r}, which plain LoRA does not do")
    known = ("r", "lora_alpha")
    record = JsonRecord({key: values[key] for key in known if key in values}, where, known)
    return record.count("r"), AdapterFacts(alpha=record.number("lora_alpha"))
