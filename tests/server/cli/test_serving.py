"""A server inside this process, and `serve` as a process of its own."""

import json
import shutil
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest

from foreframe_client import Client, ConnectionFailed, RetryPolicy
from foreframe_engines import BundleError, ModelFault, builtin_bundle, sample
from foreframe_engines.testing import ToyRolloutEngine
from foreframe_server.cli.faults import Fault
from foreframe_server.cli.overrides import read_overridden
from foreframe_server.cli.remote import connected, measure_latency, predict_over, read_facts
from foreframe_server.cli.serving import running_server
from foreframe_server.evaluation import clip_query, posterior_query
from foreframe_server.opening import given
from foreframe_server.settings import EngineSettings, ModelSettings, Settings


@pytest.fixture
def settings():
    return read_overridden(host="127.0.0.1", port=0)


@pytest.fixture
def address(settings):
    with running_server(settings, given(ToyRolloutEngine())) as address:
        yield address


def test_the_server_answers_inside_the_block_and_is_gone_after_it(settings):
    engine = ToyRolloutEngine()
    with running_server(settings, given(engine)) as address, Client(address) as client:
        assert client.ready()
    with Client(address, retry=RetryPolicy(max_retries=0)) as client, pytest.raises(ConnectionFailed):
        client.health()
    assert engine.is_closed


def test_predictions_over_http_are_those_of_the_engine(address, make_query):
    query = make_query(seed=5, size=4)
    with connected(address) as client:
        there = predict_over(client, query)
    here = sample(ToyRolloutEngine(), query)
    for name in ("frames", "members", "variance"):
        np.testing.assert_array_equal(getattr(there, name), getattr(here, name))
    np.testing.assert_allclose(there.spread_per_frame, here.spread_per_frame)


def test_facts_of_a_served_model_are_its_contract(address):
    contract = ToyRolloutEngine().contract
    with connected(address) as client:
        facts = read_facts(client)
    assert (facts.model, facts.num_frames, facts.state_dim) == (contract.model, 12, contract.state.dim)
    assert (facts.steps, facts.max_ensemble_size) == (contract.sampler.steps, contract.sampler.max_ensemble_size)


def test_latency_is_measured_past_the_cache(settings, toy_clip):
    engine = ToyRolloutEngine()
    with running_server(settings, given(engine)) as address, connected(address) as client:
        engine.step_rows.clear()
        latency = measure_latency(client, toy_clip, 4)
    assert sum(engine.step_rows) == 15 + 5 * 8 * 8
    assert latency.posterior_mean_p50 > 0
    assert latency.ensemble8_p50 > 0


def test_a_posterior_mean_has_one_member(address, toy_clip):
    contract = ToyRolloutEngine().contract
    with connected(address) as client:
        prediction = predict_over(client, posterior_query(contract, toy_clip))
    assert prediction.num_members == 1
    assert not prediction.variance.any()


def test_clips_with_large_seeds_are_accepted(address, toy_clip):
    with connected(address) as client:
        assert predict_over(client, clip_query(ToyRolloutEngine().contract, toy_clip)).frames.any()


def test_a_model_that_fails_at_the_start_is_a_fault(settings):
    def fail(rows):
        raise ModelFault("the device is gone")

    with (
        pytest.raises(Fault, match="could not be started"),
        running_server(settings, given(ToyRolloutEngine(step_hook=fail))),
    ):
        pytest.fail("it never answers")


@pytest.mark.parametrize("processes", [0, 1])
def test_a_bundle_that_cannot_be_opened_is_named_in_its_own_line(tmp_path, processes):
    settings = read_overridden(host="127.0.0.1", port=0, bundle=tmp_path, engine={"processes": processes})
    with pytest.raises(BundleError, match=r"manifest\.json"), running_server(settings):
        pytest.fail("it never answers")


def test_a_bundle_is_read_by_what_opens_the_model_and_by_nobody_else(tmp_path):
    settings = read_overridden(host="127.0.0.1", port=0, bundle=tmp_path / "never looked at")
    with running_server(settings, given(ToyRolloutEngine())) as address, Client(address) as client:
        assert client.ready()


def test_a_model_whose_folder_says_another_revision_is_named_in_its_own_line(tmp_path):
    shutil.copytree(builtin_bundle(), tmp_path / "eve-tabletop" / "never")
    settings = Settings(
        http={"port": 0}, models=ModelSettings(folder=tmp_path), engine=EngineSettings(processes=0, num_threads=1)
    )
    with (
        pytest.raises(Fault, match="folder says eve-tabletop never, its contract eve-tabletop"),
        running_server(settings),
    ):
        pytest.fail("it never answers")


def test_a_taken_port_is_a_fault_that_names_it():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        settings = read_overridden(host="127.0.0.1", port=port)
        with (
            pytest.raises(Fault, match=f"port {port}"),
            running_server(settings, given(ToyRolloutEngine())),
        ):
            pytest.fail("the port is taken")


def test_options_win_over_the_environment(monkeypatch):
    monkeypatch.setenv("FOREFRAME_HTTP__PORT", "1234")
    monkeypatch.setenv("FOREFRAME_HTTP__HOST", "::1")
    http = read_overridden(port=5678).http
    assert (http.host, http.port) == ("::1", 5678)


def test_serve_says_where_it_answers_and_stops_at_a_signal():
    command = [sys.executable, "-m", "foreframe_server", "serve", "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            lines = []
            while not lines or lines[-1] != "}\n":
                lines.append(process.stdout.readline())
                assert lines[-1], process.stderr.read()
            announced = json.loads("".join(lines))
            with Client(announced["address"]) as client:
                assert [model.id for model in client.models()] == [announced["model"]]
            process.send_signal(signal.SIGINT)
            rest, log = process.communicate(timeout=20)
        finally:
            process.kill()
    assert (process.returncode, rest) == (0, "")
    assert "Traceback" not in log
