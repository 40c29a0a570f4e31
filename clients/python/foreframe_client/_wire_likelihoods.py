"""The wire of `/v1/observations` and `/v1/likelihoods`, without any I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, Dict, Optional

import numpy as np

from foreframe_client import _wire as wire
from foreframe_client._arrays import pack_array
from foreframe_client._encodings import FrameEncoding, write_frames
from foreframe_client._errors import InvalidRequest
from foreframe_client._fields import Fields
from foreframe_client._types import Likelihood, Observation, Surprise, TopKCrossEntropy

if TYPE_CHECKING:
    from jaxtyping import Float32, Int64


def write_target(happened: object, states: object, encoding: FrameEncoding = "raw") -> Dict[str, object]:
    """Write what did happen: frames uint8 `t h w 3`, or ids `g s`, with the states of the frames.

    Raises InvalidRequest or NonFinite naming the argument.
    """
    is_ids = isinstance(happened, np.ndarray) and happened.dtype != np.uint8
    shown = {"ids": pack_array(_ids(happened))} if is_ids else write_frames(wire.pictures("target", happened), encoding)
    return {**shown, "state": wire.rows(wire.state_rows("target_states", states))}


def _ids(ids: object) -> Int64[np.ndarray, "g s"]:
    array = np.asarray(ids)
    if array.dtype.kind not in "iu" or array.ndim != 2 or array.size == 0:
        raise InvalidRequest(f"target must be uint8 frames t h w 3 or whole ids g s, not {array.dtype} {array.shape}")
    return array.astype(np.int64)


def read_observation(reply: wire.Reply, model: Optional[str]) -> Observation:
    """Read what the server holds. Raises ProtocolError."""
    body = wire.fields_of(reply)
    return Observation(body.text("observation_id"), body.number("expires_in_s"), model)


def read_likelihood(reply: wire.Reply) -> Likelihood:
    """Read a likelihood. Raises ProtocolError."""
    body = wire.fields_of(reply)
    return Likelihood(
        id=body.text("id"),
        model=body.text("model"),
        revision=body.text("revision"),
        nats_total=body.number("nats_total"),
        bits_total=body.number("bits_total"),
        nats_per_token=body.number("nats_per_token"),
        bits_per_token=body.number("bits_per_token"),
        bits_per_frame=np.array(body.numbers("bits_per_frame"), np.float64),
        grid_frames=tuple(tuple(frames) for frames in body.integer_lists("grid_frames")),
        bits_per_pixel=body.number("bits_per_pixel"),
        tokens=body.integer("tokens"),
        top_k_cross_entropy=_top_k(body.optional_map("topk_cross_entropy")),
        surprise=_surprise(body),
        map=_map(body),
        deadline_met=body.flag("deadline_met"),
        timings_ms=wire.timings(body.map("timings_ms")),
        warnings=wire.notices(body),
    )


def _top_k(fields: Optional[Fields]) -> Optional[TopKCrossEntropy]:
    if fields is None:
        return None
    return TopKCrossEntropy(
        k=fields.integer("k"),
        definition=fields.text("definition"),
        value=fields.number("value") if fields.has("value") else None,
        escape_nats=fields.number("escape_nats"),
        escape_mass=fields.number("escape_mass"),
        left_out=fields.integer("left_out"),
    )


def _surprise(body: Fields) -> Optional[Surprise]:
    grids = body.maps("surprise_per_frame")
    if not all(grid.has("z") and grid.has("quantile") for grid in grids):
        return None
    z, quantile = (np.array([grid.number(name) for grid in grids], np.float64) for name in ("z", "quantile"))
    return Surprise(z, quantile)


def _map(body: Fields) -> Optional[Float32[np.ndarray, "g rows columns"]]:
    return body.array("map", "float32", 3) if body.has("map") else None
