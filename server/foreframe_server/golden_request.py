"""The golden request: what every model is asked before it serves, and the digest of what it answers.

The inputs depend on the contract alone. On one machine a model that promises equal bytes has one digest, which a bundle
may bring in `golden.json`, by the machine's name.
"""

import asyncio
import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Float32, UInt8

from foreframe_engines import Contract, EnsembleSpec, Query, Sampling, Strategy
from foreframe_engines.bundle import read_bundle_file
from foreframe_engines.choice import name_machine
from foreframe_engines.strict_json import JsonRecord, parse_json
from foreframe_server.calls import Call
from foreframe_server.errors import ModelFault
from foreframe_server.hosting import HostedModel
from foreframe_server.likelihood_service import LikelihoodService
from foreframe_server.likelihoods import LikelihoodQuery, Scenario
from foreframe_server.metrics import Metrics
from foreframe_server.observations import StoredObservation

GOLDEN_FILE: Final = "golden.json"
_SEED: Final = 20251007
_UNPROMISED: Final = "tolerance"


async def check_golden(model: HostedModel, known: str | None = None) -> str:
    """Ask a model its golden request and return the digest of the answer.

    known: the digest that it had before on this machine. Raises ModelFault where the answer is another one, or another
    when it is asked again, and what a call raises.
    """
    digest = await ask_golden(model)
    if model.determinism == _UNPROMISED:
        return digest
    expected = known or await asyncio.to_thread(_read_golden, model.folder) or await ask_golden(model)
    if digest != expected:
        raise ModelFault("The model does not give the answer to its golden request that it should.")
    return digest


async def ask_golden(model: HostedModel) -> str:
    """Return the SHA-256 of a model's golden answers: pixels and nats. Raises what a call raises."""
    digest = hashlib.sha256()
    call = Call(request_id="golden", received_s=time.monotonic())
    # Past the services that count, cache and record what is asked: nobody asked this.
    if model.worker is not None:
        (frames,) = (await model.worker.submit(golden_query(model.contract), call)).members
        digest.update(frames.tobytes())
    if model.reader is not None:
        read = await LikelihoodService(model.reader, Metrics(), None).score(golden_reading(model.contract), call)
        digest.update(np.float64(read.nats.bits_total).tobytes())
    return digest.hexdigest()


def golden_query(contract: Contract) -> Query:
    """One evaluation of one member, and the last frame of the horizon."""
    clip = _draw_clip(contract, contract.context_frames + contract.horizon)
    return Query(
        model=contract.model,
        context=clip.frames[: contract.context_frames],
        states=clip.states,
        frame_indices=(contract.horizon,),
        sampling=Sampling(Strategy.POSTERIOR_MEAN, 1, _SEED, contract.sampler.guidance or 1.0),
        ensemble=EnsembleSpec(),
    )


def golden_reading(contract: Contract) -> LikelihoodQuery:
    """One window of frames, given the one before it."""
    if contract.tokens is None:
        raise RuntimeError("a model without tokens reads none")
    window = contract.tokens.window_frames
    clip = _draw_clip(contract, 2 * window)
    return LikelihoodQuery(
        observation=StoredObservation(clip.frames[:window], clip.states[:window]),
        target_states=clip.states[window:],
        target_ids=None,
        target_frames=clip.frames[window:],
        scenario=Scenario.TEACHER_FORCED,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Clip:
    frames: UInt8[np.ndarray, "t h w 3"]
    states: Float32[np.ndarray, "t n"]


def _draw_clip(contract: Contract, length: int) -> _Clip:
    rng = np.random.default_rng(_SEED)
    frames = rng.integers(0, 256, (length, contract.camera.height, contract.camera.width, 3), dtype=np.uint8)
    deviations = rng.standard_normal((length, contract.state.dim), dtype=np.float32)
    return _Clip(frames, contract.state.mean + contract.state.std * deviations)


def _read_golden(folder: Path | None) -> str | None:
    """Return the digest that a bundle brings for this machine, if it does. Raises BundleError."""
    content = None if folder is None else read_bundle_file(folder, GOLDEN_FILE)
    if content is None:
        return None
    record = JsonRecord(parse_json(bytes(content).decode(errors="replace"), GOLDEN_FILE), GOLDEN_FILE, ("digests",))
    digests = record.value("digests")
    digest = digests.get(name_machine()) if isinstance(digests, dict) else None
    return digest if isinstance(digest, str) else None
