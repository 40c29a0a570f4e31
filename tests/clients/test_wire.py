from __future__ import annotations

import json

import numpy as np
import pytest

from foreframe_client import (
    InvalidRequest,
    NonFinite,
    Observation,
    Overloaded,
    ProtocolError,
    ServerError,
    UnknownModel,
)
from foreframe_client import _wire as wire
from foreframe_client._arrays import pack_array
from foreframe_client._msgpack import encode


def reply(document, status=200, **headers):
    return wire.Reply(status, {"content-type": "application/msgpack", **headers}, encode(document))


def problem(status=503, **changes):
    fields = {
        "code": "overloaded",
        "detail": "The queue is full.",
        "retryable": True,
        "request_id": "r-9",
        "errors": [],
    }
    body = {name: value for name, value in {**fields, **changes}.items() if value != "absent"}
    return wire.Reply(status, {"content-type": "application/problem+json"}, json.dumps(body).encode())


def test_a_prediction_is_read_into_arrays(prediction):
    read = wire.read_prediction(reply(prediction))
    assert read.frames.shape == (2, 4, 5, 3)
    assert read.frames.dtype == np.uint8
    assert read.frames[:, 0, 0, 0].tolist() == [10, 20]
    assert read.frame_indices.tolist() == [1, 2]
    assert read.times_s.tolist() == [0.1, 0.2]
    assert read.members.shape == (2, 2, 4, 5, 3)
    assert read.members[:, 1, 0, 0, 0].tolist() == [20, 21]
    assert read.variance.dtype == np.float32
    assert read.variance[1, 3, 4] == 39.0
    assert read.spread_per_frame.tolist() == [0.25, 0.5]
    assert (read.num_members, read.requested_members, read.steps, read.strategy) == (2, 3, 6, "sample")
    assert (read.degraded.members, read.degraded.reason) == (2, "deadline")
    assert read.timings_ms["total"] == 12.5
    assert read.warnings[0].pointer == "/future/values"
    assert (read.id, read.model, read.revision, read.seed) == ("p-1", "toy", "r1", 7)
    assert (read.cache, read.determinism, read.deadline_met) == ("miss", "bitwise", True)


def test_arrays_of_a_prediction_may_be_written_to(prediction):
    read = wire.read_prediction(reply(prediction))
    for array in (read.frames, read.members, read.variance, read.spread_per_frame):
        assert array.flags.writeable


@pytest.mark.parametrize("error", [[0.5, 1.25], None])
def test_a_calibration_is_read(prediction, error):
    told = {"coverage": 0.95, "line_per_frame": [0.3, 0.4], "error_per_frame": error}
    prediction["uncertainty"].update(calibration=told, verdict="partly", trusted_horizon=1)
    read = wire.read_prediction(reply(prediction))
    assert (read.verdict, read.trusted_horizon, read.calibration.coverage) == ("partly", 1, 0.95)
    assert read.calibration.line_per_frame.tolist() == [0.3, 0.4]
    assert (read.calibration.error_per_frame is None) is (error is None)
    assert error is None or read.calibration.error_per_frame.tolist() == error


def test_a_prediction_is_printed_in_one_short_line(prediction):
    printed = repr(wire.read_prediction(reply(prediction)))
    assert printed.startswith("Prediction(id='p-1', model='toy', revision='r1', frames=uint8[2, 4, 5, 3], ")
    assert "variance=float32[2, 4, 5]" in printed
    assert "members=uint8[2, 2, 4, 5, 3]" in printed
    assert "array(" not in printed
    assert "\n" not in printed
    assert "calibration" not in printed  # None


def test_what_is_not_calibrated_says_so(prediction):
    for told in ({"verdict": "uncalibrated", "trusted_horizon": None, "calibration": None}, {}):
        document = {**prediction, "uncertainty": {"members": 2, **told}}
        read = wire.read_prediction(reply(document))
        assert (read.calibration, read.verdict, read.trusted_horizon) == (None, "uncalibrated", None)


def test_what_was_not_asked_for_is_none(prediction):
    prediction.update(members=None, degraded=None)
    prediction["uncertainty"].update(map=None, spread_per_frame=None)
    read = wire.read_prediction(reply(prediction))
    assert (read.members, read.variance, read.spread_per_frame, read.degraded) == (None, None, None, None)
    prediction["uncertainty"].update(spread_per_frame=[])
    assert wire.read_prediction(reply(prediction)).spread_per_frame is None
    prediction.update(uncertainty=None)
    assert wire.read_prediction(reply(prediction)).spread_per_frame is None


def test_fields_that_a_later_server_adds_are_ignored(prediction):
    assert wire.read_prediction(reply({**prediction, "new": {"x": 1}})).id == "p-1"


REQUIRED = [
    "id",
    "model",
    "revision",
    "frames",
    "ensemble",
    "deadline_met",
    "seed",
    "determinism",
    "cache",
    "timings_ms",
]


@pytest.mark.parametrize("name", [*REQUIRED, "warnings"])
def test_a_missing_field_is_named(prediction, name):
    del prediction[name]
    with pytest.raises(ProtocolError, match=name):
        wire.read_prediction(reply(prediction))


@pytest.mark.parametrize("value", [None, [], {}, "text", 1.5, True])
def test_a_mistyped_field_is_a_protocol_error(prediction, value):
    for name in ("id", "seed"):
        if name == "id" and value == "text":
            continue
        with pytest.raises(ProtocolError, match=name):
            wire.read_prediction(reply({**prediction, name: value}))


@pytest.mark.parametrize("body", [b"", b"\xc1", b"\x92\x01", b"\x01", b"<html>"])
@pytest.mark.parametrize("kind", ["application/msgpack", "application/json", "text/html", ""])
def test_bytes_that_are_no_document_are_a_protocol_error(body, kind):
    with pytest.raises(ProtocolError):
        wire.read_prediction(wire.Reply(200, {"content-type": kind}, body))


def test_deep_json_is_a_protocol_error():
    with pytest.raises(ProtocolError):
        wire.read_models(wire.Reply(200, {"content-type": "application/json"}, b"[" * 100_000))


def test_pictures_of_different_sizes_are_a_protocol_error(prediction):
    prediction["frames"][1]["image"] = pack_array(np.zeros((2, 2, 3), np.uint8))
    with pytest.raises(ProtocolError, match="one size"):
        wire.read_prediction(reply(prediction))


def test_success_is_no_refusal(prediction):
    assert wire.refusal(reply(prediction)) is None


def test_a_problem_becomes_the_error_of_its_code():
    reasons = [{"pointer": "/model", "message": "is not loaded", "expected": "toy", "received": "a text"}]
    error = wire.refusal(problem(404, code="unknown_model", retryable=False, errors=reasons, retry_after_ms=None))
    assert type(error) is UnknownModel
    assert (error.status, error.request_id, error.is_retryable) == (404, "r-9", False)
    assert error.reasons[0].expected == "toy"
    assert str(error) == "The queue is full; /model: is not loaded (expected toy, received a text)"


def test_what_is_not_known_of_a_reason_is_not_said():
    told = [{}, {"expected": "3"}, {"expected": None, "received": "4"}]
    reasons = [{"pointer": f"/{number}", "message": "is wrong", **more} for number, more in enumerate(told)]
    error = wire.refusal(problem(detail="It cannot be.", errors=reasons))
    assert str(error) == "It cannot be; /0: is wrong; /1: is wrong (expected 3); /2: is wrong (received 4)"
    assert str(wire.refusal(problem(detail="It cannot be."))) == "It cannot be."


def test_a_code_of_a_later_server_is_kept():
    error = wire.refusal(problem(418, code="teapot", retryable=False))
    assert type(error) is ServerError
    assert (error.code, error.status) == ("teapot", 418)


def test_the_server_says_how_long_to_wait():
    assert wire.refusal(problem(retry_after_ms=1500)).retry_after_ms == 1500
    header = wire.Reply(503, {"content-type": "application/problem+json", "retry-after": "2"}, problem().body)
    assert wire.refusal(header).retry_after_ms == 2000


@pytest.mark.parametrize("name", ["code", "detail", "retryable"])
def test_a_problem_without_its_core_is_an_unknown_refusal(name):
    error = wire.refusal(problem(**{name: "absent"}))
    assert type(error) is ServerError
    assert (error.code, error.status, error.is_retryable) == ("unknown", 503, False)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [({}, (False, None)), ({"retry-after": "3"}, (True, 3000)), ({"retry-after": "Sun"}, (False, None))],
)
def test_a_proxys_refusal_is_tried_again_only_when_it_says_when(headers, expected):
    error = wire.refusal(wire.Reply(502, {"content-type": "text/html", **headers}, b"<html>bad gateway</html>"))
    assert (error.is_retryable, error.retry_after_ms) == expected


@pytest.mark.parametrize(
    ("status", "media", "is_doubted"),
    [
        (404, "text/html", True),
        (404, "application/json", True),
        (501, "text/html", True),
        (502, "text/html", False),
        (500, "text/plain", False),
    ],
)
def test_an_answer_of_another_kind_of_server_is_doubted(status, media, is_doubted):
    error = wire.refusal(wire.Reply(status, {"content-type": media}, b"<html>File not found</html>"))
    assert ("is this a foreframe server?" in str(error)) is is_doubted


def test_a_page_instead_of_an_answer_is_doubted():
    with pytest.raises(ProtocolError, match=r"text/html.*is this a foreframe server\?"):
        wire.fields_of(wire.Reply(200, {"content-type": "text/html; charset=utf-8"}, b"<html>welcome</html>"))


def test_a_redirect_is_a_refusal():
    assert type(wire.refusal(wire.Reply(307, {"location": "http://elsewhere"}, b""))) is ServerError


def test_a_problem_is_read_in_msgpack_too():
    body = {"code": "overloaded", "detail": "full", "retryable": True}
    assert type(wire.refusal(reply(body, 503))) is Overloaded


def test_path_segments_cannot_leave_their_place():
    assert wire.get("v1", "models", "a/../b?c#d é").path == "/v1/models/a%2F..%2Fb%3Fc%23d%20%C3%A9"


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((3, 4, 5, 3), np.float32),
        np.zeros((3, 4, 5, 3), np.int8),
        np.zeros((4, 5, 3), np.uint8),
        np.zeros((3, 3, 4, 5), np.uint8),
        np.zeros((0, 4, 5, 3), np.uint8),
        [[0]],
        None,
    ],
)
def test_frames_that_cannot_be_sent_are_named(frames, scene):
    with pytest.raises(InvalidRequest, match=r"^frames must"):
        wire.seen(frames, scene.states, None)


def test_a_tensor_is_told_how_it_becomes_an_array(scene):
    class Tensor:
        dtype = "torch.uint8"

        def numpy(self):
            return scene.frames

    with pytest.raises(InvalidRequest, match=r"not Tensor; give its `\.numpy\(\)`$"):
        wire.seen(Tensor(), scene.states, None)
    with pytest.raises(InvalidRequest, match=r"not list$"):
        wire.seen([[0]], scene.states, None)


def test_nothing_at_all_is_answered_with_what_there_could_be():
    with pytest.raises(InvalidRequest, match=r"^give frames and states, or an observation$"):
        wire.seen(None, None, None)


def test_what_is_empty_is_not_called_the_wrong_axes(scene):
    with pytest.raises(InvalidRequest, match=r"^states must have at least one row"):
        wire.seen(scene.frames, np.zeros((0, 25)), None)
    with pytest.raises(InvalidRequest, match=r"^frames must have at least one picture"):
        wire.seen(scene.frames[:0], scene.states, None)
    with pytest.raises(InvalidRequest, match=r"^states must have axes n d"):
        wire.seen(scene.frames, np.zeros(25), None)


@pytest.mark.parametrize("words", ["rad", [1, 2], 3])
@pytest.mark.parametrize("name", ["names", "units"])
def test_names_and_units_are_lists_of_text(name, words):
    with pytest.raises(InvalidRequest, match=f"^state_{name} must be a list of text"):
        wire.Layout.of(**{"names": None, "units": None, name: words})


@pytest.mark.parametrize("states", [np.zeros(25), np.zeros((1, 2, 3)), np.zeros((0, 25)), "x", None, [["a"]], [[1j]]])
def test_states_that_cannot_be_sent_are_named(states, scene):
    with pytest.raises(InvalidRequest, match=r"^states must"):
        wire.seen(scene.frames, states, None)
    with pytest.raises(InvalidRequest, match=r"^future_states must"):
        wire.state_rows("future_states", states)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39])
def test_numbers_that_are_not_finite_are_named(value, scene):
    scene.states[1, 2] = value
    with pytest.raises(NonFinite, match=r"^states holds"):
        wire.seen(scene.frames, scene.states, None)


def test_states_may_be_lists_and_whole_numbers():
    for rows in ([[1, 2], [3, 4]], np.array([[1, 2]])):
        assert wire.state_rows("states", rows).dtype == np.float32


@pytest.mark.parametrize("value", [True, "1", None, 1j])
def test_what_is_no_number_is_named(value):
    with pytest.raises(InvalidRequest, match="weight must be a number"):
        wire.number("weight", value)


@pytest.mark.parametrize("value", [float("nan"), np.inf])
def test_a_number_that_is_not_finite_is_named(value):
    with pytest.raises(NonFinite, match="weight must be finite"):
        wire.number("weight", value)


def test_an_observation_stands_instead_of_frames(scene):
    held = Observation("o-1", 60.0)
    assert wire.seen(None, None, held) is held
    with pytest.raises(InvalidRequest, match="beside an observation"):
        wire.seen(scene.frames, None, held)
    with pytest.raises(InvalidRequest, match="which has its own"):
        wire.seen(None, None, held, wire.Layout.of(None, ["deg"]))


@pytest.mark.parametrize("value", [True, 1.0, "1", np.bool_(True), None])
def test_what_is_no_whole_number_is_named(value):
    with pytest.raises(InvalidRequest, match="steps must be a whole number"):
        wire.whole("steps", value)


def test_whole_numbers_of_numpy_are_taken():
    assert type(wire.whole("steps", np.int64(3))) is int
