"""States in other orders and units: the same numbers reach the model, and the reply says what was changed or is odd."""

import json
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreframe_engines.bundle import Bundle, builtin_bundle
from foreframe_engines.testing import toy_contract, toy_tokens
from foreframe_server.codec import (
    Bounds,
    Media,
    decode_likelihood,
    decode_observation,
    decode_prediction,
    decode_scores,
    read_document,
)
from foreframe_server.codec.layouts import read_layout
from foreframe_server.codec.oddities import find_unit_doubts
from foreframe_server.codec.states import read_states
from foreframe_server.errors import InvalidRequest, NonFinite
from foreframe_server.observations import ObservationStore
from foreframe_server.schemas import ObservedState
from foreframe_server.state_layout import AS_THE_SCHEMA, StateLayout
from foreframe_server.state_schemas import find_schema

CONTRACT = toy_contract()
TOKENS = toy_contract(tokens=toy_tokens())
BOUNDS = Bounds(max_json_values=65_536, max_picture_pixels=1024 * 1024, max_candidates=256)
NAMES = list(CONTRACT.state.names)
TURNED = [NAMES[2], NAMES[0], NAMES[1]]
TURN = [2, 0, 1]
ROWS = np.linspace(-1.5, 1.5, 24, dtype=np.float32).reshape(8, 3)
PAST = np.linspace(0.2, 0.9, 12, dtype=np.float32).reshape(4, 3)


@pytest.fixture
def store():
    return ObservationStore(60.0, 2**20, time.monotonic)


@pytest.fixture
def decode(store):
    def decoded(request, reader=decode_prediction, contract=CONTRACT, **options):
        document = read_document(json.dumps(request).encode(), Media.JSON, max_values=BOUNDS.max_json_values)
        return reader(document, Media.JSON, contract, BOUNDS, store.get, **options)

    return decoded


def written(rows, *, order=(0, 1, 2), degrees=False):
    """Rows as a client would write them that has another order of joints, or degrees."""
    turned = np.asarray(rows, np.float64)[..., list(order)]
    return (np.rad2deg(turned) if degrees else turned).tolist()


def codes(warnings):
    return [warning.code for warning in warnings]


class TestOrder:
    def test_names_put_every_number_into_its_place(self, decode, toy_request):
        plain = toy_request(observation__state__values=written(PAST), future__values=written(ROWS))
        turned = toy_request(
            observation__state__names=TURNED,
            observation__state__values=written(PAST, order=TURN),
            future__values=written(ROWS, order=TURN),
        )

        np.testing.assert_array_equal(decode(turned).query.states, decode(plain).query.states)
        assert codes(decode(turned).warnings) == ["states_reordered"]

    def test_names_in_the_schema_s_order_change_nothing(self, decode, toy_request):
        asked = decode(toy_request(observation__state__names=NAMES))

        assert asked.warnings == ()

    def test_a_generic_schema_is_told_by_its_names(self, decode, toy_request):
        request = toy_request(
            observation__state__schema="generic-3",
            observation__state__names=TURNED,
            future__values=written(ROWS, order=TURN),
        )

        np.testing.assert_array_equal(decode(request).query.states[4:], ROWS)

    def test_a_wrong_number_is_pointed_to_where_it_was_sent(self):
        layout = StateLayout(columns=(1, 2, 0))
        rows = [[0.0, 0.0, 0.0], [0.0, float("nan"), 0.0]]

        with pytest.raises(NonFinite) as caught:
            read_states(rows, "/future/values", CONTRACT.state, range(1, 9), layout)

        assert caught.value.reasons[0].pointer == "/future/values/1/1"

    def test_a_far_number_is_pointed_to_where_it_was_sent(self, decode, toy_request):
        request = toy_request(observation__state__names=TURNED, future__values=[[0, 0, 0], [0, 9.0, 0]])

        far = [warning for warning in decode(request).warnings if warning.code == "state_out_of_range"]

        assert [warning.pointer for warning in far] == ["/future/values/1/1"]
        assert far[0].message.startswith("joint_0 ")

    def test_a_registered_schema_of_the_same_names_stands_for_the_model_s(self):
        eve = Bundle.open(builtin_bundle()).contract.state
        named = ObservedState(schema="1x-eve-25", values=[])
        stranger = ObservedState(schema="aloha-14", values=[])

        assert read_layout(named, "/observation/state", eve) is AS_THE_SCHEMA
        with pytest.raises(InvalidRequest) as caught:
            read_layout(stranger, "/observation/state", eve)
        assert caught.value.reasons[0].expected == "eve-25"

    def test_a_registered_schema_s_units_are_converted_to_the_model_s(self):
        arm = find_schema("so101-6").as_state_schema()
        model = replace(arm, name="my-arm", units=("rad",) * 5 + ("1",))

        layout = read_layout(ObservedState(schema="so101-6", values=[]), "/observation/state", model)

        np.testing.assert_allclose(layout.arrange(np.full((1, 6), 90.0)), [[np.pi / 2] * 5 + [0.9]])


class TestUnits:
    def test_degrees_become_radians_and_the_reply_says_so(self, decode, toy_request):
        plain = toy_request(observation__state__values=written(PAST), future__values=written(ROWS))
        degrees = toy_request(
            observation__state__units=["deg"] * 3,
            observation__state__values=written(PAST, degrees=True),
            future__values=written(ROWS, degrees=True),
        )

        asked = decode(degrees)

        np.testing.assert_allclose(asked.query.states, decode(plain).query.states, atol=1e-7)
        (warning,) = asked.warnings
        assert (warning.code, warning.pointer) == ("units_converted", "/observation/state")
        assert "deg to rad (3)" in warning.message

    def test_units_are_those_of_the_columns_they_were_sent_with(self, decode, toy_request):
        rows = written(ROWS, order=TURN)
        mixed = [[np.rad2deg(row[0]), row[1], row[2]] for row in rows]
        request = toy_request(
            observation__state__names=TURNED, observation__state__units=["deg", "rad", "rad"], future__values=mixed
        )

        asked = decode(request)

        np.testing.assert_allclose(asked.query.states[4:], ROWS, atol=1e-7)
        assert "deg to rad (1)" in [warning.message for warning in asked.warnings][1]

    def test_the_schema_s_own_units_change_no_byte(self, decode, toy_request):
        asked = decode(toy_request(observation__state__units=["rad"] * 3, future__values=ROWS.tolist()))

        np.testing.assert_array_equal(asked.query.states[4:], ROWS)
        assert asked.warnings == ()

    @given(st.permutations(range(3)), st.lists(st.booleans(), min_size=3, max_size=3))
    def test_arranging_undoes_any_writing(self, order, degrees):
        sent = np.where(degrees, np.rad2deg(ROWS), ROWS)[:, order]
        factors = tuple(np.pi / 180 if each else 1.0 for each in degrees)
        layout = StateLayout(tuple(order.index(dim) for dim in range(3)), ("rad",) * 3, factors)

        np.testing.assert_allclose(layout.arrange(sent), ROWS, atol=1e-6)
        assert [layout.dimension(layout.column(dim)) for dim in range(3)] == [0, 1, 2]

    def test_a_number_that_overflows_in_the_schema_s_unit_is_refused(self):
        layout = StateLayout((), ("m",) * 3, (1000.0,) * 3)

        with pytest.raises(NonFinite):
            read_states([[1e36, 0.0, 0.0]], "/values", CONTRACT.state, range(1, 2), layout)


class TestEveryRequest:
    def test_an_uploaded_observation_keeps_how_it_was_written(self, decode, store, toy_request):
        state = {"schema": "toy-joints", "units": ["deg"] * 3, "values": written(PAST, degrees=True)}
        upload = {"observation": {**toy_request()["observation"], "state": state}}
        stored = decode(upload, decode_observation, max_ttl_s=60.0)
        held = store.put(stored.observation, 60.0)
        request = toy_request(observation=..., observation_id=held, future__values=written(ROWS, degrees=True))

        asked = decode(request)

        np.testing.assert_allclose(asked.query.states, np.concatenate([PAST, ROWS]), atol=1e-7)
        assert codes(stored.warnings) == ["units_converted"]
        assert [(each.code, each.pointer) for each in asked.warnings] == [("units_converted", "/observation_id")]

    def test_a_target_is_written_as_its_observation_or_as_it_says(self, decode, likelihood_request):
        degrees = {"observation__state__units": ["deg"] * 3, "target__state__values": written(ROWS[:3], degrees=True)}
        both = likelihood_request(**degrees)
        own = likelihood_request(
            target__state__units=["deg"] * 3, target__state__values=degrees["target__state__values"]
        )

        for request in (both, own):
            query = decode(request, decode_likelihood, TOKENS).query
            np.testing.assert_allclose(query.target_states, ROWS[:3], atol=1e-7)
        assert decode(own, decode_likelihood, TOKENS).warnings[0].pointer == "/target/state"

    def test_candidates_and_goals_are_written_as_the_observation(self, decode, toy_request):
        request = toy_request(
            future=...,
            observation__state__names=TURNED,
            observation__state__units=["deg"] * 3,
            candidates={"values": [written(ROWS, order=TURN, degrees=True)] * 2},
            objectives=[
                {"kind": "goal_state", "params": {
                    "values": written(ROWS[0], order=TURN, degrees=True), "dims": [0, "joint_1"]}},
            ],
        )  # fmt: skip

        query = decode(request, decode_scores).query

        np.testing.assert_allclose(query.candidates[1].rows, ROWS, atol=1e-7)
        np.testing.assert_allclose(query.objectives[0].term.values, ROWS[0], atol=1e-7)
        assert query.objectives[0].term.dims == (2, 1)


class TestDoubts:
    EVE = Bundle.open(builtin_bundle()).contract.state

    def rows(self, schema, count=4):
        rng = np.random.default_rng(0)
        return (schema.mean + schema.std * rng.standard_normal((count, schema.dim))).astype(np.float32)

    def test_usual_states_raise_none(self):
        assert find_unit_doubts(self.rows(self.EVE, 64), self.EVE, "/values") == []
        assert find_unit_doubts(self.rows(self.EVE, 1), self.EVE, "/values") == []

    def test_degrees_for_radians_look_like_degrees(self):
        angles = [unit == "rad" for unit in self.EVE.units]
        degrees = np.where(angles, np.rad2deg(self.rows(self.EVE)), self.rows(self.EVE)).astype(np.float32)

        (warning,) = find_unit_doubts(degrees, self.EVE, "/values")

        assert (warning.code, warning.pointer) == ("units_suspicious", "/values")
        assert "21 numbers in rad" in warning.message
        assert warning.message.endswith("look like deg")

    def test_radians_for_degrees_are_suspiciously_flat(self):
        schema = find_schema("so101-6").as_state_schema()
        rows = np.array([[0.4, -0.9, 1.1, 0.3, -0.2, 40.0]], np.float32)
        degrees = np.rad2deg(rows, where=np.arange(6) < 5, out=rows.copy())

        (warning,) = find_unit_doubts(rows, schema, "/values")

        assert warning.message.endswith("times smaller than usual: they look like rad")
        assert find_unit_doubts(degrees, schema, "/values") == []

    def test_percent_for_closures_look_like_percent(self):
        rows = self.rows(self.EVE)
        rows[:, 21:23] = [[0, 100], [20, 90], [40, 80], [60, 100]]

        (warning,) = find_unit_doubts(rows, self.EVE, "/values")

        assert "2 numbers in 1" in warning.message
        assert warning.message.endswith("look like %")

    def test_a_robot_at_rest_raises_none(self):
        assert find_unit_doubts(np.zeros((2, 25), np.float32), self.EVE, "/values") == []


@pytest.mark.anyio
class TestDryRun:
    async def check(self, client, name, **request):
        return (await client.post(f"/v1/state-schemas/{name}/check", json=request)).json()

    async def test_it_shows_what_a_model_would_get(self, client):
        reply = await self.check(
            client, "toy-joints", values=[[90.0, 180.0, 0.0]], names=TURNED, units=["deg", "deg", "rad"]
        )

        assert reply["first_row"] == pytest.approx([np.pi, 0.0, np.pi / 2])
        assert [warning["code"] for warning in reply["warnings"]] == ["states_reordered", "units_converted"]

    async def test_a_known_robot_s_ranges_are_checked_without_a_model(self, client):
        inside = [0.0, 0.0, 0.0, -1.5, 0.0, 1.0, 0.0, 0.4]
        reply = await self.check(client, "droid-8", values=[inside, [*inside[:3], 1.0, *inside[4:]]])

        (warning,) = reply["warnings"]
        assert (warning["code"], warning["pointer"]) == ("state_out_of_range", "/values/1/3")
        assert warning["message"] == "joint_4 lies outside -3.0718..-0.0698 rad"

    async def test_degrees_of_a_known_robot_look_like_degrees(self, client):
        pose = np.rad2deg([0.0, -0.96, 1.16, 0.0, -0.3, 0.0])
        reply = await self.check(client, "aloha-14", values=[[*pose, 0.5, *pose, 0.5]])

        assert [warning["code"] for warning in reply["warnings"]] == ["units_suspicious"]

    async def test_recordings_statistics_give_sigmas_without_a_model(self, client):
        eve = find_schema("1x-eve-25")
        row = [each.mean for each in eve.typical]
        row[3] += 7 * eve.typical[3].std

        (warning,) = (await self.check(client, "1x-eve-25", values=[row]))["warnings"]

        assert (warning["pointer"], warning["sigma"]) == ("/values/0/3", pytest.approx(7, abs=0.01))

    async def test_a_generic_schema_needs_names(self, client):
        bare = await self.check(client, "generic-2", values=[[1.0, 2.0]])
        named = await self.check(client, "generic-2", values=[[1.0, 2.0]], names=["lift", "tilt"], units=["mm", "deg"])
        short = await self.check(client, "generic-2", values=[[1.0, 2.0]], names=["lift"])
        twice = await self.check(client, "generic-2", values=[[1.0, 2.0]], names=["lift", "lift"])

        assert (bare["code"], bare["errors"][0]["pointer"]) == ("invalid_request", "/names")
        assert (named["first_row"], named["warnings"]) == ([1.0, 2.0], [])
        assert (short["code"], twice["code"]) == ("state_dim_mismatch", "invalid_request")

    async def test_what_a_prediction_refuses_is_refused(self, client):
        replies = [
            await self.check(client, "so101-6", values=[[0.0] * 6], units=["m", "deg", "deg", "deg", "deg", "%"]),
            await self.check(client, "so101-6", values=[[0.0] * 6], names=["gripper.pos"] * 6),
            await self.check(client, "so101-6", values=[[0.0] * 5]),
            await self.check(client, "so101-6", values=[]),
        ]

        assert [reply["code"] for reply in replies] == [
            "invalid_request", "invalid_request", "state_dim_mismatch", "state_dim_mismatch",
        ]  # fmt: skip
        assert replies[0]["errors"][0]["expected"] == "deg or rad"


@pytest.mark.anyio
async def test_a_prediction_in_degrees_is_the_prediction_in_radians(client, toy_request):
    plain = toy_request(return__encoding="raw", cache="bypass")
    degrees = toy_request(
        return__encoding="raw",
        cache="bypass",
        observation__state__units=["deg"] * 3,
        observation__state__values=written(plain["observation"]["state"]["values"], degrees=True),
        future__values=written(plain["future"]["values"], degrees=True),
    )

    here, there = [(await client.post("/v1/predictions", json=request)).json() for request in (plain, degrees)]

    assert [frame["image"] for frame in here["frames"]] == [frame["image"] for frame in there["frames"]]
    assert [warning["code"] for warning in there["warnings"]] == ["units_converted"]
