"""An upload's bytes to a checked observation. Knows no route and no store."""

from dataclasses import dataclass

from foreframe_engines import Contract
from foreframe_server.codec.bounds import Bounds
from foreframe_server.codec.context import STATE_POINTER, ObservationReader, check_model
from foreframe_server.codec.documents import read_document
from foreframe_server.codec.media import Media
from foreframe_server.codec.states import find_outliers
from foreframe_server.codec.tokens import context_frames
from foreframe_server.codec.validation import validate
from foreframe_server.errors import InvalidRequest, Reason
from foreframe_server.observation_schemas import ObservationRequest
from foreframe_server.observations import StoredObservation
from foreframe_server.schemas import Warned


@dataclass(frozen=True, slots=True, eq=False)
class AskedObservation:
    """One decoded upload. `ttl_s` is None for the server's default."""

    observation: StoredObservation
    ttl_s: float | None
    warnings: tuple[Warned, ...]


def decode_observation(
    body: bytes, media: Media, contract: Contract, bounds: Bounds, *, max_ttl_s: float
) -> AskedObservation:
    """Read an observation that every model of the contract can start from.

    Raises InvalidRequest and its kin with pointers, or UnknownModel.
    """
    document = read_document(body, media, max_values=bounds.max_json_values)
    request = validate(ObservationRequest, document, [camera.name for camera in contract.cameras])
    check_model(request.model, contract)
    if request.ttl_s is not None and request.ttl_s > max_ttl_s:
        reason = Reason("/ttl_s", "is longer than this server holds anything", f"at most {max_ttl_s:g} s")
        raise InvalidRequest("The observation cannot be held so long.", reasons=[reason])
    observed = ObservationReader(contract, bounds, observation_frames(contract)).read_sent(request.observation)
    states = observed.observation.states
    pointers = [f"{STATE_POINTER}/values/{row}" for row in range(len(states))]
    outliers = find_outliers(states, contract.state, pointers)
    return AskedObservation(observed.observation, request.ttl_s, (*observed.warnings, *outliers))


def observation_frames(contract: Contract) -> range:
    """How many frames an observation may have that every model of the contract can start from."""
    count = contract.context_frames
    if contract.tokens is None:
        return range(count, count + 1)
    allowed = context_frames(contract.tokens)
    if "predict" not in contract.capabilities:
        return allowed
    return allowed[-(-count // allowed.step) - 1 :]
