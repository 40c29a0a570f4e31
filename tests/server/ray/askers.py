"""Questions to the built-in model that every server must answer alike."""

import dataclasses

import numpy as np

from foreframe_client import Client, Objective

VOLATILE = ("id", "timings_ms")


class Asker:
    """Asks a server of the built-in model what every server must answer alike."""

    def __init__(self, address):
        self.client = Client(address, timeout_s=60)
        model = self.client.models()[0]
        (camera,) = model.cameras
        rng = np.random.default_rng(5)
        self.frames = rng.integers(0, 256, (model.context_frames, camera.height, camera.width, 3), np.uint8)
        self.states = rng.standard_normal((model.context_frames, model.state_dim)).astype(np.float32)
        self.plans = rng.standard_normal((6, model.horizon, model.state_dim)).astype(np.float32)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.client.close()

    def predict(self, seed, **options):
        asked = {"ensemble": 8, "steps": 2, "members": True, "cache": "bypass", **options}
        return tell(self.client.predict(self.frames, self.states, self.plans[0], seed=seed, **asked))

    def stream(self, seed):
        updates = self.client.predict_stream(
            self.frames, self.states, self.plans[0], seed=seed, ensemble=8, steps=2, members=True, cache="bypass"
        )
        return tell(list(updates)[-1])

    def score(self, seed):
        objectives = [Objective.goal_image(self.frames[-1]), Objective.likelihood(weight=0.5)]
        return tell(
            self.client.score(
                self.frames, self.states, self.plans, objectives=objectives, seed=seed, ensemble=2, steps=2
            )
        )

    def likelihood(self):
        return tell(self.client.likelihood(self.frames, self.states, self.frames, self.states))


def tell(value):
    """Write an answer down without what differs from call to call."""
    if dataclasses.is_dataclass(value):
        fields = [field.name for field in dataclasses.fields(value) if field.name not in VOLATILE]
        return {name: tell(getattr(value, name)) for name in fields}
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tobytes()
    return [tell(each) for each in value] if isinstance(value, tuple) else value
