"""What a schema's cases are written in beside JSON. Loaded by name through SCHEMATHESIS_HOOKS."""

import msgpack
import schemathesis


@schemathesis.serializer("application/msgpack")
def write_msgpack(_ctx: schemathesis.SerializationContext, value: object) -> bytes:
    """Write a case's body."""
    return msgpack.packb(_with_short_integers(value))


def _with_short_integers(value: object) -> object:
    """Make numbers of integers that msgpack cannot hold: those are as wrong."""
    if isinstance(value, dict):
        return {key: _with_short_integers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_short_integers(item) for item in value]
    return float(value) if isinstance(value, int) and value.bit_length() > 63 else value


@schemathesis.deserializer("application/msgpack")
def read_msgpack(_ctx: schemathesis.DeserializationContext, response: schemathesis.Response) -> object:
    """Read a reply's body."""
    return msgpack.unpackb(response.content)
