"""Servers as processes of their own: foreframe, and a Redis that can be killed or stopped. Ends what it started."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

_STOP_S = 30.0


class NotStarted(Exception):
    """A process did not start; the message is one line for a person."""


class RedisProcess:
    """A Redis of one's own behind a socket in a folder, without root and without a file outside the folder."""

    def __init__(self, folder: Path) -> None:
        """Start it. Raises NotStarted."""
        beside = str(Path(sys.executable).parent)
        program = shutil.which("redis-server") or shutil.which("redis-server", path=beside)
        if program is None:
            raise NotStarted("redis-server is not on the PATH")
        self.url = f"unix://{folder}/redis.sock"
        command = [program, "--port", "0", "--unixsocket", f"{folder}/redis.sock", "--save", "", "--appendonly", "no"]
        self._process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)  # noqa: S603 - fixed
        if not any("eady to accept connections" in line for line in _output(self._process)):
            raise NotStarted("redis-server ended as it started")

    def kill(self) -> None:
        """End it at once; connections to it break."""
        self._process.kill()

    def hang(self) -> None:
        """Stop it from running; connections to it stay open and nothing comes back."""
        self._process.send_signal(signal.SIGSTOP)

    def close(self) -> None:
        """Kill it, whatever state it is in, and wait for its end."""
        self._process.kill()
        self._process.wait()
        _output(self._process).close()


@contextlib.contextmanager
def running_redis() -> Iterator[RedisProcess]:
    """Run a Redis for as long as the block runs. Raises NotStarted."""
    with (
        tempfile.TemporaryDirectory(prefix="foreframe-bench-") as folder,
        contextlib.closing(RedisProcess(Path(folder))) as redis,
    ):
        yield redis


@contextlib.contextmanager
def running_child(bundle: Path | None, settings: Mapping[str, str] | None = None) -> Iterator[str]:
    """Run `foreframe serve` on a free port for as long as the block runs; gives the address once it answers.

    settings: `FOREFRAME_*` on top of this process' own. Raises NotStarted with the last line of its log.
    """
    command = [sys.executable, "-m", "foreframe_server", "serve", "--host", "127.0.0.1", "--port", "0", "--json"]
    if bundle is not None:
        command += ["--bundle", str(bundle)]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(  # noqa: S603 - this very program
            command, stdout=subprocess.PIPE, stderr=log, text=True, env={**os.environ, **(settings or {})}
        )
        try:
            yield _read_address(process, log)
        finally:
            _stop(process)


def _read_address(process: "subprocess.Popen[str]", log: IO[str]) -> str:
    announced = ""
    for line in _output(process):
        announced += line
        if line == "}\n":
            return str(json.loads(announced)["address"])
    log.seek(0)
    lines = log.read().strip().splitlines()
    raise NotStarted(lines[-1] if lines else "the server ended as it started")


def _stop(process: "subprocess.Popen[str]") -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    _output(process).close()


def _output(process: "subprocess.Popen[str]") -> IO[str]:
    if process.stdout is None:
        raise NotStarted("the process has no output")
    return process.stdout
