"""The shipped model over HTTP: one request's bytes, alone and among others."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import structlog

from foreframe_client import Client
from foreframe_engines import builtin_bundle
from foreframe_engines.episodes import load_clips
from foreframe_server.cli.overrides import read_private
from foreframe_server.cli.serving import running_server


def test_a_request_gets_the_same_bytes_alone_and_in_any_mix(monkeypatch):
    monkeypatch.setenv("FOREFRAME_SCHEDULER__MAX_ROWS", "16")
    monkeypatch.setattr(structlog, "configure", lambda **_: None)  # this process keeps its logging
    clips = load_clips(builtin_bundle() / "clips.npz")

    def ask(client, clip, seed, **options):
        arguments = (clip.frames[:4], clip.states[:4], clip.states[4:])
        return client.predict(*arguments, seed=seed, members=True, cache="bypass", **options)

    with running_server(read_private(None)) as address, Client(address) as client, ThreadPoolExecutor(8) as pool:
        alone = ask(client, clips[0], 7, ensemble=3, steps=3)
        mixed = [
            pool.submit(ask, client, clips[number], number, ensemble=1 + number % 4, steps=1 + number % 5)
            for number in range(1, 12)
        ]
        again = [pool.submit(ask, client, clips[0], 7, ensemble=3, steps=3) for _ in range(4)]
        answers = [call.result() for call in again]
        other_seed = ask(client, clips[0], 8, ensemble=3, steps=3)
        assert all(call.result().frames.shape == (8, 64, 64, 3) for call in mixed)

    assert max(answer.timings_ms["step_batch_mean"] for answer in answers) > 3  # they did share forwards
    for answer in answers:
        np.testing.assert_array_equal(answer.members, alone.members)
    assert not np.array_equal(other_seed.members, alone.members)
