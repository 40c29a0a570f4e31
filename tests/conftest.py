"""A Redis of the tests' own, caches on it, and which tests run by themselves."""

import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import structlog

from foreframe_server.entry import CacheKey
from foreframe_server.metrics import Metrics
from foreframe_server.redis_link import TIMEOUT_S, connect_redis
from foreframe_server.redis_tier import RedisTier

SECRET = b"s" * 32
# A healthy Redis is given time, because these tests share their machine; a broken one gets the default 20 ms.
HEALTHY_TIMEOUT_S = 5.0
ALONE_WORDS = r"best_lag|mark\.alone"


def pytest_collection_modifyitems(items):
    """Mark what measures the event loop's standstill: `make test` runs it by itself, and finds it by words."""
    for item in items:
        if "best_lag" in getattr(item, "fixturenames", ()):
            item.add_marker("alone")
    for path in {item.path for item in items if item.get_closest_marker("alone")}:
        if not re.search(ALONE_WORDS, path.read_text(encoding="utf-8")):
            raise pytest.UsageError(f"{path} runs alone and says none of {ALONE_WORDS}: the Makefile would not find it")


@pytest.fixture(autouse=True)
def _own_logging(monkeypatch):
    """Let a command that is run in this process say how it logs, but not to the tests that read lines after it."""
    configure = structlog.configure
    monkeypatch.setattr(
        structlog, "configure", lambda **terms: configure(**{**terms, "cache_logger_on_first_use": False})
    )
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session", autouse=True)
def _own_state(tmp_path_factory):
    """Keep the key that engines are sealed with out of the home of who runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session")
def build_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], None]], Path]:
    """Let one of the processes that run the tests fill a folder; the others wait for it. No test may change it."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def build(name: str, make: Callable[[Path], None]) -> Path:
        folder = shared / f"built-{name}"
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                unfinished = Path(tempfile.mkdtemp(dir=shared))
                make(unfinished)
                unfinished.rename(folder)
        return folder

    return build


def find_redis_server() -> str:
    """Find the machine's Redis server, or the one that comes with the test extras."""
    beside = Path(sys.executable).with_name("redis-server")
    found = shutil.which("redis-server") or (str(beside) if beside.exists() else None)
    return found or pytest.skip("no redis-server is installed")


class RedisProcess:
    """A Redis on a socket in its folder, without root, without a port and without another file."""

    def __init__(self, folder: Path, *options: str):
        self.folder = folder
        self.socket = folder / "redis.sock"
        self.url = f"unix://{self.socket}"
        self.options = options
        self.start()

    def start(self):
        at = ["--port", "0", "--unixsocket", str(self.socket), "--save", "", "--appendonly", "no"]
        self.process = subprocess.Popen(
            [find_redis_server(), *at, *self.options], cwd=self.folder, stdout=subprocess.PIPE, text=True
        )
        assert any("eady to accept connections" in line for line in self.process.stdout)

    def hang(self):
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self):
        self.process.send_signal(signal.SIGCONT)

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture
def start_redis(tmp_path):
    started = []

    def start(*options):
        started.append(RedisProcess(tmp_path, *options))
        return started[-1]

    yield start
    for redis in started:
        if redis.process.poll() is None:
            redis.kill()


@pytest.fixture
def redis_server(start_redis):
    return start_redis()


@pytest.fixture
def connect_tier():
    """Make a tier that waits for a healthy Redis, or with `timeout_s=None` one as it is served."""

    def connect(url, metrics=None, *, timeout_s=HEALTHY_TIMEOUT_S, secret=SECRET, **limits):
        timeout_s = timeout_s or TIMEOUT_S
        client = connect_redis(url, timeout_s)
        return RedisTier(client, metrics or Metrics(), timeout_s=timeout_s, secret=secret, **limits)

    return connect


@pytest.fixture
def events():
    """Read what a tier counted."""

    def read(metrics, tier="redis"):
        (family,) = [family for family in metrics.registry.collect() if family.name == "foreframe_cache_events"]
        return {
            sample.labels["result"]: sample.value
            for sample in family.samples
            if sample.name.endswith("_total") and sample.labels["tier"] == tier
        }

    return read


@pytest.fixture
def make_key():
    return lambda number=0: CacheKey(number.to_bytes(32, "big"))


@pytest.fixture
def make_members(make_key):
    """Draw the first k members of a key's ensemble: more of them begin with fewer."""

    def make(count, number=0):
        frames = [np.random.default_rng((number, member)).integers(0, 256, (2, 4, 4, 3)) for member in range(count)]
        return np.stack(frames).astype(np.uint8)

    return make
