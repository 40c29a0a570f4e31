"""Spans of requests for OpenTelemetry: one a request or websocket, in the trace that the caller's `traceparent` names.

What a reply says of its stages becomes the span's attributes. Knows no route but the probes', and needs the extra
`otel`, which only this module imports.
"""

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from foreframe_server.settings import TracingSettings

PROBES: Final = frozenset({"/healthz", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready"})
"""Asked every few seconds by machines: spans of them would bury the others."""

_EXPORT_TIMEOUT_S = 2.0
_STATUSES = frozenset({"http.response.start", "websocket.http.response.start"})
_SWITCHING_PROTOCOLS = 101
_TIMING = re.compile(r"([a-z_]{1,40});dur=(\d{1,12}(?:\.\d{1,6})?)")
_propagator = TraceContextTextMapPropagator()


def open_provider(settings: TracingSettings, exporter: SpanExporter | None = None) -> TracerProvider:
    """Make what collects spans and sends them in a thread of its own, by default to the endpoint of the settings.

    A collector that is slow or away costs spans, never a request.
    """
    sampler = ParentBased(TraceIdRatioBased(settings.sample_ratio))
    resource = Resource.create({"service.name": settings.service_name})
    provider = TracerProvider(sampler=sampler, resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter or _open_exporter(settings)))
    return provider


def _open_exporter(settings: TracingSettings) -> SpanExporter:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 - a slow import

    return OTLPSpanExporter(endpoint=settings.endpoint, timeout=_EXPORT_TIMEOUT_S)


@dataclass(slots=True)
class _Traced:
    """One request on its way out, and the span that is written of it."""

    span: Span
    send: Send
    status: int = 0

    async def relay(self, message: Message) -> None:
        """Pass a message on, and read its status and stages."""
        if message["type"] in _STATUSES:
            self.status = message["status"]
            for stage, milliseconds in read_stages(Headers(scope=message)).items():
                self.span.set_attribute(f"foreframe.stage.{stage}_ms", milliseconds)
        elif message["type"] == "websocket.accept":
            self.status = _SWITCHING_PROTOCOLS
        await self.send(message)

    def describe(self, scope: Scope) -> None:
        """Write down what became of the request, in the words of HTTP's semantic conventions."""
        method, route = scope.get("method", "WEBSOCKET"), getattr(scope.get("route"), "path", "unmatched")
        state = scope.get("state", {})
        self.span.update_name(f"{method} {route}")
        self.span.set_attributes(
            {
                "http.request.method": scope.get("method", "GET"),
                "http.route": route,
                "foreframe.request_id": str(state.get("request_id", "")),
                "foreframe.code": str(state.get("problem_code", "ok" if 0 < self.status < 400 else "unknown")),
            }
        )
        if self.status:
            self.span.set_attribute("http.response.status_code", self.status)
        if self.status >= 500:
            self.span.set_status(StatusCode.ERROR)


class RequestTrace:
    """Opens a span around every request and websocket but the probes'. The outermost of the middleware.

    What is inside sees the span's own `traceparent`, so that its log lines name the trace. Closes `provider` with the
    app's lifespan.
    """

    def __init__(self, app: ASGIApp, provider: TracerProvider) -> None:
        self._app = app
        self._provider = provider
        self._tracer = provider.get_tracer("foreframe")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request, websocket or lifespan."""
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
        elif scope["path"] in PROBES:
            await self._app(scope, receive, send)
        else:
            await self._trace(scope, receive, send)

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        finally:
            await asyncio.to_thread(self._provider.shutdown)

    async def _trace(self, scope: Scope, receive: Receive, send: Send) -> None:
        parent = _propagator.extract(Headers(scope=scope))
        span = self._tracer.start_span(scope["type"], context=parent, kind=SpanKind.SERVER)
        inner, traced = _pass_on(scope, span), _Traced(span, send)
        try:
            await self._app(inner, receive, traced.relay)
        finally:
            traced.describe(inner)
            span.end()


def _pass_on(scope: Scope, span: Span) -> Scope:
    """Copy a scope, with the span's context in its headers."""
    inner = {**scope, "headers": list(scope["headers"])}
    context: dict[str, str] = {}
    _propagator.inject(context, set_span_in_context(span))
    headers = MutableHeaders(scope=inner)
    for name, value in context.items():
        headers[name] = value
    return inner


def read_stages(headers: Mapping[str, str]) -> dict[str, float]:
    """Read the milliseconds of each stage from a reply's `Server-Timing`."""
    timing = headers.get("server-timing", "")
    return {name: float(milliseconds) for name, milliseconds in _TIMING.findall(timing)}
