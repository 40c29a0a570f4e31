"""Episodes whose every pixel says which episode and frame it is of."""

import av
import numpy as np
import pytest

from foreframe_engines.episodes import Episode

SIDE = 16


def make_episode(number: int, num_frames: int, side: int = SIDE) -> Episode:
    """Frames of one grey, darker and lighter by episode; states that name episode and frame."""
    greys = 60 * (number % 4) + 3 * np.arange(num_frames) + 5
    frames = np.broadcast_to(greys[:, None, None, None], (num_frames, side, side, 3)).astype(np.uint8)
    states = np.stack([np.full(num_frames, number), np.arange(num_frames), greys / 7], axis=1).astype(np.float32)
    return Episode(number, frames, states, np.zeros(frames.shape[:3], np.uint8), {})


@pytest.fixture
def episodes():
    return [make_episode(number, length) for number, length in enumerate((9, 7, 12, 8))]


@pytest.fixture
def large_episodes():
    """Of 64 pixels a side, the least that AV1's encoder takes."""
    return [make_episode(number, length, side=64) for number, length in enumerate((9, 7, 12))]


@pytest.fixture
def assert_same():
    """Compare an episode that was read with the one that was written; `levels` a video may be off by."""

    def check(read: Episode, written: Episode, levels: int = 0) -> None:
        assert read.frames.shape == written.frames.shape
        assert np.abs(read.frames.astype(int) - written.frames.astype(int)).max() <= levels
        np.testing.assert_array_equal(read.states, written.states)
        assert (read.frames.dtype, read.states.dtype) == (np.uint8, np.float32)
        assert not read.masks.any()

    return check


@pytest.fixture
def write_video():
    """Write frames without loss."""

    def write(path, frames, fps):
        with av.open(str(path), "w", format="mp4") as container:
            stream = container.add_stream("libx264rgb", rate=fps)
            stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "rgb24"
            stream.options = {"crf": "0"}
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())

    return write
