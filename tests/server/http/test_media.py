"""Pictures and clips that lie, swell or turn are refused from their headers; clips that go out are what they say."""

import contextlib
import ctypes
import io
import json
import shutil
import struct
import subprocess
import zlib
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from foreframe_server.codec.clip_header import MAX_HEADER_BYTES
from foreframe_server.codec.pictures import MAX_SIDE, PictureError, Size, decode_picture, pad_frame
from foreframe_server.codec.video import decode_mp4, encode_mp4
from foreframe_server.schemas import Encoding

SIZE = Size(64, 64)
NOISE = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
MIB = 2**20


def picture(frame, kind, **options):
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, kind, **options)
    return buffer.getvalue()


@contextlib.contextmanager
def counting_memory():
    """Tell, in a list, by how many MiB the process grew at its largest while the block ran."""
    ctypes.CDLL(None).malloc_trim(0)  # what earlier tests left free would hide a growth
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, grown = memory_mib("VmRSS"), []
    yield grown
    grown.append(memory_mib("VmHWM") - before)


def memory_mib(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def open_clip(data):
    return av.open(io.BytesIO(data), "r", format="mp4")


def box(kind, content):
    return struct.pack(">I4s", 8 + len(content), kind) + content


def png_chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def with_counts(clip, *, stsz=None, stts=None, width=None):
    """A clip whose header claims other numbers."""
    data = bytearray(clip)
    if stsz is not None:
        place = data.index(b"stsz")
        data[place + 8 : place + 16] = struct.pack(">2I", 1, stsz)
    if stts is not None:
        place = data.index(b"stts")
        data[place + 12 : place + 16] = struct.pack(">I", stts)
    if width is not None:
        place = data.index(b"avc1", data.index(b"stsd"))
        data[place + 28 : place + 32] = struct.pack(">2H", width, width)
    return bytes(data)


class TestClipsIn:
    clip = encode_mp4(NOISE, 10.0)

    def refusal(self, data, num_frames=4, **options):
        with pytest.raises(PictureError) as caught:
            decode_mp4(data, num_frames, SIZE, max_pad_pixels=options.get("max_pad_pixels", 0))
        return str(caught.value)

    def test_a_clip_is_read_from_a_view(self):
        assert len(decode_mp4(memoryview(self.clip), 4, SIZE, max_pad_pixels=0)) == 4

    def test_too_many_frames_show_before_one_is_decoded(self, monkeypatch):
        def decode(*_):
            raise AssertionError("decoded")

        monkeypatch.setattr("foreframe_server.codec.video._pixels", decode)

        assert "4 frames" in self.refusal(self.clip, num_frames=3)
        with pytest.raises(AssertionError):  # the control: what fits is decoded
            decode_mp4(self.clip, 4, SIZE, max_pad_pixels=0)

    @pytest.mark.parametrize("counts", [{"stsz": 2**31}, {"stsz": 2**15}, {"stts": 2**31}])
    def test_claims_of_many_samples_are_refused_before_a_table_is_made(self, counts):
        with counting_memory() as grown:
            assert "claims" in self.refusal(with_counts(self.clip, **counts))

        assert grown[0] < 8

    def test_control_a_demuxer_believes_such_a_claim(self):
        with counting_memory() as grown, open_clip(with_counts(self.clip, stsz=2**21, stts=2**21)):
            pass

        assert grown[0] > 16

    def test_many_small_claims_add_up(self):
        runs = box(b"trun", struct.pack(">2I", 0, 1000))

        assert "claims" in self.refusal(self.clip + box(b"moof", box(b"traf", runs * 20)))

    def test_claims_are_found_at_any_depth_and_behind_the_media(self):
        hidden = box(b"udta", box(b"meta", b"\0" * 4 + box(b"stsz", struct.pack(">3I", 0, 1, 2**30))))

        assert "claims" in self.refusal(self.clip + hidden)

    def test_media_that_looks_like_a_table_is_media(self):
        claim = box(b"stsz", struct.pack(">3I", 0, 1, 2**30))

        assert len(decode_mp4(self.clip + box(b"mdat", claim), 4, SIZE, max_pad_pixels=0)) == 4

    def test_a_media_box_of_a_wide_size_is_passed_over(self):
        claim = box(b"stsz", struct.pack(">3I", 0, 1, 2**30))
        wide = struct.pack(">I4sQ", 1, b"mdat", 16 + len(claim)) + claim

        assert len(decode_mp4(self.clip + wide, 4, SIZE, max_pad_pixels=0)) == 4

    def test_a_compressed_header_is_refused(self):
        assert "compressed" in self.refusal(box(b"moov", box(b"cmov", b"\0" * 32)))

    def test_a_large_header_is_refused(self):
        assert "header" in self.refusal(self.clip + box(b"udta", bytes(MAX_HEADER_BYTES)))

    def test_a_large_picture_behind_a_small_claim_is_refused_without_its_memory(self):
        large = with_counts(encode_mp4(np.zeros((1, 4096, 8192, 3), np.uint8), 10.0), width=64)

        with counting_memory() as grown:
            self.refusal(large)  # the size is said by the stream, and the header says another
        with counting_memory() as control, open_clip(large) as clip:
            next(clip.decode(clip.streams.video[0]))

        assert grown[0] < 16
        assert control[0] > 32

    def test_another_codec_is_refused(self):
        buffer = io.BytesIO()
        with av.open(buffer, "w", format="mp4") as container:
            stream = container.add_stream("mpeg4", rate=10)
            stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(NOISE[0], format="rgb24")))
            container.mux(stream.encode())

        assert "H.264" in self.refusal(buffer.getvalue())

    @pytest.mark.parametrize("seed", range(60))
    def test_damaged_clips_are_refused_or_read_and_never_a_crash(self, seed):
        rng = np.random.default_rng(seed)
        data = bytearray(self.clip)
        for place in rng.integers(0, 1200, 6):
            data[place] = rng.integers(256)

        frames = []
        with contextlib.suppress(PictureError):
            frames = decode_mp4(bytes(data), 4, SIZE, max_pad_pixels=0)

        assert len(frames) <= 5


class TestClipsOut:
    @pytest.mark.parametrize("fps", [10.0, 15.0, 30000 / 1001, 12.5])
    @pytest.mark.parametrize("count", [1, 8, 77, 300])
    def test_a_clip_says_its_rate_its_count_and_begins_with_its_header(self, fps, count):
        frames = np.resize(NOISE[:, :32, :32], (count, 32, 32, 3))

        clip = encode_mp4(frames, fps)

        assert clip.index(b"moov") < clip.index(b"mdat")
        with open_clip(clip) as container:
            (stream,) = container.streams
            assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
            assert float(stream.average_rate) == pytest.approx(fps, rel=1e-6)
            assert stream.frames == count
            times = [float(frame.time) for frame in container.decode(stream)]
        assert len(times) == count
        np.testing.assert_allclose(times, np.arange(count) / fps, atol=1e-4)

    @pytest.mark.skipif(shutil.which("ffprobe") is None, reason="ffprobe is not installed")
    def test_ffprobe_says_the_same_of_a_clip(self, tmp_path):
        (tmp_path / "clip.mp4").write_bytes(encode_mp4(np.resize(NOISE, (17, 64, 64, 3)), 15.0))
        asked = "stream=codec_name,pix_fmt,width,height,avg_frame_rate,nb_read_frames"
        command = ["ffprobe", "-v", "error", "-count_frames", "-show_entries", asked, "-of", "json", "clip.mp4"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        (stream,) = json.loads(done.stdout)["streams"]
        assert done.stderr == ""
        assert (stream["codec_name"], stream["pix_fmt"], stream["width"], stream["height"]) == (
            "h264", "yuv420p", 64, 64,
        )  # fmt: skip
        assert (stream["avg_frame_rate"], stream["nb_read_frames"]) == ("15/1", "17")


class TestPictures:
    def refusal(self, data, encoding, *, max_pad_pixels=0):
        with pytest.raises(PictureError) as caught:
            decode_picture(data, encoding, SIZE, max_pad_pixels=max_pad_pixels)
        return str(caught.value)

    def read(self, data, encoding):
        return decode_picture(data, encoding, SIZE, max_pad_pixels=0)

    @pytest.mark.parametrize(("encoding", "kind"), [("png", "PNG"), ("jpeg", "JPEG"), ("webp", "WEBP")])
    def test_a_picture_is_read_from_a_view(self, encoding, kind):
        data = memoryview(picture(NOISE[0], kind))

        assert self.read(data, Encoding(encoding)).shape == (64, 64, 3)

    @pytest.mark.parametrize(("encoding", "kind"), [("png", "PNG"), ("jpeg", "JPEG"), ("webp", "WEBP")])
    @pytest.mark.parametrize("max_pad_pixels", [0, 4 * MIB])
    def test_13_000_pixels_are_refused_even_where_others_are_padded(self, encoding, kind, max_pad_pixels):
        data = picture(np.zeros((16, 13_000, 3), np.uint8), kind)

        assert "13000x16" in self.refusal(data, Encoding(encoding), max_pad_pixels=max_pad_pixels)

    def test_a_picture_of_the_largest_side_is_padded(self):
        data = picture(np.full((16, MAX_SIDE, 3), 9, np.uint8), "PNG")

        wide = decode_picture(data, Encoding.PNG, SIZE, max_pad_pixels=4 * MIB)

        assert pad_frame(wide, SIZE).shape == (64, 64, 3)

    def test_a_picture_with_scans_without_end_is_refused(self):
        data = picture(NOISE[0], "JPEG", progressive=True)
        last = data.rindex(b"\xff\xda")
        swollen = data[:last] + data[last:-2] * 200 + data[-2:]

        assert "scans" in self.refusal(swollen, Encoding.JPEG)
        assert self.read(data, Encoding.JPEG).shape == (64, 64, 3)

    def test_16_bits_a_channel_are_not_cut_to_8(self):
        rows = zlib.compress(bytes(64 * (1 + 64 * 6)))
        chunks = [(b"IHDR", struct.pack(">2I5B", 64, 64, 16, 2, 0, 0, 0)), (b"IDAT", rows), (b"IEND", b"")]
        deep = b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)

        assert "8 bits" in self.refusal(deep, Encoding.PNG)
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(deep))), 0)  # a whole picture otherwise

    def test_a_turned_picture_is_refused_and_an_upright_one_is_not(self):
        for orientation, is_read in ((1, True), (6, False)):
            exif = Image.Exif()
            exif[0x0112] = orientation
            data = picture(NOISE[0], "JPEG", exif=exif)
            if is_read:
                assert self.read(data, Encoding.JPEG).shape == (64, 64, 3)
            else:
                assert "turned" in self.refusal(data, Encoding.JPEG)

    def test_a_bomb_of_text_beside_the_pixels_is_refused(self):
        data = picture(NOISE[0], "PNG")
        chunk = png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(64 * MIB)))

        with counting_memory() as grown:
            self.refusal(data[:33] + chunk + data[33:], Encoding.PNG)

        assert grown[0] < 32
