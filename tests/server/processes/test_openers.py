from functools import partial

import process_toys
import pytest

from foreframe_engines import EngineError
from foreframe_server.opening import given, open_bundle
from foreframe_server.processes.openers import find_opener, name_opener


@pytest.mark.parametrize("opener", [open_bundle, process_toys.open_toys])
def test_a_function_of_a_module_is_found_by_its_name(opener):
    assert find_opener(name_opener(opener)) is opener


@pytest.mark.parametrize(
    "opener",
    [given(None), lambda _: None, partial(open_bundle), process_toys.MarkedToy().encode],
    ids=["what is given", "a lambda", "a partial", "a method"],
)
def test_what_has_no_name_of_its_own_is_refused(opener):
    with pytest.raises(ValueError, match=r"cannot be found|another function|not a function"):
        name_opener(opener)


def test_a_name_that_leads_to_another_function_is_refused(monkeypatch):
    opener = process_toys.open_toys
    monkeypatch.setattr(process_toys, "open_toys", open_bundle)
    with pytest.raises(ValueError, match="another function"):
        name_opener(opener)


@pytest.mark.parametrize(
    "name", ["", ":", "no.such.module:open", "process_toys:no_such", "process_toys:DIE", "process_toys"]
)
def test_a_name_that_leads_nowhere_is_refused(name):
    with pytest.raises(EngineError, match="names no function"):
        find_opener(name)
