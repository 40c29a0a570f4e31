"""The models of one server: opened, tried, swapped and closed while calls run. It knows no wire.

A load has two phases. The new version is opened, warmed and asked its golden request beside the old one; if any of that
fails, the old one serves on. Then the new one answers what comes, and the old one ends what it has before it closes.
"""

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final

import structlog

from foreframe_engines import Bundle
from foreframe_engines.adapters import write_adapted
from foreframe_engines.errors import EngineError
from foreframe_server.errors import ModelFault, ServiceError, UnknownModel
from foreframe_server.golden_request import check_golden
from foreframe_server.hosting import HostedModel, ModelStarter
from foreframe_server.loaded_models import LoadedModels
from foreframe_server.metrics import Metrics
from foreframe_server.model_folder import ModelFolder, StoredModel
from foreframe_server.opening import OpenEngines
from foreframe_server.settings import EngineSettings, Settings

_POLL_S: Final = 0.02

_log = structlog.get_logger(__name__)


class ModelState(StrEnum):
    """How a model stands, in the words of Triton's index."""

    READY = "READY"
    LOADING = "LOADING"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """One model of the index.

    version: that is loaded. reason: why the last load failed, or why there is none. versions, adapters: of the folder.
    """

    name: str
    state: ModelState
    version: str | None = None
    adapter: str | None = None
    reason: str = ""
    versions: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()


@dataclass(slots=True, eq=False)
class _Serving:
    """A loaded version, and the folder that it was merged into, if it was."""

    model: HostedModel
    version: str
    adapter: str | None = None
    scratch: tempfile.TemporaryDirectory[str] | None = None


@dataclass(slots=True, eq=False)
class _Slot:
    """What one name stands for. is_wanted: the server is not ready without it. turn: one change at a time."""

    serving: _Serving | None = None
    is_wanted: bool = False
    activity: ModelState | None = None
    reason: str = ""
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


class ModelRepository:
    """Loads and unloads models by name. Only the event loop's thread may call."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        starter: ModelStarter,
        open_engines: OpenEngines,
        models: LoadedModels,
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._starter = starter
        self._open_engines = open_engines
        self._models = models
        self._folder = ModelFolder(settings.models.folder)
        self._slots: dict[str, _Slot] = {}
        self._digests: dict[str, str] = {}
        self._changes: set[asyncio.Future[ModelEntry]] = set()
        self._is_started = False

    @property
    def is_ready(self) -> bool:
        """Whether every model that is meant to be served is."""
        wanted = [slot for slot in self._slots.values() if slot.is_wanted]
        is_any = self._is_started and bool(wanted)
        return is_any and all(slot.serving is not None and slot.serving.model.is_ready for slot in wanted)

    async def start(self) -> None:
        """Load the settings' bundle and the folder's models; those that fail are logged and stay wanted.

        Raises what the settings' bundle raised, or the first of the folder when none could be loaded.
        """
        failures = []
        if self._settings.models.folder is None or self._settings.engine.bundle is not None:
            await self._load_own()
        for name in self._names_at_start():
            self._slot(name).is_wanted = True
            failures += await self._try(name)
        if failures and not self._models:
            raise failures[0]
        self._is_started = True

    async def load(self, name: str, version: str | None = None, adapter: str | None = None) -> ModelEntry:
        """Load a version, the newest by default, bare or with an adapter, in place of what is loaded.

        Goes on when the caller is cancelled. Raises UnknownModel, or ModelFault that says why the old one serves on.
        """
        return await self._change(self._load(name, version, adapter))

    async def unload(self, name: str) -> ModelEntry:
        """Let a model end what it has, then close it. Raises UnknownModel when it is not loaded."""
        if name not in self._slots or self._slots[name].serving is None:
            raise UnknownModel("No model of this name is loaded.")
        return await self._change(self._unload(name))

    async def index(self) -> list[ModelEntry]:
        """List what is loaded and what could be, by name."""
        stored = {model.name: model for model in await asyncio.to_thread(self._folder.scan)}
        return [self._entry(name, stored.get(name)) for name in sorted(stored.keys() | self._slots)]

    async def close(self, drain_s: float) -> None:
        """Let changes end that have begun, for as long as running calls may, then stop every model."""
        if self._changes:
            _, late = await asyncio.wait(self._changes, timeout=drain_s)
            for change in late:
                change.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        serving = [slot.serving for slot in self._slots.values() if slot.serving is not None]
        await asyncio.gather(*(self._stop(each, drain_s) for each in serving))

    def _names_at_start(self) -> list[str]:
        names = self._settings.models.load
        if names is not None:
            return list(names)
        stored = [model.name for model in self._folder.scan()]
        if self._settings.models.folder is not None and not stored:
            _log.warning("the folder of models holds no model yet", setting="FOREFRAME_MODELS__FOLDER")
        return stored

    async def _try(self, name: str) -> list[Exception]:
        try:
            await self.load(name)
        except ServiceError as error:
            _log.error("a model could not be loaded", model=name, reason=error.detail)
            return [error]
        except Exception as error:  # noqa: BLE001 - the border of a load: logged, and others are loaded
            _log.exception("a model could not be loaded", model=name)
            return [error]
        return []

    async def _load_own(self) -> None:
        """Open what the settings name by itself. Raises what opening raises."""
        model = await self._starter.open(self._open_engines, self._settings.engine)
        serving = _Serving(model, model.contract.revision)
        try:
            if model.folder is not None:
                await self._check_golden(model)
        except BaseException:
            await self._stop(serving, 0.0)
            raise
        self._switch(self._slot(model.contract.model), serving)

    async def _change(self, change: Awaitable[ModelEntry]) -> ModelEntry:
        task = asyncio.ensure_future(change)
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        return await asyncio.shield(task)

    async def _load(self, name: str, version: str | None, adapter: str | None) -> ModelEntry:
        stored = await asyncio.to_thread(self._folder.find, name)
        slot = self._slot(stored.name)
        async with self._changing(slot, ModelState.LOADING):
            try:
                serving = await self._open(stored, version or stored.newest, adapter)
            except Exception as error:
                slot.reason = error.detail if isinstance(error, ServiceError) else "The log says why."
                self._metrics.count_load("failed")
                raise
            before = self._switch(slot, serving)
            if before is not None:
                await self._retire(before)
        return self._entry(stored.name, stored)

    async def _open(self, stored: StoredModel, version: str, adapter: str | None) -> _Serving:
        """Open a version and try it. Raises UnknownModel, or ModelFault that says why it cannot serve."""
        path, scratch = stored.version_path(version), None
        adapter_path = None if adapter is None else stored.adapter_path(adapter)
        try:
            if adapter_path is not None:
                scratch = tempfile.TemporaryDirectory(prefix="foreframe-adapted-")
                path = await asyncio.to_thread(_merge, path, adapter_path, Path(scratch.name))
            model = await self._starter.open(self._open_engines, self._settings_of(path))
        except EngineError as error:
            _log.exception("a model could not be opened", model=stored.name, version=version, adapter=adapter)
            _clean(scratch)
            raise ModelFault(f"It could not be opened: {_without_paths(str(error), path, adapter_path)}") from error
        except BaseException:
            _clean(scratch)
            raise
        serving = _Serving(model, version, adapter, scratch)
        try:
            _check_names(model, stored.name, version, adapter)
            await self._check_golden(model)
        except BaseException:
            await self._stop(serving, 0.0)
            raise
        return serving

    def _settings_of(self, path: Path) -> EngineSettings:
        return self._settings.engine.model_copy(update={"bundle": path})

    async def _check_golden(self, model: HostedModel) -> None:
        """Raise ModelFault when a model does not answer as it did before, or twice alike."""
        known = self._digests.get(model.fingerprint)
        try:
            self._digests[model.fingerprint] = await check_golden(model, known)
        except EngineError as error:
            raise ModelFault("The digest of its golden request cannot be read.") from error

    def _switch(self, slot: _Slot, serving: _Serving) -> _Serving | None:
        """Let a version answer what comes from now on; returns the one that did."""
        before, slot.serving = slot.serving, serving
        slot.is_wanted, slot.reason = True, ""
        self._models.put(serving.model)
        contract = serving.model.contract
        self._metrics.describe_model(contract, serving.model.determinism)
        self._metrics.count_load("loaded")
        _log.info("loaded", model=contract.model, version=serving.version, adapter=serving.adapter)
        return before

    async def _unload(self, name: str) -> ModelEntry:
        slot = self._slots[name]
        async with self._changing(slot, ModelState.UNLOADING):
            self._models.remove(name)
            self._metrics.forget_model(name)
            serving, slot.serving, slot.is_wanted, slot.reason = slot.serving, None, False, "unloaded"
            if serving is not None:
                await self._retire(serving)
                self._metrics.count_load("unloaded")
        stored = {model.name: model for model in await asyncio.to_thread(self._folder.scan)}
        return self._entry(name, stored.get(name))

    async def _retire(self, serving: _Serving) -> None:
        """Stop a model once no call holds it, or when the time to drain is over."""
        until_s = time.monotonic() + self._settings.http.drain_s
        try:
            while self._models.num_users(serving.model) and time.monotonic() < until_s:  # noqa: ASYNC110 - let go by any thread
                await asyncio.sleep(_POLL_S)
        finally:  # it is in no slot any more: who gives up waiting still stops it
            await self._stop(serving, max(0.0, until_s - time.monotonic()))

    @staticmethod
    async def _stop(serving: _Serving, drain_s: float) -> None:
        await serving.model.stop(drain_s)
        _clean(serving.scratch)

    @contextlib.asynccontextmanager
    async def _changing(self, slot: _Slot, activity: ModelState) -> AsyncIterator[None]:
        async with slot.turn:
            slot.activity = activity
            try:
                yield
            finally:
                slot.activity = None

    def _slot(self, name: str) -> _Slot:
        return self._slots.setdefault(name, _Slot())

    def _entry(self, name: str, stored: StoredModel | None) -> ModelEntry:
        slot = self._slots.get(name, _Slot())
        serving = slot.serving
        is_ready = serving is not None and serving.model.is_ready
        return ModelEntry(
            name=name,
            state=slot.activity or (ModelState.READY if is_ready else ModelState.UNAVAILABLE),
            version=None if serving is None else serving.version,
            adapter=None if serving is None else serving.adapter,
            reason=slot.reason or ("" if serving is not None else "not loaded"),
            versions=() if stored is None else tuple(stored.versions),
            adapters=() if stored is None else tuple(stored.adapters),
        )


def _merge(bundle: Path, adapter: Path, folder: Path) -> Path:
    base = Bundle.open(bundle)
    write_adapted(base, adapter, folder, f"{base.contract.revision}-{adapter.stem}")
    return folder


def _check_names(model: HostedModel, name: str, version: str, adapter: str | None) -> None:
    """Refuse a bundle in a folder of another name: answers say what the contract says."""
    contract = model.contract
    revision = version if adapter is None else f"{version}-{adapter}"
    if (contract.model, contract.revision) != (name, revision):
        raise ModelFault(f"Its folder says {name} {revision}, its contract {contract.model} {contract.revision}.")


def _without_paths(message: str, bundle: Path, adapter: Path | None) -> str:
    message = message.replace(str(bundle), "the bundle")
    if adapter is not None:
        message = message.replace(str(adapter), "the adapter")
    return message


def _clean(scratch: tempfile.TemporaryDirectory[str] | None) -> None:
    if scratch is not None:
        scratch.cleanup()
