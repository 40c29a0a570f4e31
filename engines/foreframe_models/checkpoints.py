"""A Wan transformer from a folder on disk: diffusers' layout, or the original one that DiffSynth keeps.

Everything is checked against headers before a value is read, and tensors are read one at a time, so that loading
takes the model's size in memory and no more. Knows no adapters.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from foreframe_engines.errors import CheckpointError
from foreframe_engines.runtime.memory import free_host_bytes, require_memory
from foreframe_engines.strict_json import Json, JsonRecord
from foreframe_models.checkpoint_files import StoredTensor, find_tensors, read_json
from foreframe_models.checkpoint_names import canonical_names
from foreframe_models.rollout import RolloutConfig, RolloutModel
from foreframe_models.wan import WanConfig, WanTransformer

CONFIG_FILE = "config.json"
SUBFOLDER = "transformer"

_DIFFUSERS = {
    name: name
    for name in (
        "num_layers",
        "num_attention_heads",
        "attention_head_dim",
        "ffn_dim",
        "freq_dim",
        "text_dim",
        "in_channels",
        "out_channels",
    )
}
_ORIGINAL = {
    "num_layers": "num_layers",
    "num_heads": "num_attention_heads",
    "ffn_dim": "ffn_dim",
    "freq_dim": "freq_dim",
    "in_dim": "in_channels",
    "out_dim": "out_channels",
}
_EXPECTED: Mapping[str, tuple[Json, ...]] = {
    "cross_attn_norm": (True,),
    "qk_norm": ("rms_norm_across_heads", True),
    "pos_embed_seq_len": (None,),
    "window_size": ([-1, -1],),
}
# Widths of an image branch, which a text-and-image model has not: were there one, its tensors would be extra.
_IRRELEVANT = ("image_dim", "added_kv_proj_dim", "rope_max_seq_len", "model_type", "text_len")
_SINGLE_PRECISION = ("norm", "scale_shift_table", "time_embedder")


def load_transformer(
    folder: Path, dtype: torch.dtype | None = None, *, device: torch.device | str = "cpu"
) -> WanTransformer:
    """Load a Wan transformer, frozen and in evaluation mode.

    folder: of the transformer, or of a pipeline that has one. dtype: None keeps the file's; norms, modulation tables
    and the time embedding are float32 whatever it is, as diffusers has it. Raises BundleError naming the file, tensor
    or number that is wrong, RuntimeUnavailable where memory is too little; nothing is loaded then.
    """
    folder = transformer_folder(folder)
    with torch.device("meta"):
        model = WanTransformer(read_transformer_config(folder))
    stored = match_tensors(find_tensors(folder), _shapes(model), str(folder))
    dtypes = {name: _loaded_dtype(name, dtype or tensor.dtype) for name, tensor in stored.items()}
    _require_memory(folder, [math.prod(stored[name].shape) * dtypes[name].itemsize for name in stored], device)
    tensors = {name: tensor.read(dtypes[name], device) for name, tensor in stored.items()}
    model.load_state_dict(tensors, assign=True)
    return model.eval().requires_grad_(requires_grad=False)


def load_rollout(
    folder: Path, config: RolloutConfig, dtype: torch.dtype | None = None, *, device: torch.device | str = "cpu"
) -> RolloutModel:
    """Load a transformer into a rollout model whose state branch does nothing yet; adapters bring theirs.

    The transformer's sizes are the folder's, the rest is as `config` says. Raises as `load_transformer` does.
    """
    transformer = load_transformer(folder, dtype, device=device)
    return RolloutModel(replace(config, transformer=transformer.config), transformer).to(device).eval()


def transformer_folder(folder: Path) -> Path:
    """Return the transformer's folder: this one, or its part of a pipeline's folder. Raises BundleError."""
    for candidate in (folder / SUBFOLDER, folder):
        if (candidate / CONFIG_FILE).is_file():
            return candidate
    raise CheckpointError(f"{folder} holds neither {CONFIG_FILE} nor {SUBFOLDER}/{CONFIG_FILE}")


def read_transformer_config(folder: Path) -> WanConfig:
    """Read the sizes of the transformer in a folder. Raises BundleError naming the key."""
    path = transformer_folder(folder) / CONFIG_FILE
    values = read_json(path)
    kind = values.get("_class_name")
    if kind == "WanTransformer3DModel":
        return _read_diffusers(values, str(path))
    if kind == "WanModel":
        return _read_original(values, str(path))
    raise CheckpointError(f"{path}: _class_name is {kind!r}; expected WanTransformer3DModel or WanModel")


def match_tensors(
    stored: Mapping[str, StoredTensor], shapes: Mapping[str, tuple[int, ...]], where: str
) -> dict[str, StoredTensor]:
    """Return a model's tensors by its own names. Raises CheckpointError for missing, extra and mis-shaped ones."""
    names = canonical_names(stored)
    if missing := shapes.keys() - names.keys():
        raise CheckpointError(f"{where}: {_list_names(missing)} missing")
    if extra := names.keys() - shapes.keys():
        raise CheckpointError(f"{where}: {_list_names(names[name] for name in extra)} not part of this model")
    for name, shape in shapes.items():
        tensor = stored[names[name]]
        if tensor.shape != shape:
            raise CheckpointError(f"{tensor.path}: tensor {tensor.name!r} is {tensor.shape}, the model's is {shape}")
    return {name: stored[names[name]] for name in shapes}


def digest_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return a SHA-256 of names, shapes and values, the same however they are named, split or rounded on disk.

    Values count as bfloat16, so that a model is itself whether it was loaded in half or in single precision.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().to("cpu", torch.bfloat16).contiguous()
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _loaded_dtype(name: str, dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if any(part in name for part in _SINGLE_PRECISION) else dtype


def _require_memory(folder: Path, sizes: Iterable[int], device: torch.device | str) -> None:
    free = free_host_bytes()
    if free is not None and torch.device(device).type == "cpu":
        require_memory(f"{folder}", sum(sizes), free, "of memory")


def _list_names(names: Iterable[str]) -> str:
    first, *rest = sorted(names)
    return f"tensors {first!r} and {len(rest)} more are" if rest else f"tensor {first!r} is"


def _read_diffusers(values: dict[str, Json], where: str) -> WanConfig:
    if values.get("out_channels", 0) is None:
        values = {**values, "out_channels": values.get("in_channels")}
    _check_rest(values, {*_DIFFUSERS, "patch_size", "eps"}, where)
    record = _record(values, {*_DIFFUSERS, "patch_size", "eps"}, where)
    sizes: dict[str, Any] = {name: record.count(key) for key, name in _DIFFUSERS.items()}
    sizes["patch_size"] = record.counts("patch_size")
    if len(sizes["patch_size"]) != 3:
        raise CheckpointError(f"{record.at('patch_size')}: expected 3 values")
    return WanConfig(**sizes, eps=record.number("eps"))


def _read_original(values: dict[str, Json], where: str) -> WanConfig:
    _check_rest(values, {*_ORIGINAL, "dim", "eps"}, where)
    record = _record(values, {*_ORIGINAL, "dim", "eps"}, where)
    sizes: dict[str, Any] = {name: record.count(key) for key, name in _ORIGINAL.items()}
    width, heads = record.count("dim"), sizes["num_attention_heads"]
    if width % heads:
        raise CheckpointError(f"{record.at('dim')}: {width} does not divide by {heads} heads")
    return WanConfig(**sizes, attention_head_dim=width // heads, eps=record.number("eps"))


def _record(values: dict[str, Json], keys: set[str], where: str) -> JsonRecord:
    return JsonRecord({key: value for key, value in values.items() if key in keys}, where, sorted(keys))


def _check_rest(values: dict[str, Json], known: set[str], where: str) -> None:
    """Refuse a setting that would make another model of the same tensors."""
    for key, value in values.items():
        if key in known or key in _IRRELEVANT or key.startswith("_"):
            continue
        if value not in _EXPECTED.get(key, (None, False)):
            raise CheckpointError(f"{where}: {key} is {value!r}, which this model does not do")
