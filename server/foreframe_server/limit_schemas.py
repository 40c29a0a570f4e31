"""The wire's list of what a client can run into, as pydantic models. A model's own bounds are in its contract."""

from dataclasses import asdict
from typing import Self

from pydantic import Field

from foreframe_server.codec.documents import MAX_DEPTH, MAX_KEYS
from foreframe_server.codec.multipart import MAX_PARTS
from foreframe_server.codec.pictures import MAX_SIDE
from foreframe_server.codec.state_check import MAX_CHECKED_ROWS
from foreframe_server.keys import Quota
from foreframe_server.kserve_schemas import MAX_TENSORS
from foreframe_server.kserve_sequences import MAX_SEQUENCES
from foreframe_server.problems import MAX_PROBLEM_BYTES, MAX_REASONS
from foreframe_server.schemas import (
    MAX_CAMERAS,
    MAX_DEADLINE_MS,
    MAX_ENSEMBLE,
    MAX_GUIDANCE,
    MAX_STEPS,
    MIN_DEADLINE_MS,
    WireReply,
)
from foreframe_server.score_schemas import MAX_TERMS, MAX_TOP_N
from foreframe_server.settings import HttpSettings, Settings


class ConnectionLimits(WireReply):
    """How connections are held."""

    max_connections: int = Field(description="Connections; those without a request leave first.")
    max_connections_per_address: int
    max_head_bytes: int = Field(description="Request line and headers together.")
    max_request_line_bytes: int
    max_headers: int
    header_timeout_s: float = Field(description="For the head of a request to arrive.")
    keep_alive_s: float = Field(description="That a connection may wait for a request.")
    min_rate: int = Field(description="Slowest bytes a second of a body, and of a reply.")
    max_chunks: int = Field(description="Of one body.")

    @classmethod
    def of(cls, settings: HttpSettings) -> Self:
        """Take the settings of the same names."""
        return cls.model_validate(settings.model_dump(include=set(cls.model_fields)))


class QuotaReply(WireReply):
    """Device time that the asking key may use."""

    step_ms_per_s: float
    burst_step_ms: float


class Limits(WireReply):
    """The bounds that the door enforces; a model's own are in its contract."""

    connections: ConnectionLimits
    quota: QuotaReply | None = Field(description="Null: no key was sent, or it has none.")
    max_body_bytes: int
    body_timeout_s: float
    max_message_bytes: int = Field(description="Of one message of a websocket.")
    max_in_flight: int = Field(description="Unanswered requests of one websocket.")
    max_json_values: int
    max_keys: int = Field(description="Of one object of a body.")
    max_depth: int = Field(description="Objects and lists inside one another.")
    max_parts: int = Field(description="Of a multipart body.")
    max_cameras: int
    max_picture_pixels: int = Field(description="Of a picture that is to be padded.")
    max_picture_side: int = Field(description="Of a picture that is to be padded.")
    max_ensemble_size: int
    max_steps: int
    max_guidance: float
    max_candidates: int
    max_objectives: int = Field(description="Of one scoring; and as many constraints.")
    max_top_n: int = Field(description="Best candidates whose frames one scoring returns.")
    max_checked_rows: int = Field(description="State rows of one check against a schema.")
    max_tensors: int = Field(description="Inputs of one inference of the Open Inference Protocol; and as many outputs.")
    max_sequences: int = Field(description="Of the Open Inference Protocol; the one longest unused is forgotten.")
    min_deadline_ms: int
    max_deadline_ms: int
    max_pending_s: float = Field(description="Predicted seconds of predictions that may wait.")
    max_pending_read_s: float = Field(description="Predicted seconds of token reads that may be ahead of new ones.")
    observation_ttl_s: float
    max_observation_ttl_s: float
    max_observation_bytes: int = Field(description="Of all uploaded observations together.")
    session_ttl_s: float = Field(description="After its last use.")
    max_session_ttl_s: float
    max_sessions: int
    max_session_bytes: int = Field(description="Of one session.")
    max_all_sessions_bytes: int = Field(description="Of all sessions together.")
    max_history_bytes: int = Field(description="Of one session's predictions that it can roll back to.")
    max_step_rows: int = Field(description="State rows of one step of a session.")
    max_wrong_keys: int = Field(description="A minute that an address hears 401 for, and 429 after.")
    max_error_bytes: int
    max_errors: int

    @classmethod
    def of(cls, settings: Settings, quota: Quota | None) -> Self:
        """List a server's bounds, and a key's quota."""
        http, sessions, held = settings.http, settings.sessions, settings.observations
        return cls(
            connections=ConnectionLimits.of(http),
            quota=None if quota is None else QuotaReply(**asdict(quota)),
            max_body_bytes=http.max_body_bytes,
            body_timeout_s=http.body_timeout_s,
            max_message_bytes=http.max_message_bytes,
            max_in_flight=settings.realtime.max_in_flight,
            max_json_values=settings.limits.max_json_values,
            max_keys=MAX_KEYS,
            max_depth=MAX_DEPTH,
            max_parts=MAX_PARTS,
            max_cameras=MAX_CAMERAS,
            max_picture_pixels=settings.limits.max_picture_pixels,
            max_picture_side=MAX_SIDE,
            max_ensemble_size=MAX_ENSEMBLE,
            max_steps=MAX_STEPS,
            max_guidance=MAX_GUIDANCE,
            max_candidates=settings.limits.max_candidates,
            max_objectives=MAX_TERMS,
            max_top_n=MAX_TOP_N,
            max_checked_rows=MAX_CHECKED_ROWS,
            max_tensors=MAX_TENSORS,
            max_sequences=MAX_SEQUENCES,
            min_deadline_ms=MIN_DEADLINE_MS,
            max_deadline_ms=MAX_DEADLINE_MS,
            max_pending_s=settings.scheduler.max_pending_s,
            max_pending_read_s=settings.scheduler.max_pending_read_s,
            observation_ttl_s=held.ttl_s,
            max_observation_ttl_s=held.max_ttl_s,
            max_observation_bytes=held.max_bytes,
            session_ttl_s=sessions.ttl_s,
            max_session_ttl_s=sessions.max_ttl_s,
            max_sessions=sessions.max_sessions,
            max_session_bytes=sessions.max_session_bytes,
            max_all_sessions_bytes=sessions.max_bytes,
            max_history_bytes=sessions.history_bytes,
            max_step_rows=sessions.max_step_rows,
            max_wrong_keys=settings.keys.max_failures,
            max_error_bytes=MAX_PROBLEM_BYTES,
            max_errors=MAX_REASONS,
        )
