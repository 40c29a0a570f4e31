import json

import pytest
import structlog

from foreframe_server.log import configure_logging


@pytest.fixture(autouse=True)
def restored():
    yield
    structlog.reset_defaults()


def test_a_json_line_is_one_object_on_standard_error(capsys):
    configure_logging(is_json=True)

    structlog.get_logger().info("request", route="/v1/models", trace="a\nb\x1b[31m")

    written = capsys.readouterr()
    assert written.out == ""
    (line,) = written.err.splitlines()
    assert json.loads(line)["trace"] == "a\nb\x1b[31m"
    assert "\x1b" not in line


def test_a_failure_is_logged_whole_in_one_json_line(capsys):
    configure_logging(is_json=True)

    try:
        int("planted")
    except ValueError:
        structlog.get_logger().exception("request failed")

    (line,) = capsys.readouterr().err.splitlines()
    assert "planted" in json.loads(line)["exception"]
