"""The wire's bytes to a checked `Query` and an `Answer` back to bytes. Knows no route, no cache and no engine.

Everything here computes and may take long: call it in a thread, never on the event loop.
"""

from foreframe_server.codec.media import Media, read_accept, read_content_type
from foreframe_server.codec.query import Asked, Bounds, ReplyOptions, decode_prediction, decode_state_check
from foreframe_server.codec.reply import EncodedReply, encode_prediction

__all__ = [
    "Asked",
    "Bounds",
    "EncodedReply",
    "Media",
    "ReplyOptions",
    "decode_prediction",
    "decode_state_check",
    "encode_prediction",
    "read_accept",
    "read_content_type",
]
