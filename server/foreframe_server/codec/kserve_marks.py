"""A sequence of the tensor door: which step a request is, and what a running one starts from."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float32, UInt8

from foreframe_server.codec.kserve import Inference, refusal
from foreframe_server.codec.kserve_models import FRAMES, PAST, SEQUENCE_END, SEQUENCE_ID, SEQUENCE_START
from foreframe_server.kserve_sequences import SequenceId
from foreframe_server.schemas import Scalar

_MAX_ID = 128


@dataclass(frozen=True, slots=True)
class SequenceMark:
    """Which step of which sequence a request is; it may be the first and the last one."""

    sequence_id: SequenceId
    is_start: bool
    is_end: bool


def read_mark(inference: Inference) -> SequenceMark | None:
    """Read which step a request is; None where it is of no sequence. Raises InvalidRequest."""
    parameters = inference.parameters
    sequence_id = _read_id(parameters.get(SEQUENCE_ID, 0))
    is_start, is_end = (_read_flag(parameters, name) for name in (SEQUENCE_START, SEQUENCE_END))
    if not sequence_id:
        if is_start or is_end:
            raise refusal(SEQUENCE_ID, "is missing")
        return None
    _check_sequence(inference)
    return SequenceMark(sequence_id, is_start, is_end)


def _read_id(value: Scalar) -> SequenceId:
    if isinstance(value, str) and len(value) <= _MAX_ID:
        return value
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise refusal(SEQUENCE_ID, "is no id", f"a whole number, or text of at most {_MAX_ID} characters")


def _read_flag(parameters: Mapping[str, Scalar], name: str) -> bool:
    value = parameters.get(name, False)
    if not isinstance(value, bool):
        raise refusal(name, "must be true or false")
    return value


def _check_sequence(inference: Inference) -> None:
    if FRAMES in inference.parameters:
        raise refusal(FRAMES, "cannot be chosen in a sequence, whose next step needs every frame")
    for name, tensor in inference.tensors.items():
        if len(tensor) != 1:
            raise refusal(name, "has the wrong batch for a sequence", "1 row", f"{len(tensor)} rows")


def continue_from(
    inference: Inference, frames: UInt8[np.ndarray, "t h w 3"], states: Float32[np.ndarray, "t d"]
) -> Inference:
    """Let a running sequence's step start from the last frames of its session. Raises InvalidRequest."""
    for name in PAST:
        if name in inference.tensors:
            raise refusal(name, "belongs to a sequence's start; a running one takes the future only")
    past = dict(zip(PAST, (frames[None], states[None]), strict=True))
    return replace(inference, tensors={**past, **inference.tensors})
