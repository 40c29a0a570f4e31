"""A server as processes of its own on cores of its own: started, read and ended by recorded process id."""

import contextlib
import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil
from peers.errors import Invalid

_STOP_S = 15.0
_LOG_BYTES = 2000


class Server:
    """A started server and every process that was ever seen to belong to it."""

    def __init__(self, process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
        self.port = port
        self._process = process
        self._log = log
        self._seen: dict[int, psutil.Process] = {}
        self.tree()

    @property
    def has_ended(self) -> bool:
        """Whether the process that was started is gone."""
        return self._process.poll() is not None

    @property
    def last_words(self) -> str:
        """The last line of its log."""
        lines = self._log.read_bytes()[-_LOG_BYTES:].decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "nothing"

    def tree(self) -> list[psutil.Process]:
        """Return what runs now: its descendants, and what was left by one of them in the same session."""
        for each in (*_family(self._process.pid), *_session(self._process.pid)):
            self._seen.setdefault(each.pid, each)
        return [each for each in self._seen.values() if _is_alive(each)]

    def cpu_s(self) -> float:
        """Return the processor seconds of all its processes so far."""
        return sum(_cpu_s(each) for each in self.tree())

    def rss_bytes(self) -> int:
        """Return the resident memory of all its processes; pages that they share count in each."""
        return sum(_rss_bytes(each) for each in self.tree())

    def close(self) -> None:
        """Ask it to end, then end whatever of it is left."""
        self.tree()
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_S)
        left = self.tree()
        for each in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        self._process.wait()
        psutil.wait_procs(left, timeout=_STOP_S)

    def left_behind(self) -> list[int]:
        """Return the ids of what still runs."""
        return [each.pid for each in self.tree()]


@contextlib.contextmanager
def running(
    command: Sequence[str], environment: Mapping[str, str], cores: Sequence[int], *, port: int, cwd: Path
) -> Iterator[Server]:
    """Run a command in a session of its own on some cores for as long as the block runs. Raises Invalid."""
    with tempfile.TemporaryDirectory(prefix="peer-") as folder:
        log = Path(folder) / "log"
        with log.open("wb") as output, on_cores(cores):
            process = subprocess.Popen(
                command,
                cwd=cwd,
                env={**os.environ, **environment, "TMPDIR": folder},
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        server = Server(process, port, log)
        try:
            yield server
        finally:
            server.close()
        if server.left_behind():
            raise Invalid(f"processes were left behind: {server.left_behind()}")


@contextlib.contextmanager
def on_cores(cores: Sequence[int]) -> Iterator[None]:
    """Run this thread, and what it starts, on some cores for as long as the block runs."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(cores))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def split_cores(available: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return the servers' cores and the askers': two each where there are four, else they share."""
    cores = sorted(available)
    return (cores[:2], cores[2:4]) if len(cores) >= 4 else (cores[:2], cores)


def free_port() -> int:
    """Let the kernel name a port of 127.0.0.1 that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _family(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    return []


def _session(leader: int) -> list[psutil.Process]:
    return [each for each in psutil.process_iter() if _session_of(each.pid) == leader]


def _session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None


def _is_alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _cpu_s(process: psutil.Process) -> float:
    with contextlib.suppress(psutil.NoSuchProcess):
        times = process.cpu_times()
        return times.user + times.system
    return 0.0


def _rss_bytes(process: psutil.Process) -> int:
    with contextlib.suppress(psutil.NoSuchProcess):
        return int(process.memory_info().rss)
    return 0
