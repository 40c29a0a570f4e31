"""The Dockerfile: what it says, and its own steps, run in a folder instead of an image, until the server answers.

No container engine is needed: the stages that build run as they are written, with the image's paths moved into a
scratch folder; what they leave is then run as the image's user, on a root that is mounted read-only.
"""

import contextlib
import http.client
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from foreframe_server.settings import setting_names

UID = 10001
_PREFIXES = ("/build", "/opt/foreframe")
_OFFLINE = re.compile(
    "No matching distribution|NewConnectionError|Temporary failure|Could not find a version|ProxyError"
)


def read_stages(text):
    """Read a Dockerfile into stages: name to base and instructions."""
    joined = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE))
    stages, before = {}, []
    for line in filter(None, map(str.strip, joined.splitlines())):
        word, _, rest = line.partition(" ")
        if word == "FROM":
            base, _, name = rest.split()
            stages[name] = (base, [])
        else:
            (list(stages.values())[-1][1] if stages else before).append((word, rest.strip()))
    return stages


@pytest.fixture(scope="module")
def stages(root):
    return read_stages((root / "Dockerfile").read_text())


def instructions(stages, name, word):
    """All of a stage's instructions of one kind, those of the stages that it stands on first."""
    if name not in stages:
        return []
    base, own = stages[name]
    return instructions(stages, base, word) + [rest for kind, rest in own if kind == word]


def environment_of(stages, name):
    return dict(pair.split("=", 1) for text in instructions(stages, name, "ENV") for pair in shlex.split(text))


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_an_image_runs_the_server_as_a_user_of_a_fixed_number(stages, target):
    assert instructions(stages, target, "USER")[-1] == f"{UID}:{UID}"
    assert json.loads(instructions(stages, target, "ENTRYPOINT")[-1]) == ["/opt/foreframe/bin/foreframe"]
    assert json.loads(instructions(stages, target, "CMD")[-1])[0] == "serve"
    assert instructions(stages, target, "EXPOSE") == ["8000"]
    (check,) = instructions(stages, target, "HEALTHCHECK")
    assert "healthcheck.py" in check


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_an_image_holds_the_environment_and_nothing_that_built_it(stages, target):
    copied = instructions(stages, target, "COPY")
    assert copied == [f"--from={target}-environment /opt/foreframe /opt/foreframe"]
    assert any("pip uninstall" in step for step in instructions(stages, target, "RUN"))
    assert all(name in set(setting_names()) for name in environment_of(stages, target) if name.startswith("FOREFRAME_"))


def test_everything_is_installed_by_its_hash(stages):
    installs = [
        step for name in stages for step in instructions(stages, name, "RUN") if "pip" in step and " install " in step
    ]
    assert len(installs) >= 5
    for step in installs:
        assert "--require-hashes --only-binary :all:" in step or "--no-deps --no-index" in step, step


def test_nothing_is_fetched_or_unpacked_beside_that(root):
    text = (root / "Dockerfile").read_text()
    assert not re.search(r"^ADD|curl|wget|git clone|apt-get|chmod 777|--privileged", text, re.MULTILINE)


def test_bases_are_named_once_so_that_a_digest_can_be_given(root, stages):
    text = (root / "Dockerfile").read_text()
    assert re.findall(r"^ARG (\w+)=(\S+)$", text, re.MULTILINE) == [("PYTHON_IMAGE", "python:3.11-slim")]
    assert {base for base, _ in stages.values()} <= {"${PYTHON_IMAGE}", *stages}


def test_the_context_lets_through_what_is_copied_and_nothing_else(root, stages):
    lines = (root / ".dockerignore").read_text().splitlines()
    allowed = {line[1:] for line in lines if line.startswith("!")}
    assert "*" in lines
    copied = {
        source
        for name in stages
        for text in instructions(stages, name, "COPY")
        if "--from" not in text
        for source in text.split()[:-1]
    }
    assert {source for source in copied if not any(source.startswith(name) for name in allowed)} == set()
    assert not allowed & {".git", ".", "deploy", "deploy/compose", "tests"}


def may_execute(python):
    """Whether the image's user can run an interpreter that lies on this machine, libraries and all."""
    told = "import ensurepip, pip, sys, venv; assert sys.version_info >= (3, 11); print(sys.version, sys.base_prefix)"
    runs = [
        subprocess.run([*prefix, python, "-c", told], capture_output=True, check=False, cwd="/")
        for prefix in ([], as_user())
    ]
    return runs[0].returncode == 0 and runs[0].stdout == runs[1].stdout


def as_user():
    """What drops to the image's user, with no capability left and none to gain."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        return []
    identity = ["--reuid", str(UID), "--regid", str(UID), "--clear-groups"]
    return ["setpriv", *identity, "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]


@pytest.fixture(scope="module")
def interpreter():
    """A Python that the image's user can run, as the base image has one."""
    candidates = [sys._base_executable, "/usr/local/bin/python3", "/usr/bin/python3"]
    found = next((path for path in candidates if Path(path).exists() and may_execute(path)), None)
    return found or pytest.skip("no Python with pip here can be run by another user")


class Scratch:
    """A folder in the place of an image."""

    def __init__(self, folder, root, interpreter):
        self.folder, self.root = folder, root
        (folder / "bin").mkdir()
        (folder / "bin" / "python").symlink_to(interpreter)
        (folder / "build").mkdir()

    def moved(self, text):
        for prefix in _PREFIXES:
            text = re.sub(rf"(?<![\w/.-]){prefix}(?=[/\s]|$)", f"{self.folder}{prefix}", text)
        return text

    def build(self, steps):
        """Take the steps of a stage."""
        for word, rest in steps:
            if word == "COPY" and "--from" not in rest:
                *sources, target = self.moved(rest).split()
                for source in sources:
                    self._copy(self.root / source, self.folder / "build" / target, is_into=target.endswith("/"))
            elif word == "RUN":
                self._run(self.moved(rest))

    def _copy(self, source, target, *, is_into):
        target = target / source.name if is_into else target
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "*.engines"))
        else:
            shutil.copy(source, target)

    def _run(self, step):
        path = f"{self.folder / 'bin'}:/usr/local/bin:/usr/bin:/bin"
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        done = subprocess.run(
            ["/bin/sh", "-ec", step],
            cwd=self.folder / "build",
            # Byte code takes as long as everything else, and nothing here lives long enough to gain from it.
            env={**environment, "PATH": path, "PIP_ROOT_USER_ACTION": "ignore", "PIP_COMPILE": "0"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode and _OFFLINE.search(done.stdout + done.stderr):
            pytest.skip("what is locked cannot be downloaded here")
        assert done.returncode == 0, f"{step}\n{done.stdout}{done.stderr}"


@pytest.fixture(scope="module")
def scratch(stages, root, interpreter):
    """The steps of the stages `wheel` and `cpu-environment`, taken."""
    # Not below pytest's own folder, which only its user may enter.
    with tempfile.TemporaryDirectory(prefix="foreframe-image-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        scratch = Scratch(folder, root, interpreter)
        scratch.build(stages["wheel"][1])
        scratch.build(stages["cpu-environment"][1])
        (folder / "tmp").mkdir()
        (folder / "tmp").chmod(0o1777)
        yield scratch


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


def read_only_root(folder):
    """What mounts the root read-only for one process, but for one small tmpfs; empty where that is not allowed."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return []
    mounts = (
        'mount -o remount,bind,ro / && mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && '
        'mount -t tmpfs -o size=64m,mode=1777 none "$0/tmp" && cd "$0/tmp" && exec "$@"'
    )
    command = ["unshare", "--mount", "--propagation", "private", "/bin/sh", "-ec", mounts, str(folder)]
    works = subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0
    return command if works else []


@pytest.fixture(scope="module")
def served(scratch, stages):
    """The image's command, with the image's environment, as its user, in a root it cannot write to."""
    ports = {"FOREFRAME_HTTP__PORT": str(free_port()), "FOREFRAME_HTTP__ADMIN_PORT": str(free_port())}
    given = {key: scratch.moved(value) for key, value in environment_of(stages, "cpu").items()}
    hosts = {"FOREFRAME_HTTP__HOST": "127.0.0.1", "FOREFRAME_HTTP__ADMIN_HOST": "127.0.0.1"}
    environment = {**given, **hosts, **ports, "OMP_NUM_THREADS": "1"}
    program = scratch.moved(json.loads(instructions(stages, "cpu", "ENTRYPOINT")[-1])[0])
    command = [program, *json.loads(instructions(stages, "cpu", "CMD")[-1])]
    with running(
        [*read_only_root(scratch.folder), *as_user(), *command], environment, scratch.folder / "tmp"
    ) as process:
        yield process, environment


@contextlib.contextmanager
def running(command, environment, folder):
    log = Path(f"{folder}.log")
    with log.open("wb") as lines:
        process = subprocess.Popen(
            command, env=environment, cwd=folder, stdout=subprocess.PIPE, stderr=lines, text=True
        )
    try:
        announced = "".join(
            itertools.takewhile(lambda line: line != "}\n", process.stdout)
        )  # one object, over several lines
        assert '"address"' in announced, log.read_text()
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=40)
        process.kill()
        process.stdout.close()
        process.wait()


def check_health(scratch, stages, environment):
    """Run the image's own health check."""
    (text,) = instructions(stages, "cpu", "HEALTHCHECK")
    command = [scratch.moved(word) for word in json.loads(text.partition("CMD")[2])]
    return subprocess.run([*as_user(), *command], env=environment, check=False).returncode


def test_the_steps_of_the_image_make_a_server_that_its_health_check_finds_well(scratch, stages, served):
    _, environment = served
    assert check_health(scratch, stages, environment) == 0
    elsewhere = str(free_port())
    assert check_health(scratch, stages, {**environment, "FOREFRAME_HTTP__ADMIN_PORT": elsewhere}) == 1


def test_the_server_of_the_image_answers_on_its_port(served):
    _, environment = served
    connection = http.client.HTTPConnection("127.0.0.1", int(environment["FOREFRAME_HTTP__PORT"]), timeout=10)
    connection.request("GET", "/readyz")
    assert connection.getresponse().status == 200
    connection.close()


def status_of(process):
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def test_the_server_runs_as_that_user_without_any_capability(served):
    process, _ = served
    if os.geteuid() != 0:
        pytest.skip("only root can start another user's process")
    status = status_of(process)
    assert status["Uid"].split() == [str(UID)] * 4
    assert status["NoNewPrivs"] == "1"
    assert {status[name] for name in ("CapEff", "CapPrm", "CapInh", "CapBnd")} == {"0" * 16}


def test_the_server_can_write_nowhere_but_into_its_scratch_space(served, scratch):
    process, _ = served
    if not read_only_root(scratch.folder):
        pytest.skip("mounting is not allowed here")
    mounts = [line.split() for line in Path(f"/proc/{process.pid}/mountinfo").read_text().splitlines()]
    options = {fields[4]: fields[5].split(",") for fields in mounts}
    assert "ro" in options["/"]
    assert "ro" in options[str(scratch.folder)]
    assert "rw" in options[f"{scratch.folder}/tmp"]
    assert list((Path(f"/proc/{process.pid}/root") / str(scratch.folder)[1:] / "tmp").iterdir()) == []


def test_the_environment_is_not_its_users_and_holds_no_installer(scratch):
    environment = scratch.folder / "opt" / "foreframe"
    if os.geteuid() == 0:
        assert {path.lstat().st_uid for path in environment.rglob("*")} == {0}
    assert [path for path in environment.rglob("*") if not path.is_symlink() and path.stat().st_mode & 0o022] == []
    assert not list(environment.glob("bin/pip*"))
    assert not list(environment.glob("lib/python*/site-packages/torch"))


def open_sockets(process):
    """Ports that a process listens on, with their addresses."""
    inodes = set()
    for descriptor in Path(f"/proc/{process.pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            inodes.update(re.findall(r"socket:\[(\d+)\]", str(descriptor.readlink())))
    rows = [line.split() for line in Path(f"/proc/{process.pid}/net/tcp").read_text().splitlines()[1:]]
    return {int(row[1].split(":")[1], 16): row[1].split(":")[0] for row in rows if row[3] == "0A" and row[9] in inodes}


def test_only_the_documented_ports_are_open(served):
    process, environment = served
    wanted = {int(environment[name]) for name in ("FOREFRAME_HTTP__PORT", "FOREFRAME_HTTP__ADMIN_PORT")}
    listening = open_sockets(process)
    assert listening.keys() == wanted
    assert set(listening.values()) == {"0100007F"}


def test_stopping_the_container_ends_the_server_in_order(scratch, stages, served):
    process, environment = served
    process.send_signal(signal.SIGTERM)
    started = time.monotonic()
    assert process.wait(timeout=40) == 0
    assert time.monotonic() - started < 30
    assert check_health(scratch, stages, environment) == 1
