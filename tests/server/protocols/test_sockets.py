"""Sockets: paths, modes, what is left of a dead server, and the limit on open files."""

import resource
import socket
import stat
import subprocess
import sys

import pytest

from foreframe_server.protocols.sockets import address_of, affordable_connections, open_listener, remove_path


def test_a_unix_socket_is_its_groups_alone_and_is_removed(tmp_path):
    path = tmp_path / "door.sock"
    listener = open_listener(f"unix:{path}", 0)
    assert (address_of(listener), stat.S_IMODE(path.stat().st_mode)) == (f"unix:{path}", 0o660)
    with pytest.raises(OSError, match="in use"):
        open_listener(f"unix:{path}", 0)
    listener.close()
    remove_path(f"unix:{path}")
    assert not path.exists()


def test_what_a_dead_server_left_is_no_hindrance_and_files_are_kept(tmp_path):
    path = tmp_path / "door.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(path))
    open_listener(f"unix:{path}", 0).close()
    remove_path(f"unix:{path}")
    path.write_text("not a socket")
    with pytest.raises(OSError, match="in use"):
        open_listener(f"unix:{path}", 0)
    assert path.read_text() == "not a socket"


def test_addresses_are_as_clients_name_them():
    with open_listener("127.0.0.1", 0) as listener:
        assert address_of(listener) == f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_open_files_bound_the_connections():
    program = """
import resource
from foreframe_server.protocols.sockets import affordable_connections
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 512))
print(affordable_connections(1024), resource.getrlimit(resource.RLIMIT_NOFILE))
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
try:
    affordable_connections(1024)
except OSError as error:
    print(error)
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    *_, affordable, refused = ran.stdout.splitlines()
    assert affordable == "384 (512, 512)"
    assert refused == "100 open files are too few; allow 129 or more"
    assert affordable_connections(1) == 1
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 1
