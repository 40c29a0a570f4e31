"""A multipart/form-data body to its parts while it arrives, and a document's references to them. Knows no field.

The part `request` is the document. In it `{"$part": name}` stands for the bytes of another part, and with `dtype` and
`shape` beside it for an array over them. Parts are views of the body and never copied.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from foreframe_server.codec.arrays import DocumentError, array_of_map
from foreframe_server.codec.documents import Document, read_document, refuse_document
from foreframe_server.codec.media import Media, read_content_type
from foreframe_server.errors import UnsupportedMedia

REQUEST_PART = "request"
PART_KEY = "$part"
MAX_PARTS = 512
_MAX_NAME_BYTES = 128
_REFERENCE_KEYS = (frozenset({PART_KEY}), frozenset({PART_KEY, "dtype", "shape"}))
_PLAIN_TRANSFERS = frozenset({b"", b"7bit", b"8bit", b"binary"})


@dataclass(slots=True, eq=False)
class _Part:
    """`start` and `stop` lie in the body."""

    headers: dict[bytes, bytes] = field(default_factory=dict)
    start: int = 0
    stop: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Form:
    """The parts of a whole body by their names; `media` is how the part `request` is written."""

    media: Media
    parts: Mapping[str, memoryview]


class FormReader:
    """Finds the parts of a body that comes piece by piece; what it holds, their headers, is bounded."""

    def __init__(self, content_type: str) -> None:
        """Read the boundary. Raises UnsupportedMedia when there is none."""
        boundary = parse_options_header(content_type)[1].get(b"boundary")
        if not boundary:
            raise UnsupportedMedia("multipart/form-data needs a boundary.")
        self._parts: list[_Part] = []
        self._num_bytes = 0
        self._piece = b""
        self._name = b""
        self._value = b""
        self._is_whole = False
        with _told():
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin,
                    "on_header_field": self._add_name,
                    "on_header_value": self._add_value,
                    "on_header_end": self._end_header,
                    "on_part_data": self._add_data,
                    "on_end": self._end,
                },
            )

    def feed(self, piece: bytes) -> None:
        """Take the next piece. Raises InvalidRequest."""
        with _told():
            self._piece = piece
            self._parser.write(piece)
        self._num_bytes += len(piece)

    def close(self, body: memoryview) -> Form:
        """Return the parts of the whole body, as it was fed. Raises InvalidRequest or UnsupportedMedia."""
        if not self._is_whole:
            refuse_document(f"the body is not one whole {Media.MULTIPART} document")
        parts: dict[str, memoryview] = {}
        media = Media.JSON
        for part in self._parts:
            name = _name_of(part)
            if name in parts:
                refuse_document("two parts have the same name")
            if name == REQUEST_PART:
                media = _media_of(part)
            parts[name] = body[part.start : part.stop].toreadonly()
        return Form(media, parts)

    def _begin(self) -> None:
        if len(self._parts) >= MAX_PARTS:
            refuse_document(f"the body has more than {MAX_PARTS} parts; send frames as one array or one clip")
        self._parts.append(_Part())

    def _add_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        self._parts[-1].headers[self._name.lower()] = self._value
        self._name = self._value = b""

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        part = self._parts[-1]
        if part.stop == 0:
            # What looked like a boundary at the end of the last piece is handed over by itself, after all.
            part.start = part.stop = self._num_bytes + (start if data is self._piece else -end)
        part.stop += end - start

    def _end(self) -> None:
        self._is_whole = True


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Turn the parser's complaints, which repeat the input, into a refusal that does not."""
    try:
        yield
    except FormParserError:
        refuse_document(f"the body is not one whole {Media.MULTIPART} document")


def _name_of(part: _Part) -> str:
    """Read a part's name. Raises InvalidRequest or UnsupportedMedia."""
    kind, options = _options(part, b"content-disposition")
    name = options.get(b"name", b"")
    if kind != b"form-data" or not 0 < len(name) <= _MAX_NAME_BYTES:
        refuse_document(f"a part is not form-data with a name of 1 to {_MAX_NAME_BYTES} bytes")
    if part.headers.get(b"content-transfer-encoding", b"").strip().lower() not in _PLAIN_TRANSFERS:
        raise UnsupportedMedia("Parts are read as they are; Content-Transfer-Encoding is binary.")
    try:
        return name.decode()
    except UnicodeDecodeError:
        refuse_document("a part's name is not UTF-8")


def _media_of(part: _Part) -> Media:
    """Read how the part `request` is written: as it says, or JSON. Raises UnsupportedMedia."""
    header = part.headers.get(b"content-type")
    return Media.JSON if header is None else read_content_type(header.decode("latin-1"))


def _options(part: _Part, header: bytes) -> tuple[bytes, dict[bytes, bytes]]:
    return parse_options_header(part.headers.get(header, b"").decode("latin-1"))


def read_form(form: Form, *, max_values: int) -> Document:
    """Read the part `request`, with the other parts in the places that name them. Raises InvalidRequest."""
    written = form.parts.get(REQUEST_PART)
    if written is None:
        refuse_document(f"the body has no part named {REQUEST_PART}")
    document = read_document(bytes(written), form.media, max_values=max_values)
    places = _Places(form)
    try:
        filled = {key: places.fill(value) for key, value in document.items()}
    except DocumentError as error:
        refuse_document(str(error))
    if len(places.named) + 1 != len(form.parts):
        refuse_document("a part is not named in the request", f'{{"{PART_KEY}": "name"}} in the place of its bytes')
    return filled


class _Places:
    """Puts parts where a document names them. The document is as deep as `read_document` lets it be."""

    def __init__(self, form: Form) -> None:
        self._form = form
        self.named: set[str] = set()

    def fill(self, value: object) -> object:
        """Return a value with every reference in it replaced. Raises DocumentError."""
        if isinstance(value, list):
            return [self.fill(item) for item in value]
        if not isinstance(value, dict):
            return value
        if PART_KEY in value:
            return self._resolve(value)
        return {key: self.fill(item) for key, item in value.items()}

    def _resolve(self, reference: Document) -> object:
        name = reference[PART_KEY]
        if reference.keys() not in _REFERENCE_KEYS:
            raise DocumentError("a reference to a part holds its name, and for an array dtype and shape")
        if not isinstance(name, str) or name == REQUEST_PART or name not in self._form.parts:
            raise DocumentError("a reference names no part of the body")
        self.named.add(name)
        data = self._form.parts[name]
        return data if len(reference) == 1 else array_of_map({**reference, "data": data})
