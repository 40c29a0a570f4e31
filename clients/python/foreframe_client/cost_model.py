"""A server's scores as a cost object of stable-worldmodel, so that its sampling solvers plan against a server.

The protocol, `get_cost(info_dict, candidates "B S H D") -> costs "B S"`, lower is better, and `get_constraints` with
terms satisfied at 0 and below, is that of stable-worldmodel 0.1 (`Costable`, `Constrainable` in its `protocols.py`).
That package is not imported, nor torch. Costs carry no gradient: solvers that descend one cannot use them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable, List, Mapping, Optional, Protocol, Sequence, Tuple

import numpy as np

from foreframe_client._errors import InvalidRequest
from foreframe_client._types import Constraint, Objective, Scores

if TYPE_CHECKING:
    from jaxtyping import Float, Float32, Float64, Shaped, UInt8

    Info = Mapping[str, Any]
    Seen = Tuple[UInt8[np.ndarray, "t h w 3"], Float32[np.ndarray, "t d"]]
    Look = Callable[[Info, int], Seen]
    Aim = Callable[[Info, int], Sequence[Objective]]
    Decode = Callable[[Info, int, Float[np.ndarray, "S H a"]], Float[np.ndarray, "S H d"]]


class Scorer(Protocol):
    """`client.score`, perhaps with a seed, an ensemble and a deadline filled in."""

    def __call__(
        self,
        frames: UInt8[np.ndarray, "t h w 3"],
        states: Float32[np.ndarray, "t d"],
        candidates: Float[np.ndarray, "S H d"],
        *,
        objectives: Sequence[Objective],
        constraints: Sequence[Constraint],
    ) -> Scores:
        """Score the plans from one observation."""
        ...


def see_pixels(info: Info, row: int) -> Seen:
    """Return row b's frames and states: `pixels` uint8 `B t h w 3` and `state` `B t d`, or repeated for S candidates.

    Raises InvalidRequest when a key is missing.
    """
    return _row(info, "pixels", row, 4), _row(info, "state", row, 2).astype(np.float32)


def aim_at_goal(info: Info, row: int) -> Sequence[Objective]:
    """Ask for the picture `goal`, uint8 `B h w 3`, or repeated for S candidates, in pixels.

    Raises InvalidRequest when the key is missing.
    """
    return (Objective.goal_image(_row(info, "goal", row, 3)),)


@dataclass(frozen=True, eq=False)
class CostModel:
    """Costs of candidates from B observations, one call of the scorer each.

    Candidates are arrays or torch tensors `B S H D`; the answer is of the same kind, on the same device. What is
    invalid, infeasible or was not scored costs +inf.
    look, aim: what was seen and what is wanted, from the solver's info and a row. decode: actions to state rows, where
    a solver's candidates are not state rows themselves.
    """

    score: Scorer
    look: Look = see_pixels
    aim: Aim = aim_at_goal
    decode: Optional[Decode] = None
    constraints: Sequence[Constraint] = ()

    def get_cost(self, info_dict: Info, action_candidates: Any) -> Any:  # noqa: ANN401 - an array or a tensor
        """Return costs `B S`. Raises what the scorer raises, InvalidRequest for candidates of other axes."""
        plans = _plans(action_candidates)
        costs = [
            np.full(len(row), np.inf) if scores is None else scores.costs for row, scores in self._ask(info_dict, plans)
        ]
        return _like(action_candidates, np.stack(costs))

    criterion = get_cost

    def _ask(
        self, info: Info, plans: Float[np.ndarray, "B S H D"]
    ) -> List[Tuple[Float[np.ndarray, "S H D"], Optional[Scores]]]:
        return [(row, self._ask_row(info, index, row)) for index, row in enumerate(plans)]

    def _ask_row(self, info: Info, row: int, plans: Float[np.ndarray, "S H D"]) -> Optional[Scores]:
        states = plans if self.decode is None else self.decode(info, row, plans)
        if not np.isfinite(states).all(axis=(1, 2)).any():
            return None  # the server refuses a call of which nothing can be scored
        return self.score(*self.look(info, row), states, objectives=self.aim(info, row), constraints=self.constraints)


@dataclass(frozen=True, eq=False)
class ConstrainedCostModel(CostModel):
    """A cost model whose constraints a solver may ask for: solvers look for the method, hence this class."""

    def get_constraints(self, info_dict: Info, action_candidates: Any) -> Any:  # noqa: ANN401 - an array or a tensor
        """Return by what each constraint is exceeded, `B S C`, satisfied at 0 and below; +inf where not scored."""
        plans = _plans(action_candidates)
        excess = [self._excess(len(row), scores) for row, scores in self._ask(info_dict, plans)]
        return _like(action_candidates, np.stack(excess))

    def _excess(self, num_plans: int, scores: Optional[Scores]) -> Float64[np.ndarray, "S C"]:
        excess = np.full((num_plans, len(self.constraints)), np.inf)
        for entry in () if scores is None else scores.candidates:
            if entry.constraints:
                excess[entry.index] = [bound.excess for bound in entry.constraints]
        return excess


def _row(info: Info, key: str, row: int, ndim: int) -> Shaped[np.ndarray, "..."]:
    if key not in info:
        raise InvalidRequest(f"info has no {key!r}; give the cost model its own look and aim")
    value = _array(info[key][row])
    while value.ndim > ndim:  # a solver repeats what it knows for every candidate
        value = value[0]
    return value


def _plans(candidates: object) -> Float[np.ndarray, "B S H D"]:
    plans = _array(candidates)
    if plans.ndim != 4 or plans.size == 0:
        raise InvalidRequest(f"candidates must have axes B S H D, not shape {plans.shape}")
    return plans


def _is_tensor(value: object) -> bool:
    return hasattr(value, "new_tensor") and hasattr(value, "detach")


def _array(value: Any) -> Shaped[np.ndarray, "..."]:  # noqa: ANN401 - an array or a tensor
    return np.asarray(value.detach().cpu().numpy()) if _is_tensor(value) else np.asarray(value)


def _like(candidates: Any, values: Float64[np.ndarray, "..."]) -> Any:  # noqa: ANN401 - an array or a tensor
    """Return values as what the candidates are: a tensor of their type on their device, or an array."""
    return candidates.new_tensor(values) if _is_tensor(candidates) else values
