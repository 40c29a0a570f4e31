import base64
import contextlib
import io
import json
import math
import time

import av
import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from foreframe_engines import EnsembleSpec, Prediction, Reducer, Sampling, Strategy
from foreframe_engines.testing import toy_contract
from foreframe_server.calls import Answer, CacheResult, Call, Degraded, Timings
from foreframe_server.codec import (
    Bounds,
    Media,
    decode_prediction,
    encode_prediction,
    read_accept,
    read_content_type,
)
from foreframe_server.codec.arrays import DocumentError, array_of_map, map_for_msgpack
from foreframe_server.codec.documents import read_document
from foreframe_server.codec.pictures import PictureError, Size, decode_picture, encode_png
from foreframe_server.codec.video import decode_mp4, encode_mp4
from foreframe_server.errors import InvalidRequest, ServiceError, UnsupportedMedia
from foreframe_server.observations import ObservationStore
from foreframe_server.schemas import Encoding

CONTRACT = toy_contract()
BOUNDS = Bounds(max_json_values=65_536, max_picture_pixels=1024 * 1024, max_candidates=256)
NOTHING_HELD = ObservationStore(60.0, 2**20, time.monotonic)
SMOOTH = np.tile(np.linspace(0, 255, 8).astype(np.uint8)[None, None, :, None], (4, 8, 1, 3))


def decode(request, media=Media.JSON, accepted=Media.JSON):
    body = json.dumps(request).encode() if media is Media.JSON else msgpack.packb(request, default=map_for_msgpack)
    document = read_document(body, media, max_values=BOUNDS.max_json_values)
    return decode_prediction(document, accepted, CONTRACT, BOUNDS, NOTHING_HELD.get)


def answer_of(asked, members):
    members = np.asarray(members, np.uint8)
    spread = tuple(0.25 for _ in asked.query.frame_indices) if len(members) > 1 else (0.0,) * members.shape[1]
    prediction = Prediction(
        frame_indices=asked.query.frame_indices,
        frames=members[0],
        members=members,
        variance=np.full(members.shape[1:4], 0.5, np.float32),
        spread_per_frame=spread,
        sampling=asked.query.sampling,
        ensemble=asked.query.ensemble,
    )
    return Answer(prediction, CacheResult.MISS, 0, Timings(), True, None, "bitwise")


def encode(asked, answer):
    return encode_prediction(asked, answer, CONTRACT, Call("r-1", 0.0))


class TestContextFrames:
    @pytest.mark.parametrize(("encoding", "kind"), [("png", "PNG"), ("webp", "WEBP")])
    def test_lossless_pictures_arrive_as_they_were_sent(self, toy_request, frames, picture, base64_of, encoding, kind):
        options = {"lossless": True} if kind == "WEBP" else {}
        clip = {"encoding": encoding, "frames": [base64_of(picture(frame, kind, **options)) for frame in frames(3)]}

        asked = decode(toy_request(observation__cameras__head=clip))

        np.testing.assert_array_equal(asked.query.context, frames(3))
        assert asked.warnings == ()

    def test_jpeg_arrives_nearly_as_it_was_sent(self, toy_request, picture, base64_of):
        data = [base64_of(picture(frame, "JPEG", quality=95)) for frame in SMOOTH]

        asked = decode(toy_request(observation__cameras__head={"encoding": "jpeg", "frames": data}))

        assert np.abs(asked.query.context.astype(int) - SMOOTH).max() <= 8

    def test_plain_bytes_come_one_by_one_or_in_one_piece(self, toy_request, frames, base64_of):
        shape = {"encoding": "raw_rgb8", "width": 8, "height": 8}
        apart = {**shape, "frames": [base64_of(frame.tobytes()) for frame in frames()]}
        whole = {**shape, "data": base64_of(frames().tobytes())}

        for clip in (apart, whole):
            asked = decode(toy_request(observation__cameras__head=clip))
            np.testing.assert_array_equal(asked.query.context, frames())

    def test_a_clip_arrives_nearly_as_it_was_sent(self, toy_request, base64_of):
        clip = {"encoding": "mp4", "data": base64_of(encode_mp4(SMOOTH, 10.0))}

        asked = decode(toy_request(observation__cameras__head=clip))

        assert np.abs(asked.query.context.astype(int) - SMOOTH).max() <= 8

    @pytest.mark.parametrize("field", ["frames", "data"])
    @pytest.mark.parametrize("encoding", ["raw_rgb8", None])
    def test_msgpack_frames_are_one_array(self, toy_request, frames, field, encoding):
        clip = {field: frames(5)} | ({} if encoding is None else {"encoding": encoding})

        asked = decode(toy_request(observation__cameras__head=clip), Media.MSGPACK)

        np.testing.assert_array_equal(asked.query.context, frames(5))

    def test_msgpack_frames_may_be_bytes_of_pictures(self, toy_request, frames, picture):
        clip = {"encoding": "png", "frames": [picture(frame) for frame in frames(5)]}

        asked = decode(toy_request(observation__cameras__head=clip), Media.MSGPACK)

        np.testing.assert_array_equal(asked.query.context, frames(5))

    def test_another_size_is_padded_only_when_asked_and_said(self, toy_request, frames):
        wide = np.full((4, 8, 16, 3), 200, np.uint8)

        with pytest.raises(InvalidRequest):
            decode(toy_request(observation__cameras__head={"frames": wide}), Media.MSGPACK)
        asked = decode(toy_request(observation__cameras__head={"frames": wide, "resize": "pad"}), Media.MSGPACK)

        assert [warning.code for warning in asked.warnings] == ["resized"]
        assert asked.query.context.shape == (4, 8, 8, 3)
        assert (asked.query.context[:, 2:6] == 200).all()
        assert (asked.query.context[:, :2] == 0).all()
        assert (asked.query.context[:, 6:] == 0).all()

    def test_the_size_in_the_header_decides_before_pixels_are_decoded(self, monkeypatch):
        huge = encode_png(np.zeros((4000, 4000, 3), np.uint8))
        decoded = []

        def load(picture):
            decoded.append(picture)

        for kind in (Image.Image, *Image.Image.__subclasses__()):
            if "load" in vars(kind):
                monkeypatch.setattr(kind, "load", load)

        with pytest.raises(PictureError, match="4000x4000"):
            decode_picture(huge, Encoding.PNG, Size(8, 8), max_pad_pixels=0)
        assert decoded == []

        with pytest.raises(AssertionError):  # the control: nothing was loaded, so there is nothing to read
            decode_picture(huge, Encoding.PNG, Size(4000, 4000), max_pad_pixels=0)
        assert decoded != []

    def test_a_size_that_the_header_hides_from_webp_is_refused(self):
        header = b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + (16383).to_bytes(3, "little") * 2

        with pytest.raises(PictureError):
            decode_picture(header + b"\0" * 64, Encoding.WEBP, Size(8, 8), max_pad_pixels=2**40)

    def test_an_animation_is_no_picture(self, picture):
        first, second = Image.fromarray(SMOOTH[0]), Image.fromarray(255 - SMOOTH[0])
        for kind, encoding in (("PNG", Encoding.PNG), ("WEBP", Encoding.WEBP)):
            buffer = io.BytesIO()
            first.save(buffer, kind, save_all=True, append_images=[second])
            with pytest.raises(PictureError, match="animated"):
                decode_picture(buffer.getvalue(), encoding, Size(8, 8), max_pad_pixels=0)

    @given(st.data())
    def test_a_damaged_picture_is_refused_or_read_and_never_a_crash(self, data):
        encoding, kind = data.draw(
            st.sampled_from([(Encoding.PNG, "PNG"), (Encoding.JPEG, "JPEG"), (Encoding.WEBP, "WEBP")])
        )
        buffer = io.BytesIO()
        Image.fromarray(SMOOTH[0]).save(buffer, kind)
        damaged = bytearray(buffer.getvalue())
        for _ in range(data.draw(st.integers(1, 6))):
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))

        with contextlib.suppress(PictureError):
            assert decode_picture(bytes(damaged), encoding, Size(8, 8), max_pad_pixels=0).shape == (8, 8, 3)


class TestStates:
    def test_context_rows_come_before_future_rows_as_float32(self, toy_request):
        asked = decode(toy_request(future__values=[[1, 2, 3]]))

        assert asked.query.states.dtype == np.float32
        assert asked.query.states.shape == (5, 3)
        assert asked.query.states[-1].tolist() == [1, 2, 3]

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_msgpack_states_are_arrays(self, toy_request, dtype):
        rows = np.arange(24, dtype=dtype).reshape(8, 3) / 10

        asked = decode(toy_request(future__values=rows), Media.MSGPACK)

        np.testing.assert_array_equal(asked.query.states[4:], rows.astype(np.float32))

    def test_a_row_far_from_the_training_data_is_warned_of_with_its_sigma(self, toy_request):
        asked = decode(toy_request(future__values=[[0, 0, 0], [0, -7.5, 0]]))

        (warning,) = asked.warnings
        assert (warning.code, warning.pointer, warning.sigma) == ("state_out_of_range", "/future/values/1/1", 7.5)

    def test_rows_that_never_change_are_warned_of(self, toy_request):
        still = toy_request(observation__state__values=[[0, 0, 0]] * 4, future__values=[[0, 0, 0]] * 2)

        assert [warning.code for warning in decode(still).warnings] == ["state_flat"]
        assert decode(toy_request()).warnings == ()


class TestChoices:
    def test_an_absent_seed_is_drawn_anew_within_53_bits(self, toy_request):
        seeds = {decode(toy_request(sampling={})).query.sampling.seed for _ in range(8)}

        assert len(seeds) == 8
        assert all(0 <= seed < 2**53 for seed in seeds)

    @pytest.mark.parametrize(
        ("choice", "indices"), [("last", (8,)), ("all", tuple(range(1, 9))), ([1, 3, 8], (1, 3, 8))]
    )
    def test_frames_are_chosen(self, toy_request, choice, indices):
        assert decode(toy_request(frames=choice)).query.frame_indices == indices

    def test_posterior_mean_is_one_evaluation(self, toy_request):
        sampling = decode(toy_request(sampling={"strategy": "posterior_mean"})).query.sampling

        assert (sampling.strategy, sampling.steps) == (Strategy.POSTERIOR_MEAN, 1)

    def test_defaults_are_the_contracts(self, toy_request):
        query = decode(toy_request(sampling={"seed": 1})).query

        assert query.sampling == Sampling(Strategy.SAMPLE, CONTRACT.sampler.steps, 1)
        assert query.ensemble == EnsembleSpec(1, Reducer.MEAN)

    def test_numpy_scalars_of_openpi_are_numbers(self, toy_request):
        seed = {b"__npgeneric__": True, b"data": 11, b"dtype": "<i8"}

        assert decode(toy_request(sampling__seed=seed), Media.MSGPACK).query.sampling.seed == 11


class TestArrays:
    @given(
        st.sampled_from(["|u1", "<f4", "<f8", "float32", "<c8", "|O", "|V8", "<U4", ">f4", "|b1"]),
        st.lists(st.one_of(st.integers(-1, 5), st.integers(0, 2**40)), max_size=8),
        st.integers(0, 200),
    )
    def test_only_arrays_that_add_up_pass(self, dtype, shape, length):
        fields = {"__ndarray__": True, "data": bytes(length), "dtype": dtype, "shape": shape}
        sizes = {"|u1": 1, "<f4": 4, "<f8": 8, "float32": 4}
        is_whole = (
            dtype in sizes
            and len(shape) <= 6
            and all(1 <= size < 2**31 for size in shape)
            and length == sizes[dtype] * math.prod(shape)
        )

        if is_whole:
            assert array_of_map(fields).shape == tuple(shape)
        else:
            with pytest.raises(DocumentError):
                array_of_map(fields)

    @pytest.mark.parametrize("key", [str, str.encode])
    def test_keys_may_be_text_or_bytes(self, key):
        names = ("__ndarray__", "data", "dtype", "shape")
        array = {key(name): value for name, value in zip(names, (True, b"\x01\x02", "|u1", [2]), strict=True)}

        document = read_document(msgpack.packb({key("a"): array}), Media.MSGPACK, max_values=100)

        assert document["a"].tolist() == [1, 2]


class TestDocuments:
    @pytest.mark.parametrize(
        ("body", "media"),
        [
            (b"", Media.JSON),
            (b"[1]", Media.JSON),
            (b'"text"', Media.JSON),
            (b"{", Media.JSON),
            (b'{"a": 1, "a": 2}', Media.JSON),
            (b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}", Media.JSON),
            (b'{"a": ' + b"[" * 100_000, Media.JSON),
            (b'{"a": ' * 5000 + b"1" + b"}" * 5000, Media.JSON),
            (b'{"a": "\\ud800"}', Media.JSON),
            (b'{"a": "\xff"}', Media.JSON),
            (b'{"a": ' + b"1" * 5000 + b"}", Media.JSON),
            (b'{"a": [' + b"1," * 70_000 + b"1]}", Media.JSON),
            (b'{"a": "' + b"\\n" * 70_000 + b'"}', Media.JSON),
            (b"{" + b",".join(b'"k%d": 1' % index for index in range(65)) + b"}", Media.JSON),
            (b"", Media.MSGPACK),
            (b"\x91\x01", Media.MSGPACK),
            (b"\x81\xa1a", Media.MSGPACK),
            (b"\x81\xa1a\x01\x02", Media.MSGPACK),
            (b"\x81\xa1a" + b"\x91" * 100 + b"\x01", Media.MSGPACK),
            (b"\x81\xa1a" + b"\x91" * 100_000, Media.MSGPACK),
            (b"\x82\xa1a\x01\xc4\x01a\x02", Media.MSGPACK),
            (b"\x81\x01\x02", Media.MSGPACK),
            (b"\x81\xa1a\xd4\x01\x00", Media.MSGPACK),
            (b"\x81\xa1a\xdd\xff\xff\xff\xff", Media.MSGPACK),
            (b"\x81\xa1a\x9a" + (b"\xdc\x3f\xff" + b"\x01" * 0x3FFF) * 10, Media.MSGPACK),
        ],
    )
    def test_what_is_no_small_map_is_refused(self, body, media):
        with pytest.raises(InvalidRequest) as caught:
            read_document(body, media, max_values=65_536)

        assert caught.value.code == "invalid_request"

    def test_what_is_a_small_map_is_read(self):
        body = b'{"a": [1, 2.5, "\xc3\xa9", null, true], "b": {"c": "\\u00e9"}}'

        document = read_document(body, Media.JSON, max_values=256)

        assert document == {"a": [1, 2.5, "é", None, True], "b": {"c": "é"}}


class TestMedia:
    @pytest.mark.parametrize(
        ("header", "media"),
        [
            (None, Media.JSON),
            ("*/*", Media.JSON),
            ("application/msgpack", Media.MSGPACK),
            ("application/x-msgpack", Media.MSGPACK),
            ("video/mp4;q=0.5, application/json;q=0.9", Media.JSON),
            ("text/html, image/webp", Media.WEBP),
            ("image/*", Media.PNG),
            ("application/json;q=0, video/*", Media.MP4),
        ],
    )
    def test_the_best_liked_media_type_is_taken(self, header, media):
        assert read_accept(header) is media

    @pytest.mark.parametrize("header", ["text/html", "application/json;q=0", "image/jpeg", "application/json;q=x", ","])
    def test_what_is_not_offered_is_refused(self, header):
        with pytest.raises(UnsupportedMedia):
            read_accept(header)

    @pytest.mark.parametrize("header", [None, "", "text/plain", "image/png", "application/json; charset=latin-1"])
    def test_other_bodies_are_refused(self, header):
        with pytest.raises(UnsupportedMedia):
            read_content_type(header)


class TestReplies:
    members = np.random.default_rng(1).integers(0, 256, (2, 8, 8, 8, 3), dtype=np.uint8)

    def asked(self, toy_request, accepted=Media.JSON, **fields):
        return decode(toy_request(ensemble__size=2, **fields), accepted=accepted)

    def test_json_holds_pictures_that_decode_to_the_frames(self, toy_request):
        asked = self.asked(toy_request, metadata={"run": "a", "n": 1}, client_time=12.5)

        reply = json.loads(encode(asked, answer_of(asked, self.members)).body)

        images = [decode_base64_png(frame["image"]["data"]) for frame in reply["frames"]]
        np.testing.assert_array_equal(images, self.members[0])
        assert [frame["index"] for frame in reply["frames"]] == list(range(1, 9))
        assert reply["frames"][2]["t_s"] == pytest.approx(0.3)
        assert (reply["metadata"], reply["client_time"]) == ({"run": "a", "n": 1}, 12.5)
        assert reply["uncertainty"]["spread_per_frame"] == [0.25] * 8
        assert reply["members"] is None
        assert reply["uncertainty"]["map"] is None

    def test_msgpack_raw_holds_arrays_as_openpi_reads_them(self, toy_request):
        returns = {"encoding": "raw", "variance": "map", "members": True}
        asked = self.asked(toy_request, Media.MSGPACK, **{"return": returns})

        reply = msgpack.unpackb(encode(asked, answer_of(asked, self.members)).body, object_hook=unpack_openpi)

        np.testing.assert_array_equal(reply["members"], self.members)
        np.testing.assert_array_equal([frame["image"] for frame in reply["frames"]], self.members[0])
        assert reply["uncertainty"]["map"].dtype == np.float32
        assert reply["uncertainty"]["map"].shape == (8, 8, 8)

    def test_members_of_no_reducer_always_come_back(self, toy_request):
        asked = self.asked(toy_request, ensemble__reducer="none")

        reply = json.loads(encode(asked, answer_of(asked, self.members)).body)

        pictures = [[decode_base64_png(image["data"]) for image in member] for member in reply["members"]]
        np.testing.assert_array_equal(pictures, self.members)

    def test_one_member_has_no_spread_and_says_so(self, toy_request):
        asked = decode(toy_request(**{"return": {"variance": "map"}}))

        reply = json.loads(encode(asked, answer_of(asked, self.members[:1])).body)

        assert reply["uncertainty"]["spread_per_frame"] == []
        assert reply["uncertainty"]["map"] is None
        assert [warning["code"] for warning in reply["warnings"]] == ["spread_unknown"]

    def test_a_clip_has_its_index_first_and_every_frame(self, toy_request):
        asked = self.asked(toy_request, Media.MP4)

        body = encode(asked, answer_of(asked, np.stack([SMOOTH.repeat(2, axis=0)] * 2))).body

        assert body.index(b"moov") < body.index(b"mdat")
        with av.open(io.BytesIO(body)) as clip:
            stream = clip.streams.video[0]
            assert (stream.codec_context.name, float(stream.average_rate)) == ("h264", 10.0)
        frames = decode_mp4(body, 8, Size(8, 8), max_pad_pixels=0)
        assert len(frames) == 8
        assert np.abs(frames[-1].astype(int) - SMOOTH[0]).max() <= 8

    def test_odd_sides_gain_one_row_in_a_clip(self):
        clip = encode_mp4(np.full((3, 7, 9, 3), 90, np.uint8), 12.5)

        assert decode_mp4(clip, 3, Size(8, 10), max_pad_pixels=0)[0].shape == (8, 10, 3)

    def test_a_clip_inside_a_document(self, toy_request):
        asked = self.asked(toy_request, Media.MSGPACK, **{"return": {"encoding": "mp4"}})

        reply = msgpack.unpackb(encode(asked, answer_of(asked, self.members)).body)

        assert len(decode_mp4(reply["video"]["data"], 8, Size(8, 8), max_pad_pixels=0)) == 8
        assert all(frame["image"] is None for frame in reply["frames"])

    def test_png_is_the_last_frame_and_webp_all_of_them(self, toy_request):
        asked = self.asked(toy_request, Media.PNG)
        last = encode(asked, answer_of(asked, self.members)).body
        asked = self.asked(toy_request, Media.WEBP)
        animation = encode(asked, answer_of(asked, self.members)).body

        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(last))), self.members[0][-1])
        assert Image.open(io.BytesIO(animation)).n_frames == 8

    def test_headers_say_what_a_picture_cannot(self, toy_request):
        asked = self.asked(toy_request, Media.PNG, future__values=[[9, 0, 0]] * 8)
        answer = answer_of(asked, self.members)
        short = Answer(answer.prediction, CacheResult.MISS, 0, Timings(), False, Degraded(2, 1, "deadline"), "bitwise")

        headers = encode(asked, short).headers

        assert headers["X-Foreframe-Seed"] == "7"
        assert headers["X-Foreframe-Degraded"] == "members=2, steps=1"
        assert headers["X-Foreframe-Warnings"] == "state_out_of_range"

    @pytest.mark.parametrize(
        "fields",
        [{"return": {"members": True}}, {"return": {"variance": "map"}}, {"ensemble": {"size": 2, "reducer": "none"}}],
    )
    def test_a_picture_that_could_not_hold_the_answer_is_refused(self, toy_request, fields):
        with pytest.raises(ServiceError) as caught:
            decode(toy_request(**fields), accepted=Media.PNG)

        assert caught.value.code == "invalid_request"


def decode_base64_png(text):
    return decode_picture(base64.b64decode(text), Encoding.PNG, Size(8, 8), max_pad_pixels=0)


def unpack_openpi(fields):
    """openpi's own reading of an array, in our words."""
    if b"__ndarray__" in fields:
        return np.ndarray(buffer=fields[b"data"], dtype=np.dtype(fields[b"dtype"]), shape=fields[b"shape"])
    return fields
