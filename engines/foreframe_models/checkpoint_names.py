"""The names that checkpoints give to tensors, turned into this package's, which are diffusers'. Knows no tensor.

Sources: diffusers' conversion script for Wan; DiffSynth-Studio; the authors' training script (arXiv 2510.07092).
"""

import re
from collections.abc import Collection, Iterable

from foreframe_engines.errors import CheckpointError

_TOP = {
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "head.modulation": "scale_shift_table",
    "head.head": "proj_out",
}
# The plain norms have no weights, so the affine one's number is all that tells the two namings apart.
_BLOCK = {
    "modulation": "scale_shift_table",
    "self_attn.q": "attn1.to_q",
    "self_attn.k": "attn1.to_k",
    "self_attn.v": "attn1.to_v",
    "self_attn.o": "attn1.to_out.0",
    "self_attn": "attn1",
    "cross_attn.q": "attn2.to_q",
    "cross_attn.k": "attn2.to_k",
    "cross_attn.v": "attn2.to_v",
    "cross_attn.o": "attn2.to_out.0",
    "cross_attn": "attn2",
    "norm3": "norm2",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
}
_PREFIXES = ("base_model.model.", "pipe.dit.", "diffusion_model.", "transformer.", "state_branch.")
_BLOCK_NAME = re.compile(r"blocks\.(\d+)\.(.+)")
_TABLE = re.compile(r"blocks\.(\d+)\.robot_modulation")
_LORA = re.compile(r"(.+)\.lora_([AB])(?:\.\w+)?\.weight")
_BRANCH_ROOTS = (
    "robot_state_compression.",
    "robot_temporal_compression.",
    "r_embedding.",
    "r_projection.",
    "robot_modulation.",
)


def strip_prefix(name: str) -> str:
    """Drop what peft, diffusers' pipelines and the authors' script put before a transformer's or branch's names."""
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name


def is_original(names: Iterable[str]) -> bool:
    """Tell the original naming, which DiffSynth keeps, from diffusers'."""
    return any(".self_attn." in name or ".cross_attn." in name for name in names)


def canonical_names(names: Collection[str]) -> dict[str, str]:
    """Map this package's name of every tensor to the checkpoint's own; what is in no naming keeps its name.

    Raises CheckpointError when two tensors are the same one.
    """
    rename = from_original if is_original(names) else str
    found: dict[str, str] = {}
    for name in names:
        if (other := found.setdefault(rename(name), name)) != name:
            raise CheckpointError(f"tensors {other!r} and {name!r} are the same one")
    return found


def from_original(name: str) -> str:
    """Turn an original name, or the beginning of one, into diffusers'."""
    if match := _BLOCK_NAME.fullmatch(name):
        index, inner = match.groups()
        return f"blocks.{index}.{_replace_start(inner, _BLOCK)}"
    return _replace_start(name, _TOP)


def lora_name(name: str) -> tuple[str, str] | None:
    """Return the layer and the half, A or B, of a LoRA tensor, None for another; peft may put an adapter's name in."""
    match = _LORA.fullmatch(strip_prefix(name))
    return None if match is None else (from_original(match[1]), match[2])


def branch_name(name: str) -> str | None:
    """Return a state branch's own name of the authors' tensor, None for what is not the branch's."""
    if match := _TABLE.fullmatch(name):
        return f"robot_modulation.{match[1]}"
    return name if name.startswith(_BRANCH_ROOTS) or name == "no_states_token" else None


def published_branch_name(name: str) -> str:
    """Return the authors' name of a state branch's tensor."""
    root, _, index = name.partition(".")
    return f"blocks.{index}.robot_modulation" if root == "robot_modulation" else name


def _replace_start(name: str, table: dict[str, str]) -> str:
    for start, other in table.items():
        if name == start or name.startswith(f"{start}."):
            return other + name[len(start) :]
    return name
