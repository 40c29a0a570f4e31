"""A small Ray cluster of this machine alone, for tests and benchmarks: loopback, no dashboard, gone with its block.

It ends processes of its own session only, which it is told by the system.
"""

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_START_S: Final = 90.0
_STOP_S: Final = 5.0
_POLL_S: Final = 0.1
_OBJECT_STORE_BYTES: Final = 100_000_000
_REPLICA: Final = b"ray::ServeReplica:foreframe:engines"
_SHUT_DOWN: Final = "import ray; from ray import serve; ray.init(log_to_driver=False); serve.shutdown()"
_BIN: Final = Path(sys.executable).parent


class ClusterFailed(Exception):
    """The cluster or its application did not start; says what its log ended with."""


def configure(num_replicas: int, **arguments: object) -> dict[str, object]:
    """Write a configuration of so many replicas of a core each. arguments: of the application."""
    brief = {"graceful_shutdown_wait_loop_s": 0.1}
    engines = {"name": "engines", "num_replicas": num_replicas, "ray_actor_options": {"num_cpus": 1}, **brief}
    door = {"name": "door", "num_replicas": 1, "ray_actor_options": {"num_cpus": 0}, **brief}
    application = {
        "name": "foreframe",
        "route_prefix": "/",
        "import_path": "foreframe_server.ray.application:build",
        "args": {"max_replicas": num_replicas, **arguments},
        "deployments": [engines, door],
    }
    return {"proxy_location": "HeadOnly", "applications": [application]}


@dataclass(frozen=True, slots=True, eq=False)
class LocalCluster:
    """A cluster that runs. `environment`: of its processes, with its token. port: of the cluster itself."""

    folder: Path
    head: "subprocess.Popen[bytes]"
    environment: Mapping[str, str]
    port: int
    http_port: int

    @property
    def address(self) -> str:
        """Where questions are answered."""
        return f"http://127.0.0.1:{self.http_port}"

    def pids(self) -> list[int]:
        """List the processes of this cluster, workers among them."""
        return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and self._is_mine(entry)]

    def replica_pids(self) -> list[int]:
        """List the processes that run engines."""
        return [pid for pid in self.pids() if _REPLICA in Path(f"/proc/{pid}/cmdline").read_bytes()]

    @contextlib.contextmanager
    def serving(self, config: Mapping[str, object]) -> Iterator[str]:
        """Run `serve run` with a configuration, and give the address once models answer. Raises ClusterFailed."""
        try:
            self.apply(config)
            _wait_until(lambda: _is_ready(self.address), self.folder / "serve.log")
            yield self.address
        finally:
            # Whoever asks the next application must not be answered by this one.
            self._run(sys.executable, "-c", _SHUT_DOWN)

    def apply(self, config: Mapping[str, object]) -> None:
        """Run `serve run` with a configuration; what is as it was goes on. Raises ClusterFailed."""
        path = self.folder / "serve.json"
        path.write_text(json.dumps({**config, "http_options": {"host": "127.0.0.1", "port": self.http_port}}))
        self._run(str(_BIN / "serve"), "run", "--non-blocking", str(path))

    def _run(self, *command: str) -> None:
        log = self.folder / "serve.log"
        environment = {**self.environment, "RAY_ADDRESS": f"127.0.0.1:{self.port}"}
        with log.open("ab") as output:
            done = subprocess.run(  # noqa: S603 - of this environment
                command, env=environment, stdout=output, stderr=output, cwd=self.folder, check=False, timeout=_START_S
            )
        if done.returncode != 0:
            raise ClusterFailed(_tail(log))

    def _is_mine(self, entry: Path) -> bool:
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            return False
        return fields[0] != "Z" and int(fields[3]) == self.head.pid


@contextlib.contextmanager
def local_cluster(environment: Mapping[str, str] | None = None, num_cpus: int = 4) -> Iterator[LocalCluster]:
    """Run a cluster for as long as the block does. Raises ClusterFailed."""
    if not (_BIN / "ray").exists():
        raise ClusterFailed("Ray Serve is missing; run `pip install 'foreframe[ray]'`")
    # Paths of sockets are at most 107 bytes long.
    with tempfile.TemporaryDirectory(prefix="ff-ray-", dir="/tmp", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        port = _free_port()
        variables = {**os.environ, **_settings(), **(environment or {})}
        log = folder / "ray.log"
        with log.open("wb") as output:
            command = [str(_BIN / "ray"), *_start_options(folder, port, num_cpus)]
            head = subprocess.Popen(command, env=variables, stdout=output, stderr=output, start_new_session=True)  # noqa: S603
        cluster = LocalCluster(folder, head, variables, port, _free_port())
        try:
            _wait_until(lambda: b"Ray runtime started" in log.read_bytes(), log, head)
            yield cluster
        finally:
            _stop(cluster)


def _settings() -> dict[str, str]:
    return {
        # Without it Ray takes an address that others reach, whatever it is told, and listens on all.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DEDUP_LOGS": "0",
    }


def _start_options(folder: Path, port: int, num_cpus: int) -> list[str]:
    return [
        "start",
        "--head",
        "--block",
        f"--port={port}",
        "--node-ip-address=127.0.0.1",
        "--include-dashboard=false",
        "--disable-usage-stats",
        f"--ray-client-server-port={_free_port()}",
        f"--dashboard-agent-listen-port={_free_port()}",
        f"--num-cpus={num_cpus}",
        f"--object-store-memory={_OBJECT_STORE_BYTES}",
        f"--temp-dir={folder / 'ray'}",
    ]


def _wait_until(is_done: Callable[[], bool], log: Path, head: "subprocess.Popen[bytes] | None" = None) -> None:
    until_s = time.monotonic() + _START_S
    while not is_done():
        if time.monotonic() > until_s or (head is not None and head.poll() is not None):
            raise ClusterFailed(_tail(log))
        time.sleep(_POLL_S)


def _is_ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/readyz", timeout=2) as reply:  # noqa: S310 - this machine's own
            return bool(reply.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def _stop(cluster: LocalCluster) -> None:
    cluster.head.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        cluster.head.wait(_STOP_S)
    for pid in cluster.pids():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    cluster.head.wait()


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-12:])


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
