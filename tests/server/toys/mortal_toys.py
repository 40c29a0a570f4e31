"""Toy engines whose process seems to die: on chosen calls, or whenever a marked request is among the rows."""

import threading

import numpy as np

from foreframe_engines import EngineLost
from foreframe_engines.testing import ToyLikelihoodEngine, ToyRolloutEngine

POISON = 255


def has_poison(context):
    return bool((context == POISON).all())


class Fate:
    """Decides which calls end in a death; shared by engines of several devices."""

    def __init__(self):
        self.deaths = []
        self.doomed = set()
        self.unbegun = set()
        self.num_calls = 0
        self._lock = threading.Lock()

    def strike(self, kind, *, is_poisoned=False):
        with self._lock:
            number, self.num_calls = self.num_calls, self.num_calls + 1
            has_run = number not in self.unbegun
            if is_poisoned or number in self.doomed or not has_run:
                self.deaths.append(kind)
                raise EngineLost("the process died", has_run=has_run)


class MortalEngine(ToyRolloutEngine):
    """A toy whose calls fate may end. `deadly`: the kinds of calls in which a marked context kills."""

    def __init__(self, fate=None, *, deadly=("step",), **options):
        super().__init__(**options)
        self.fate = fate or Fate()
        self.deadly = deadly

    def encode(self, context):
        self.fate.strike("encode", is_poisoned="encode" in self.deadly and has_poison(context))
        return super().encode(context)

    def condition(self, context_latents, states):
        self.fate.strike("condition", is_poisoned=self._kills("condition", context_latents))
        return super().condition(context_latents, states)

    def initial_latents(self, conditioning, noise):
        self.fate.strike("draw", is_poisoned=self._kills("draw", conditioning.context_latents))
        return super().initial_latents(conditioning, noise)

    def step(self, rows):
        is_poisoned = any(self._kills("step", row.conditioning.context_latents) for row in rows)
        self.fate.strike("step", is_poisoned=is_poisoned)
        return super().step(rows)

    def denoise(self, previous, state, time, next_time):
        self.fate.strike("denoise", is_poisoned=self._kills("denoise", state))
        return super().denoise(previous, state, time, next_time)

    def decode(self, latents, frame_indices):
        self.fate.strike("decode", is_poisoned=any(self._kills("decode", each) for each in latents))
        return super().decode(latents, frame_indices)

    def _kills(self, kind, latents):
        return kind in self.deadly and bool((np.asarray(latents)[: self.contract.context_frames] == 1).all())


class MortalReader(ToyLikelihoodEngine):
    """A toy whose reads fate may end."""

    def __init__(self, fate, **options):
        super().__init__(**options)
        self.fate = fate

    def tokenize(self, frames):
        self.fate.strike("tokenize", is_poisoned=has_poison(frames))
        return super().tokenize(frames)

    def read(self, rows):
        self.fate.strike("read")
        return super().read(rows)
