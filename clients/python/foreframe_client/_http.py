"""What both clients share that knows httpx: requests out, replies in, failures translated. Sends nothing itself."""

from __future__ import annotations

import inspect
import os
from typing import Callable, Dict, Optional, Union

import httpx

from foreframe_client._calls import Flow, Send
from foreframe_client._errors import ConnectionFailed, InvalidRequest, TimedOut, TransportError
from foreframe_client._progress import EVENT_STREAM
from foreframe_client._version import __version__
from foreframe_client._wire import Reply

KEY_VARIABLE = "FOREFRAME_API_KEY"

_CONNECT_TIMEOUT_S = 2.0
_STREAM_DOC = """Do what `{flow}` does, and iterate over every improvement on the way; the last item is its answer.

Arguments and errors are those of `{flow}`; the iteration raises them. A call that is tried again begins anew.
Closing the iterator hangs up, which ends the server's work.
"""


def check_address(base_url: str) -> str:
    """Return an address that can be asked. Raises InvalidRequest."""
    if not base_url.startswith(("http://", "https://")):
        raise InvalidRequest(f"base_url must begin with http:// or https://, unlike {base_url!r}")
    return base_url


def headers_of(api_key: Optional[str]) -> Dict[str, str]:
    """Return the headers that every request carries. Raises InvalidRequest when the key is no header text.

    api_key: None is the environment's, and an empty one none.
    """
    agent = {"user-agent": f"foreframe-client/{__version__}"}
    api_key = os.environ.get(KEY_VARIABLE) if api_key is None else api_key
    if not api_key:
        return agent
    if not api_key.isascii() or not api_key.isprintable():
        raise InvalidRequest("api_key must be printable ASCII; does it end in a line break?")
    return {**agent, "authorization": f"Bearer {api_key}"}


def request_of(http: Union[httpx.Client, httpx.AsyncClient], step: Send) -> httpx.Request:
    """Return the request that a step asks for, with its time-outs."""
    timeout = httpx.Timeout(step.read_timeout_s, connect=min(_CONNECT_TIMEOUT_S, step.read_timeout_s))
    asked = step.request
    return http.build_request(
        asked.method, asked.path, headers=dict(asked.headers), content=asked.body or None, timeout=timeout
    )


def reply_of(response: httpx.Response) -> Reply:
    """Return a reply that has been read to its end."""
    headers = {name.lower(): value for name, value in response.headers.items()}
    return Reply(response.status_code, headers, response.content)


def failure_of(error: httpx.HTTPError, server: httpx.URL) -> TransportError:
    """Return what a failure means to the caller."""
    words = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    failure: TransportError
    if isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout)):
        address = f"{server.scheme}://{server.netloc.decode('ascii')}"  # without what a password may be in
        failure = ConnectionFailed(f"{address} was not reached ({words}); is `foreframe serve` running there?")
    elif isinstance(error, httpx.TimeoutException):
        failure = TimedOut(f"the server did not answer in time ({words})")
    else:
        failure = TransportError(f"the connection broke ({words})")
    failure.__cause__ = error
    return failure


def is_event_stream(response: httpx.Response) -> bool:
    """Say whether an answer comes event by event."""
    return response.status_code == 200 and response.headers.get("content-type", "").startswith(EVENT_STREAM)


def present_stream(method: Callable[..., object], flow: Callable[..., Flow[object]], returns: str) -> None:
    """Give a method that streams a flow's answer its name, its words and its signature.

    returns: what the method makes, with `{}` for what it yields.
    """
    method.__name__ = f"{flow.__name__}_stream"
    method.__doc__ = _STREAM_DOC.format(flow=flow.__name__)
    signature = method_signature(flow, returns.format(f"Union[Progress, {_answer_of(flow)}]"))
    method.__signature__ = signature  # type: ignore[attr-defined]


def method_signature(flow: Callable[..., Flow[object]], returns: Optional[str] = None) -> inspect.Signature:
    """Return a flow's signature as its callers see it: `self` in front, by default the answer as what it returns."""
    seen = inspect.signature(flow)
    session, *others = seen.parameters.values()
    return seen.replace(
        parameters=[session.replace(name="self", annotation=seen.empty), *others],
        return_annotation=returns or _answer_of(flow),
    )


def _answer_of(flow: Callable[..., Flow[object]]) -> str:
    """Return X of `Flow[X]`, whatever module the annotation names before it."""
    return str(inspect.signature(flow).return_annotation).partition("Flow[")[2][: -len("]")]
