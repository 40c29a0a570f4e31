"""Messages shaped after the interface definitions: what they hold becomes frames and states, or is refused in words."""

import array
import dataclasses
import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pictures

from foreframe_ros2.errors import ContextIncomplete, ConversionError
from foreframe_ros2.images import frame_of_compressed, frame_of_image, image_of_frame
from foreframe_ros2.joints import StampedRow, StateAssembler, parse_state_map, values_of
from foreframe_ros2.messages import seconds_of
from foreframe_ros2.plans import rows_of_plan
from foreframe_ros2.window import ContextWindow, StampedFrame

DEFAULTS = {
    "string": str, "uint8": int, "uint32": int, "int32": int, "uint8[]": lambda: array.array("B"),
    "float64[]": lambda: array.array("d"), "string[]": list, "JointTrajectoryPoint[]": list,
}  # fmt: skip


def message_type(name, definition, **parts):
    """A class with exactly the fields of a definition: reading another one fails, as with a real message."""
    kinds = DEFAULTS | parts
    fields = [
        (field, object, dataclasses.field(default_factory=kinds[kind]))
        for kind, field in (line.split() for line in definition.strip().splitlines())
    ]
    return dataclasses.make_dataclass(name, fields, slots=True)


Time = message_type("Time", "int32 sec\nuint32 nanosec")
Header = message_type("Header", "Time stamp\nstring frame_id", Time=Time)
Image = message_type(
    "Image",
    """
    Header header
    uint32 height
    uint32 width
    string encoding
    uint8 is_bigendian
    uint32 step
    uint8[] data
    """,
    Header=Header,
)
CompressedImage = message_type("CompressedImage", "Header header\nstring format\nuint8[] data", Header=Header)
JointState = message_type(
    "JointState",
    "Header header\nstring[] name\nfloat64[] position\nfloat64[] velocity\nfloat64[] effort",
    Header=Header,
)
Point = message_type(
    "JointTrajectoryPoint",
    """
    float64[] positions
    float64[] velocities
    float64[] accelerations
    float64[] effort
    Time time_from_start
    """,
    Time=Time,
)
JointTrajectory = message_type(
    "JointTrajectory", "Header header\nstring[] joint_names\nJointTrajectoryPoint[] points", Header=Header
)

FRAME = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
NAMES, UNITS = ("LIFT", "TILT", "GRIP"), ("mm", "deg", "1")
ENTRIES = ("TILT=tilt_joint", "LIFT=lift_joint", "GRIP==0.5")


def stamp(seconds):
    whole = int(seconds // 1)
    return Time(whole, round((seconds - whole) * 1e9))


def image(frame, encoding="rgb8", padding=0, **fields):
    order = {"rgb8": [0, 1, 2], "bgr8": [2, 1, 0], "rgba8": [0, 1, 2, 0], "bgra8": [2, 1, 0, 0]}[encoding]
    rows = np.ascontiguousarray(frame[..., order]).reshape(len(frame), -1)
    data = array.array("B", np.pad(rows, ((0, 0), (0, padding)), constant_values=99).tobytes())
    given_fields = {"height": frame.shape[0], "width": frame.shape[1], "step": rows.shape[1] + padding} | fields
    return Image(**{"header": Header(), "encoding": encoding, "data": data} | given_fields)


def compressed(frame, kind="PNG", mode=None, text="png"):
    picture = Pictures.fromarray(frame)
    buffer = io.BytesIO()
    (picture.convert(mode) if mode else picture).save(buffer, kind)
    return CompressedImage(format=text, data=array.array("B", buffer.getvalue()))


def huge():
    """A PNG whose header promises more pixels than it holds."""
    data = bytearray(compressed(FRAME).data)
    data[16:24] = struct.pack(">II", 4097, 4097)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return CompressedImage(format="png", data=array.array("B", data))


def joints(time_s=0.0, position=(), velocity=(), **named):
    names = list(named) or ["lift_joint", "tilt_joint"]
    values = list(named.values()) or position
    return JointState(Header(stamp(time_s)), names, array.array("d", values), array.array("d", velocity))


def state_map(entries=ENTRIES):
    return parse_state_map(entries, NAMES, UNITS)


def window(times_s, row_times_s=(), **options):
    kept = ContextWindow(10.0, 3, **options)
    for time_s in row_times_s:
        kept.push_row(StampedRow(time_s, np.array([time_s, -time_s], np.float32)))
    for time_s in times_s:
        kept.push_frame(StampedFrame(time_s, np.full((2, 2, 3), round(time_s * 10) % 256, np.uint8)))
    return kept


def plan(*points, names=("lift_joint",), velocities=()):
    return JointTrajectory(
        joint_names=list(names),
        points=[Point(array.array("d", where), array.array("d", velocities), time_from_start=stamp(t))
                for t, where in points],
    )  # fmt: skip


class TestImages:
    @pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "rgba8", "bgra8"])
    @pytest.mark.parametrize("padding", [0, 3])
    def test_every_colour_order_gives_the_same_frame(self, encoding, padding):
        np.testing.assert_array_equal(frame_of_image(image(FRAME, encoding, padding)), FRAME)

    @pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, list, lambda data: np.frombuffer(data, np.uint8)])
    def test_every_kind_of_array_is_read(self, kind):
        message = image(FRAME)
        message.data = kind(message.data.tobytes())

        np.testing.assert_array_equal(frame_of_image(message), FRAME)

    @pytest.mark.parametrize("encoding", ["mono8", "16UC1", "bayer_rggb8", "yuv422_yuy2", "8UC3", ""])
    def test_another_encoding_is_refused_by_name(self, encoding):
        message = image(FRAME)
        message.encoding = encoding

        with pytest.raises(ConversionError, match=f"encoding is '{encoding}'"):
            frame_of_image(message)

    @pytest.mark.parametrize(
        "lie", [{"height": 6}, {"height": 0}, {"width": 8}, {"width": 0}, {"step": 20}, {"data": array.array("B")}]
    )
    def test_sizes_that_contradict_each_other_are_refused(self, lie):
        with pytest.raises(ConversionError, match="bytes"):
            frame_of_image(image(FRAME, **lie))

    def test_a_frame_comes_back_from_the_message_it_became(self):
        fields = dataclasses.asdict(image_of_frame(FRAME[:, ::-1]))

        np.testing.assert_array_equal(frame_of_image(Image(Header(), **fields)), FRAME[:, ::-1])

    @given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 9))
    def test_rows_of_any_size_come_back(self, height, width, padding):
        frame = np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)

        np.testing.assert_array_equal(frame_of_image(image(frame, "bgr8", padding)), frame)


class TestCompressedImages:
    def test_a_png_is_exact(self):
        np.testing.assert_array_equal(frame_of_compressed(compressed(FRAME)), FRAME)

    @pytest.mark.parametrize("text", ["jpeg", "rgb8; jpeg compressed bgr8"])
    def test_a_jpeg_is_red_where_the_camera_saw_red(self, text):
        red = np.zeros((16, 16, 3), np.uint8)
        red[..., 0] = 220

        frame = frame_of_compressed(compressed(red, "JPEG", text=text))

        assert frame.shape == red.shape
        assert np.abs(frame.astype(int) - red).max() < 8

    @pytest.mark.parametrize(
        ("message", "words"),
        [
            (compressed(FRAME, mode="L"), "is L of 7x5"),
            (compressed(FRAME, mode="RGBA"), "is RGBA"),
            (compressed(FRAME, "GIF"), "no whole JPEG or PNG"),
            (compressed(FRAME, text="16UC1; compressedDepth"), "depth"),
            (CompressedImage(format="jpeg", data=array.array("B", b"\xff\xd8nothing")), "no whole"),
            (CompressedImage(format="png", data=compressed(FRAME).data[:60]), "no whole"),
            (CompressedImage(format="png"), "no whole"),
            (huge(), "at most 16777216 pixels"),
        ],
    )
    def test_what_is_no_colour_picture_is_refused(self, message, words):
        with pytest.raises(ConversionError, match=words):
            frame_of_compressed(message)


class TestJoints:
    def test_names_give_the_schema_s_order_and_units(self):
        message = joints(tilt_joint=np.pi / 2, other_joint=9.0, lift_joint=0.25)

        row = state_map().row(values_of(message))

        assert row.dtype == np.float32
        np.testing.assert_allclose(row, [250.0, 90.0, 0.5])

    def test_a_velocity_is_read_where_it_is_asked_for(self):
        mapped = parse_state_map(["SPEED=wheel/left:velocity"], ["SPEED"], ["deg/s"])
        message = JointState(Header(), ["wheel/left"], array.array("d", [4.0]), array.array("d", [np.pi]))

        np.testing.assert_allclose(mapped.row(values_of(message)), [180.0])

    @pytest.mark.parametrize(
        ("entries", "words"),
        [
            (ENTRIES[:2], "'GRIP' comes from nowhere"),
            ((*ENTRIES, "TILT=other"), "'TILT' is there twice"),
            ((*ENTRIES, "YAW=yaw_joint"), "'YAW' is no number of the state"),
            (("LIFT",), "not of the form NAME=joint"),
            (("LIFT=",), "not of the form NAME=joint"),
            (("LIFT=a:speed", *ENTRIES[:1], ENTRIES[2]), "position, velocity, effort"),
            (("LIFT==high", *ENTRIES[:1], ENTRIES[2]), "'high' is no number"),
            (("LIFT==nan", *ENTRIES[:1], ENTRIES[2]), "'nan' is not finite"),
        ],
    )
    def test_a_wrong_map_is_refused_by_name(self, entries, words):
        with pytest.raises(ConversionError, match=words):
            state_map(entries)

    def test_a_unit_that_ros_cannot_give_is_refused(self):
        with pytest.raises(ConversionError, match="cannot be converted to 'ticks'"):
            parse_state_map(["LIFT=lift_joint"], ["LIFT"], ["ticks"])

    def test_a_joint_that_lacks_is_named(self):
        with pytest.raises(ConversionError, match="'tilt_joint' has no position"):
            state_map().row(values_of(joints(lift_joint=1.0)))

    def test_arrays_of_another_length_and_names_twice_are_refused(self):
        with pytest.raises(ConversionError, match="2 names and 1 numbers of position"):
            values_of(joints(position=[1.0]))
        with pytest.raises(ConversionError, match="twice"):
            values_of(JointState(Header(), ["a", "a"], array.array("d", [1, 2])))

    def test_a_state_is_whole_once_every_message_has_come(self):
        assembler = StateAssembler(state_map(), max_age_s=0.1)

        first = assembler.push(joints(10.0, lift_joint=1.0))
        whole = assembler.push(joints(10.05, tilt_joint=0.0))

        assert first is None
        assert whole.time_s == pytest.approx(10.05)
        np.testing.assert_allclose(whole.row, [1000.0, 0.0, 0.5])

    def test_a_joint_that_fell_silent_makes_no_state(self):
        assembler = StateAssembler(state_map(), max_age_s=0.1)
        assembler.push(joints(10.0, lift_joint=1.0, tilt_joint=0.0))

        assert assembler.push(joints(10.2, tilt_joint=0.1)) is None
        assert assembler.push(joints(3.0, tilt_joint=0.1)) is None
        assert assembler.push(joints(3.0, lift_joint=0.9)) is not None

    def test_a_number_that_is_not_finite_is_refused_where_it_is_needed(self):
        assembler = StateAssembler(state_map())

        with pytest.raises(ConversionError, match="'lift_joint' has a position that is not finite"):
            assembler.push(joints(lift_joint=float("nan"), tilt_joint=0.0))
        assert assembler.push(joints(lift_joint=0.0, tilt_joint=0.0, unused=float("nan"))) is not None


class TestWindow:
    def test_frames_are_chosen_at_the_model_s_rate_and_states_at_their_times(self):
        times = np.arange(0, 1.0001, 1 / 30)
        context = window(times, np.arange(0.005, 1.1, 0.01)).context()

        np.testing.assert_allclose(context.frames[:, 0, 0, 0], [8, 9, 10])
        np.testing.assert_allclose(context.states[:, 0], [0.8, 0.9, 1.0], atol=1e-6)
        np.testing.assert_allclose(context.states[:, 1], -context.states[:, 0])
        assert context.time_s == pytest.approx(1.0)

    def test_a_missing_frame_or_state_is_said(self):
        with pytest.raises(ContextIncomplete, match="no frame has come"):
            window([]).context()
        with pytest.raises(ContextIncomplete, match=r"no frame was taken 0\.200 s before"):
            window([0.9, 1.0], [0.9, 1.0]).context()
        with pytest.raises(ContextIncomplete, match="no state came"):
            window([0.8, 0.9, 1.0], [0.2]).context()
        with pytest.raises(ContextIncomplete, match="no state came"):
            window([0.8, 0.9, 1.0]).context()

    def test_a_frame_is_never_taken_for_another_s_place(self):
        with pytest.raises(ContextIncomplete, match=r"no frame was taken 0\.100 s before"):
            window([0.8, 0.83, 1.0], [0.8, 0.9, 1.0], tolerance_s=0.02).context()

    def test_what_comes_late_or_twice_is_left_out(self):
        kept = window([0.8, 0.9, 0.9, 0.85, 1.0], [0.8, 0.9, 0.7, 0.9, 1.0])

        np.testing.assert_array_equal(kept.context().frames[:, 0, 0, 0], [8, 9, 10])
        np.testing.assert_allclose(kept.context().states[:, 0], [0.8, 0.9, 1.0])

    def test_a_log_that_is_played_again_starts_anew(self):
        kept = window([100.8, 100.9, 101.0], [100.8, 100.9, 101.0])
        kept.push_frame(StampedFrame(0.0, np.zeros((2, 2, 3), np.uint8)))

        with pytest.raises(ContextIncomplete):
            kept.context()

    def test_what_is_kept_is_bounded_whatever_comes(self):
        only_rows = window([], np.arange(0, 100, 0.01))
        both = window(np.arange(0, 100, 0.1), np.arange(0, 100, 0.1))

        assert len(only_rows._rows) < 300
        assert len(both._frames) < 30


class TestPlans:
    START = np.array([100.0, 90.0, 0.5], np.float32)

    def rows(self, trajectory, horizon=8):
        return rows_of_plan(trajectory, state_map(), self.START, fps=10.0, horizon=horizon)

    def test_rows_run_from_the_state_at_hand_through_the_points(self):
        rows = self.rows(plan((0.2, [0.3]), (0.4, [0.5])))

        np.testing.assert_allclose(rows[:, 0], [200, 300, 400, 500], rtol=1e-6)
        np.testing.assert_allclose(rows[:, 1:], [[90, 0.5]] * 4)
        assert rows.dtype == np.float32

    def test_a_point_at_the_start_replaces_the_state_at_hand(self):
        np.testing.assert_allclose(self.rows(plan((0.0, [0.3]), (0.2, [0.5])))[:, 0], [400, 500])

    def test_a_plan_is_cut_at_the_horizon(self):
        assert len(self.rows(plan((5.0, [0.3])), horizon=3)) == 3

    def test_rounded_times_lose_no_frame(self):
        assert len(self.rows(plan((0.3, [0.3])))) == 3

    def test_velocities_of_a_plan_are_used_where_the_state_has_them(self):
        mapped = parse_state_map(["V=wheel:velocity"], ["V"], ["m/s"])
        trajectory = plan((0.2, [0.0]), names=["wheel"], velocities=[2.0])

        rows = rows_of_plan(trajectory, mapped, np.zeros(1, np.float32), fps=10.0, horizon=8)

        np.testing.assert_allclose(rows[:, 0], [1.0, 2.0])

    @pytest.mark.parametrize(
        ("trajectory", "words"),
        [
            (plan(), "shorter than one frame"),
            (plan((0.05, [0.3])), "shorter than one frame"),
            (plan((0.2, [0.3]), (0.2, [0.3])), "point 1 of the plan is not later"),
            (plan((0.0, [0.3]), (0.0, [0.4])), "point 1 of the plan is not later"),
            (plan((0.2, [0.3]), (0.1, [0.3])), "point 1 of the plan is not later"),
            (plan((-0.2, [0.3])), "point 0 of the plan is not later"),
            (plan((0.2, [0.3, 0.4])), "names 1 joints and gives 2 of position"),
            (plan((0.2, [float("inf")])), "not finite"),
        ],
    )
    def test_a_plan_that_contradicts_itself_is_refused(self, trajectory, words):
        with pytest.raises(ConversionError, match=words):
            self.rows(trajectory)


def test_a_stamp_is_seconds():
    assert seconds_of(Time(3, 250_000_000)) == 3.25


def test_a_field_outside_the_definition_cannot_be_read():
    with pytest.raises(AttributeError):
        _ = JointState().positions
