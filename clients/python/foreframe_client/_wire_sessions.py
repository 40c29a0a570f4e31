"""The wire of `/v1/sessions`, without any I/O."""

from __future__ import annotations

from typing import Tuple

import numpy as np

from foreframe_client import _wire as wire
from foreframe_client._session_types import Compared, SessionStatus, Shadow, StepPrediction


def path_of(session_id: str, *segments: str) -> str:
    """Return the path of a session or of what it has."""
    return wire.get("v1", "sessions", session_id, *segments).path


def read_status(reply: wire.Reply) -> SessionStatus:
    """Read how a session stands. Raises ProtocolError."""
    body = wire.fields_of(reply)
    shadow = body.map("shadow")
    return SessionStatus(
        session_id=body.text("session_id"),
        model=body.text("model"),
        revision=body.text("revision"),
        committed_step_id=body.integer("committed_step_id"),
        rollback_from=body.integer("rollback_from"),
        frames=body.integer("frames"),
        state=np.array(body.numbers("state"), np.float32),
        seed=body.integer("seed"),
        expires_in_s=body.number("expires_in_s"),
        num_bytes=body.integer("bytes"),
        shadow=Shadow(
            shadow.integer("count"), shadow.optional_number("mean_psnr_db"), shadow.optional_number("mean_baseline_db")
        ),
        warnings=wire.notices(body),
    )


def read_compared(reply: wire.Reply) -> Tuple[Compared, ...]:
    """Read how frames that arrived compare with their predictions. Raises ProtocolError."""
    compared = wire.fields_of(reply).maps("compared")
    return tuple(Compared(each.optional_number("psnr_db"), each.number("baseline_db")) for each in compared)


def read_step(reply: wire.Reply) -> StepPrediction:
    """Read a step's frames. Raises ProtocolError."""
    body = wire.fields_of(reply)
    return StepPrediction(
        **vars(wire.read_prediction(reply)),
        step_id=body.integer("step_id"),
        committed_step_id=body.integer("committed_step_id"),
        is_repeat=body.flag("is_repeat"),
    )
