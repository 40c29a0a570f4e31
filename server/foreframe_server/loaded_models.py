"""The models that answer, by name: which one a call gets, and which are still in use. It opens and closes none.

Any thread may call: bodies are read, and so models chosen, in the codec's threads.
"""

import threading
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Self

from foreframe_server.errors import InvalidRequest, NotReady, Reason, UnknownModel
from foreframe_server.hosting import Capability, HostedModel

_RETRY_AFTER_MS = 1000
_MAX_NAMES = 200


class LoadedModels:
    """What is loaded now. The first that was put in is the default."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._by_name: dict[str, HostedModel] = {}
        self._users: Counter[HostedModel] = Counter()

    def __len__(self) -> int:
        return len(self._by_name)

    @property
    def default(self) -> HostedModel | None:
        """What is served where nobody chooses; None before the first model is open."""
        with self._lock:
            return next(iter(self._by_name.values()), None)

    def every(self) -> list[HostedModel]:
        """List what is loaded, the default first."""
        with self._lock:
            return list(self._by_name.values())

    def put(self, model: HostedModel) -> HostedModel | None:
        """Let a model answer under its contract's name; returns the one that did before."""
        with self._lock:
            before = self._by_name.get(model.contract.model)
            self._by_name[model.contract.model] = model
            return before

    def remove(self, name: str) -> HostedModel | None:
        """Let a model answer nothing new, and return it."""
        with self._lock:
            return self._by_name.pop(name, None)

    def num_users(self, model: HostedModel) -> int:
        """How many calls hold a model."""
        with self._lock:
            return self._users[model]

    def loan(self) -> "Loan":
        """Begin a call that will hold the model that it gets."""
        return Loan(self._lock, self._users)

    def find(self, name: str) -> HostedModel:
        """Return a model by name. Raises NotReady before one is open, or UnknownModel."""
        with self._lock:
            self._check_any()
            if name not in self._by_name:
                reason = Reason("/model", "is not loaded", f"one of {', '.join(self._by_name)[:_MAX_NAMES]}")
                raise UnknownModel("No model of this name is loaded.", reasons=[reason])
            return self._by_name[name]

    def choose(self, capability: Capability | None) -> HostedModel:
        """Return the only model that can do something, or the default where none can.

        Raises NotReady before one is open, InvalidRequest where several can.
        """
        with self._lock:
            able = self._able(capability)
            if len(able) > 1:
                names = ", ".join(model.contract.model for model in able)
                reason = Reason("/model", "is missing, and several models could answer", f"one of {names[:_MAX_NAMES]}")
                raise InvalidRequest("The request does not say which model it is for.", reasons=[reason])
            return able[0] if able else self._first()

    def prefer(self, capability: Capability | None) -> HostedModel:
        """Return the first model that can do something, or the default where none can. Raises NotReady."""
        with self._lock:
            return next(iter(self._able(capability)), self._first())

    def find_session(self, session_id: str) -> HostedModel:
        """Return the model whose session this is, the first that predicts where nobody knows. Raises NotReady."""
        with self._lock:
            able = self._able("predict")
            holding = (model for model in able if model.sessions and model.sessions.store.peek(session_id))
            return next(holding, None) or self.prefer("predict")

    def _able(self, capability: Capability | None) -> list[HostedModel]:
        self._check_any()
        return [model for model in self._by_name.values() if model.can(capability)]

    def _first(self) -> HostedModel:
        self._check_any()
        return next(iter(self._by_name.values()))

    def _check_any(self) -> None:
        if not self._by_name:
            raise NotReady("The model is not open yet.", retry_after_ms=_RETRY_AFTER_MS)


class Loan:
    """One call's hold on the model that answers it, which is not closed before the hold ends."""

    def __init__(self, lock: threading.RLock, users: Counter[HostedModel]) -> None:
        self._lock = lock
        self._users = users
        self._model: HostedModel | None = None

    def take(self, find: Callable[[], HostedModel]) -> HostedModel:
        """Find a model and hold it, with no swap in between. Raises what `find` raises."""
        with self._lock:
            self.end()
            self._model = find()
            self._users[self._model] += 1
            return self._model

    def end(self) -> None:
        """Let go. Twice does nothing."""
        with self._lock:
            model, self._model = self._model, None
            if model is not None:
                self._users[model] -= 1
                if not self._users[model]:
                    del self._users[model]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()
