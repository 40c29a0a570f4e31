"""One cluster of Ray for all tests."""

import sys
import warnings
from pathlib import Path

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what Ray does is not ours to change
    pytest.importorskip("ray.serve", reason="Ray Serve comes with the extra `ray`")

from foreframe_server.ray.local_cluster import local_cluster

sys.path.append(str(Path(__file__).parent))

IN_PROCESS = {"FOREFRAME_ENGINE__NUM_THREADS": "1", "FOREFRAME_ENGINE__PROCESSES": "0", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def cluster():
    with local_cluster(IN_PROCESS) as cluster:
        yield cluster
