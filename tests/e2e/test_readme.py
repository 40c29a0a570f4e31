"""What the README claims runs: its code blocks, its settings, its numbers, its make targets."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from foreframe_server.settings import setting_names
from foreframe_server.settings_page import PAGE_PATH, settings_page

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MEASURED = ["README.md", "docs/doors.md", "docs/experiments.md", "docs/load.md", "docs/models.md", "docs/planning.md"]
START_TIMEOUT_S = 60.0


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def rows_under(heading: str) -> list[list[str]]:
    section = README.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def environment() -> dict[str, str]:
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number: int = probe.getsockname()[1]
    return number


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    number = free_port()
    command = [sys.executable, "-m", "foreframe_server", "serve", "--port", str(number)]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            wait_until_ready(number)
            yield number
        finally:
            server.terminate()


def wait_until_ready(port: int) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=1.0) as reply:
                if reply.status == 200:
                    return
        except OSError:
            time.sleep(0.1)  # a real process starts in real time
    pytest.fail("the server did not become ready")


def test_python_blocks_run(port, tmp_path):
    assert blocks("python")
    for block in blocks("python"):
        code = block.replace("8000", str(port))
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "(8, 64, 64, 3)" in done.stdout


def test_a_refusal_over_one_connection_ends_the_block(port, tmp_path):
    (block,) = (block for block in blocks("python") if "/v1/realtime" in block)
    code = block.replace("8000", str(port)).replace('"size": 8', '"size": 99')
    assert code.count('"size": 99') == 1
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 1
    assert "invalid_request" in done.stderr or "too_expensive" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_block_of_operators_runs_in_order(tmp_path):
    block = README.split("## Operate\n", 1)[1].split("```\n", 2)[1]
    number = str(free_port())
    script = block.replace("8000", number).replace("--host 0.0.0.0", f"--host 127.0.0.1 --port {number}")
    script = script.replace(" &\n", " &\ntrap 'kill $!; wait' EXIT\n")
    assert "trap" in script
    done = subprocess.run(
        ["bash", "-c", f"set -euo pipefail\n{script}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**environment(), "COLUMNS": "120"},
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "READY" in done.stdout


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_shell_blocks_run(port, tmp_path):
    assert blocks("bash")
    for block in blocks("bash"):
        script = "set -euo pipefail\n" + block.replace("8000", str(port))
        done = subprocess.run(
            ["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, env=environment(), check=False
        )
        assert done.returncode == 0, done.stderr
        assert '"frames"' in done.stdout
        assert (tmp_path / "future.mp4").read_bytes()[4:8] == b"ftyp"


def test_settings_are_described_as_they_are():
    assert PAGE_PATH.read_text(encoding="utf-8") == settings_page()

    full = PAGE_PATH.read_text(encoding="utf-8")
    short = {row[0]: row[1] for row in rows_under("Settings")}
    assert short
    assert [name for name, default in short.items() if f"| {name} | {default} |" not in full] == []
    assert sum(f"`{name}`" in full for name in setting_names()) == len(list(setting_names()))


def look_up(report: str, path: str) -> float:
    value = json.loads((ROOT / "docs" / "results" / f"{report}.json").read_text(encoding="utf-8"))
    for key in path.split("."):
        value = value[int(key)] if isinstance(value, list) else value[key]
    return value


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_measured_numbers_are_those_of_the_committed_reports(page):
    text = page.read_text(encoding="utf-8")
    claims = re.findall(r"(-?\d+\.?\d*)\s<!-- (?:([\w-]+):)?([\w.]+) -->", text)
    assert len(claims) == text.count("<!-- ")
    for number, report, path in claims:
        decimals = len(number.partition(".")[2])
        assert f"{look_up(report or 'eve-tabletop', path):.{decimals}f}" == number, path


@pytest.mark.parametrize("name", MEASURED)
def test_pages_about_measures_hold_measured_numbers(name):
    assert (ROOT / name).read_text(encoding="utf-8").count("<!-- ") >= 5


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert targets
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^make (\w+)", README, flags=re.MULTILINE)
    assert targets == ["demo", "test"]
    assert all(f"\n{target}:" in makefile for target in targets)
