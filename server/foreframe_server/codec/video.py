"""Frames as one H.264 clip in an mp4 container. Knows sizes and counts, not contracts.

Reading is bounded by the file's header before a frame is decoded, and stops after the frames that are wanted.
"""

import io
import itertools
from fractions import Fraction

import av
import numpy as np
from av.video.stream import VideoStream
from jaxtyping import UInt8

from foreframe_server.codec.clip_header import check_claims
from foreframe_server.codec.pictures import Encoded, PictureError, Size, check_size

_CODECS = frozenset({"h264"})
_CRF = "18"
_MACROBLOCK = 16
_MAX_SAMPLES = 16_384
"""Of all tracks of a clip, sound included."""
_INDEX_BYTES = 2048
_INDEX_BYTES_PER_FRAME = 32


def decode_mp4(data: Encoded, num_frames: int, size: Size, *, max_pad_pixels: int) -> list[UInt8[np.ndarray, "h w 3"]]:
    """Decode a clip; never more than `num_frames + 1` frames, so that a longer one shows.

    Every coded frame counts: edit lists, which hide some from players, are not followed.
    With `max_pad_pixels` above 0 frames of another size, up to so many pixels, come in their own size.
    Raises PictureError.
    """
    file = bytes(data)
    check_claims(file, _MAX_SAMPLES)
    # A stream may change its size inside, and is looked into while it is opened: the decoder itself refuses to
    # allocate more than this.
    pixels = max((size.height + _MACROBLOCK) * (size.width + _MACROBLOCK), max_pad_pixels)
    options = {"max_pixels": str(pixels), "threads": "1", "ignore_editlist": "1"}
    try:
        # The container is named: no probing, so no format that opens other files or addresses.
        with av.open(io.BytesIO(file), "r", format="mp4", options=options) as container:
            stream = container.streams.video[0]
            _check_stream(stream, num_frames, size, max_pad_pixels)
            frames = container.decode(stream)
            return [_pixels(frame, size, max_pad_pixels) for frame in itertools.islice(frames, num_frames + 1)]
    except (av.error.FFmpegError, IndexError, ValueError, AttributeError) as error:  # no codec context: an attribute
        if isinstance(error, PictureError):
            raise
        raise PictureError("is not a whole mp4 clip") from None


def _check_stream(stream: VideoStream, num_frames: int, size: Size, max_pad_pixels: int) -> None:
    context = stream.codec_context
    if context.name not in _CODECS:
        raise PictureError("is not H.264")
    check_size(Size(context.height, context.width), size, max_pad_pixels)
    if stream.frames > num_frames:
        raise PictureError(f"holds {stream.frames} frames, {num_frames} at most")


def _pixels(frame: av.VideoFrame, size: Size, max_pad_pixels: int) -> UInt8[np.ndarray, "h w 3"]:
    check_size(Size(frame.height, frame.width), size, max_pad_pixels)
    return frame.to_ndarray(format="rgb24")


def encode_mp4(frames: UInt8[np.ndarray, "f h w 3"], fps: float) -> bytes:
    """Encode frames as H.264 that every browser plays: 4:2:0, no B frames, header first.

    4:2:0 needs even sides: an odd one gains one repeated row or column.
    """
    _, height, width, _ = frames.shape
    even = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    buffer = io.BytesIO()
    # Room for the index is kept at the front: `faststart` would read the file again by its name, and it has none.
    index_bytes = _INDEX_BYTES + _INDEX_BYTES_PER_FRAME * len(frames)
    with av.open(buffer, "w", format="mp4", options={"moov_size": str(index_bytes)}) as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.width, stream.height, stream.pix_fmt = even.shape[2], even.shape[1], "yuv420p"
        stream.options = {"crf": _CRF, "preset": "veryfast", "bf": "0", "threads": "1"}
        for frame in even:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()
