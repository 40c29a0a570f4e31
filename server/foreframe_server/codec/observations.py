"""An upload's document to a checked observation, and what became of it to bytes. Knows no route and no store."""

import time
from dataclasses import dataclass, replace

from foreframe_engines import Contract
from foreframe_server.calls import Call, CallOptions
from foreframe_server.codec.bounds import Bounds
from foreframe_server.codec.context import STATE_POINTER, ObservationReader, Recall, check_model
from foreframe_server.codec.documents import Document, write_document
from foreframe_server.codec.media import Media
from foreframe_server.codec.oddities import find_outliers, find_unit_doubts
from foreframe_server.codec.reply import EncodedReply
from foreframe_server.codec.tokens import context_frames
from foreframe_server.codec.validation import validate
from foreframe_server.errors import InvalidRequest, Reason
from foreframe_server.observation_schemas import ObservationReply, ObservationRequest
from foreframe_server.observations import HeldObservation, StoredObservation
from foreframe_server.schemas import Warned


@dataclass(frozen=True, slots=True, eq=False)
class AskedObservation:
    """One decoded upload, and how its reply is wanted. `ttl_s` is None for the server's default."""

    observation: StoredObservation
    ttl_s: float | None
    options: CallOptions
    media: Media
    warnings: tuple[Warned, ...]


def decode_observation(
    document: Document, accepted: Media, contract: Contract, bounds: Bounds, _recall: Recall, *, max_ttl_s: float
) -> AskedObservation:
    """Read an observation that every model of the contract can start from.

    Raises InvalidRequest and its kin with pointers, or UnknownModel.
    """
    request = validate(ObservationRequest, document, [camera.name for camera in contract.cameras])
    check_model(request.model, contract)
    if request.ttl_s is not None and request.ttl_s > max_ttl_s:
        reason = Reason("/ttl_s", "is longer than this server holds anything", f"at most {max_ttl_s:g} s")
        raise InvalidRequest("The observation cannot be held so long.", reasons=[reason])
    observed = ObservationReader(contract, bounds, observation_frames(contract)).read_sent(request.observation)
    states = observed.observation.states
    pointers = [f"{STATE_POINTER}/values/{row}" for row in range(len(states))]
    odd = (
        *find_outliers(states, contract.state, pointers, [observed.layout] * len(states)),
        *find_unit_doubts(states, contract.state, f"{STATE_POINTER}/values"),
    )
    # What is held would hold the whole body with it: its arrays may be views of that.
    held = replace(observed.observation, frames=observed.observation.frames.copy(), states=states.copy())
    return AskedObservation(held, request.ttl_s, CallOptions(), accepted, (*observed.warnings, *odd))


def observation_frames(contract: Contract) -> range:
    """How many frames an observation may have that every model of the contract can start from."""
    count = contract.context_frames
    if contract.tokens is None:
        return range(count, count + 1)
    allowed = context_frames(contract.tokens)
    if "predict" not in contract.capabilities:
        return allowed
    return allowed[-(-count // allowed.step) - 1 :]


def encode_observation(
    asked: AskedObservation, held: HeldObservation, _contract: Contract, _call: Call
) -> EncodedReply:
    """Write what is held. Sets `held.timings.respond`."""
    start_s = time.monotonic()
    observation = held.observation
    reply = ObservationReply(
        observation_id=held.observation_id,
        expires_in_s=held.ttl_s,
        frames=len(observation.frames),
        models=list(observation.models),
        bytes=observation.num_bytes,
        warnings=list(asked.warnings),
    )
    body = write_document(reply.model_dump(), asked.media)
    held.timings.respond = (time.monotonic() - start_s) * 1000
    return EncodedReply(body, asked.media, {})
