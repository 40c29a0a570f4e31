"""LoRA adapters of a bundle without torch: a merged copy that is a bundle like any other, so nothing else knows them.

Weights are merged in double precision and rounded once, as stored; the base is only read, so going back to it is exact.
A layer whose weight a graph has worked into something else cannot be adapted here, and is refused by name.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Float32, Float64

from foreframe_engines.bundle import MANIFEST, Bundle, write_manifest
from foreframe_engines.errors import CheckpointError
from foreframe_engines.graph_weights import GraphWeights
from foreframe_engines.opened_files import OpenFolder
from foreframe_engines.strict_json import JsonRecord, parse_json
from foreframe_engines.tensor_file import TensorFile, TensorPlace, check_tensors

WEIGHTS: Final = "model.safetensors"
FACTS_KEY: Final = "foreframe_adapter"
_TRANSFORMER, _BRANCH = "rollout.transformer.", "rollout.state_branch."
_PREFIX, _DOWN, _UP = "transformer.", ".lora_A.weight", ".lora_B.weight"
_TABLE: Final = ".robot_modulation"
_DROPPED: Final = frozenset({MANIFEST, "golden.json"})
_FLOATS: Final = ("F16", "BF16", "F32")


def write_adapted(base: Bundle, adapter: Path, folder: Path, revision: str) -> None:
    """Write into an empty folder the bundle that a base becomes with an adapter.

    Raises CheckpointError naming the tensor: an adapter of another base, one that does not fit, or a layer that the
    base's graphs do not read as it is stored.
    """
    weights = _Weights.of(base)
    changes = _find_changes(weights, _read_adapter(adapter))
    graphs = {name: GraphWeights(graph, weights.content) for name, graph in base.checked.items()}
    patched = _patch_graphs(weights, changes, graphs)
    for name, file in base.files.items():
        if name not in _DROPPED:
            (folder / name).write_bytes(patched.get(name, file.content))
    with (folder / WEIGHTS).open("r+b") as out:
        for name, values in changes.items():
            out.seek(weights.tensors[name].start)
            out.write(values)
    contract = parse_json(bytes(base.files["contract.json"].content).decode(), "contract.json")
    text = json.dumps({**contract, "revision": revision}, indent=2) if isinstance(contract, dict) else ""
    (folder / "contract.json").write_text(f"{text}\n", encoding="utf-8")
    write_manifest(folder)


@dataclass(frozen=True, slots=True, eq=False)
class _Weights:
    """A bundle's stored tensors. digest: the bundle's."""

    digest: str
    content: memoryview
    tensors: Mapping[str, TensorPlace]

    @classmethod
    def of(cls, bundle: Bundle) -> "_Weights":
        if WEIGHTS not in bundle.files:
            raise CheckpointError(f"the bundle has no {WEIGHTS}, so nothing to adapt")
        content = bundle.files[WEIGHTS].content
        return cls(bundle.digest, content, check_tensors(content, WEIGHTS).tensors)

    def bytes_of(self, name: str) -> memoryview:
        place = self.tensors[name]
        return self.content[place.start : place.end]

    def read(self, name: str) -> Float32[np.ndarray, "..."]:
        return _decode(self.bytes_of(name), self.tensors[name])

    def transformer_digest(self) -> str:
        """Digest the transformer by names, shapes and values, which count as bfloat16 however they are stored."""
        digest = hashlib.sha256()
        for name in sorted(name.removeprefix(_TRANSFORMER) for name in self.tensors if name.startswith(_TRANSFORMER)):
            values = self.read(_TRANSFORMER + name)
            digest.update(f"{name} {values.shape}\n".encode())
            digest.update(_to_bfloat16(values).tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, slots=True, eq=False)
class _Adapter:
    source: str
    base_digest: str
    alpha: float | None
    file: TensorFile
    content: memoryview

    def read(self, name: str) -> Float32[np.ndarray, "..."]:
        place = self.file.tensors[name]
        values = _decode(self.content[place.start : place.end], place)
        if not np.isfinite(values).all():
            raise CheckpointError(f"{self.source}: tensor {name!r} holds values that are not finite")
        return values


def _read_adapter(path: Path) -> _Adapter:
    with OpenFolder(path.parent) as folder:
        content = folder.read(path.name)
    file = check_tensors(content, path.name)
    if FACTS_KEY not in file.metadata:
        raise CheckpointError(f"{path.name} does not say which base it is for, under {FACTS_KEY!r}")
    where = f"{path.name}: {FACTS_KEY}"
    facts = JsonRecord(parse_json(file.metadata[FACTS_KEY], where), where, ("base_digest",), ("alpha", "state"))
    alpha = facts.number("alpha") if facts.has("alpha") and facts.value("alpha") is not None else None
    if any(place.dtype not in _FLOATS for place in file.tensors.values()):
        raise CheckpointError(f"{path.name} holds tensors that are not {', '.join(_FLOATS)}")
    return _Adapter(path.name, facts.text("base_digest"), alpha, file, content)


def _find_changes(weights: _Weights, adapter: _Adapter) -> dict[str, bytes]:
    """Return the new bytes of every stored tensor that the adapter changes."""
    if adapter.base_digest not in (weights.digest, weights.transformer_digest()):
        raise CheckpointError(f"{adapter.source} was made for the base {adapter.base_digest[:12]}, which this is not")
    changes = {}
    for name, values in _merge(weights, adapter):
        encoded = _encode(values, weights.tensors[name], f"{adapter.source}: {name!r}")
        if encoded != weights.bytes_of(name):
            changes[name] = encoded
    return changes


def _merge(weights: _Weights, adapter: _Adapter) -> Iterator[tuple[str, np.ndarray]]:
    """Compute each stored tensor that the adapter names, one at a time."""
    for name in adapter.file.tensors:
        if name.endswith(_UP) and name.removesuffix(_UP) + _DOWN in adapter.file.tensors:
            continue
        if name.endswith(_DOWN):
            layer = name.removesuffix(_DOWN)
            own = f"{_TRANSFORMER}{layer.removeprefix(_PREFIX)}.weight"
            _require(weights, own, adapter, name)
            yield own, weights.read(own) + _low_rank(adapter, layer, weights.tensors[own].shape)
        else:
            own = _BRANCH + _branch_name(name)
            _require(weights, own, adapter, name)
            values = adapter.read(name)
            if values.shape != weights.tensors[own].shape:
                raise CheckpointError(f"{adapter.source}: tensor {name!r} is {values.shape}, the base's is another")
            yield own, values


def _low_rank(adapter: _Adapter, layer: str, shape: tuple[int, ...]) -> Float64[np.ndarray, "o i"]:
    up_name = layer + _UP
    if up_name not in adapter.file.tensors:
        raise CheckpointError(f"{adapter.source}: lora_B of layer {layer} is missing")
    down, up = (adapter.read(name).astype(np.float64) for name in (layer + _DOWN, up_name))
    if down.ndim != 2 or up.ndim != 2 or len(down) != up.shape[1] or (len(up), down.shape[1]) != shape:
        raise CheckpointError(f"{adapter.source}: layer {layer} is {shape}, its LoRA {up.shape} times {down.shape}")
    scale = 1.0 if adapter.alpha is None else adapter.alpha / len(down)
    return up @ down * scale


def _branch_name(name: str) -> str:
    if name.endswith(_TABLE):
        return f"robot_modulation.{name.removeprefix('blocks.').removesuffix(_TABLE)}"
    return name


def _require(weights: _Weights, own: str, adapter: _Adapter, name: str) -> None:
    if own not in weights.tensors or weights.tensors[own].dtype not in _FLOATS:
        raise CheckpointError(f"{adapter.source}: the base has nothing that tensor {name!r} would change")


def _patch_graphs(
    weights: _Weights, changes: Mapping[str, bytes], graphs: Mapping[str, GraphWeights]
) -> dict[str, bytes]:
    """Change the small tensors that lie inside graphs; returns the graphs that become others.

    Raises CheckpointError for a changed tensor that no graph reads as it is stored, or that is not the only one of its
    values, as graphs are bound to stored tensors by their values.
    """
    twins = _find_twins(weights, changes)
    for name, values in changes.items():
        place, is_alone = weights.tensors[name], name not in twins
        before, after = weights.read(name), _decode(memoryview(values), place)
        is_read = any(graph.reads(place) for graph in graphs.values())
        inside = [graph.replace(name, before, after, is_alone=is_alone) for graph in graphs.values()]
        if not is_read and not any(inside):
            raise CheckpointError(
                f"{name!r} is not read by the bundle's graphs as it is stored; export the adapted model as a version"
            )
        if is_read and not is_alone:
            raise CheckpointError(f"{name!r} has the same values as {twins[name]!r}, so it cannot be adapted alone")
    return {name: graph.content for name, graph in graphs.items() if graph.is_changed}


def _find_twins(weights: _Weights, changes: Mapping[str, bytes]) -> dict[str, str]:
    """Return another tensor with the same values for each changed one that has such, also transposed."""
    sizes = {len(content) for content in changes.values()}
    names: dict[bytes, list[str]] = {}
    for name, place in weights.tensors.items():
        if place.end - place.start in sizes:
            names.setdefault(hashlib.sha256(weights.bytes_of(name)).digest(), []).append(name)
    twins: dict[str, str] = {}
    for name in changes:
        plain, turned = weights.bytes_of(name), _turned(weights, name)
        alike = [*names[hashlib.sha256(plain).digest()], *names.get(hashlib.sha256(turned).digest(), [])]
        others = [other for other in alike if other != name]
        if others:
            twins[name] = others[0]
    return twins


def _turned(weights: _Weights, name: str) -> bytes:
    place = weights.tensors[name]
    if len(place.shape) != 2:
        return bytes(weights.bytes_of(name))
    item = np.dtype(np.uint32 if place.dtype == "F32" else np.uint16)
    return np.frombuffer(weights.bytes_of(name), item).reshape(place.shape).T.tobytes()


def _decode(content: memoryview, place: TensorPlace) -> Float32[np.ndarray, "..."]:
    if place.dtype == "BF16":
        bits = np.frombuffer(content, np.uint16).astype(np.uint32) << 16
        return bits.view(np.float32).reshape(place.shape)
    dtype = np.float16 if place.dtype == "F16" else np.float32
    return np.frombuffer(content, dtype).reshape(place.shape).astype(np.float32)


def _encode(values: np.ndarray, place: TensorPlace, where: str) -> bytes:
    with np.errstate(over="ignore"):
        stored = values.astype(np.float16 if place.dtype == "F16" else np.float32)
    if not np.isfinite(stored).all():
        raise CheckpointError(f"{where} would not be finite as {place.dtype}")
    return _to_bfloat16(stored).tobytes() if place.dtype == "BF16" else stored.tobytes()


def _to_bfloat16(values: Float32[np.ndarray, "..."]) -> np.ndarray:
    """Round to bfloat16, to even, as plain bits."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
