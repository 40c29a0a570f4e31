import numpy as np
import pytest

from foreframe_engines.bundle import Bundle, builtin_bundle
from foreframe_server.state_schemas import (
    MAX_GENERIC,
    Semantics,
    UnitSource,
    find_kin,
    find_schema,
    registered_schemas,
)
from foreframe_server.units import kindred_units

SCHEMAS = {schema.name: schema for schema in registered_schemas()}


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_s_name_says_how_wide_it_is(name):
    schema = SCHEMAS[name]

    assert len(schema.dimensions) == int(name.rsplit("-", 1)[1])
    assert len(set(schema.names)) == len(schema.names)
    assert len(schema.typical) in (0, len(schema.dimensions))


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_unit_is_one_that_requests_can_be_converted_to(name):
    assert all(len(kindred_units(unit)) > 1 for unit in SCHEMAS[name].units)


@pytest.mark.parametrize("name", SCHEMAS)
def test_ranges_have_two_ends_in_order(name):
    for dimension in SCHEMAS[name].dimensions:
        assert (dimension.low is None) == (dimension.high is None)
        assert dimension.low is None or dimension.low < dimension.high


@pytest.mark.parametrize("name", SCHEMAS)
def test_exactly_grippers_and_hands_say_what_their_ends_mean(name):
    said = {dimension.name for dimension in SCHEMAS[name].dimensions if dimension.semantics is not None}

    assert said == {each for each in SCHEMAS[name].names if "gripper" in each or "HAND" in each}


def test_grippers_run_the_way_each_robot_s_do():
    assert {SCHEMAS["aloha-14"].dimensions[6].semantics, SCHEMAS["so101-6"].dimensions[5].semantics} == {
        Semantics.CLOSED_TO_OPEN
    }
    assert {SCHEMAS["droid-8"].dimensions[7].semantics, SCHEMAS["1x-eve-25"].dimensions[21].semantics} == {
        Semantics.OPEN_TO_CLOSED
    }


def test_units_that_nobody_states_are_said_to_be_assumed():
    sources = [dimension.unit_source for dimension in SCHEMAS["1x-eve-25"].dimensions]

    assert [source is UnitSource.STATED for source in sources] == [False] * 21 + [True] * 2 + [False] * 2


def test_the_sides_of_the_g1_mirror_each_other():
    by_name = {dimension.name: dimension for dimension in SCHEMAS["unitree-g1-29"].dimensions}
    left, right = by_name["left_hip_roll_joint"], by_name["right_hip_roll_joint"]

    assert (left.low, left.high) == (-right.high, -right.low)
    assert by_name["left_knee_joint"].low == by_name["right_knee_joint"].low
    assert list(by_name)[12:15] == ["waist_yaw_joint", "waist_roll_joint", "waist_pitch_joint"]
    assert list(by_name)[15].startswith("left_shoulder")
    assert list(by_name)[22].startswith("right_shoulder")


def test_the_shipped_model_s_schema_is_kin_of_the_robot_it_simulates():
    state = Bundle.open(builtin_bundle()).contract.state
    kin = find_kin(state.names)

    assert state.name == "eve-25"
    assert (kin.name, kin.units) == ("1x-eve-25", state.units)
    assert find_kin(state.names[::-1]) is None


def test_a_generic_schema_exists_for_every_width_in_bounds():
    assert len(find_schema("generic-1").dimensions) == 1
    assert len(find_schema(f"generic-{MAX_GENERIC}").dimensions) == MAX_GENERIC
    absent = ("generic-0", "generic-01", f"generic-{MAX_GENERIC + 1}", "generic--1", "generic-N", "generic-5x", "")
    assert [find_schema(name) for name in absent] == [None] * len(absent)


def test_what_is_not_known_is_without_end_and_never_a_number():
    schema = SCHEMAS["aloha-14"].as_state_schema()

    assert np.isinf(schema.std).all()
    assert np.isinf(schema.low[0])
    assert (schema.low[6], schema.high[6]) == (0, 1)
    assert np.isfinite(SCHEMAS["1x-eve-25"].as_state_schema().std).all()
