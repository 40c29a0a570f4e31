import os
import subprocess
import sys
from contextlib import closing

import pytest

from foreframe_server.processes.tally import Tally


@pytest.fixture
def tally():
    with closing(Tally.create()) as made:
        yield made


def test_what_was_counted_is_taken_once(tally):
    assert tally.take() == 0
    for _ in range(3):
        tally.add()
    assert (tally.take(), tally.take()) == (3, 0)


def test_other_programs_do_not_inherit_it(tally):
    assert not os.get_inheritable(tally.fd)


def test_the_count_outlives_whoever_counted(tally):
    code = f"from foreframe_server.processes.tally import Tally; Tally({tally.fd}).add()"
    subprocess.run([sys.executable, "-c", code], pass_fds=[tally.fd], check=True)
    assert tally.take() == 1
