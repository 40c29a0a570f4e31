"""What a request costs by how it is written: measured for real, on a small scale."""

import json

import numpy as np
import pytest

from foreframe_server.cli.bench_wire import WirePlan, make_frames, run_wire
from foreframe_server.load.stub import StubEngine, stub_contract
from foreframe_server.load.wire_bodies import WIRE_FORMS, write_body
from foreframe_server.settings import HttpSettings, Settings


@pytest.fixture(scope="module")
def record():
    settings = Settings(http=HttpSettings(port=0))
    return run_wire(settings, WirePlan(frames=4, size=64, rounds=3, policy="use"))


def test_every_form_is_answered_and_timed(record):
    assert set(record["forms"]) == set(WIRE_FORMS)
    for measured in record["forms"].values():
        assert measured["client_p50_ms"] > record["engine_p50_ms"] > 0
        assert measured["added_p50_ms"] == pytest.approx(measured["client_p50_ms"] - record["engine_p50_ms"], abs=0.01)
        assert measured["server_cpu_p50_ms"] > 0
    json.dumps(record, allow_nan=False)


def test_bytes_are_those_of_the_frames_and_of_base64(record):
    num_bytes, forms = record["frames_bytes"], record["forms"]

    assert num_bytes == 4 * 64 * 64 * 3
    assert num_bytes < forms["multipart raw"]["body_bytes"] < num_bytes + 4096
    assert num_bytes < forms["msgpack raw"]["body_bytes"] < num_bytes + 4096
    assert forms["json base64 raw"]["body_bytes"] > num_bytes * 4 / 3


def test_bars_compare_the_worst_of_the_direct_forms(record):
    for name in ("server_cpu_ratio", "added_p50_ms"):
        worst = max(record["forms"][form][name] for form in ("msgpack raw", "multipart raw"))
        assert record[name]["value"] == pytest.approx(worst, abs=0.001)
        assert record[name]["is_met"] == (record[name]["value"] <= record[name]["at_most"])


def test_the_stub_depends_on_what_it_sees():
    engine = StubEngine(stub_contract(64, 4))
    frames = make_frames(4, 64)

    latents = engine.encode(frames)

    assert latents.shape == (4, 3, 2, 2)
    assert engine.decode([np.concatenate([latents, latents[-1:]])], [1]).shape == (1, 1, 64, 64, 3)
    assert (engine.encode(255 - frames) != latents).any()


def test_an_unknown_form_is_no_body():
    with pytest.raises(KeyError):
        write_body("pigeon", 0, contract=stub_contract(64, 4), frames=make_frames(4, 64), policy="use")
