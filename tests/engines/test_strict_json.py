import pytest

from foreframe_engines import BundleError
from foreframe_engines.strict_json import JsonRecord, parse_json

WHERE = "file.json"


@pytest.mark.parametrize(
    "text",
    ['{"a": NaN}', '{"a": -Infinity}', '{"a": 1, "a": 2}', "[" * 100_000, "", "{", "{'a': 1}", "1" * 5000],
    ids=["nan", "infinity", "twice", "deep", "empty", "cut", "quotes", "digits"],
)
def test_what_is_not_strict_json_is_refused_by_file_name(text: str) -> None:
    with pytest.raises(BundleError, match=WHERE):
        parse_json(text, WHERE)


def test_every_getter_returns_its_type() -> None:
    text = '{"t": "x", "c": 3, "n": 1, "ts": ["a"], "cs": [1, 2], "ns": [0.5, 1], "r": {"k": "v"}, "rs": [{"k": "v"}]}'
    value = parse_json(text, WHERE)
    assert isinstance(value, dict)
    record = JsonRecord(value, WHERE, tuple(value))
    assert record.text("t") == "x"
    assert record.count("c") == 3
    assert record.number("n") == 1.0
    assert record.texts("ts") == ("a",)
    assert record.counts("cs") == (1, 2)
    assert record.numbers("ns") == (0.5, 1.0)
    assert record.record("r", ("k",)).text("k") == "v"
    assert [item.text("k") for item in record.records("rs", ("k",))] == ["v"]


@pytest.mark.parametrize(
    ("getter", "value"),
    [
        ("text", ""),
        ("text", 1),
        ("count", 0),
        ("count", True),
        ("count", 1.0),
        ("number", "1"),
        ("number", False),
        ("number", 1e39),
        pytest.param("number", 10**400, id="number-huge"),
        ("texts", "a"),
        ("texts", []),
        ("texts", ["a", ""]),
        ("counts", [1, -1]),
        ("numbers", [1, None]),
    ],
)
def test_another_type_is_refused_by_key(getter: str, value: object) -> None:
    record = JsonRecord({"key": value}, WHERE, ("key",))  # type: ignore[dict-item]
    with pytest.raises(BundleError, match=f"{WHERE}: key: expected"):
        getattr(record, getter)("key")


def test_missing_and_unknown_keys_are_named() -> None:
    with pytest.raises(BundleError, match="key 'b' is missing"):
        JsonRecord({"a": 1}, WHERE, ("a", "b"))
    with pytest.raises(BundleError, match="key 'c' is unknown"):
        JsonRecord({"a": 1, "c": 1}, WHERE, ("a",))
    with pytest.raises(BundleError, match="expected an object"):
        JsonRecord([], WHERE, ())
