"""Safetensors files on disk: which tensors they hold, and one tensor at a time. Knows no model; opens no pickle."""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from foreframe_engines.errors import CheckpointError
from foreframe_engines.strict_json import Json, parse_json

SUFFIX = ".safetensors"
INDEX_SUFFIX = ".safetensors.index.json"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
DEFAULT_STEM = "diffusion_pytorch_model"

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class _Part(Protocol):
    """One tensor of an open file, not read. This and the next: what safetensors leaves untyped."""

    def get_dtype(self) -> str: ...
    def get_shape(self) -> list[int]: ...


class _TensorFile(Protocol):
    """An open safetensors file."""

    def keys(self) -> list[str]: ...
    def metadata(self) -> dict[str, str] | None: ...
    def get_slice(self, name: str) -> _Part: ...
    def get_tensor(self, name: str) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor in one file, not yet read."""

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Size in the file."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    def read(self, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> Tensor:
        """Read the values into memory of their own. Raises CheckpointError."""
        # Pages of a mapped file count as this process's until the file is closed, so each tensor opens it anew.
        with _open(self.path) as file:
            return file.get_tensor(self.name).to(device, dtype or self.dtype, copy=True)


def find_tensors(folder: Path) -> dict[str, StoredTensor]:
    """List every tensor of a folder's sharded or single safetensors file by its name in there.

    Raises BundleError when files are missing, damaged or pickles, or when the index lies about them.
    """
    index = _choose(sorted(folder.glob(f"*{INDEX_SUFFIX}")), INDEX_SUFFIX)
    if index is not None:
        return _read_shards(index)
    path = _choose(sorted(folder.glob(f"*{SUFFIX}")), SUFFIX)
    if path is None:
        raise CheckpointError(_what_is_missing(folder))
    return read_header(path)


def read_header(path: Path) -> dict[str, StoredTensor]:
    """List every tensor of one safetensors file. Raises CheckpointError."""
    tensors = {}
    with _open(path) as file:
        for name in file.keys():  # noqa: SIM118 - the handle is not iterable
            part = file.get_slice(name)
            kind = part.get_dtype()
            if kind not in _DTYPES:
                raise CheckpointError(f"{path}: tensor {name!r} is {kind}; expected one of {', '.join(_DTYPES)}")
            tensors[name] = StoredTensor(path, name, tuple(part.get_shape()), _DTYPES[kind])
    return tensors


def read_metadata(path: Path) -> dict[str, str]:
    """Read the free text of a safetensors file's header. Raises CheckpointError."""
    with _open(path) as file:
        return dict(file.metadata() or {})


def refuse_pickle(path: Path) -> None:
    """Refuse a file that runs code when it is read. Raises CheckpointError."""
    if path.suffix.lower() in PICKLE_SUFFIXES:
        raise CheckpointError(f"{path} is a pickle, which can run code when it is opened; give a {SUFFIX} file")


def read_json(path: Path) -> dict[str, Json]:
    """Read a JSON object. Raises BundleError."""
    try:
        value = parse_json(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing") from error
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not readable: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected an object")
    return value


def _open(path: Path) -> AbstractContextManager[_TensorFile]:
    refuse_pickle(path)
    try:
        return cast("AbstractContextManager[_TensorFile]", safe_open(path, framework="pt"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing") from error
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from error


def _choose(paths: list[Path], suffix: str) -> Path | None:
    """Return the only file, or diffusers' default name among several, None when there is none."""
    if len(paths) < 2:
        return paths[0] if paths else None
    usual = [path for path in paths if path.name == f"{DEFAULT_STEM}{suffix}"]
    if not usual:
        names = ", ".join(path.name for path in paths)
        raise CheckpointError(f"{paths[0].parent} holds {names}; cannot tell which one is meant")
    return usual[0]


def _what_is_missing(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder} is not a folder"
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in PICKLE_SUFFIXES)
    if pickles:
        return f"{folder} holds no {SUFFIX} file but {pickles[0]}, a pickle, which is never opened"
    return f"{folder} holds no {SUFFIX} file"


def _read_shards(index: Path) -> dict[str, StoredTensor]:
    promised, total = _read_index(index)
    tensors: dict[str, StoredTensor] = {}
    for shard in sorted(set(promised.values())):
        found = read_header(index.parent / shard)
        _check_shard(index, shard, promised, found)
        tensors |= found
    held = sum(tensor.num_bytes for tensor in tensors.values())
    if total is not None and total != held:
        raise CheckpointError(f"{index} promises {total} bytes of tensors, its files hold {held}")
    return tensors


def _read_index(index: Path) -> tuple[dict[str, str], int | None]:
    """Return the shard of every tensor and, where it is stated, the size of all tensors in bytes."""
    value = read_json(index)
    shards, facts = value.get("weight_map"), value.get("metadata")
    if not isinstance(shards, dict) or not shards:
        raise CheckpointError(f"{index}: weight_map: expected an object that is not empty")
    promised = {name: _shard_name(index, shard) for name, shard in shards.items()}
    total = facts.get("total_size") if isinstance(facts, dict) else None
    return promised, int(total) if isinstance(total, int | float) else None


def _shard_name(index: Path, shard: Json) -> str:
    if not isinstance(shard, str) or not shard or Path(shard).name != shard:
        raise CheckpointError(f"{index}: weight_map: {shard!r} is not the name of a file beside it")
    refuse_pickle(index.parent / shard)
    return shard


def _check_shard(index: Path, shard: str, promised: Mapping[str, str], found: Iterable[str]) -> None:
    here = {name for name, place in promised.items() if place == shard}
    if missing := sorted(here - set(found)):
        raise CheckpointError(f"{index} says that tensor {missing[0]!r} lies in {shard}, which does not hold it")
    if extra := sorted(set(found) - here):
        raise CheckpointError(f"{index} does not name tensor {extra[0]!r}, which {shard} holds")
