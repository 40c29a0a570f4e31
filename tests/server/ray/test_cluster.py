"""Two replicas answer as one process does, byte for byte, also while one of them is killed."""

import contextlib
import os
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from askers import Asker

from foreframe_server.cli.serving import running_server
from foreframe_server.ray.local_cluster import configure
from foreframe_server.settings import EngineSettings, HttpSettings, Settings

SEEDS = range(40, 52)


@pytest.fixture(scope="module")
def replicas(cluster):
    with cluster.serving(configure(2)) as address, Asker(address) as asker:
        while len(cluster.replica_pids()) < 2:
            time.sleep(0.05)
        yield asker


@pytest.fixture(scope="module")
def alone():
    settings = Settings(http=HttpSettings(port=0), engine=EngineSettings(num_threads=1, processes=0))
    with running_server(settings) as address, Asker(address) as asker:
        yield asker


def cpu_ticks(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_predictions_are_equal_and_both_replicas_take_part(cluster, replicas, alone):
    assert replicas.predict(1) != replicas.predict(2)
    before = {pid: cpu_ticks(pid) for pid in cluster.replica_pids()}
    for seed in range(3, 9):
        assert replicas.predict(seed) == alone.predict(seed)
    assert len(before) == 2
    spent = [cpu_ticks(pid) - ticks for pid, ticks in before.items()]
    assert min(spent) > 0.3 * max(spent), spent


def test_streams_scores_and_likelihoods_are_equal(replicas, alone):
    assert replicas.stream(4) == alone.predict(4)
    assert replicas.score(4) == alone.score(4)
    assert replicas.likelihood() == alone.likelihood()


def test_a_replica_that_is_killed_costs_no_answer(cluster, replicas, alone):
    expected = [alone.predict(seed) for seed in SEEDS]
    victim = cluster.replica_pids()[0]
    kill = threading.Timer(0.4, os.kill, (victim, signal.SIGKILL))
    with ThreadPoolExecutor(4) as pool:
        kill.start()
        answers = list(pool.map(replicas.predict, SEEDS))
    kill.join()
    assert answers == expected
    assert victim not in cluster.replica_pids()


def listening(pids):
    """Tell which addresses processes listen on."""
    inodes = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                inodes.add(str(link.readlink()))
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                address, port = fields[1].split(":")
                found.add((address, int(port, 16)))
    return found


LOOPBACK = ("0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000")


def test_what_listens_beyond_loopback_takes_no_call_without_the_token(cluster, replicas):
    open_ports = {port for address, port in listening(cluster.pids()) if address not in LOOPBACK}
    with_engines = {port for _, port in listening(cluster.replica_pids())}
    assert len(listening(cluster.pids())) > len(open_ports) > 0
    assert open_ports & with_engines, "of the replicas, as the page says"
    for port in open_ports:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel, pytest.raises(grpc.RpcError) as refused:
            channel.unary_unary("/ray.serve.ASGIService/HandleRequest")(b"", timeout=5)
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        token = [("authorization", f"Bearer {cluster.environment['RAY_AUTH_TOKEN']}")]
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel, pytest.raises(grpc.RpcError) as heard:
            channel.unary_unary("/ray.serve.ASGIService/HandleRequest")(b"", timeout=5, metadata=token)
        assert heard.value.code() is not grpc.StatusCode.UNAUTHENTICATED


def test_the_positive_control_of_listening_hears_a_socket_on_all_interfaces():
    with socket.socket() as sock:
        sock.bind(("0.0.0.0", 0))
        sock.listen()
        assert ("00000000", sock.getsockname()[1]) in listening([os.getpid()])
