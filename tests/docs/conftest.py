"""A server in a process of its own, for what the pages tell readers to run against one."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


def environment() -> dict[str, str]:
    """Return the environment with this Python's commands first and without settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FOREFRAME_")}
    return {**kept, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


@pytest.fixture(scope="session")
def reader():
    """Run a command as a reader would, in a folder."""

    def run(command, folder):
        return subprocess.run(
            command, cwd=folder, env=environment(), capture_output=True, text=True, check=False, timeout=60
        )

    return run


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    command = [sys.executable, "-m", "foreframe_server", "serve", "--port", "0", "--json"]
    with subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        try:
            told = iter(server.stdout.readline, "}\n")
            yield int(json.loads("".join(told) + "}")["address"].rsplit(":", 1)[1])
        finally:
            server.terminate()
