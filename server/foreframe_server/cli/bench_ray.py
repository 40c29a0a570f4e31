"""`foreframe bench ray`: how much more two replicas answer than one, where forwards sleep and no core is needed."""

import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import count

import numpy as np

from foreframe_client import Client
from foreframe_server.cli.faults import Fault
from foreframe_server.load.findings import Bar, over
from foreframe_server.ray.local_cluster import ClusterFailed, LocalCluster, configure, local_cluster
from foreframe_server.reports.report import Report
from foreframe_server.reports.samples import Samples

OPENER = "foreframe_server.load.sleeper:open_sleeper"
_ASKERS = 8
_STEPS = 4
_WARM_UP_S = 2.0
_POLL_S = 0.1
_GAIN = 1.7
_SHARE = 0.75


@dataclass(frozen=True, slots=True)
class Scaling:
    """Answers a second of one replica and of two, and seconds of one ensemble of 8 that had them to itself.

    one_by_second, two_by_second: the answers of every whole second.
    """

    one_per_s: float
    two_per_s: float
    ensemble_one_s: float
    ensemble_two_s: float
    is_equal: bool
    one_by_second: tuple[int, ...]
    two_by_second: tuple[int, ...]

    @property
    def ratio(self) -> float:
        """How many times as much two answer."""
        return self.two_per_s / self.one_per_s


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    load: "_Load"
    ensemble_s: float
    answer: bytes


@dataclass(frozen=True, slots=True)
class _Load:
    per_s: float
    by_second: tuple[int, ...]


def run_ray(duration_s: float) -> Report:
    """Measure on a cluster of this machine alone. Raises Fault where it does not start."""
    try:
        with local_cluster() as cluster:
            scaling = measure_scaling(cluster, duration_s)
    except ClusterFailed as error:
        raise Fault(str(error)) from error
    return report_scaling(scaling, duration_s)


def report_scaling(scaling: Scaling, duration_s: float) -> Report:
    """Write it as a report, which says nothing when one replica and two answer otherwise."""
    bars = [
        Bar("answers a second, two replicas / one", round(scaling.ratio, 4), at_least=_GAIN),
        Bar("an ensemble's time, two replicas / one", over(scaling.ensemble_two_s, scaling.ensemble_one_s), _SHARE),
    ]
    samples = [
        Samples(f"answers a second, {name}", "1/s", "higher", tuple(map(float, by_second)))
        for name, by_second in (("one replica", scaling.one_by_second), ("two replicas", scaling.two_by_second))
        if by_second
    ]
    found: Mapping[str, object] = {"bars": [asdict(bar) | {"is_met": bar.is_met} for bar in bars], **asdict(scaling)}
    faults = [] if scaling.is_equal else ["one replica and two answer the same question otherwise"]
    plan = {"duration_s": duration_s}
    return Report("bench ray", plan, {**found, "ratio": scaling.ratio}, samples, seeds=(0,), faults=faults)


def measure_scaling(cluster: LocalCluster, duration_s: float) -> Scaling:
    """Measure one replica, then two. Raises ClusterFailed."""
    with cluster.serving(configure(1, max_replicas=2, opener=OPENER)):
        one = _measure(cluster, 1, duration_s)
        cluster.apply(configure(2, max_replicas=2, opener=OPENER))
        two = _measure(cluster, 2, duration_s)
    return Scaling(
        one.load.per_s,
        two.load.per_s,
        one.ensemble_s,
        two.ensemble_s,
        one.answer == two.answer,
        one.load.by_second,
        two.load.by_second,
    )


def _measure(cluster: LocalCluster, num_replicas: int, duration_s: float) -> _Part:
    while len(cluster.replica_pids()) != num_replicas:
        time.sleep(_POLL_S)
    _saturate(cluster.address, _WARM_UP_S)  # until then the door has found every replica
    with Client(cluster.address) as client:
        started_s = time.monotonic()
        answer = _ask(client, 0, ensemble=8)
        ensemble_s = time.monotonic() - started_s
    return _Part(_saturate(cluster.address, duration_s), ensemble_s, answer)


def _saturate(address: str, duration_s: float) -> _Load:
    """Let askers ask one question after another, and count the answers."""
    started_s, seeds = time.monotonic(), count(1)
    until_s, lock = started_s + duration_s, threading.Lock()

    def keep_asking(_: int) -> list[float]:
        done_s = []
        with Client(address) as client:
            while time.monotonic() < until_s:
                with lock:
                    seed = next(seeds)
                _ask(client, seed, ensemble=2)
                done_s.append(time.monotonic() - started_s)
        return done_s

    with ThreadPoolExecutor(_ASKERS) as askers:
        done_s = [each for asker in askers.map(keep_asking, range(_ASKERS)) for each in asker]
    return _Load(len(done_s) / (time.monotonic() - started_s), _count_by_second(done_s, int(duration_s)))


def _count_by_second(done_s: Sequence[float], num_seconds: int) -> tuple[int, ...]:
    counts = Counter(map(int, done_s))
    return tuple(counts[second] for second in range(num_seconds))


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
