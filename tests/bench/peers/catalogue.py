"""The servers that are compared: how each is started and asked, and what none of its settings could do."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from peers.wires import Wire, base64_json, kserve, native, raw

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[2]
ENVIRONMENTS = ROOT / ".venv" / "peers"
OURS = "foreframe"
_SYSTEM_PYTHON = "/usr/bin/python3"
_NO_DEADLINE = "a question has no deadline: late work is finished all the same"
_NO_PRIORITY = "no priorities: robots wait behind planners"
_NO_PREEMPTION = "a batch runs to its end: nothing enters or leaves between steps"


@dataclass(frozen=True, slots=True)
class StubWay:
    """One way to run the stub; of several the fastest stands for the server. wait_ms, max_batch: of its batching."""

    name: str
    max_batch: int = 1
    wait_ms: int = 0


@dataclass(frozen=True, slots=True)
class Peer:
    """One server. command: from its port to what is run. python: what makes its environment; None needs none."""

    name: str
    wire: Wire
    command: Callable[[int], list[str]]
    package: str | None = None
    python: str | None = sys.executable
    folder: Path = FOLDER
    environment: Mapping[str, str] = field(default_factory=dict)
    stub_command: Callable[[int], list[str]] | None = None
    stub_path: str = "/predict"
    stub_ways: tuple[StubWay, ...] = ()
    notes: tuple[str, ...] = ()
    is_appendix: bool = False

    @property
    def home(self) -> Path:
        """Where its environment is."""
        return ENVIRONMENTS / self.name

    @property
    def requirements(self) -> Path:
        """The file that pins what its environment holds."""
        return FOLDER / self.name / "requirements.txt"


def catalogue() -> list[Peer]:
    """List all servers; foreframe is the first."""
    return [_foreframe(), _fastapi(), _mosec(), _litserve(), _bentoml(), _pytriton(), _ray()]


def _foreframe() -> Peer:
    serve = [sys.executable, "-m", "foreframe_server", "serve", "--host", "127.0.0.1", "--port"]
    return Peer(
        OURS,
        native(),
        lambda port: [*serve, str(port)],
        python=None,
        stub_command=lambda port: [sys.executable, str(FOLDER / "foreframe" / "serve_stub.py"), str(port)],
        stub_ways=(StubWay("MessagePack"), StubWay("KServe v2 binary")),
    )


def _fastapi() -> Peer:
    return Peer(
        "fastapi",
        raw("/predict"),
        _script("fastapi"),
        package="fastapi",
        stub_command=_script("fastapi"),
        stub_ways=(StubWay("one at a time"),),
        notes=("batches nothing", _NO_DEADLINE, _NO_PRIORITY, "who hangs up is computed for all the same"),
    )


def _mosec() -> Peer:
    return Peer(
        "mosec",
        raw("/inference"),
        _script("mosec"),
        package="mosec",
        stub_command=_script("mosec"),
        stub_path="/inference",
        stub_ways=(StubWay("one at a time"), StubWay("batches of 4", 4, 1), StubWay("batches of 8", 8, 1)),
        notes=(f"{_NO_DEADLINE}; its one timeout would refuse planners", _NO_PRIORITY, _NO_PREEMPTION),
    )


def _litserve() -> Peer:
    return Peer(
        "litserve",
        base64_json("/predict"),
        _script("litserve"),
        package="litserve",
        notes=("reads no raw body", _NO_DEADLINE, _NO_PRIORITY, _NO_PREEMPTION),
    )


def _bentoml() -> Peer:
    program = str(ENVIRONMENTS / "bentoml" / "bin" / "bentoml")
    return Peer(
        "bentoml",
        raw("/predict"),
        lambda port: [program, "serve", "service:Front", "--host", "127.0.0.1", "--port", str(port)],
        package="bentoml",
        folder=FOLDER / "bentoml",
        environment={"BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": str(ENVIRONMENTS / "bentoml" / "home")},
        notes=("sheds by a latency that is the same for all questions of a route", _NO_PRIORITY, _NO_PREEMPTION),
    )


def _pytriton() -> Peer:
    return Peer(
        "pytriton",
        kserve("world"),
        _script("pytriton"),
        package="nvidia-pytriton",
        python=_SYSTEM_PYTHON,
        environment={"PYTRITON_HOME": str(ENVIRONMENTS / "pytriton" / "home")},
        notes=(
            "two priority levels are on: robots pass planners in the queue",
            "its timeout is of the queue alone: what runs is finished",
            _NO_PREEMPTION,
        ),
    )


def _ray() -> Peer:
    return Peer(
        "ray",
        raw("/predict"),
        _script("ray"),
        package="ray",
        environment={"RAY_USAGE_STATS_ENABLED": "0"},
        notes=(
            "its processes share two cores with the model",
            "its own services listen beyond 127.0.0.1",
            _NO_DEADLINE,
            _NO_PRIORITY,
            _NO_PREEMPTION,
        ),
        is_appendix=True,
    )


def _script(name: str) -> Callable[[int], list[str]]:
    return lambda _: [str(ENVIRONMENTS / name / "bin" / "python"), str(FOLDER / name / "serve.py")]
