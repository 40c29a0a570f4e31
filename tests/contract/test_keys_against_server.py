"""The real client with keys, against a real server: one exception for each way that a key may not do."""

import numpy as np
import pytest

from foreframe_client import Client, Forbidden, QuotaExceeded, RetryPolicy, Unauthorized
from foreframe_engines.testing import ToyRolloutEngine
from foreframe_server.cli.serving import running_server
from foreframe_server.key_file import write_key_file
from foreframe_server.keys import Quota, Scope, mint_key
from foreframe_server.opening import given
from foreframe_server.settings import HttpSettings, KeySettings, Settings

ROBOT = mint_key("robot", "acme", [Scope.PREDICT])
READER = mint_key("reader", "acme", [Scope.LIKELIHOOD])
POOR = mint_key("poor", "acme", [Scope.PREDICT], quota=Quota(0.001, 0.001))


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    write_key_file(path, [each.key for each in (ROBOT, READER, POOR)])
    settings = Settings(http=HttpSettings(port=0), keys=KeySettings(file=path))
    with running_server(settings, given(ToyRolloutEngine())) as address:
        yield address


def predict(address, key, seed=1):
    with Client(address, api_key=key, retry=RetryPolicy(max_retries=0)) as client:
        return client.predict(
            np.zeros((4, 8, 8, 3), np.uint8), np.zeros((4, 3), np.float32), np.zeros((8, 3), np.float32), seed=seed
        )


def test_a_robot_with_its_key_is_served(address, monkeypatch):
    assert predict(address, ROBOT.token).frames.shape[1:] == (8, 8, 3)
    monkeypatch.setenv("FOREFRAME_API_KEY", ROBOT.token)
    assert predict(address, None).frames.shape[1:] == (8, 8, 3)


@pytest.mark.parametrize("key", ["", "robot.wrong", ROBOT.token[:-1]], ids=["none", "wrong", "cut short"])
def test_without_a_right_key_it_is_not(address, key):
    with pytest.raises(Unauthorized):
        predict(address, key)


def test_scopes_and_quotas_have_their_exceptions(address):
    with pytest.raises(Forbidden):
        predict(address, READER.token)
    predict(address, POOR.token, seed=2)
    with pytest.raises(QuotaExceeded):
        predict(address, POOR.token, seed=3)
