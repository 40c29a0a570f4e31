"""The tensor door's bytes to named arrays and back: one JSON document, then tensors, little-endian, in C order.

An array is a read-only view of the bytes that came; sizes are compared before anything is allocated. Knows no model.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from foreframe_server.codec.documents import read_document, write_document
from foreframe_server.codec.media import Media
from foreframe_server.codec.validation import validate
from foreframe_server.errors import InvalidRequest, Reason, ServiceError
from foreframe_server.kserve_schemas import InferInput, InferOutput, InferOutputReply, InferReply, InferRequest
from foreframe_server.schemas import Scalar

BINARY_SIZE = "binary_data_size"
_BINARY = "binary_data"
_BINARY_OUTPUT = "binary_data_output"
_SHARED = "shared_memory"
_CLASSIFICATION = "classification"
_MAX_LENGTH_DIGITS = 12
_PIECE = 2**16
"""Numbers written at once: the writer holds the interpreter's lock, and all of them would hold it for long."""

_MAX_TEXT_VALUES = 2**22


class ExtensionMissing(ServiceError):
    """The protocol knows an extension that this server does not have."""

    code, status, title = "extension_missing", 501, "The extension is not offered"


class Datatype(StrEnum):
    """A tensor's elements."""

    BOOL = "BOOL"
    UINT8 = "UINT8"
    INT32 = "INT32"
    INT64 = "INT64"
    FP32 = "FP32"
    FP64 = "FP64"

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """NumPy's word for it, as the wire has it."""
        return _DTYPES[self]


_DTYPES: Mapping[Datatype, np.dtype[np.generic]] = {
    Datatype.BOOL: np.dtype("|b1"),
    Datatype.UINT8: np.dtype("|u1"),
    Datatype.INT32: np.dtype("<i4"),
    Datatype.INT64: np.dtype("<i8"),
    Datatype.FP32: np.dtype("<f4"),
    Datatype.FP64: np.dtype("<f8"),
}


@dataclass(frozen=True, slots=True)
class Wanted:
    """One output that is wanted, in the binary part or as numbers."""

    name: str
    is_binary: bool


@dataclass(frozen=True, slots=True, eq=False)
class Inference:
    """What an inference body holds. `wanted` is None for every output, in the form that `is_binary` says."""

    id: str | None
    parameters: Mapping[str, Scalar]
    tensors: Mapping[str, np.ndarray]
    wanted: tuple[Wanted, ...] | None
    is_binary: bool


@dataclass(frozen=True, slots=True, eq=False)
class Inferred:
    """What goes back: batches by name, in the order they are written, and how they came about."""

    name: str
    version: str
    parameters: Mapping[str, Scalar]
    outputs: Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class EncodedInference:
    """A reply's bytes; `header_length` is that of the JSON where tensors follow it."""

    body: bytes
    header_length: int | None


def read_header_length(text: str | None) -> int | None:
    """Read `Inference-Header-Content-Length`; None where the whole body is JSON. Raises InvalidRequest."""
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= _MAX_LENGTH_DIGITS):
        raise refusal("", "Inference-Header-Content-Length is no number of bytes")
    return int(text)


def read_inference(
    body: bytes, header_length: int | None, datatypes: Mapping[str, Datatype], *, max_values: int
) -> Inference:
    """Read a body whose tensors may be those of `datatypes`. Raises InvalidRequest, or ExtensionMissing."""
    length = len(body) if header_length is None else header_length
    if length > len(body):
        raise refusal("", "the JSON is longer than the body", f"at most {len(body)} bytes", f"{length} bytes")
    request = validate(InferRequest, read_document(body[:length], Media.JSON, max_values=max_values))
    parameters = dict(request.parameters)
    is_binary = _read_flag(parameters.pop(_BINARY_OUTPUT, False), _BINARY_OUTPUT)
    return Inference(
        id=request.id,
        parameters=parameters,
        tensors=_read_tensors(request.inputs, body, length, datatypes),
        wanted=_read_wanted(request.outputs, is_default=is_binary) if request.outputs else None,
        is_binary=is_binary,
    )


def _read_flag(value: Scalar, name: str) -> bool:
    if not isinstance(value, bool):
        raise refusal(name, "must be true or false")
    return value


def _read_tensors(
    inputs: Sequence[InferInput], body: bytes, start: int, datatypes: Mapping[str, Datatype]
) -> Mapping[str, np.ndarray]:
    sizes = [_read_size(each, datatypes, f"inputs/{place}") for place, each in enumerate(inputs)]
    if sum(size or 0 for size in sizes) != len(body) - start:
        expected, received = f"{sum(size or 0 for size in sizes)} bytes", f"{len(body) - start} bytes"
        raise refusal("", f"the binary part is not as long as every {BINARY_SIZE} together", expected, received)
    tensors: dict[str, np.ndarray] = {}
    for each, size in zip(inputs, sizes, strict=True):
        if each.name in tensors:
            raise refusal(each.name, "is there twice", "each input once")
        tensors[each.name] = _read_numbers(each) if size is None else _view(each, body, start)
        start += size or 0
    return tensors


def _read_size(tensor: InferInput, datatypes: Mapping[str, Datatype], pointer: str) -> int | None:
    """Check what a tensor says of itself; returns its bytes in the binary part, None where its numbers are in JSON."""
    name = tensor.name
    if name not in datatypes:
        raise refusal(pointer, "is no input of this model", ", ".join(datatypes))
    if tensor.datatype != datatypes[name]:
        raise refusal(name, "has the wrong datatype", datatypes[name], "another datatype")
    _check_parameters(tensor.parameters, {BINARY_SIZE}, name)
    size = tensor.parameters.get(BINARY_SIZE)
    if (size is None) == (tensor.data is None):
        raise refusal(name, f"needs either data or {BINARY_SIZE}")
    if size is None:
        return None
    num_bytes = math.prod(tensor.shape) * datatypes[name].dtype.itemsize
    if type(size) is not int or size != num_bytes:
        raise refusal(name, "is not as long as its shape and datatype say", f"{num_bytes} bytes")
    return size


def _check_parameters(parameters: Mapping[str, Scalar], known: set[str], name: str) -> None:
    for key in parameters:
        if key.startswith(_SHARED):
            raise ExtensionMissing("Tensors in shared memory are not read; send them in the body.")
        if key == _CLASSIFICATION:
            raise ExtensionMissing("Classes are not counted; this model's outputs are none.")
        if key not in known:
            raise refusal(name, "has a parameter that is not known", ", ".join(known))


def _view(tensor: InferInput, body: bytes, start: int) -> np.ndarray:
    count = math.prod(tensor.shape)
    array = np.frombuffer(body, Datatype(tensor.datatype).dtype, count, start).reshape(tensor.shape)
    # Numbers of several bytes may stand anywhere in the body, and what multiplies them wants them in place.
    return array if array.flags.aligned else array.copy()


def _read_numbers(tensor: InferInput) -> np.ndarray:
    datatype = Datatype(tensor.datatype)
    numbers = list(_flatten(tensor.data, tensor.name))
    count = math.prod(tensor.shape)
    if len(numbers) != count:
        raise refusal(tensor.name, "does not have as many numbers as its shape", f"{count}", f"{len(numbers)}")
    kinds = (int, float) if datatype.dtype.kind == "f" else (int,)
    if any(type(number) not in kinds for number in numbers):
        raise refusal(tensor.name, f"holds what is no {datatype}")
    if datatype.dtype.kind != "f" and not _is_within(numbers, np.iinfo(datatype.dtype.name)):
        raise refusal(tensor.name, f"holds a number outside {datatype}")
    with np.errstate(over="ignore"):  # what becomes infinite is refused with its place by who reads the states
        return np.array(numbers, datatype.dtype).reshape(tensor.shape)


def _flatten(data: object, name: str) -> Iterator[object]:
    """List the leaves of nested lists, whose number and depth the document's reader has bounded."""
    if not isinstance(data, list):
        raise refusal(name, "data is not a list of numbers")
    for item in data:
        if isinstance(item, list):
            yield from _flatten(item, name)
        else:
            yield item


def _is_within(numbers: Sequence[object], bounds: np.iinfo) -> bool:
    return all(isinstance(number, int) and bounds.min <= number <= bounds.max for number in numbers)


def _read_wanted(outputs: Sequence[InferOutput], *, is_default: bool) -> tuple[Wanted, ...]:
    wanted = []
    for place, output in enumerate(outputs):
        _check_parameters(output.parameters, {_BINARY}, f"outputs/{place}")
        is_binary = _read_flag(output.parameters.get(_BINARY, is_default), _BINARY)
        wanted.append(Wanted(output.name, is_binary))
    return tuple(wanted)


def choose_outputs(inference: Inference, offered: Sequence[str]) -> tuple[Wanted, ...]:
    """Say which outputs go back, and how. Raises InvalidRequest for one that the model does not give."""
    if inference.wanted is None:
        return tuple(Wanted(name, inference.is_binary) for name in offered)
    for place, each in enumerate(inference.wanted):
        if each.name not in offered:
            raise refusal(f"outputs/{place}", "is no output of this model", ", ".join(offered))
        if each.name in [earlier.name for earlier in inference.wanted[:place]]:
            raise refusal(f"outputs/{place}", "is there twice", "each output once")
    return inference.wanted


def write_inference(inferred: Inferred, wanted: Sequence[Wanted], request_id: str | None) -> EncodedInference:
    """Write what goes back. Raises InvalidRequest when too much of it is wanted as numbers."""
    arrays = [np.ascontiguousarray(inferred.outputs[each.name]) for each in wanted]
    _check_text(wanted, arrays)
    reply = InferReply(
        id=request_id,
        model_name=inferred.name,
        model_version=inferred.version,
        parameters=dict(inferred.parameters),
        outputs=[_describe(each, array) for each, array in zip(wanted, arrays, strict=True)],
    )
    header = _write_header(
        reply, [None if each.is_binary else array for each, array in zip(wanted, arrays, strict=True)]
    )
    parts = [array.data for each, array in zip(wanted, arrays, strict=True) if each.is_binary]
    return EncodedInference(b"".join([header, *parts]), len(header) if parts else None)


def _check_text(wanted: Sequence[Wanted], arrays: Sequence[np.ndarray]) -> None:
    count = sum(array.size for each, array in zip(wanted, arrays, strict=True) if not each.is_binary)
    if count > _MAX_TEXT_VALUES:
        expected, received = f"at most {_MAX_TEXT_VALUES} numbers", f"{count} numbers"
        raise refusal("outputs", f"are too many numbers for JSON; ask for them with {_BINARY}", expected, received)


def _describe(wanted: Wanted, array: np.ndarray) -> InferOutputReply:
    return InferOutputReply(
        name=wanted.name,
        datatype=_datatype_of(array),
        shape=list(array.shape),
        parameters={BINARY_SIZE: array.nbytes} if wanted.is_binary else None,
    )


def _datatype_of(array: np.ndarray) -> Datatype:
    for datatype, dtype in _DTYPES.items():
        if array.dtype == dtype:
            return datatype
    raise TypeError("an output has a dtype that the wire does not have")


def _write_header(reply: InferReply, numbers: Sequence[np.ndarray | None]) -> bytes:
    document = reply.model_dump(exclude_none=True)
    outputs = document.pop("outputs")
    texts = [_write_output(each, array) for each, array in zip(outputs, numbers, strict=True)]
    head = write_document(document, Media.JSON)
    return b'%s,"outputs":[%s]}' % (head[:-1], b",".join(texts))


def _write_output(description: dict[str, object], array: np.ndarray | None) -> bytes:
    head = write_document(description, Media.JSON)
    return head if array is None else b'%s,"data":[%s]}' % (head[:-1], _write_numbers(array.reshape(-1)))


def _write_numbers(values: np.ndarray) -> bytes:
    pieces = (json.dumps(values[start : start + _PIECE].tolist())[1:-1] for start in range(0, len(values), _PIECE))
    return ",".join(pieces).replace("NaN", "null").encode("ascii")


def refusal(pointer: str, message: str, expected: str | None = None, received: str | None = None) -> InvalidRequest:
    """Make the error of one tensor or parameter that cannot be used."""
    return InvalidRequest("The inference cannot be run.", reasons=[Reason(pointer, message, expected, received)])
