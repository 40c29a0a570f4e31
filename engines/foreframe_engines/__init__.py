"""Engines that run robot world models, and the words they share with the server. Imports numpy only."""

from foreframe_engines.bundle import GRAPHS, Bundle, GraphName, builtin_bundle, write_contract, write_manifest
from foreframe_engines.contract_json import (
    GraphFiles,
    StateStatistics,
    contract_from_json,
    contract_to_json,
    statistics_from_json,
    statistics_to_json,
)
from foreframe_engines.engine import RolloutEngine
from foreframe_engines.ensemble import EnsembleStatistics, reduce_members, summarise
from foreframe_engines.errors import (
    BundleError,
    DatasetError,
    EngineError,
    ModelFault,
    RuntimeUnavailable,
    ShapeMismatch,
)
from foreframe_engines.noise import member_noise
from foreframe_engines.rollout import GraphRolloutEngine, open_rollout_engine
from foreframe_engines.sampling import sample
from foreframe_engines.schedule import get_schedule, num_steps
from foreframe_engines.types import (
    CameraSpec,
    Conditioning,
    Contract,
    EnsembleSpec,
    NoisePlan,
    OnDeadline,
    Prediction,
    Priority,
    Query,
    Reducer,
    SamplerSpec,
    Sampling,
    StateSchema,
    StepRow,
    Strategy,
)

__all__ = [
    "GRAPHS",
    "Bundle",
    "BundleError",
    "CameraSpec",
    "Conditioning",
    "Contract",
    "DatasetError",
    "EngineError",
    "EnsembleSpec",
    "EnsembleStatistics",
    "GraphFiles",
    "GraphName",
    "GraphRolloutEngine",
    "ModelFault",
    "NoisePlan",
    "OnDeadline",
    "Prediction",
    "Priority",
    "Query",
    "Reducer",
    "RolloutEngine",
    "RuntimeUnavailable",
    "SamplerSpec",
    "Sampling",
    "ShapeMismatch",
    "StateSchema",
    "StateStatistics",
    "StepRow",
    "Strategy",
    "builtin_bundle",
    "contract_from_json",
    "contract_to_json",
    "get_schedule",
    "member_noise",
    "num_steps",
    "open_rollout_engine",
    "reduce_members",
    "sample",
    "statistics_from_json",
    "statistics_to_json",
    "summarise",
    "write_contract",
    "write_manifest",
]
