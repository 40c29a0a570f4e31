"""Log lines go to standard error, and a log that cannot be written costs no more than its lines."""

import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import structlog
from foreframe_server.log import configure_logging
configure_logging(is_json={is_json})
for level in ("info", "warning", "error"):
    getattr(structlog.get_logger("x"), level)("event", text="a\\nb")
try:
    1 / 0
except ZeroDivisionError:
    structlog.get_logger("x").exception("failed")
print("alive")
"""


def run(stderr, *, is_json):
    command = [sys.executable, "-c", CODE.format(is_json=is_json)]
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=stderr, text=True, check=False)


@pytest.mark.parametrize("is_json", [True, False])
def test_every_event_is_a_line(is_json):
    done = run(subprocess.PIPE, is_json=is_json)
    assert sum("a\\nb" in line for line in done.stderr.splitlines()) == 3
    assert "ZeroDivisionError" in done.stderr


@pytest.mark.parametrize("is_json", [True, False])
def test_a_full_disk_harms_nobody_who_logs(is_json):
    with Path("/dev/full").open("w") as full:
        assert run(full, is_json=is_json).stdout == "alive\n"
