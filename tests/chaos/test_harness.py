"""What judges servers is judged itself: questions know their answers, checks fail where nothing was measured."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from harness.catalogue import catalogue
from harness.questions import Kind, Question, mixed
from harness.report import make_page, read_lines, summarise, table, write_page
from harness.scenario import Check, Result, Scenario, _merge, run
from harness.servers import ServerSpec, until

from foreframe_engines.sampling import sample
from foreframe_engines.testing_oracle import Knob, OracleEngine
from foreframe_engines.types import EnsembleSpec, Query, Sampling, Strategy
from foreframe_server.codec.documents import read_document, write_document
from foreframe_server.codec.media import Media


@pytest.fixture
def scenario():
    checks = (Check("wrong", at_most=0), Check("speed", at_least=2.5))
    return Scenario("one", "The first", ServerSpec(), checks, rows=(1, 2))


@pytest.fixture
def records(scenario):
    good = Result(scenario, 0, 1.0, {"wrong": 0, "speed": 3.25, "asked": 10, "ok": 10})
    bad = Result(replace(scenario, name="two", title="The second"), 0, 2.0, {"wrong": 1, "asked": 5, "ok": 4})
    return {result.scenario.name: result.record() for result in (good, bad)}


def write_answer(question, members, *, frames=None):
    arrays = question._arrays
    context = 2
    query = Query("oracle", arrays[0][:context], arrays[1], (1, 2, 3, 4),
                  Sampling(Strategy.SAMPLE, question.steps, question.content), EnsembleSpec(members))  # fmt: skip
    prediction = sample(OracleEngine(), query)
    shown = prediction.frames if frames is None else frames
    document = {
        "frames": [{"image": frame} for frame in shown],
        "members": prediction.members,
        "ensemble": {"members": members, "steps": question.steps},
    }
    return write_document(document, Media.MSGPACK)


def test_a_right_answer_is_right_and_one_changed_byte_is_not():
    question = Question(5, members=2, steps=3)
    assert question.check(write_answer(question, 2)) is None
    zeros = np.zeros((4, 8, 8, 3), np.uint8)
    assert question.check(write_answer(question, 2, frames=zeros)) == "bytes"
    assert question.check(write_answer(Question(6, members=2, steps=3), 2)) == "bytes"


def test_fewer_members_are_an_answer_only_where_they_were_allowed():
    question = Question(5, members=3)
    assert question.check(write_answer(question, 2)) == "cut"
    assert replace(question, on_deadline="partial").check(write_answer(question, 2)) is None
    assert question.check(write_answer(question, 4)) == "members"


def test_mixed_questions_are_seeded_and_of_every_kind():
    asked = mixed(300, seed=1, stream=2)
    assert asked == mixed(300, seed=1, stream=2)
    assert {question.kind for question in asked} == set(Kind)
    assert len(set(asked)) < len(asked)
    assert {question.members for question in asked} == {1, 2, 3}


def test_knobs_are_in_the_body():
    document = read_document(Question(1, knob=Knob.ABORT, amount=7).body, Media.MSGPACK, max_values=10_000)
    assert document["future"]["values"][-1, -2:].tolist() == [Knob.ABORT, 7]


def test_what_was_not_measured_does_not_hold():
    check = Check("lost", at_most=0)
    assert check.is_met({"lost": 0})
    assert not check.is_met({"lost": 1})
    assert not check.is_met({})


def test_of_rounds_counts_add_up_and_of_the_rest_the_worse_stands(scenario):
    merged = _merge(scenario, {"wrong": 1, "speed": 3, "exit_s": 2}, {"wrong": 2, "speed": 4, "exit_s": 1, "late": 5})
    assert merged == {"wrong": 3, "speed": 3, "exit_s": 2, "late": 5}


def test_a_server_that_does_not_start_is_a_result(scenario):
    broken = replace(scenario, server=ServerSpec(settings={"NO__SUCH": "1"}))
    result = run(broken)
    assert "NotStarted" in result.error
    assert "no__such" in result.error.lower()
    assert not result.is_met


def test_names_are_told_apart_and_both_forms_have_the_same():
    full, short = ([each.name for each in catalogue(is_full=is_full)] for is_full in (True, False))
    assert full == short
    assert len(set(full)) == len(full)
    assert sum(name.startswith("control_") for name in full) >= 2


def test_every_number_of_the_page_stands_in_its_report(records):
    report = {"scenarios": records, "summary": summarise(records)}
    claims = re.findall(r"(-?\d+\.?\d*)\s<!-- (?:([\w-]+):)?([\w.]+) -->", make_page(report))
    assert len(claims) == make_page(report).count("<!-- ") >= 5
    for number, name, path in claims:
        value = report
        for key in path.split("."):
            value = value[int(key)] if isinstance(value, list) else value[key]
        assert (name, f"{value:.{len(number.partition('.')[2])}f}") == ("chaos", number)


def test_what_missed_is_said_so(records):
    page = make_page({"scenarios": records, "summary": summarise(records)})
    assert page.count("**missed**") == 2
    assert "not measured" in page
    assert "MISSED" in table([records["two"]])
    assert "held" in table([records["one"]])


def test_lines_become_a_page(records, tmp_path):
    (tmp_path / "results").mkdir()
    lines = tmp_path / "lines"
    lines.write_text("".join(json.dumps(record) + "\n" for record in records.values()))
    write_page(read_lines(lines), tmp_path)
    assert (tmp_path / "reliability.md").read_text().startswith("# Reliability")
    assert json.loads((tmp_path / "results" / "chaos.json").read_text())["summary"]["asked"] == 15


def test_until_tells_how_long_and_when_never():
    assert until(lambda: True, 1) < 1
    assert until(lambda: False, 0) is None
