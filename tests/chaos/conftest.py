"""A proxy between a cache and its Redis, and servers of oracles as processes of their own."""

import pytest
from harness.proxy import FAULTS, HARMLESS, Proxy


@pytest.fixture(params=FAULTS)
def fault(request):
    return FAULTS[request.param]


@pytest.fixture(params=HARMLESS)
def harmless(request):
    return HARMLESS[request.param]


@pytest.fixture
def proxy_to(tmp_path):
    return lambda redis: Proxy(str(redis.socket), str(tmp_path / "proxy.sock"))
