"""A folder of toy models whose versions answer differently, or not as they should."""

import json
from dataclasses import replace

import numpy as np

from foreframe_engines.errors import BundleError
from foreframe_engines.testing import ToyRolloutEngine, toy_contract
from foreframe_server.opening import OpenedEngines
from foreframe_server.settings import EngineSettings, HttpSettings, ModelSettings, Settings


class RestlessToyEngine(ToyRolloutEngine):
    """A toy with a planted fault: it never answers twice alike. Golden requests must catch it."""

    def decode(self, latents, frame_indices):
        """Spread each latent over its block of pixels, in a brightness of the call's own."""
        return super().decode(latents, frame_indices) + np.uint8(self.calls["decode"])


class ShiftedToyEngine(ToyRolloutEngine):
    """A toy whose answers differ from other shifts' answers."""

    def __init__(self, contract, shift, **hooks):
        super().__init__(contract, **hooks)
        self._shift = np.float32(shift)

    def encode(self, context):
        """Average blocks of pixels, shifted."""
        return super().encode(context) + self._shift


class ToyFolder:
    """A folder of toy models, and what opens them: each version's answers are its shift's. `opened`: every engine."""

    def __init__(self, path):
        self.path = path
        self.opened = []
        self.step_hook = None

    def add(self, name, version, *, shift=0.0, fault="", size=8):
        """Write a version. fault: damaged, restless, nan, or misnamed."""
        folder = self.path / name / version
        folder.mkdir(parents=True, exist_ok=True)
        facts = {"name": name, "version": version, "shift": shift, "fault": fault, "size": size}
        (folder / "manifest.json").write_text(json.dumps(facts))
        return folder

    def settings(self, **models):
        """Settings of a server of this folder, whose engines run in its own process."""
        return Settings(
            engine=EngineSettings(processes=0),
            models=ModelSettings(folder=self.path, **models),
            http=HttpSettings(drain_s=5.0),
        )

    def open(self, settings):
        """Open the toy that lies where the settings' bundle does."""
        facts = json.loads((settings.bundle / "manifest.json").read_text())
        if facts["fault"] == "damaged":
            raise BundleError(f"{settings.bundle}: 'weights' differs from the manifest")
        name = "another" if facts["fault"] == "misnamed" else facts["name"]
        contract = replace(toy_contract(size=facts["size"]), model=name, revision=facts["version"])
        if facts["fault"] == "restless":
            engine = RestlessToyEngine(contract)
        else:
            shift = np.nan if facts["fault"] == "nan" else facts["shift"]
            engine = ShiftedToyEngine(contract, shift, step_hook=self.step_hook)
        self.opened.append(engine)
        return OpenedEngines(f"{name} {facts['version']} {facts['shift']}", engine)
