"""A server of oracles as a process of its own, its workers, and a Redis: started, harmed and measured by process id."""

import contextlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import redis

from foreframe_server.load.processes import RedisProcess
from foreframe_server.settings import EngineSettings

FOLDER = Path(__file__).parents[1]
WORKER_MODULE = "foreframe_server.processes.child"
_START_S, _STOP_S, _POLL_S = 60.0, 40.0, 0.01
_REPLIES = re.compile(r'foreframe_requests_total\{code="([^"]*)",route="([^"]*)"\}')
_SAMPLE = re.compile(r"^(\w+)(?:\{([^}]*)\})? (\S+)$", re.MULTILINE)


class NotStarted(Exception):
    """A server ended or was silent while it started; the message is the last line of its log."""


@dataclass(frozen=True)
class ServerSpec:
    """How a server is started: worker processes (0 is none), `FOREFRAME_*` settings and what the harness adds."""

    processes: int = 0
    row_ms: float = 0.0
    has_redis: bool = False
    redis_options: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    module: str = "harness.launch"

    def environ(self) -> dict[str, str]:
        """Return what goes into the environment."""
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("FOREFRAME_")}
        return {
            **inherited,
            "PYTHONPATH": os.pathsep.join([str(FOLDER), os.environ.get("PYTHONPATH", "")]),
            "OMP_NUM_THREADS": "1",
            "ORACLE_ROW_MS": str(self.row_ms),
            "FOREFRAME_SCHEDULER__MAX_ROWS": "8",
            **(
                {"FOREFRAME_ENGINE__PROCESSES": str(self.processes)}
                if "processes" in EngineSettings.model_fields
                else {}
            ),
            **{f"FOREFRAME_{key}": value for key, value in self.settings.items()},
            **self.environment,
        }


class Server:
    """One server on a free port of 127.0.0.1. `log` holds what all its lives have written."""

    def __init__(self, spec: ServerSpec, folder: Path) -> None:
        self.spec = spec
        self.log = folder / "server.log"
        self.pids: set[int] = set()
        self.lives: list[int] = []
        self.start()

    def start(self) -> None:
        """Start it and wait until it answers. Raises NotStarted."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", self.spec.module],
                cwd=self.log.parent, env=self.spec.environ(), stdout=subprocess.PIPE, stderr=log, text=True,
            )  # fmt: skip
        self.pids.add(self.process.pid)
        self.lives.append(self.process.pid)
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.process.stdout.close()
            raise NotStarted(self.log.read_text(errors="replace").strip().rsplit("\n", 1)[-1][:500])
        self.address = json.loads(line)["address"]
        self.pids.update(self.workers())

    def workers(self) -> list[int]:
        """Return the process ids of the worker processes, the oldest first."""
        found = [pid for pid in children(self.process.pid) if WORKER_MODULE in command(pid)]
        self.pids.update(found)
        return found

    def is_ready(self) -> bool:
        """Ask whether it takes questions."""
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.address}/readyz", timeout=2) as reply:
            return reply.status == 200
        return False

    def metrics(self) -> dict[str, float]:
        """Read its counters, each series with its labels."""
        with urllib.request.urlopen(f"{self.address}/metrics", timeout=10) as reply:
            text = reply.read().decode()
        return {
            f"{name}{{{labels}}}" if labels else name: float(value) for name, labels, value in _SAMPLE.findall(text)
        }

    def total(self, name: str, label: str = "") -> float:
        """Add up a metric's series, those whose labels hold `label`."""
        return sum(
            value for series, value in self.metrics().items() if series.split("{")[0] == name and label in series
        )

    def replies(self) -> dict[str, float]:
        """Count the replies of the routes that models answer, by code."""
        found: Counter[str] = Counter()
        for series, value in self.metrics().items():
            match = _REPLIES.fullmatch(series)
            if match and match[2] in ("/v1/predictions", "/v1/likelihoods"):
                found[match[1]] += value
        return dict(found)

    def tree(self) -> list[int]:
        """Return its process id and its workers'."""
        return [self.process.pid, *self.workers()]

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self, seconds: float = _STOP_S) -> int | None:
        """Wait for its end; return the exit status, None when it still runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(seconds)
        return None

    def orphans(self) -> list[int]:
        """Return what still runs of all that was ever started here."""
        return [pid for pid in self.pids if is_alive(pid)]

    def close(self) -> None:
        """End all that was started here, whatever state it is in."""
        self.workers()
        for pid in (self.process.pid, *self.orphans()):
            if is_alive(pid) and (pid == self.process.pid or WORKER_MODULE in command(pid)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()


@contextlib.contextmanager
def running(spec: ServerSpec, folder: Path) -> Iterator[tuple[Server, "Redis | None"]]:
    """Run a server, and its Redis where it has one, for as long as the block runs."""
    with contextlib.ExitStack() as stack:
        redis = None
        if spec.has_redis:
            redis = stack.enter_context(contextlib.closing(Redis(folder, spec.redis_options)))
            secret = {"FOREFRAME_CACHE__REDIS_URL": redis.url, "FOREFRAME_CACHE__SECRET": "s" * 32}
            spec = ServerSpec(**{**vars(spec), "environment": {**secret, **spec.environment}})
        yield stack.enter_context(contextlib.closing(Server(spec, folder))), redis


class Redis(RedisProcess):
    """A Redis that can start again after it was killed."""

    def __init__(self, folder: Path, options: tuple[str, ...] = ()) -> None:
        self.folder, self.options = folder, options
        super().__init__(folder)
        self.configure()

    def configure(self) -> None:
        for name, value in (option.split("=") for option in self.options):
            self.client().config_set(name, value)

    def client(self):
        """Connect to it, without the server's limits."""
        return redis.Redis.from_url(self.url, socket_timeout=10)

    def go_on(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def restart(self) -> None:
        """Start it again, empty."""
        self.close()
        RedisProcess.__init__(self, self.folder)
        self.configure()


def children(pid: int) -> list[int]:
    """Return the direct children of a process, whatever thread started them."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(child) for child in path.read_text().split()]
    return sorted(found)


def command(pid: int) -> str:
    """Return the command line of a process, nothing where there is none."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def is_alive(pid: int) -> bool:
    """Tell whether a process runs; one that only waits to be reaped does not."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    return False


def limit(pid: int, kind: int, value: int) -> None:
    """Set a running process' limit."""
    hard = resource.prlimit(pid, kind)[1]
    resource.prlimit(pid, kind, (value, hard))


@dataclass(frozen=True, slots=True)
class Footprint:
    """What processes hold: resident memory, open files, threads, and memory files shared between them."""

    rss_bytes: int
    files: int
    threads: int
    processes: int
    shared: int

    @classmethod
    def of(cls, pids: list[int]) -> "Footprint":
        links = [link for pid in pids for link in _links(pid)]
        return cls(
            sum(status(pid, "VmRSS") * 1024 for pid in pids),
            len(links),
            sum(status(pid, "Threads") for pid in pids),
            len(pids),
            sum("memfd:" in link for link in links) + len(list(Path("/dev/shm").glob("foreframe*"))),
        )


def _links(pid: int) -> list[str]:
    found = []
    for path in Path(f"/proc/{pid}/fd").glob("*"):
        with contextlib.suppress(OSError):
            found.append(str(path.readlink()))
    return found


def status(pid: int, name: str) -> int:
    """Return a number of a process' status, 0 where there is none."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1])
    return 0


def until(is_reached, seconds: float) -> float | None:
    """Wait until a condition holds; return how long it took, None when it never did."""
    started_s = time.monotonic()
    while time.monotonic() - started_s < seconds:
        if is_reached():
            return time.monotonic() - started_s
        time.sleep(_POLL_S)
    return None
