"""What an agent chooses in one frame, and the state row that it leads to. Knows no server.

States are in physical units; axis letters: a action, d state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Callable, List, Sequence, Union

import numpy as np
from gymnasium.spaces import Box

from foreframe_client._errors import InvalidRequest
from foreframe_client._fields import Fields
from foreframe_client._types import StateSchema

if TYPE_CHECKING:
    from jaxtyping import Float32

    Decode = Callable[[Float32[np.ndarray, " a"], Float32[np.ndarray, " d"]], Float32[np.ndarray, " d"]]


@dataclass(frozen=True, eq=False)
class Actions:
    """A space of actions; `decode` makes of an action and the last state row the row of the next frame."""

    space: Box
    decode: Decode


def absolute(schema: StateSchema) -> Actions:
    """Take the next state row itself as the action, within the range of the schema's training data.

    Raises ProtocolError when the server tells no such range.
    """
    fields = Fields(schema.document)
    low, high = (np.array(fields.numbers(name), np.float32) for name in ("low", "high"))
    return Actions(Box(low, high, dtype=np.float32), _as_it_is)


def relative(
    dims: Sequence[Union[int, str]], largest: Union[float, Sequence[float]]
) -> Callable[[StateSchema], Actions]:
    """Take actions -1..1 that move some dimensions, numbers or names, by at most `largest` a frame; the others stay.

    Nothing keeps where they lead within the range of the training data. What is returned raises InvalidRequest when a
    dimension is unknown or named twice, or the numbers do not fit them.
    """

    def of(schema: StateSchema) -> Actions:
        moved = np.array([_place(dim, schema) for dim in dims], np.int64)
        reach = _reach(largest, moved.size)
        if moved.size == 0 or len(np.unique(moved)) != moved.size:
            raise InvalidRequest("relative actions need dimensions, each once")

        def move(action: Float32[np.ndarray, " a"], last: Float32[np.ndarray, " d"]) -> Float32[np.ndarray, " d"]:
            row = last.copy()
            row[moved] += reach * action
            return row

        return Actions(Box(-1.0, 1.0, moved.shape, np.float32), move)

    return of


def _as_it_is(action: Float32[np.ndarray, " a"], _last: Float32[np.ndarray, " d"]) -> Float32[np.ndarray, " d"]:
    return action


def _place(dim: Union[int, str], schema: StateSchema) -> int:
    known: List[Union[int, str]] = [*(schema.names if isinstance(dim, str) else range(schema.dim))]
    if dim not in known:
        raise InvalidRequest(f"{schema.name} has {schema.dim} dimensions and none that is {dim!r}")
    return known.index(dim)


def _reach(largest: Union[float, Sequence[float]], count: int) -> Float32[np.ndarray, " a"]:
    reach = np.asarray(largest, np.float32)
    if reach.shape not in ((), (count,)) or not (np.isfinite(reach) & (reach > 0)).all():
        raise InvalidRequest(f"largest must be one number above 0, or {count} of them")
    return np.broadcast_to(reach, (count,))
