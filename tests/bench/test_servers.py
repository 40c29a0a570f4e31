"""Ended means all of it: children that do not listen, and those whose parent is gone."""

import os
import sys

import psutil
import pytest
from peers.errors import Invalid
from peers.servers import free_port, running, split_cores

STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(600)"
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE)
child.stdout.readline()
open(sys.argv[2], "w").write(str(child.pid))
if sys.argv[3] == "stays":
    time.sleep(600)
"""


@pytest.mark.parametrize("way", ["stays", "leaves"])
def test_a_child_that_ignores_signals_is_ended_too(tmp_path, way):
    told = tmp_path / "pid"
    os.mkfifo(told)
    command = [sys.executable, "-c", PARENT, STUBBORN, str(told), way]
    with running(command, {}, [0], port=free_port(), cwd=tmp_path) as server:
        child = int(told.read_text())
        if way == "leaves":
            server._process.wait(10)
        assert child in [each.pid for each in server.tree()]
    assert not psutil.pid_exists(child)


def test_what_cannot_be_ended_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("peers.servers.Server.left_behind", lambda self: [7])
    with (
        pytest.raises(Invalid, match="left behind"),
        running([sys.executable, "-c", ""], {}, [0], port=1, cwd=tmp_path),
    ):
        pass


def test_servers_and_askers_share_cores_only_where_there_are_few():
    assert split_cores([0, 1, 2, 3, 4]) == ([0, 1], [2, 3])
    assert split_cores([0, 1, 2]) == ([0, 1], [0, 1, 2])


def test_a_free_port_is_named_by_the_kernel():
    assert free_port() > 1023
