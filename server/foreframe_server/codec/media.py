"""Which media types the wire speaks, and which one a request asks for. Knows headers only."""

from collections.abc import Sequence
from enum import StrEnum

from foreframe_server.errors import Reason, UnsupportedMedia


class Media(StrEnum):
    """A media type of the wire."""

    JSON = "application/json"
    MSGPACK = "application/msgpack"
    MULTIPART = "multipart/form-data"
    MP4 = "video/mp4"
    PNG = "image/png"
    WEBP = "image/webp"
    EVENTS = "text/event-stream"


DOCUMENT_MEDIA = (Media.JSON, Media.MSGPACK)
BODY_MEDIA = (*DOCUMENT_MEDIA, Media.MULTIPART)
REPLY_MEDIA = tuple(media for media in Media if media is not Media.MULTIPART)
_ALIASES = {"application/x-msgpack": Media.MSGPACK, "application/vnd.msgpack": Media.MSGPACK}
_WILDCARDS = {"*/*": Media.JSON, "application/*": Media.JSON, "video/*": Media.MP4, "image/*": Media.PNG}
_NAMES = {media.value: media for media in Media} | _ALIASES
_MAX_CHOICES = 32


def read_content_type(header: str | None, taken: Sequence[Media] = DOCUMENT_MEDIA) -> Media:
    """Return the media type of a request body, one of those that are taken. Raises UnsupportedMedia."""
    name, _, parameters = (header or "").lower().partition(";")
    media = _NAMES.get(name.strip())
    if media is None or media not in taken:
        raise UnsupportedMedia(f"Content-Type must be {_listed(taken)}.")
    charset = parameters.replace('"', "").replace(" ", "")
    if "charset=" in charset and "charset=utf-8" not in charset:
        raise UnsupportedMedia("JSON is read as UTF-8 only.")
    return media


def read_accept(header: str | None, offered: Sequence[Media] = REPLY_MEDIA) -> Media:
    """Return the media type to answer in, of those offered the first of the best liked. Raises UnsupportedMedia."""
    choices = [_choice(part) for part in (header or "*/*").lower().split(",", _MAX_CHOICES)[:_MAX_CHOICES]]
    liked = [(weight, media) for weight, media in choices if media is not None and media in offered and weight > 0]
    if not liked:
        expected = _listed(offered)
        raise UnsupportedMedia(
            "No media type of the Accept header is offered.",
            reasons=[Reason("", "the reply cannot be written in what Accept names", expected)],
        )
    return max(liked, key=lambda choice: choice[0])[1]


def _choice(part: str) -> tuple[float, Media | None]:
    name, *parameters = (piece.strip() for piece in part.split(";"))
    weights = [_weight(parameter[2:]) for parameter in parameters if parameter.startswith("q=")]
    return (weights[0] if weights else 1.0), _NAMES.get(name) or _WILDCARDS.get(name)


def _weight(text: str) -> float:
    try:
        return min(max(float(text), 0.0), 1.0)
    except ValueError:
        return 0.0


def _listed(media: Sequence[Media]) -> str:
    return ", ".join(media)
