"""Every file of examples/ runs as a newcomer runs it, against a server in a process of its own."""

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

EXAMPLES = Path(__file__).parents[2] / "examples"
RUNNERS = {".py": [sys.executable], ".sh": ["bash"]}
START_TIMEOUT_S = 60.0
NEEDS = {"curl.sh": "curl"}

SAYS = {
    "predict.py": [r"made 8 members", r"mean frames: \(8, 64, 64, 3\) uint8", r"0\.53 s ahead"],
    "msgpack_http.py": [r"frames: \(8, 64, 64, 3\) uint8", r"took: [\d.]+ ms"],
    "websocket.py": [r"eve-tabletop: head 64x64 at 15 a second", r"(?s)accepted.*update.*done with 8 members"],
    "curl.sh": [r'"eve-tabletop"', r"(?s)event: done.*event: update", r'"cache":"hit"', r"step 2: \d{4} bytes"],
    "plan_cem.py": [r"the plan, \(8, 25\), costs 0\.\d\d of standing still"],
    "gym_env.py": [r"6 frames, 0\.40 s: reward -0\.\d+", r"4 environments at steps \[1, 1, 1, 1\]"],
    "lerobot_replay.py": [r"2 episodes at 15 frames a second; this one has 12", r"frame 11: \d+\.\d+ dB, copying"],
    "session_drive.py": [r"frame 4: \d+\.\d+ dB", r"after 9 steps", r"differ by [1-9]", r"back at step 9"],
}


def environment() -> dict[str, str]:
    """Return the environment with this Python's commands first and without settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FOREFRAME_")}
    return {**kept, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "foreframe_server", "serve", "--port", str(port)]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait_until_ready(f"http://127.0.0.1:{port}")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def wait_until_ready(address: str) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s:
        try:
            with urllib.request.urlopen(f"{address}/readyz", timeout=1.0):
                return
        except OSError:
            time.sleep(0.1)  # a real process starts in real time
    pytest.fail("the server did not become ready")


def run(example: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run one example; a warning in it is an error."""
    return subprocess.run(
        [*RUNNERS[example.suffix], str(example), *arguments],
        cwd=cwd,
        env={**environment(), "PYTHONWARNINGS": "error"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def example_files() -> list[Path]:
    return sorted(path for path in EXAMPLES.iterdir() if path.is_file() and path.suffix != ".md")


def test_every_example_is_run_and_listed():
    names = {path.name for path in example_files()}
    assert names == set(SAYS)
    assert set(re.findall(r"\]\(([\w.]+)\)", (EXAMPLES / "README.md").read_text(encoding="utf-8"))) >= names


@pytest.mark.parametrize("name", SAYS)
def test_it_runs_and_says_what_it_should(name, server, tmp_path):
    if name in NEEDS and shutil.which(NEEDS[name]) is None:
        pytest.skip(f"{NEEDS[name]} is not installed")
    done = run(EXAMPLES / name, server, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    missing = [words for words in SAYS[name] if not re.search(words, done.stdout)]
    assert not missing, done.stdout


@pytest.mark.parametrize("name", ["predict.py", "msgpack_http.py", "curl.sh"])
def test_it_fails_where_there_is_no_server(name, tmp_path):
    done = run(EXAMPLES / name, "http://127.0.0.1:9", cwd=tmp_path)
    assert done.returncode != 0
