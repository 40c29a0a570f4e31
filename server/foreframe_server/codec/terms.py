"""Objectives and constraints from the wire: what each kind needs to know, and whether a model can tell it."""

from collections.abc import Mapping
from dataclasses import dataclass

from foreframe_engines import Contract, EnsembleSpec
from foreframe_server.codec.observation import read_still
from foreframe_server.codec.states import read_state
from foreframe_server.errors import CapabilityMissing, InvalidRequest, Reason
from foreframe_server.schemas import CameraClip, Encoding
from foreframe_server.score_schemas import GoalPicture, TermParams, TermRequest
from foreframe_server.scores import (
    GoalImage,
    GoalMetric,
    GoalState,
    Likelihood,
    Smoothness,
    Spread,
    Term,
    TermKind,
    needs_rollout,
    needs_tokens,
)
from foreframe_server.state_layout import AS_THE_SCHEMA, StateLayout

_MIN_SMOOTH_ROWS = 2
_PARAMS: Mapping[TermKind, frozenset[str]] = {
    TermKind.GOAL_IMAGE: frozenset({"image", "metric", "frame"}),
    TermKind.GOAL_STATE: frozenset({"values", "dims"}),
}


@dataclass(frozen=True, slots=True)
class TermReader:
    """Reads terms about candidates of `horizon` rows, for a contract and an ensemble.

    layout: how the request's states are written.
    """

    contract: Contract
    ensemble: EnsembleSpec
    horizon: int
    layout: StateLayout = AS_THE_SCHEMA

    def read(self, asked: TermRequest, pointer: str) -> Term:
        """Read one term. Raises InvalidRequest and its kin, or CapabilityMissing, with a pointer."""
        _check_params(asked, pointer)
        term = self._read(asked, pointer)
        if needs_rollout(term) and "predict" not in self.contract.capabilities:
            raise _missing(pointer, "the model does not predict frames")
        if needs_tokens(term) and self.contract.tokens is None:
            raise _missing(pointer, "the model has no likelihoods")
        return term

    def _read(self, asked: TermRequest, pointer: str) -> Term:
        match asked.kind:
            case TermKind.GOAL_IMAGE:
                return self._read_goal_image(asked.params, f"{pointer}/params")
            case TermKind.GOAL_STATE:
                return self._read_goal_state(asked.params, f"{pointer}/params")
            case TermKind.LIKELIHOOD:
                return Likelihood()
            case TermKind.SPREAD:
                return self._read_spread(pointer)
            case TermKind.SMOOTHNESS:
                return self._read_smoothness(pointer)

    def _read_goal_image(self, params: TermParams, pointer: str) -> GoalImage:
        if params.image is None:
            raise refusal(f"{pointer}/image", "is missing")
        frame = self.horizon if params.frame is None else params.frame
        if frame > self.horizon:
            raise refusal(f"{pointer}/frame", "lies beyond the candidates' rows", f"1..{self.horizon}", f"{frame:.3g}")
        image = params.image
        picture = read_still(image.data, _clip_of(image), self.contract.camera, f"{pointer}/image")
        return GoalImage(picture, params.metric or GoalMetric.PIXEL, frame)

    def _read_goal_state(self, params: TermParams, pointer: str) -> GoalState:
        if params.values is None:
            raise refusal(f"{pointer}/values", "is missing")
        values = read_state(params.values, f"{pointer}/values", self.contract.state, self.layout)
        return GoalState(values, self._read_dims(params.dims, f"{pointer}/dims"))

    def _read_dims(self, dims: list[int | str] | None, pointer: str) -> tuple[int, ...]:
        schema = self.contract.state
        if dims is None:
            return tuple(range(schema.dim))
        places = {name: index for index, name in enumerate(schema.names)}
        chosen = [places.get(dim, -1) if isinstance(dim, str) else self._place(dim) for dim in dims]
        for position, index in enumerate(chosen):
            if index not in range(schema.dim):
                expected = f"0..{schema.dim - 1}, or a name of the state schema"
                raise refusal(f"{pointer}/{position}", "is no dimension of the state", expected)
            if index in chosen[:position]:
                raise refusal(f"{pointer}/{position}", "names a dimension twice", "each once")
        return tuple(chosen)

    def _place(self, column: int) -> int:
        """Return which number of the schema stands in a column of the request's rows; -1 for no column."""
        return self.layout.dimension(column) if column in range(self.contract.state.dim) else -1

    def _read_spread(self, pointer: str) -> Spread:
        if self.ensemble.size < 2:
            raise refusal(f"{pointer}/kind", "spread needs an ensemble", "ensemble.size of at least 2", "1")
        return Spread()

    def _read_smoothness(self, pointer: str) -> Smoothness:
        if self.horizon < _MIN_SMOOTH_ROWS:
            expected = f"at least {_MIN_SMOOTH_ROWS} rows a candidate"
            raise refusal(f"{pointer}/kind", "smoothness needs more rows", expected, f"{self.horizon}")
        return Smoothness()


def refusal(pointer: str, message: str, expected: str | None = None, received: str | None = None) -> InvalidRequest:
    """Make the error of one field that a scoring cannot use."""
    reason = Reason(pointer, message, expected, received)
    return InvalidRequest("The candidates cannot be scored as asked.", reasons=[reason])


def _missing(pointer: str, message: str) -> CapabilityMissing:
    return CapabilityMissing("The model does not offer this term.", reasons=[Reason(f"{pointer}/kind", message)])


def _check_params(asked: TermRequest, pointer: str) -> None:
    foreign = asked.params.model_fields_set - _PARAMS.get(asked.kind, frozenset())
    if foreign:
        name = min(foreign)
        expected = ", ".join(sorted(_PARAMS.get(asked.kind, ()))) or "no parameters"
        raise refusal(f"{pointer}/params/{name}", f"is not a parameter of {asked.kind}", expected)


def _clip_of(image: GoalPicture) -> CameraClip:
    encoding = None if image.encoding is None else Encoding(image.encoding)
    return CameraClip(encoding=encoding, width=image.width, height=image.height)
