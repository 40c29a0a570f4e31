"""A contract and its state statistics as JSON, and back. Knows no files.

Reading is strict: an unknown or missing key, another type or a contradiction raises BundleError naming the key.
"""

import hashlib
import json
import re
from dataclasses import asdict, astuple, dataclass

import numpy as np
from jaxtyping import Float32

from foreframe_engines.errors import BundleError
from foreframe_engines.solvers import Solver
from foreframe_engines.strict_json import JsonRecord, parse_json
from foreframe_engines.types import CameraSpec, Contract, SamplerSpec, StateSchema, TokenSpec

ALIGNMENT = "state row k belongs to frame k; a future row conditions the frame it belongs to"
CAPABILITIES = ("predict", "score", "likelihood", "session")

_CONTRACT_KEYS = (
    "model", "family", "revision", "description", "cameras", "context_frames", "horizon", "fps", "alignment", "state",
    "sampler", "latent_shape", "frames_per_latent", "capabilities", "buckets", "tokens", "graphs",
)  # fmt: skip
_STATE_KEYS = ("name", "names", "units", "statistics_sha256")
_CAMERA_KEYS = ("name", "height", "width")
_SAMPLER_KEYS = ("steps", "max_steps", "shift", "ensemble_size", "max_ensemble_size")
_OPTIONAL_SAMPLER_KEYS = ("solver", "guidance")
_TOKENS_KEYS = ("levels", "grid", "window_frames", "window_grids", "max_grids", "max_candidates")
_GRAPH_KEYS = ("encode", "condition", "step", "decode")
_OPTIONAL_GRAPH_KEYS = ("step_guided", "decode_tail")
_LIKELIHOOD_GRAPH_KEYS = ("tokenize", "detokenize", "frame_step", "top_k")
_STATISTICS_KEYS = ("mean", "std", "low", "high", "q01", "q99")
_ROLLOUT_KEYS = ("sampler", "latent_shape", "frames_per_latent")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

NO_SAMPLER = SamplerSpec(steps=1, max_steps=1, shift=1.0, ensemble_size=1, max_ensemble_size=1)
NO_LATENTS = (0, 0, 0)
"""What a contract holds for a model that predicts no frames; its file says null for both and `frames_per_latent`."""


@dataclass(frozen=True, slots=True, eq=False)
class StateStatistics:
    """What the training states were: mean, standard deviation, extremes and the 1 % and 99 % quantiles a dimension."""

    mean: Float32[np.ndarray, " d"]
    std: Float32[np.ndarray, " d"]
    low: Float32[np.ndarray, " d"]
    high: Float32[np.ndarray, " d"]
    q01: Float32[np.ndarray, " d"]
    q99: Float32[np.ndarray, " d"]


@dataclass(frozen=True, slots=True)
class GraphFiles:
    """The file names of a bundle's graphs: the rollout model's four, the likelihood model's four, or both.

    A rollout model may have two more: one step with guidance, and one that decodes the last latent's frames alone.
    """

    encode: str | None = None
    condition: str | None = None
    step: str | None = None
    decode: str | None = None
    tokenize: str | None = None
    detokenize: str | None = None
    frame_step: str | None = None
    top_k: str | None = None
    step_guided: str | None = None
    decode_tail: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ContractFile:
    """What `contract.json` says: the contract and the graphs that keep it."""

    contract: Contract
    graphs: GraphFiles


def statistics_to_json(statistics: StateStatistics) -> str:
    """Write statistics as the text of `stats.json`; float32 values come back exactly."""
    return _dump({key: getattr(statistics, key).tolist() for key in _STATISTICS_KEYS})


def statistics_from_json(text: str) -> StateStatistics:
    """Read the text of `stats.json`."""
    record = JsonRecord(parse_json(text, "stats.json"), "stats.json", _STATISTICS_KEYS)
    statistics = StateStatistics(**{key: np.array(record.numbers(key), np.float32) for key in _STATISTICS_KEYS})
    if len({len(values) for values in astuple(statistics)}) > 1:
        raise BundleError("stats.json: the lists differ in length")
    if not (statistics.std > 0).all():
        raise BundleError("stats.json: std: expected numbers above 0")
    ordered = np.stack([statistics.low, statistics.q01, statistics.q99, statistics.high])
    if not (np.diff(ordered, axis=0) >= 0).all():
        raise BundleError("stats.json: expected low <= q01 <= q99 <= high in every dimension")
    return statistics


def statistics_sha256(text: str) -> str:
    """Hash the text of `stats.json`; the contract holds this, so neither file can change alone."""
    return hashlib.sha256(text.encode()).hexdigest()


def contract_to_json(contract: Contract, graphs: GraphFiles, statistics_text: str) -> str:
    """Write a contract as the text of `contract.json`, bound to the text of its `stats.json`."""
    state, is_rollout = contract.state, "predict" in contract.capabilities
    return _dump(
        {
            "model": contract.model,
            "family": contract.family,
            "revision": contract.revision,
            "description": contract.description,
            "cameras": [asdict(camera) for camera in contract.cameras],
            "context_frames": contract.context_frames,
            "horizon": contract.horizon,
            "fps": contract.fps,
            "alignment": ALIGNMENT,
            "state": {
                "name": state.name,
                "names": state.names,
                "units": state.units,
                "statistics_sha256": statistics_sha256(statistics_text),
            },
            "sampler": _sampler_to_json(contract.sampler) if is_rollout else None,
            "latent_shape": contract.latent_shape if is_rollout else None,
            "frames_per_latent": contract.frames_per_latent if is_rollout else None,
            "capabilities": contract.capabilities,
            "buckets": contract.buckets,
            "tokens": None if contract.tokens is None else asdict(contract.tokens),
            "graphs": {name: file for name, file in asdict(graphs).items() if file is not None},
        }
    )


def contract_from_json(text: str, statistics_text: str) -> ContractFile:
    """Read the text of `contract.json` with that of the `stats.json` it is bound to."""
    record = JsonRecord(parse_json(text, "contract.json"), "contract.json", _CONTRACT_KEYS)
    if record.text("alignment") != ALIGNMENT:
        raise BundleError(f"{record.at('alignment')}: only {ALIGNMENT!r} is known")
    is_rollout = _is_rollout(record)
    contract = Contract(
        model=record.text("model"),
        family=record.text("family"),
        revision=_revision(record),
        description=record.text("description"),
        cameras=tuple(_camera(camera) for camera in record.records("cameras", _CAMERA_KEYS)),
        context_frames=record.count("context_frames"),
        horizon=record.count("horizon"),
        fps=_above_zero(record, "fps"),
        state=_state_schema(record.record("state", _STATE_KEYS), statistics_text),
        sampler=_sampler(record.record("sampler", _SAMPLER_KEYS, _OPTIONAL_SAMPLER_KEYS)) if is_rollout else NO_SAMPLER,
        latent_shape=_latent_shape(record) if is_rollout else NO_LATENTS,
        frames_per_latent=record.count("frames_per_latent") if is_rollout else 1,
        capabilities=_capabilities(record),
        buckets=_buckets(record),
        tokens=_tokens(record),
    )
    if ("likelihood" in contract.capabilities) != (contract.tokens is not None):
        raise BundleError(f"{record.at('capabilities')}: 'likelihood' is there exactly when tokens are")
    _check_latents(record, contract)
    graphs = _graphs(record, is_rollout=is_rollout, has_tokens=contract.tokens is not None)
    if (graphs.step_guided is None) != (contract.sampler.guidance is None):
        raise BundleError(f"{record.at('graphs')}: 'step_guided' is there exactly when the sampler has guidance")
    return ContractFile(contract, graphs)


def _check_latents(record: JsonRecord, contract: Contract) -> None:
    """Refuse frames that do not fill latents: the first is one frame, the others `frames_per_latent` each."""
    for key, frames in (("context_frames", contract.context_frames - 1), ("horizon", contract.horizon)):
        if frames % contract.frames_per_latent:
            raise BundleError(f"{record.at(key)}: the frames do not fill latents of {contract.frames_per_latent}")


def _is_rollout(record: JsonRecord) -> bool:
    """Tell whether the bundle predicts frames; one that only tells likelihoods has no sampler and no latents."""
    capabilities = _capabilities(record)
    if "predict" in capabilities:
        return True
    if "likelihood" not in capabilities:
        raise BundleError(f"{record.at('capabilities')}: neither 'predict' nor 'likelihood' is there")
    for key in _ROLLOUT_KEYS:
        if record.value(key) is not None:
            raise BundleError(f"{record.at(key)}: is there exactly when 'predict' is a capability")
    return False


def _revision(record: JsonRecord) -> str:
    revision = record.text("revision")
    if not _REVISION.fullmatch(revision):
        raise BundleError(f"{record.at('revision')}: expected 1 to 64 letters, digits, dots, dashes or underscores")
    return revision


def _camera(record: JsonRecord) -> CameraSpec:
    return CameraSpec(record.text("name"), record.count("height"), record.count("width"))


def _state_schema(record: JsonRecord, statistics_text: str) -> StateSchema:
    if record.text("statistics_sha256") != statistics_sha256(statistics_text):
        raise BundleError(
            f"{record.at('statistics_sha256')}: stats.json is another one than the contract was made with"
        )
    statistics = statistics_from_json(statistics_text)
    names, units = record.texts("names"), record.texts("units")
    if len(set(names)) < len(names):
        raise BundleError(f"{record.at('names')}: a name stands twice")
    if not len(names) == len(units) == len(statistics.mean):
        raise BundleError(f"{record.at('names')}: names, units and stats.json differ in length")
    return StateSchema(
        name=record.text("name"),
        names=names,
        units=units,
        mean=statistics.mean,
        std=statistics.std,
        low=statistics.low,
        high=statistics.high,
    )


def _sampler(record: JsonRecord) -> SamplerSpec:
    sampler = SamplerSpec(
        steps=record.count("steps"),
        max_steps=record.count("max_steps"),
        shift=_above_zero(record, "shift"),
        ensemble_size=record.count("ensemble_size"),
        max_ensemble_size=record.count("max_ensemble_size"),
        solver=_solver(record),
        guidance=record.number("guidance") if record.has("guidance") else None,
    )
    if sampler.steps > sampler.max_steps:
        raise BundleError(f"{record.at('steps')}: more than max_steps")
    if sampler.ensemble_size > sampler.max_ensemble_size:
        raise BundleError(f"{record.at('ensemble_size')}: more than max_ensemble_size")
    return sampler


def _sampler_to_json(sampler: SamplerSpec) -> dict[str, object]:
    """Leave out what says nothing, so that contracts of plain models do not change."""
    plain = {"solver": Solver.EULER, "guidance": None}
    return {key: value for key, value in asdict(sampler).items() if key not in plain or value != plain[key]}


def _solver(record: JsonRecord) -> Solver:
    if not record.has("solver"):
        return Solver.EULER
    name = record.text("solver")
    if name not in list(Solver):
        raise BundleError(f"{record.at('solver')}: expected one of {', '.join(Solver)}")
    return Solver(name)


def _latent_shape(record: JsonRecord) -> tuple[int, int, int]:
    shape = record.counts("latent_shape")
    if len(shape) != 3:
        raise BundleError(f"{record.at('latent_shape')}: expected three integers, c h w")
    return shape[0], shape[1], shape[2]


def _capabilities(record: JsonRecord) -> tuple[str, ...]:
    capabilities = record.texts("capabilities")
    if unknown := [name for name in capabilities if name not in CAPABILITIES]:
        raise BundleError(f"{record.at('capabilities')}: {unknown[0]!r} is unknown")
    return capabilities


def _buckets(record: JsonRecord) -> tuple[int, ...]:
    buckets = record.counts("buckets")
    if list(buckets) != sorted(set(buckets)):
        raise BundleError(f"{record.at('buckets')}: expected ascending batch sizes")
    return buckets


def _above_zero(record: JsonRecord, key: str) -> float:
    number = record.number(key)
    if number <= 0:
        raise BundleError(f"{record.at(key)}: expected a number above 0")
    return number


def _tokens(record: JsonRecord) -> TokenSpec | None:
    if record.value("tokens") is None:
        return None
    tokens = record.record("tokens", _TOKENS_KEYS)
    spec = TokenSpec(
        levels=tokens.counts("levels"),
        grid=_grid(tokens),
        window_frames=tokens.count("window_frames"),
        window_grids=tokens.count("window_grids"),
        max_grids=tokens.count("max_grids"),
        max_candidates=tokens.count("max_candidates"),
    )
    if sum(spec.frames_per_grid) != spec.window_frames or 0 in spec.frames_per_grid:
        raise BundleError(f"{tokens.at('window_grids')}: the frames of a window do not share them evenly")
    return spec


def _grid(record: JsonRecord) -> tuple[int, int]:
    grid = record.counts("grid")
    if len(grid) != 2:
        raise BundleError(f"{record.at('grid')}: expected two integers, rows and columns")
    return grid[0], grid[1]


def _graphs(record: JsonRecord, *, is_rollout: bool, has_tokens: bool) -> GraphFiles:
    keys = (*(_GRAPH_KEYS if is_rollout else ()), *(_LIKELIHOOD_GRAPH_KEYS if has_tokens else ()))
    graphs = record.record("graphs", keys, _OPTIONAL_GRAPH_KEYS if is_rollout else ())
    there = [*keys, *(key for key in _OPTIONAL_GRAPH_KEYS if graphs.has(key))]
    return GraphFiles(**{key: graphs.text(key) for key in there})


def _dump(record: dict[str, object]) -> str:
    return json.dumps(record, indent=2) + "\n"
