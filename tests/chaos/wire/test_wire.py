"""What sends hostile bytes is tested itself: damage is the same for a seed, faults are seen, what was found is kept."""

import io
import json
import random
from collections import Counter

import pytest
from PIL import Image
from wire import corpus, pictures, sockets, values
from wire.catalogue import wire_scenarios
from wire.fuzz import FINDINGS, Tally, read_findings, write_findings
from wire.mutations import Mutant, damage_document, mutate
from wire.schema import read_report
from wire.sockets import Reply, frame
from wire.verdicts import MARKER, code_of, judge


@pytest.fixture(scope="module")
def samples():
    parts = (corpus._predictions("held"), corpus._documents("held"), corpus._sessions("a", "b"), corpus._inferences())
    return [*(sample for part in parts for sample in part), *corpus._reads(), *corpus._talks()]


def draw(samples, seed, count=400):
    rng = random.Random(seed)
    return [mutate(rng, samples) for _ in range(count)]


def test_damage_is_the_same_for_a_seed(samples):
    assert draw(samples, 1, 50) == draw(samples, 1, 50)
    assert draw(samples, 1, 50) != draw(samples, 2, 50)


def test_every_kind_of_damage_and_every_request_has_its_turn(samples):
    drawn = draw(samples, 3, 4000)
    kinds = Counter(mutant.kind for mutant in drawn)
    assert len(kinds) == 21
    assert min(kinds.values()) > 10
    assert {mutant.sample for mutant in drawn} == {sample.name for sample in samples}
    whole = {sample.raw() for sample in samples}
    assert sum(mutant.data in whole and not mutant.frames for mutant in drawn) < 0.05 * len(drawn)


def test_a_document_stays_one(samples):
    rng = random.Random(0)
    for _ in range(300):
        assert isinstance(damage_document(rng, {"a": [1, {"b": 2}]}, [None, {}]), dict)


def reply(status, body, *, is_hung=False):
    return Reply(status, b"", body, 0.0, is_hung=is_hung)


PROBLEM = json.dumps({"code": "invalid_request", "detail": "The request is not valid."}).encode()
FAULTS = {
    "hang": reply(0, b"", is_hung=True),
    "server_error": reply(500, b'{"code": "model_fault"}'),
    "untyped": reply(422, b"Unprocessable"),
    "large": reply(422, PROBLEM[:-1] + b" " * 5000 + b"}"),
}
LEAKS = (
    b"<Lock object at 0x7f3a00>", b"0x7fff12345678", b"/srv/server.log", b'File "a", line 3', b"ValueError",
    b"routes.py",
    MARKER.encode(), b"Traceback (most recent call last)", b"foreframe_server.errors", b"UnicodeDecodeError",
    b"<class 'int'>",
)  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named(fault):
    assert judge(FAULTS[fault]) == fault


@pytest.mark.parametrize("leak", LEAKS)
def test_what_tells_of_the_inside_is_a_leak(leak):
    assert judge(reply(422, PROBLEM + leak)) == "leak"


@pytest.mark.parametrize(
    "fine", [reply(200, b"x" * 9000), reply(422, PROBLEM), reply(0, b""), reply(503, b'{"code": "overloaded"}')]
)
def test_what_is_fine_has_no_fault(fine):
    assert judge(fine) is None


def test_a_code_is_read_from_problems_alone():
    assert [code_of(body) for body in (PROBLEM, b"[1]", b"\xff", b"{}")] == ["invalid_request", "", "", ""]


def test_a_finding_is_written_and_read_again(tmp_path):
    tally, mutant = Tally(), Mutant("bytes", "json", b"GET /\xff", (b"\x82\xff",))
    tally.add(mutant, FAULTS["hang"])
    tally.add(mutant, reply(200, b""))
    write_findings(tally, tmp_path)
    (again,) = read_findings(tmp_path)
    assert (again.kind, again.data, again.frames) == ("bytes", mutant.data, mutant.frames)
    assert again.sample.startswith("hang-")
    assert (tally.statuses[200], tally.faults["hang"]) == (1, 1)


def test_what_was_found_before_is_there():
    assert len(read_findings()) >= 5
    assert all(json.loads(path.read_text())["fault"] in path.name for path in FINDINGS.glob("*.json"))


def test_frames_are_those_of_rfc_6455():
    assert frame(sockets.TEXT, b"") == b"\x81\x80\x5a\xa5\x0f\xf0"
    assert frame(sockets.BINARY, b"\0\0", said_length=300)[:4] == b"\x82\xfe\x01\x2c"
    assert frame(sockets.BINARY, b"a" * 70_000)[1:10] == bytes([0xFF]) + (70_000).to_bytes(8, "big")


def test_pictures_are_what_they_say():
    with Image.open(io.BytesIO(pictures.png(40, 30))) as picture:
        assert (picture.size, picture.mode, picture.getextrema()) == ((40, 30), "RGB", ((0, 0),) * 3)
    assert len(pictures.png(3_000, 3_000)) < 2**15


def test_exact_arrays_are_told_from_lies():
    drawn = values.triples(random.Random(0), 2000)
    assert 1 < sum(map(values.is_exact, drawn)) < 300
    assert not values.is_exact(("|u1", (True, 8, 8, 3), 384))
    assert not values.is_exact(("<f4", (2, 8, 8, 3), 384))


def test_wrong_requests_are_many_and_the_same_for_a_seed():
    first, again = values.draw_wrong(50, 1), values.draw_wrong(50, 1)
    assert [sorted(each) for each in first] == [sorted(each) for each in again]
    assert len(first) == 50


def test_there_are_thirty_tricks_with_their_statuses():
    assert len(values.tricks()) >= 30
    assert {status for _, status in values.tricks().values()} == {200, 422}


def test_a_report_becomes_counts():
    report = {
        "failures": [{"title": "Server error"}, {"title": "Undocumented HTTP status code"}], "errors": [{"count": 2}],
        "operations": {"selected": 3, "tested": 2}, "test_cases": {"generated": 9},
    }  # fmt: skip
    counts = read_report(report)
    assert (counts["num_failures"], counts["num_errors"], counts["untested"], counts["cases"]) == (2, 2, 1, 9)
    assert (counts["num_server_errors"], counts["num_undocumented"], counts["num_bad_accepted"]) == (1, 1, 0)


def test_scenarios_have_names_of_their_own():
    for is_full in (True, False):
        names = [scenario.name for scenario in wire_scenarios(is_full)]
        assert len(names) == len(set(names))
