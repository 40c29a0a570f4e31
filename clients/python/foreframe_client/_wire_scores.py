"""The wire of `/v1/scores`, without any I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, Dict, List, Optional, Sequence, Tuple

import numpy as np

from foreframe_client import _wire as wire
from foreframe_client._arrays import pack_array
from foreframe_client._encodings import write_frames
from foreframe_client._errors import InvalidRequest
from foreframe_client._fields import Fields
from foreframe_client._types import CandidateScore, Constraint, ConstraintValue, Objective, Scores

if TYPE_CHECKING:
    from jaxtyping import UInt8


def write_candidates(values: object, ids: Optional[Sequence[str]]) -> Dict[str, object]:
    """Write the plans; what is not finite is left to the server, which marks that candidate and scores the others.

    Raises InvalidRequest naming the argument.
    """
    plans = wire.floats("candidates", values, "k H d")
    return {"values": pack_array(plans), **wire.given(ids=None if ids is None else list(ids))}


def write_objectives(asked: Sequence[Objective]) -> List[Dict[str, object]]:
    """Write the terms of the cost. Raises InvalidRequest or NonFinite naming what cannot be sent."""
    if not asked:
        raise InvalidRequest("objectives must name at least one")
    return [{**_term(objective), "weight": wire.number("weight", objective.weight)} for objective in asked]


def write_constraints(asked: Sequence[Constraint]) -> List[Dict[str, object]]:
    """Write the bounds. Raises InvalidRequest or NonFinite naming what cannot be sent."""
    return [{**_term(constraint.objective), "max": wire.number("maximum", constraint.maximum)} for constraint in asked]


def _term(objective: Objective) -> Dict[str, object]:
    params = wire.given(**objective.params)
    if "image" in params:
        params["image"] = write_frames(_picture(params["image"]))
    if "values" in params:
        params["values"] = pack_array(wire.floats("values of goal_state", params["values"], "d"))
    if "dims" in params:
        params["dims"] = _dims(params["dims"])
    return {"kind": objective.kind, "params": params}


def _picture(image: object) -> UInt8[np.ndarray, "h w 3"]:
    if not isinstance(image, np.ndarray) or image.ndim != 3:
        raise InvalidRequest("image of goal_image must be a uint8 array with axes h w 3")
    return wire.pictures("image of goal_image", image[None])[0]


def _dims(dims: object) -> List[object]:
    if isinstance(dims, str) or not isinstance(dims, (Sequence, np.ndarray)):
        raise InvalidRequest("dims of goal_state must be a list of names or numbers")
    return [dim if isinstance(dim, str) else wire.whole("dims of goal_state", dim) for dim in dims]


def read_scores(reply: wire.Reply) -> Scores:
    """Read what every candidate costs. Raises ProtocolError."""
    body = wire.fields_of(reply)
    return Scores(
        id=body.text("id"),
        model=body.text("model"),
        revision=body.text("revision"),
        best_index=body.integer("best_index") if body.has("best_index") else None,
        rank_stability=body.number("rank_stability") if body.has("rank_stability") else None,
        candidates=tuple(_candidate(fields) for fields in body.maps("candidates")),
        num_scored=body.integer("scored"),
        seed=body.integer("seed"),
        num_members=body.integer("members"),
        deadline_met=body.flag("deadline_met"),
        timings_ms=wire.timings(body.map("timings_ms")),
        warnings=wire.notices(body),
    )


def _candidate(fields: Fields) -> CandidateScore:
    frames, indices = _frames(fields)
    terms = fields.optional_map("terms")
    return CandidateScore(
        index=fields.integer("index"),
        id=fields.text("id"),
        status=fields.text("status"),
        reason=fields.text("reason") if fields.has("reason") else None,
        cost=fields.number("cost") if fields.has("cost") else None,
        terms={} if terms is None else {name: terms.number(name) for name in terms.document},
        constraints=tuple(_constraint(item) for item in fields.optional_maps("constraints")),
        is_feasible=fields.flag("feasible") if fields.has("feasible") else None,
        rank=fields.integer("rank") if fields.has("rank") else None,
        frames=frames,
        frame_indices=indices,
    )


def _constraint(fields: Fields) -> ConstraintValue:
    return ConstraintValue(fields.text("kind"), fields.number("value"), fields.number("max"), fields.flag("satisfied"))


def _frames(fields: Fields) -> Tuple[Optional[UInt8[np.ndarray, "f h w 3"]], Tuple[int, ...]]:
    shown = fields.optional_maps("frames")
    if not shown:
        return None, ()
    return wire.stack([frame.array("image", "uint8", 3) for frame in shown]), tuple(
        frame.integer("index") for frame in shown
    )
