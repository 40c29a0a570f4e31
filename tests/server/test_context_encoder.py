import asyncio

import numpy as np
import pytest

from foreframe_engines import ModelFault as EngineFault
from foreframe_engines.testing import ToyLikelihoodEngine, ToyRolloutEngine, toy_contract
from foreframe_server.context_encoder import ContextEncoder
from foreframe_server.errors import DeadlineExceeded, ModelFault, NotReady
from foreframe_server.observations import StoredObservation


class BrokenEngine(ToyRolloutEngine):
    """A toy that cannot encode once it is told to."""

    is_broken = False

    def encode(self, context):
        if self.is_broken:
            raise EngineFault("planted")
        return super().encode(context)


def test_every_model_encodes_and_the_rollout_model_takes_the_last_frames(reading, make_clip, make_call):
    clip = make_clip(num_frames=6)

    async def scenario():
        async with reading() as running:
            encoder = ContextEncoder(running.engine.contract, running.core.worker, running.reader)
            return await encoder.encode(StoredObservation(clip.frames, clip.states), make_call())

    stored = asyncio.run(scenario())
    assert stored.models == ("rollout", "likelihood")
    assert np.array_equal(stored.latents, ToyRolloutEngine().encode(clip.frames[-4:]))
    assert stored.tokens.num_grids == 6
    assert np.array_equal(stored.tokens.last_ids, ToyLikelihoodEngine().tokenize(clip.frames)[-1])


def test_a_model_without_tokens_encodes_its_frames_alone(running, make_clip, make_call):
    clip = make_clip()

    async def scenario():
        async with running() as core:
            encoder = ContextEncoder(toy_contract(), core.worker, None)
            stored = await encoder.encode(StoredObservation(clip.frames, clip.states), make_call())
            with pytest.raises(DeadlineExceeded):
                await encoder.encode(stored, make_call(deadline_s=0.0))
        with pytest.raises(NotReady):
            await encoder.encode(stored, make_call())
        return stored

    assert asyncio.run(scenario()).models == ("rollout",)


def test_a_model_that_fails_is_a_model_fault(running, make_clip, make_call, logs):
    clip, engine = make_clip(), BrokenEngine()

    async def scenario():
        async with running(engine) as core:
            engine.is_broken = True
            with pytest.raises(ModelFault) as fault:
                await ContextEncoder(engine.contract, core.worker, None).encode(
                    StoredObservation(clip.frames, clip.states), make_call()
                )
            return fault.value

    assert "planted" not in asyncio.run(scenario()).detail
    assert "worker.engine_failed" in [entry["event"] for entry in logs]
