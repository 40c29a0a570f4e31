"""Results of another commit, model or day do not stand beside those of today."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from peers.ledger import Ledger


def test_what_was_put_comes_back_with_its_origin_and_time(ledger, plan):
    ledger.put("toy", {"start_s": 1.0})
    (found,) = ledger.results().values()
    assert found["start_s"] == 1.0
    assert (found["commit"], found["digest"]) == (ledger.origin.commit, ledger.origin.digest)
    assert datetime.fromisoformat(found["taken_at"]) <= datetime.now(UTC)
    assert ledger.plan() == plan


@pytest.mark.parametrize("other", [{"commit": "another"}, {"digest": "another"}])
def test_plan_and_results_of_another_origin_do_not_count(ledger, other):
    ledger.put("toy", {"start_s": 1.0})
    later = Ledger(ledger.folder, replace(ledger.origin, **other))
    assert later.plan() is None
    assert later.results() == {}


def test_results_of_another_day_do_not_count(ledger):
    yesterday = datetime.now(UTC) - timedelta(days=1)
    ledger.put("toy", {"taken_at": yesterday.isoformat()})
    assert ledger.results() == {}


def test_a_result_of_no_known_origin_does_not_count(ledger):
    (ledger.folder / "result-toy.json").write_text(json.dumps({"start_s": 1.0}))
    assert ledger.results() == {}
