"""What an opened model says of itself, as a message and back. Knows no process."""

from dataclasses import dataclass
from pathlib import Path

from foreframe_engines import Contract, GraphFiles, StateStatistics
from foreframe_engines.calibration import Calibration, calibration_from_json, calibration_to_json
from foreframe_engines.contract_json import contract_from_json, contract_to_json, statistics_to_json
from foreframe_engines.engine import LikelihoodEngine, RolloutEngine
from foreframe_server.opening import OpenedEngines
from foreframe_server.processes.messages import EngineNote, Hello

_ROLLOUT_GRAPHS = ("encode", "condition", "step", "decode")
_LIKELIHOOD_GRAPHS = ("tokenize", "detokenize", "frame_step", "top_k")


@dataclass(frozen=True, slots=True, eq=False)
class EngineFacts:
    """What an engine is, without the engine. noise_shape, num_lanes: of a rollout engine."""

    contract: Contract
    determinism: str
    noise_shape: tuple[int, int, int, int] | None
    num_lanes: int


def describe(opened: OpenedEngines) -> Hello:
    """Tell what was opened."""
    rollout = opened.rollout
    return Hello(
        fingerprint=opened.fingerprint,
        rollout=None if rollout is None else _note(rollout, rollout.noise_shape()),
        likelihood=None if opened.likelihood is None else _note(opened.likelihood, None),
        calibration=calibration_to_json(opened.calibration),
        folder=None if opened.folder is None else str(opened.folder),
    )


def read_facts(note: EngineNote) -> EngineFacts:
    """Read what an engine said. Raises BundleError when it contradicts itself."""
    contract = contract_from_json(note.contract, note.statistics).contract
    return EngineFacts(contract, note.determinism, note.noise_shape, note.num_lanes)


def read_calibration(hello: Hello) -> Calibration:
    """Read the calibration. Raises BundleError when it is none."""
    return calibration_from_json(hello.calibration)


def read_folder(hello: Hello) -> Path | None:
    """Read where the bundle lies."""
    return None if hello.folder is None else Path(hello.folder)


def _note(engine: RolloutEngine | LikelihoodEngine, noise_shape: tuple[int, int, int, int] | None) -> EngineNote:
    contract = engine.contract
    statistics = _statistics(contract)
    return EngineNote(
        contract=contract_to_json(contract, _graphs(contract), statistics),
        statistics=statistics,
        determinism=engine.determinism,
        noise_shape=noise_shape,
        num_lanes=engine.num_lanes if isinstance(engine, RolloutEngine) else 1,
    )


def _statistics(contract: Contract) -> str:
    """Write what a contract holds of its statistics; it holds no quantiles, and the extremes stand in for them."""
    state = contract.state
    return statistics_to_json(StateStatistics(state.mean, state.std, state.low, state.high, state.low, state.high))


def _graphs(contract: Contract) -> GraphFiles:
    """Name graphs as the contract's file must; nobody opens them on the other side."""
    rollout = _ROLLOUT_GRAPHS if "predict" in contract.capabilities else ()
    likelihood = () if contract.tokens is None else _LIKELIHOOD_GRAPHS
    guided = () if contract.sampler.guidance is None else ("step_guided",)
    return GraphFiles(**dict.fromkeys((*rollout, *likelihood, *guided), "-"))
