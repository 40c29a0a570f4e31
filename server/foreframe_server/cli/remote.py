"""A server's predictions by way of the real client."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import numpy as np

from foreframe_engines import Prediction, Query, Strategy
from foreframe_engines.episodes import Clip
from foreframe_server.cli.facts import ModelFacts
from foreframe_server.cli.faults import needs_client
from foreframe_server.evaluation import LatencyMeasures

if TYPE_CHECKING:
    from foreframe_client import Client
    from foreframe_client import Prediction as Reply

_POSTERIOR_REQUESTS = 15
_ENSEMBLE_REQUESTS = 5
_ENSEMBLE_SIZE = 8
_ENSEMBLE_STEPS = 8


@contextmanager
def connected(address: str, *, timeout_s: float = 60.0) -> "Iterator[Client]":
    """Open a client of a server for as long as the block runs. Raises Fault without the client's package."""
    with needs_client():
        from foreframe_client import Client
    with Client(address, timeout_s=timeout_s) as client:
        yield client


def predict_over(client: "Client", query: Query) -> Prediction:
    """Ask a server for a prediction, past its cache. Raises ForeframeError."""
    return prediction_of(query, ask_over(client, query))


def ask_over(client: "Client", query: Query) -> "Reply":
    """Ask a server for a prediction with its members, past its cache. Raises ForeframeError."""
    num_context = len(query.context)
    size, is_sample = query.ensemble.size, query.sampling.strategy is Strategy.SAMPLE
    return client.predict(
        query.context,
        query.states[:num_context],
        query.states[num_context:],
        model=query.model,
        frame_indices=query.frame_indices,
        ensemble=size,
        reducer=query.ensemble.reducer.value,
        noise=query.ensemble.noise.value,
        strategy=query.sampling.strategy.value,
        steps=query.sampling.steps if is_sample else None,
        seed=query.sampling.seed,
        guidance=query.sampling.guidance,
        tolerance=query.ensemble.tolerance,
        variance="map" if size > 1 else "none",
        members=True,
        cache="bypass",
    )


def prediction_of(query: Query, reply: "Reply") -> Prediction:
    """Read a server's answer to a query as what an engine would have given."""
    shape = reply.frames.shape[:3]
    return Prediction(
        frame_indices=query.frame_indices,
        frames=reply.frames,
        members=reply.frames[None] if reply.members is None else reply.members,
        variance=np.zeros(shape, np.float32) if reply.variance is None else reply.variance,
        spread_per_frame=(0.0,) * shape[0] if reply.spread_per_frame is None else tuple(reply.spread_per_frame),
        sampling=query.sampling,
        ensemble=query.ensemble,
    )


def read_facts(client: "Client") -> ModelFacts:
    """Ask a server about its model. Raises ForeframeError."""
    model = client.models()[0]
    names = {schema.name: schema.names for schema in client.state_schemas()}
    sampler = cast("Mapping[str, int]", model.document["sampler"])
    return ModelFacts(
        model=model.id,
        revision=model.revision,
        context_frames=model.context_frames,
        horizon=model.horizon,
        fps=model.fps,
        camera=model.cameras[0].name,
        height=model.cameras[0].height,
        width=model.cameras[0].width,
        state_names=names[model.state_schema],
        steps=sampler["steps"],
        max_steps=sampler["max_steps"],
        max_ensemble_size=sampler["max_ensemble_size"],
    )


def measure_latency(client: "Client", clip: Clip, num_context: int) -> LatencyMeasures:
    """Time whole requests for every frame of a clip's future, one after another, past the cache."""
    arguments = (clip.frames[:num_context], clip.states[:num_context], clip.states[num_context:])

    def ask_for_posterior_mean() -> object:
        return client.predict(*arguments, strategy="posterior_mean", variance="none", cache="bypass")

    def ask_for_ensemble() -> object:
        return client.predict(*arguments, ensemble=_ENSEMBLE_SIZE, steps=_ENSEMBLE_STEPS, cache="bypass")

    return LatencyMeasures(
        posterior_mean_p50=_median_ms(ask_for_posterior_mean, _POSTERIOR_REQUESTS),
        ensemble8_p50=_median_ms(ask_for_ensemble, _ENSEMBLE_REQUESTS),
    )


def _median_ms(ask: Callable[[], object], times: int) -> float:
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        ask()
        taken.append((time.perf_counter() - started) * 1000)
    return round(statistics.median(taken), 1)
