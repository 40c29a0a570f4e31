import math

import pytest

from foreframe_server.units import conversion, kindred_units


@pytest.mark.parametrize(
    ("source", "target", "factor"),
    [
        ("deg", "rad", math.pi / 180), ("rad", "deg", 180 / math.pi), ("mm", "m", 0.001), ("m", "mm", 1000.0),
        ("cm", "mm", 10.0), ("%", "1", 0.01), ("deg/s", "rad/s", math.pi / 180), ("mm/s", "m/s", 0.001),
    ],
)  # fmt: skip
def test_a_number_goes_from_one_unit_to_another(source, target, factor):
    assert conversion(source, target) == pytest.approx(factor, rel=1e-15)


@pytest.mark.parametrize(("source", "target"), [("deg", "m"), ("rad", "rad/s"), ("1", "m"), ("furlong", "m")])
def test_what_measures_another_thing_is_not_converted(source, target):
    assert conversion(source, target) is None


@pytest.mark.parametrize("unit", ["rad", "m/s", "furlong", ""])
def test_a_unit_converts_to_itself_without_rounding(unit):
    assert conversion(unit, unit) == 1.0


def test_kin_are_of_one_quantity_the_unit_itself_first():
    assert kindred_units("rad") == ("rad", "deg")
    assert kindred_units("mm") == ("mm", "m", "cm")
    assert kindred_units("furlong") == ("furlong",)
