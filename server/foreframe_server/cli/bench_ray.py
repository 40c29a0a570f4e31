"""`foreframe bench ray`: how much more two replicas answer than one, where forwards sleep and no core is needed."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import count

import numpy as np

from foreframe_client import Client
from foreframe_server.cli.faults import Fault
from foreframe_server.ray.local_cluster import ClusterFailed, LocalCluster, configure, local_cluster

OPENER = "foreframe_server.load.sleeper:open_sleeper"
_ASKERS = 8
_STEPS = 4
_WARM_UP_S = 2.0
_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Scaling:
    """Answers a second of one replica and of two, and seconds of one ensemble of 8 that had them to itself."""

    one_per_s: float
    two_per_s: float
    ensemble_one_s: float
    ensemble_two_s: float
    is_equal: bool

    @property
    def ratio(self) -> float:
        """How many times as much two answer."""
        return self.two_per_s / self.one_per_s


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    per_s: float
    ensemble_s: float
    answer: bytes


def run_ray(duration_s: float) -> dict[str, float | bool]:
    """Measure on a cluster of this machine alone. Raises Fault where it does not start."""
    try:
        with local_cluster() as cluster:
            scaling = measure_scaling(cluster, duration_s)
    except ClusterFailed as error:
        raise Fault(str(error)) from error
    return {**asdict(scaling), "ratio": scaling.ratio}


def measure_scaling(cluster: LocalCluster, duration_s: float) -> Scaling:
    """Measure one replica, then two. Raises ClusterFailed."""
    with cluster.serving(configure(1, max_replicas=2, opener=OPENER)):
        one = _measure(cluster, 1, duration_s)
        cluster.apply(configure(2, max_replicas=2, opener=OPENER))
        two = _measure(cluster, 2, duration_s)
    return Scaling(one.per_s, two.per_s, one.ensemble_s, two.ensemble_s, one.answer == two.answer)


def _measure(cluster: LocalCluster, num_replicas: int, duration_s: float) -> _Part:
    while len(cluster.replica_pids()) != num_replicas:
        time.sleep(_POLL_S)
    _saturate(cluster.address, _WARM_UP_S)  # until then the door has found every replica
    with Client(cluster.address) as client:
        started_s = time.monotonic()
        answer = _ask(client, 0, ensemble=8)
        ensemble_s = time.monotonic() - started_s
    return _Part(_saturate(cluster.address, duration_s), ensemble_s, answer)


def _saturate(address: str, duration_s: float) -> float:
    """Let askers ask one question after another, and return the answers a second."""
    seeds, until_s = count(1), time.monotonic() + duration_s
    lock = threading.Lock()

    def keep_asking(_: int) -> int:
        num_answers = 0
        with Client(address) as client:
            while time.monotonic() < until_s:
                with lock:
                    seed = next(seeds)
                _ask(client, seed, ensemble=2)
                num_answers += 1
        return num_answers

    started_s = time.monotonic()
    with ThreadPoolExecutor(_ASKERS) as askers:
        num_answers = sum(askers.map(keep_asking, range(_ASKERS)))
    return num_answers / (time.monotonic() - started_s)


def _ask(client: Client, seed: int, *, ensemble: int) -> bytes:
    model = client.models()[0]
    (camera,) = model.cameras
    frames = np.zeros((model.context_frames, camera.height, camera.width, 3), np.uint8)
    states = np.zeros((model.context_frames, model.state_dim), np.float32)
    plan = np.zeros((model.horizon, model.state_dim), np.float32)
    prediction = client.predict(
        frames, states, plan, ensemble=ensemble, steps=_STEPS, seed=seed, members=True, cache="bypass"
    )
    members = np.zeros(0, np.uint8) if prediction.members is None else prediction.members
    return prediction.frames.tobytes() + members.tobytes()
