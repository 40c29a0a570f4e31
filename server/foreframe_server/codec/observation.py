"""Frames of a camera, from whatever encoding they came in. Knows the contract's camera."""

import binascii
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from foreframe_engines import CameraSpec, Contract
from foreframe_server.codec.counts import describe_counts
from foreframe_server.codec.pictures import Encoded, PictureError, Size, decode_picture, pad_frame
from foreframe_server.codec.video import decode_mp4
from foreframe_server.errors import CameraMissing, InvalidRequest, Reason
from foreframe_server.schemas import CameraClip, Encoding, Observation, Warned

_Frames = UInt8[np.ndarray, "t y x 3"] | Sequence[UInt8[np.ndarray, "y x 3"]]

_CHANNELS = 3
_PIECE = 4 * 2**18
_MAX_PADDING = 2


@dataclass(frozen=True, slots=True)
class ReadFrames:
    """Frames as the model takes them, and what was changed for that."""

    frames: UInt8[np.ndarray, "t h w 3"]
    warnings: tuple[Warned, ...]


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What a clip must be: `max_pad_pixels` is 0 unless padding was asked for."""

    num_frames: range
    size: Size
    pointer: str
    max_pad_pixels: int


def read_context(
    observation: Observation, contract: Contract, num_frames: range, *, max_picture_pixels: int
) -> ReadFrames:
    """Read the frames of the contract's camera, whose number must lie in `num_frames`.

    Raises CameraMissing or InvalidRequest with a pointer.
    """
    camera = contract.camera
    if set(observation.cameras) != {camera.name}:
        missing = camera.name not in observation.cameras
        message = "the contract's camera is missing" if missing else "a camera is not one of the contract's"
        raise CameraMissing(f"This model sees one camera, {camera.name}.", reasons=[
            Reason("/observation/cameras", message, f"exactly {camera.name}", f"{len(observation.cameras)} cameras")
        ])  # fmt: skip
    pointer = f"/observation/cameras/{_escaped(camera.name)}"
    clip = observation.cameras[camera.name]
    return read_clip(clip, camera, num_frames, pointer, max_picture_pixels=max_picture_pixels)


def read_clip(
    clip: CameraClip, camera: CameraSpec, num_frames: range, pointer: str, *, max_picture_pixels: int
) -> ReadFrames:
    """Read the frames of a clip of one camera, whose number must lie in `num_frames`. Raises InvalidRequest."""
    pixels = max_picture_pixels if clip.resize == "pad" else 0
    wanted = _Wanted(num_frames, Size(camera.height, camera.width), pointer, pixels)
    return _fit(_read_clip(clip, wanted), wanted)


def read_still(data: object, clip: CameraClip, camera: CameraSpec, pointer: str) -> UInt8[np.ndarray, "h w 3"]:
    """Read one picture of a camera's exact size; `clip` says how it is written. Raises InvalidRequest."""
    if clip.encoding is None and not isinstance(data, np.ndarray):
        raise _refusal(f"{pointer}/encoding", "is needed unless data is an array")
    wanted = _Wanted(range(1, 2), Size(camera.height, camera.width), pointer, 0)
    return _fit([_read_frame(data, clip, f"{pointer}/data", wanted)], wanted).frames[0]


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _refusal(pointer: str, message: str, expected: str | None = None, received: str | None = None) -> InvalidRequest:
    return InvalidRequest("The frames cannot be used.", reasons=[Reason(pointer, message, expected, received)])


def _read_clip(clip: CameraClip, wanted: _Wanted) -> _Frames:
    if (clip.frames is None) == (clip.data is None):
        raise _refusal(wanted.pointer, "needs either frames or data")
    field = "frames" if clip.data is None else "data"
    content = clip.frames if clip.data is None else clip.data
    pointer = f"{wanted.pointer}/{field}"
    if isinstance(content, np.ndarray):
        return _read_array(content, clip, pointer, wanted)
    if clip.encoding is None:
        raise _refusal(f"{wanted.pointer}/encoding", "is needed unless frames are an array")
    if field == "data":
        return _read_data(_read_bytes(content, pointer), clip, pointer, wanted)
    return _read_frames(content, clip, pointer, wanted)


def _read_array(array: np.ndarray, clip: CameraClip, pointer: str, wanted: _Wanted) -> UInt8[np.ndarray, "t h w 3"]:
    if clip.encoding not in (None, Encoding.RAW_RGB8):
        raise _refusal(f"{wanted.pointer}/encoding", "an array is raw_rgb8", "raw_rgb8")
    if array.dtype != np.uint8:
        raise _refusal(pointer, "the array's dtype is wrong", "uint8", array.dtype.name)
    if array.ndim != 4 or array.shape[3] != _CHANNELS:
        raise _refusal(pointer, "the array's axes are wrong", "t h w 3", f"{array.ndim} axes")
    _check_declared(clip, Size(array.shape[1], array.shape[2]), wanted)
    return array


def _check_declared(clip: CameraClip, size: Size, wanted: _Wanted) -> None:
    declared = Size(clip.height or size.height, clip.width or size.width)
    if declared != size:
        raise _refusal(wanted.pointer, "width and height are not those of the array", str(size), str(declared))


def _read_frames(content: object, clip: CameraClip, pointer: str, wanted: _Wanted) -> _Frames:
    if not isinstance(content, list):
        raise _refusal(pointer, "is neither a list nor an array", "a list of pictures")
    if clip.encoding is Encoding.MP4:
        raise _refusal(pointer, "an mp4 clip goes into data")
    _check_count(len(content), pointer, wanted)
    return [_read_frame(item, clip, f"{pointer}/{index}", wanted) for index, item in enumerate(content)]


def _read_frame(item: object, clip: CameraClip, pointer: str, wanted: _Wanted) -> UInt8[np.ndarray, "h w 3"]:
    if isinstance(item, np.ndarray):
        if item.ndim != 3:
            raise _refusal(pointer, "the array's axes are wrong", "h w 3", f"{item.ndim} axes")
        return _read_array(item[None], clip, pointer, wanted)[0]
    data = _read_bytes(item, pointer)
    if clip.encoding is Encoding.RAW_RGB8:
        return _read_raw(data, clip, pointer, wanted, num_frames=range(1, 2))[0]
    try:
        encoding = Encoding(clip.encoding or Encoding.PNG)
        return decode_picture(data, encoding, wanted.size, max_pad_pixels=wanted.max_pad_pixels)
    except PictureError as error:
        raise _refusal(pointer, str(error), f"{wanted.size} RGB") from None


def _read_bytes(content: object, pointer: str) -> Encoded:
    if isinstance(content, bytes | memoryview):
        return content
    if not isinstance(content, str):
        raise _refusal(pointer, "is neither text nor bytes", "base64")
    try:
        return _from_base64(content)
    except ValueError:
        raise _refusal(pointer, "is not base64", "base64 without line breaks") from None


def _from_base64(text: str) -> bytes:
    """Decode in pieces: the decoder holds the interpreter's lock, and a whole body would hold it for 50 ms."""
    if "=" in text[:-_MAX_PADDING]:
        raise ValueError("padding stands at the end only")
    pieces = (text[start : start + _PIECE] for start in range(0, len(text), _PIECE))
    return b"".join(binascii.a2b_base64(piece, strict_mode=True) for piece in pieces)


def _read_data(data: Encoded, clip: CameraClip, pointer: str, wanted: _Wanted) -> _Frames:
    if clip.encoding is Encoding.RAW_RGB8:
        return _read_raw(data, clip, pointer, wanted, num_frames=wanted.num_frames)
    if clip.encoding is not Encoding.MP4:
        raise _refusal(pointer, "pictures go into frames, data is for mp4 and raw_rgb8")
    try:
        return decode_mp4(data, wanted.num_frames[-1], wanted.size, max_pad_pixels=wanted.max_pad_pixels)
    except PictureError as error:
        raise _refusal(pointer, str(error), f"{wanted.size} H.264") from None


def _read_raw(
    data: Encoded, clip: CameraClip, pointer: str, wanted: _Wanted, *, num_frames: range
) -> UInt8[np.ndarray, "t h w 3"]:
    if clip.width is None or clip.height is None:
        raise _refusal(wanted.pointer, "raw_rgb8 needs width and height")
    frame_bytes = clip.height * clip.width * _CHANNELS
    count, rest = divmod(len(data), frame_bytes)
    if rest or count not in num_frames:
        expected = f"{frame_bytes} bytes a frame, {describe_counts(num_frames)} frames"
        raise _refusal(pointer, "has the wrong number of bytes", expected, f"{len(data)} bytes")
    return np.frombuffer(data, np.uint8).reshape(count, clip.height, clip.width, _CHANNELS)


def _check_count(count: int, pointer: str, wanted: _Wanted) -> None:
    if count not in wanted.num_frames:
        largest = wanted.num_frames[-1]
        received = f"{count} frames" if count <= largest else f"more than {largest} frames"
        expected = f"{describe_counts(wanted.num_frames)} frames"
        raise _refusal(pointer, "the number of frames is wrong", expected, received)


def _fit(frames: _Frames, wanted: _Wanted) -> ReadFrames:
    """Check frames and bring them to their size. An array that fits is returned as it is, without a copy."""
    _check_count(len(frames), wanted.pointer, wanted)
    if isinstance(frames, np.ndarray) and frames.shape[1:3] == (wanted.size.height, wanted.size.width):
        return ReadFrames(np.ascontiguousarray(frames), ())
    found = [Size(*frame.shape[:2]) for frame in frames]
    odd = [size for size in found if size != wanted.size]
    if not odd:
        return ReadFrames(np.ascontiguousarray(frames), ())
    if any(size.height * size.width > wanted.max_pad_pixels for size in odd):
        raise _refusal(wanted.pointer, "the frames have the wrong size", str(wanted.size), str(odd[0]))
    message = f"frames of {odd[0]} were scaled and padded to {wanted.size}"
    padded = np.stack([pad_frame(frame, wanted.size) for frame in frames])
    return ReadFrames(padded, (Warned(code="resized", pointer=wanted.pointer, message=message),))
