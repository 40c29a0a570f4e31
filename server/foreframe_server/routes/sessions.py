"""/v1/sessions: start, step, fork, roll back, reset, push to and end rollouts. Knows neither pixels nor engines."""

from functools import partial
from typing import Annotated, Final, TypeAlias

from fastapi import APIRouter, Path
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response

from foreframe_server.access import allow, current_caller, require
from foreframe_server.calls import Call
from foreframe_server.codec import DOCUMENT_MEDIA, REPLY_MEDIA, Media, read_accept
from foreframe_server.codec.sessions import (
    AskedPush,
    AskedRollback,
    AskedSession,
    AskedStep,
    SessionReader,
    ToldSession,
    describe_session,
    encode_session,
    encode_step,
)
from foreframe_server.hosting import HostedModel
from foreframe_server.keys import Scope
from foreframe_server.routes.calls import call_of
from foreframe_server.routes.contents import PROBLEMS, document_body, document_reply, picture_replies
from foreframe_server.routes.exchange import AnsweredT, AskedT, Exchange, Offer, Opened, answer_opened, respond
from foreframe_server.routes.host import Host, host_of
from foreframe_server.session_schemas import (
    PushReply,
    PushRequest,
    ResetRequest,
    RollbackRequest,
    SessionReply,
    SessionRequest,
    StepReply,
    StepRequest,
)
from foreframe_server.sessions import Session, StepAnswer

router = APIRouter(tags=["sessions"], responses=PROBLEMS, dependencies=[allow(Scope.PREDICT)])
_Id = Annotated[str, Path(alias="id", max_length=128)]
_PICTURES = tuple(media for media in REPLY_MEDIA if media is not Media.EVENTS)

StepExchange: TypeAlias = Exchange[AskedStep, StepAnswer]
SessionExchange: TypeAlias = Exchange[AskedSession, ToldSession]


def _reader(host: Host, model: HostedModel) -> SessionReader:
    settings = host.settings.sessions
    return SessionReader(model.clips, settings.max_ttl_s, settings.max_step_rows)


def _tell(model: HostedModel, session: Session) -> ToldSession:
    return ToldSession(session, model.open_sessions().store.expires_in_s(session))


def create_exchange(host: Host, model: HostedModel) -> SessionExchange:
    """Put together how a session is started. Raises what `open_sessions` raises."""
    require(Scope.PREDICT)
    sessions = model.open_sessions()

    async def answer(asked: AskedSession, call: Call) -> ToldSession:
        if asked.seed is None:
            raise RuntimeError("a session was to be started from nothing")
        return _tell(model, await sessions.create(asked.seed, call))

    return Exchange(host, model, _reader(host, model).read_session, answer, encode_session)


def step_exchange(session_id: str, host: Host, model: HostedModel) -> StepExchange:
    """Put together how a session is stepped. Raises what `open_sessions` raises."""
    require(Scope.PREDICT)
    sessions = model.open_sessions()

    async def answer(asked: AskedStep, call: Call) -> StepAnswer:
        return await sessions.step(session_id, asked.ask, call)

    return Exchange(host, model, _reader(host, model).read_step, answer, encode_step)


def fork_exchange(session_id: str, host: Host, model: HostedModel) -> SessionExchange:
    """Put together how a session is forked. Raises what `open_sessions` raises."""
    sessions = model.open_sessions()

    async def answer(_asked: AskedSession, call: Call) -> ToldSession:
        return _tell(model, await sessions.fork(session_id, tenant=call.tenant))

    return Exchange(host, model, _reader(host, model).read_fork, answer, encode_session)


def reset_exchange(session_id: str, host: Host, model: HostedModel) -> SessionExchange:
    """Put together how a session begins again. Raises what `open_sessions` raises."""
    require(Scope.PREDICT)
    sessions = model.open_sessions()

    async def answer(asked: AskedSession, call: Call) -> ToldSession:
        session = await sessions.reset(session_id, tenant=call.tenant, start=asked.seed, noise_seed=asked.noise_seed)
        return _tell(model, session)

    return Exchange(host, model, _reader(host, model).read_reset, answer, encode_session)


def rollback_exchange(session_id: str, host: Host, model: HostedModel) -> Exchange[AskedRollback, ToldSession]:
    """Put together how steps are taken back. Raises what `open_sessions` raises."""
    sessions = model.open_sessions()

    async def answer(asked: AskedRollback, call: Call) -> ToldSession:
        return _tell(model, await sessions.rollback(session_id, asked.step_id, tenant=call.tenant))

    return Exchange(host, model, _reader(host, model).read_rollback, answer, encode_session)


def push_exchange(session_id: str, host: Host, model: HostedModel) -> Exchange[AskedPush, ToldSession]:
    """Put together how a session hears of what arrived. Raises what `open_sessions` raises."""
    sessions = model.open_sessions()

    async def answer(asked: AskedPush, call: Call) -> ToldSession:
        pushed = await sessions.push(session_id, asked.frames, asked.states, tenant=call.tenant)
        told = _tell(model, pushed.session)
        return ToldSession(told.session, told.expires_in_s, compared=pushed.compared)

    return Exchange(host, model, _reader(host, model).read_push, answer, encode_session)


CREATIONS: Final = Offer("predict", create_exchange)


def step_offer(session_id: str) -> Offer[AskedStep, StepAnswer]:
    """Offer the steps of a session."""
    return Offer("predict", partial(step_exchange, session_id), session_id)


def reset_offer(session_id: str) -> Offer[AskedSession, ToldSession]:
    """Offer to put a session back."""
    return Offer("predict", partial(reset_exchange, session_id), session_id)


async def _respond(request: Request, offer: Offer[AskedT, AnsweredT]) -> Response:
    """Answer a request whose body may be left out, which is as good as an empty document."""
    if request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers:
        return await respond(request, offer)
    host = host_of(request)
    with host.models.loan() as loan:
        exchange = offer.open(host, {}, loan)
        asked = exchange.read({}, read_accept(request.headers.get("accept"), DOCUMENT_MEDIA))
        return await answer_opened(Opened(exchange, asked, call_of(request, asked.options), 0.0, 0.0))


def _preparing(host: Host, session_id: str) -> BackgroundTask:
    """Encode a session's next context once the reply is written."""
    return BackgroundTask(_prepare, host, session_id)


async def _prepare(host: Host, session_id: str) -> None:
    prepare(host, session_id)


def prepare(host: Host, session_id: str) -> None:
    """Begin to encode a session's next context, where the session is still there."""
    host.models.find_session(session_id).open_sessions().prepare(session_id)


@router.post(
    "/v1/sessions",
    summary="Start a stateful rollout from an observation or a clip that comes with the model",
    openapi_extra=document_body(SessionRequest),
    responses={200: {"description": "The session is there.", **document_reply(SessionReply)}},
    response_class=Response,
)
async def start_session(request: Request) -> Response:
    """Hold the start; its encoding goes on beside the reply."""
    return await respond(request, CREATIONS)


@router.get("/v1/sessions/{id}", summary="Read how a session stands")
async def read_session(request: Request, session_id: _Id) -> SessionReply:
    """Read a session, which lives on by that."""
    host = host_of(request)
    sessions = host.models.find_session(session_id).open_sessions()
    session = await sessions.get(session_id, tenant=current_caller().tenant)
    return describe_session(session, sessions.store.expires_in_s(session), sessions.contract)


@router.delete("/v1/sessions/{id}", summary="End a session", status_code=204, response_class=Response)
async def end_session(request: Request, session_id: _Id) -> Response:
    """Forget a session before its time."""
    sessions = host_of(request).models.find_session(session_id).open_sessions()
    await sessions.delete(session_id, tenant=current_caller().tenant)
    return Response(status_code=204)


@router.post(
    "/v1/sessions/{id}/steps",
    summary="Predict the frames after the next rows of states, and go on from them",
    openapi_extra=document_body(StepRequest),
    responses={
        200: {
            "description": "The step is committed.",
            "content": {**document_reply(StepReply)["content"], **picture_replies()},
        }
    },
    response_class=Response,
)
async def step_session(request: Request, session_id: _Id) -> Response:
    """Step a session; steps of one session wait for each other."""
    response = await respond(request, step_offer(session_id), _PICTURES)
    response.background = _preparing(host_of(request), session_id)
    return response


@router.post(
    "/v1/sessions/{id}/observations",
    summary="Tell a session what really arrived, to go on from there and compare it with what was predicted",
    openapi_extra=document_body(PushRequest),
    responses={200: {"description": "The frames are taken in.", **document_reply(PushReply)}},
    response_class=Response,
)
async def push_observation(request: Request, session_id: _Id) -> Response:
    """Take in one frame or more, in order."""
    response = await respond(request, Offer("predict", partial(push_exchange, session_id), session_id))
    response.background = _preparing(host_of(request), session_id)
    return response


@router.post(
    "/v1/sessions/{id}/forks",
    summary="Start another session from where this one stands",
    responses={200: {"description": "The fork is there.", **document_reply(SessionReply)}},
    response_class=Response,
)
async def fork_session(request: Request, session_id: _Id) -> Response:
    """Share everything with the session until the two differ. The body may be left out."""
    return await _respond(request, Offer("predict", partial(fork_exchange, session_id), session_id))


@router.post(
    "/v1/sessions/{id}/rollback",
    summary="Take a session's last steps back",
    openapi_extra=document_body(RollbackRequest),
    responses={200: {"description": "The session stands where it did.", **document_reply(SessionReply)}},
    response_class=Response,
)
async def roll_session_back(request: Request, session_id: _Id) -> Response:
    """Go back to a step that is still kept."""
    return await respond(request, Offer("predict", partial(rollback_exchange, session_id), session_id))


@router.post(
    "/v1/sessions/{id}/reset",
    summary="Put a session back to its start, or to another one",
    openapi_extra={"requestBody": {"required": False, **document_reply(ResetRequest)}},
    responses={200: {"description": "The session is at its start.", **document_reply(SessionReply)}},
    response_class=Response,
)
async def reset_session(request: Request, session_id: _Id) -> Response:
    """Begin again, with steps counted from 1. The body may be left out."""
    return await _respond(request, reset_offer(session_id))
