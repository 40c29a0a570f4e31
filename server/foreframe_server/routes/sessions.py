"""/v1/sessions: start, step, fork, roll back, reset, push to and end rollouts. Knows neither pixels nor engines."""

from typing import Annotated, TypeAlias

from fastapi import APIRouter, Path
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response

from foreframe_server.calls import Call, CallOptions
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
from foreframe_server.routes.calls import call_of, timing_headers
from foreframe_server.routes.contents import PROBLEMS, document_body, document_reply, picture_replies
from foreframe_server.routes.exchange import AnsweredT, AskedT, Exchange, Opened, close_exchange, respond
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

router = APIRouter(tags=["sessions"], responses=PROBLEMS)
_Id = Annotated[str, Path(alias="id", max_length=128)]
_PICTURES = tuple(media for media in REPLY_MEDIA if media is not Media.EVENTS)

StepExchange: TypeAlias = Exchange[AskedStep, StepAnswer]
SessionExchange: TypeAlias = Exchange[AskedSession, ToldSession]


def _reader(host: Host) -> SessionReader:
    settings = host.settings.sessions
    return SessionReader(host.open_model().clips, settings.max_ttl_s, settings.max_step_rows)


def _tell(host: Host, session: Session) -> ToldSession:
    return ToldSession(session, host.open_model().open_sessions().store.expires_in_s(session))


def create_exchange(host: Host) -> SessionExchange:
    """Put together how a session is started. Raises what `open_sessions` raises."""
    sessions = host.open_model().open_sessions()

    async def answer(asked: AskedSession, call: Call) -> ToldSession:
        if asked.seed is None:
            raise RuntimeError("a session was to be started from nothing")
        return _tell(host, await sessions.create(asked.seed, call))

    return Exchange(host, sessions.contract, _reader(host).read_session, answer, encode_session)


def step_exchange(host: Host, session_id: str) -> StepExchange:
    """Put together how a session is stepped. Raises what `open_sessions` raises."""
    sessions = host.open_model().open_sessions()

    async def answer(asked: AskedStep, call: Call) -> StepAnswer:
        return await sessions.step(session_id, asked.ask, call)

    return Exchange(host, sessions.contract, _reader(host).read_step, answer, encode_step)


def fork_exchange(host: Host, session_id: str) -> SessionExchange:
    """Put together how a session is forked. Raises what `open_sessions` raises."""
    sessions = host.open_model().open_sessions()

    async def answer(_asked: AskedSession, call: Call) -> ToldSession:
        return _tell(host, await sessions.fork(session_id, key=call.key))

    return Exchange(host, sessions.contract, _reader(host).read_fork, answer, encode_session)


def reset_exchange(host: Host, session_id: str) -> SessionExchange:
    """Put together how a session begins again. Raises what `open_sessions` raises."""
    sessions = host.open_model().open_sessions()

    async def answer(asked: AskedSession, call: Call) -> ToldSession:
        session = await sessions.reset(session_id, key=call.key, start=asked.seed, noise_seed=asked.noise_seed)
        return _tell(host, session)

    return Exchange(host, sessions.contract, _reader(host).read_reset, answer, encode_session)


def rollback_exchange(host: Host, session_id: str) -> Exchange[AskedRollback, ToldSession]:
    """Put together how steps are taken back. Raises what `open_sessions` raises."""
    sessions = host.open_model().open_sessions()

    async def answer(asked: AskedRollback, call: Call) -> ToldSession:
        return _tell(host, await sessions.rollback(session_id, asked.step_id, key=call.key))

    return Exchange(host, sessions.contract, _reader(host).read_rollback, answer, encode_session)


def push_exchange(host: Host, session_id: str) -> Exchange[AskedPush, ToldSession]:
    """Put together how a session hears of what arrived. Raises what `open_sessions` raises."""
    sessions = host.open_model().open_sessions()

    async def answer(asked: AskedPush, call: Call) -> ToldSession:
        pushed = await sessions.push(session_id, asked.frames, asked.states, key=call.key)
        told = _tell(host, pushed.session)
        return ToldSession(told.session, told.expires_in_s, compared=pushed.compared)

    return Exchange(host, sessions.contract, _reader(host).read_push, answer, encode_session)


async def _respond(request: Request, exchange: Exchange[AskedT, AnsweredT]) -> Response:
    """Answer a request whose body may be left out, which is as good as an empty document."""
    if request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers:
        return await respond(request, exchange)
    asked = exchange.read({}, read_accept(request.headers.get("accept"), DOCUMENT_MEDIA))
    call = call_of(request, asked.options)
    answered = await exchange.answer(asked, call)
    reply = await close_exchange(exchange, Opened(asked, call, 0.0, 0.0), answered)
    headers = {**reply.headers, **timing_headers(answered.timings)}
    return Response(reply.body, headers=headers, media_type=reply.media.value)


def _preparing(host: Host, session_id: str) -> BackgroundTask:
    """Encode a session's next context once the reply is written."""
    return BackgroundTask(_prepare, host, session_id)


async def _prepare(host: Host, session_id: str) -> None:
    host.open_model().open_sessions().prepare(session_id)


@router.post(
    "/v1/sessions",
    summary="Start a stateful rollout from an observation or a clip that comes with the model",
    openapi_extra=document_body(SessionRequest),
    responses={200: {"description": "The session is there.", **document_reply(SessionReply)}},
    response_class=Response,
)
async def start_session(request: Request) -> Response:
    """Hold the start; its encoding goes on beside the reply."""
    return await respond(request, create_exchange(host_of(request)))


@router.get("/v1/sessions/{id}", summary="Read how a session stands")
async def read_session(request: Request, session_id: _Id) -> SessionReply:
    """Read a session, which lives on by that."""
    host = host_of(request)
    sessions = host.open_model().open_sessions()
    session = await sessions.get(session_id, key=call_of(request, CallOptions()).key)
    return describe_session(session, sessions.store.expires_in_s(session), sessions.contract)


@router.delete("/v1/sessions/{id}", summary="End a session", status_code=204, response_class=Response)
async def end_session(request: Request, session_id: _Id) -> Response:
    """Forget a session before its time."""
    await host_of(request).open_model().open_sessions().delete(session_id, key=call_of(request, CallOptions()).key)
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
    response = await respond(request, step_exchange(host_of(request), session_id), _PICTURES)
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
    response = await respond(request, push_exchange(host_of(request), session_id))
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
    return await _respond(request, fork_exchange(host_of(request), session_id))


@router.post(
    "/v1/sessions/{id}/rollback",
    summary="Take a session's last steps back",
    openapi_extra=document_body(RollbackRequest),
    responses={200: {"description": "The session stands where it did.", **document_reply(SessionReply)}},
    response_class=Response,
)
async def roll_session_back(request: Request, session_id: _Id) -> Response:
    """Go back to a step that is still kept."""
    return await respond(request, rollback_exchange(host_of(request), session_id))


@router.post(
    "/v1/sessions/{id}/reset",
    summary="Put a session back to its start, or to another one",
    openapi_extra={"requestBody": {"required": False, **document_reply(ResetRequest)}},
    responses={200: {"description": "The session is at its start.", **document_reply(SessionReply)}},
    response_class=Response,
)
async def reset_session(request: Request, session_id: _Id) -> Response:
    """Begin again, with steps counted from 1. The body may be left out."""
    return await _respond(request, reset_exchange(host_of(request), session_id))
