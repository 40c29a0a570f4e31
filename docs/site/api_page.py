"""The API's routes as Markdown: what they take and give from the OpenAPI document, who may call from the app's routes.

It knows neither the site nor a running server.
"""

import inspect
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from fastapi import FastAPI
from fastapi.routing import iter_route_contexts

from foreframe_server.access import Policy
from foreframe_server.app import OPENAPI_PATH, create_app
from foreframe_server.errors import CODES, LoadedDeadline, ServiceError
from foreframe_server.keys import Scope
from foreframe_server.problems import MethodNotAllowed, NotFound
from foreframe_server.settings import Settings

Json: TypeAlias = Mapping[str, "Json"] | list["Json"] | str | int | float | bool | None
Record: TypeAlias = Mapping[str, Json]

TITLES = {
    "predictions": "Predictions",
    "likelihoods": "Likelihoods",
    "scores": "Scores",
    "observations": "Observations",
    "sessions": "Sessions",
    "models": "Models and schemas",
    "tensors": "Tensors (KServe v2)",
    "operations": "Operations",
    "admin": "Administration",
}
"""The sections, in their order, by the tags of the document."""

_REFERENCE = "#/components/schemas/"
_BOUNDS = (("minimum", "≥ {}"), ("exclusiveMinimum", "> {}"), ("maximum", "≤ {}"), ("minLength", "≥ {} characters"),
           ("maxLength", "≤ {} characters"), ("minItems", "≥ {} items"), ("maxItems", "≤ {} items"),
           ("maxProperties", "≤ {} entries"))  # fmt: skip


@dataclass(frozen=True, slots=True)
class Route:
    """One method of one path, what the document says of it, and whom it answers."""

    method: str
    path: str
    operation: Record
    access: str

    @property
    def tag(self) -> str:
        """Its section."""
        return _text(_items(self.operation["tags"])[0])


def write_routes() -> str:
    """Write every route, the websockets, the errors and every object. Raises KeyError for a route of no section."""
    document = _record(_inline_choices(json.loads(OPENAPI_PATH.read_text(encoding="utf-8"))))
    schemas = _record(_record(document["components"])["schemas"])
    app = create_app(Settings())
    routes = list(read_routes(document, app))
    sections = {title: [route for route in routes if TITLES[route.tag] == title] for title in TITLES.values()}
    parts = [_section(title, inside, schemas) for title, inside in sections.items()]
    return "\n".join([*parts, _sockets(app), _errors(), _objects(schemas)])


def _inline_choices(document: Json) -> Json:
    """Put a choice's values where the document refers to them."""
    schemas = _record(_record(_record(document)["components"])["schemas"])

    def inline(value: Json) -> Json:
        if isinstance(value, list):
            return [inline(each) for each in value]
        if not isinstance(value, Mapping):
            return value
        named = _record(schemas.get(_named(value), {})) if "$ref" in value else {}
        return {"enum": named["enum"]} if "enum" in named else {key: inline(each) for key, each in value.items()}

    return inline(document)


def read_routes(document: Record, app: FastAPI) -> Iterator[Route]:
    """Read the routes of the document, in its order. Raises KeyError for one that the app does not have."""
    access = dict(_accesses(app))
    for path, methods in _record(document["paths"]).items():
        for method, operation in _record(methods).items():
            yield Route(method.upper(), path, _record(operation), access[method.upper(), path])


def _accesses(app: FastAPI) -> Iterator[tuple[tuple[str, str], str]]:
    for route in iter_route_contexts(app.routes):
        for method in getattr(route, "methods", None) or ("WEBSOCKET",):
            yield (method, str(route.path)), _access(_policy(route))


def _policy(route: object) -> Policy:
    dependencies = getattr(getattr(route, "dependant", None), "dependencies", ())
    return next(each.call for each in dependencies if isinstance(each.call, Policy))


def _access(policy: Policy) -> str:
    if not policy.scopes:
        told = "everybody"
    elif policy.scopes == frozenset(Scope):
        told = "any key"
    else:
        told = " or ".join(f"`{scope}`" for scope in sorted(policy.scopes))
    return f"{told}, on the operators' listener where there is one" if policy.is_operational else told


def _section(title: str, routes: list[Route], schemas: Record) -> str:
    return "\n".join([f"## {title}\n", *(_route(route, schemas) for route in routes)])


def _route(route: Route, schemas: Record) -> str:
    operation = route.operation
    parts = [f"### {route.method} {route.path}\n", f"{_text(operation['summary'])}.\n"]
    if described := _text(operation.get("description", "")):
        parts.append(f"{_sentence(described)}\n")
    parts.append(f"Access: {route.access}.\n")
    parts += _parameters(operation)
    if "requestBody" in operation:
        parts += _content("Takes", _record(operation["requestBody"]), schemas)
    for status, reply in _record(operation["responses"]).items():
        told = "Refuses with" if "X" in status else f"Answers {status} with"
        parts += _content(told, _record(reply), schemas)
    return "\n".join(dict.fromkeys(parts))  # 4XX and 5XX are told once


def _parameters(operation: Record) -> Iterator[str]:
    for parameter in map(_record, _items(operation.get("parameters", []))):
        kind, described = _kind(_record(parameter["schema"])), _text(parameter.get("description", ""))
        yield f"`{parameter['name']}` ({parameter['in']}): {kind}. {_sentence(described)}".rstrip() + "\n"


def _content(told: str, message: Record, schemas: Record) -> Iterator[str]:
    """Tell a body's media types, and the fields of the object that is sent or comes."""
    content = _record(message.get("content", {}))
    if not content:
        yield f"{told} no body.\n"
        return
    yield f"{told} {', '.join(f'`{media}`' for media in content)}: {_body(content)}.\n"
    name = _named(_record(_record(next(iter(content.values()))).get("schema", {})))
    if told == "Takes" and name:
        yield _fields(_record(schemas[name]))


def _body(content: Record) -> str:
    kinds = {_kind(_record(_record(media).get("schema", {}))) for media in content.values()}
    linked = sorted(kind for kind in kinds if "](" in kind)
    return ", ".join(linked or sorted(kinds))


def _sockets(app: FastAPI) -> str:
    rows = [f"| `{path}` | {told} |" for (method, path), told in _accesses(app) if method == "WEBSOCKET"]
    note = "Messages of `/v1/realtime` are [RealtimeRequest](#schema-realtimerequest), its answers "
    note += "[RealtimeReply](#schema-realtimereply), in msgpack; the other paths speak [openpi](doors.md#openpi).\n"
    return "\n".join(["## Websockets\n", "| path | access |", "| --- | --- |", *rows, "", note])


def _errors() -> str:
    rows = [_error(each) for each in (*CODES, LoadedDeadline, NotFound, MethodNotAllowed)]
    return "\n".join(["## Errors\n", "| code | status | retryable | when |", "| --- | --- | --- | --- |", *rows, ""])


def _error(error: type[ServiceError]) -> str:
    retryable = "yes" if error.is_retryable else ""
    return f"| `{error.code}` | {error.status} | {retryable} | {inspect.getdoc(error)} |"


def _objects(schemas: Record) -> str:
    objects = {name: _record(schema) for name, schema in schemas.items() if "properties" in _record(schema)}
    return "\n".join(["## Objects\n", *(_object(name, schema) for name, schema in objects.items())])


def _object(name: str, schema: Record) -> str:
    described = _sentence(_text(schema.get("description", "")))
    return f"({_target(name)})=\n### {name}\n\n{described}\n\n{_fields(schema)}"


def _fields(schema: Record) -> str:
    required = _items(schema.get("required", []))
    rows = [
        f"| `{name}` | {_cell(_kind(_record(field)))} | {_default(_record(field), name in required)} | {_note(field)} |"
        for name, field in _record(schema.get("properties", {})).items()
    ]
    return "\n".join(["| field | type | default | |", "| --- | --- | --- | --- |", *rows, ""]) if rows else ""


def _default(field: Record, is_required: bool) -> str:  # noqa: FBT001 - one of two words
    if "default" not in field:
        return "required" if is_required else ""
    return f"`{json.dumps(field['default'])}`"


def _note(field: Json) -> str:
    return _cell(_text(_record(field).get("description", "")))


def _kind(schema: Record) -> str:
    """Say a schema's type in words: a link for an object, the values of a choice, a number with its bounds."""
    if name := _named(schema):
        return f"[{name}](#{_target(name)})"
    if "enum" in schema:
        return " · ".join(f"`{json.dumps(value)}`" for value in _items(schema["enum"]))
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    for word in ("anyOf", "oneOf"):
        if word in schema:
            return " or ".join(dict.fromkeys(_kind(_record(each)) for each in _items(schema[word])))
    return _plain(schema)


def _plain(schema: Record) -> str:
    kind = _text(schema.get("type", "any"))
    if kind == "array":
        kind = f"list of {_kind(_record(schema.get('items', {})))}"
    elif kind == "object" and isinstance(inner := schema.get("additionalProperties"), Mapping):
        kind = f"map of {_kind(inner)}"
    elif "contentEncoding" in schema:
        kind = "bytes"
    bounds = [form.format(schema[key]) for key, form in _BOUNDS if key in schema]
    return f"{kind} ({', '.join(bounds)})" if bounds else kind


def _named(schema: Record) -> str:
    return _text(schema.get("$ref", "")).removeprefix(_REFERENCE)


def _target(name: str) -> str:
    return f"schema-{name.lower()}"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _sentence(text: str) -> str:
    """Return a docstring's words without what Markdown would take for markup of its own."""
    return text.replace("<", "&lt;").strip()


def _record(value: Json) -> Record:
    if not isinstance(value, Mapping):
        raise TypeError(f"{value!r} is no object")
    return value


def _items(value: Json) -> list[Json]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is no list")
    return value


def _text(value: Json) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value
