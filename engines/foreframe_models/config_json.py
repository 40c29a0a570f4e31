"""A bundle's architecture as JSON, and back: the configurations of its two models. Knows no weights.

Reading is strict: an unknown key, another type, or a missing key without a default raises BundleError naming the key.
A field with a default may be absent, so that bundles stay readable when configurations grow.
"""

import json
from dataclasses import MISSING, Field, asdict, dataclass, fields, is_dataclass
from enum import StrEnum
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from foreframe_engines.errors import BundleError
from foreframe_engines.strict_json import Json, JsonRecord, parse_json
from foreframe_models.autoencoder import AutoencoderConfig
from foreframe_models.rollout import RolloutConfig
from foreframe_models.st_transformer import StConfig
from foreframe_models.tokenizer import TokenizerConfig
from foreframe_models.wan_vae import WanVaeConfig

MODEL_FILE = "model.json"

_Config = TypeVar("_Config")


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Everything that is needed to build a bundle's modules anew; None for what the bundle has not."""

    rollout: RolloutConfig | None = None
    autoencoder: AutoencoderConfig | None = None
    tokenizer: TokenizerConfig | None = None
    likelihood: StConfig | None = None
    wan_vae: WanVaeConfig | None = None


def config_to_json(config: ModelConfig) -> str:
    """Write the text of `model.json`."""
    return json.dumps(asdict(config), indent=2) + "\n"


def config_from_json(text: str) -> ModelConfig:
    """Read the text of `model.json`. Raises BundleError naming the key that is wrong."""
    return read_config(ModelConfig, text, MODEL_FILE)


def read_config(kind: type[_Config], text: str, where: str) -> _Config:
    """Read a dataclass of plain values from the text of a file named `where`. Raises BundleError naming the key."""
    return _read_config(kind, parse_json(text, where), where)


def _read_config(kind: Any, value: Json, where: str) -> Any:  # noqa: ANN401 - any dataclass of plain values
    hints = get_type_hints(kind)
    given = value if isinstance(value, dict) else ()
    names = [field.name for field in fields(kind) if field.name in given or not _has_default(field)]
    record = JsonRecord(value, where, names)
    return kind(**{name: _read_value(hints[name], record.value(name), record.at(name)) for name in names})


def _has_default(field: Field[Any]) -> bool:
    return field.default is not MISSING or field.default_factory is not MISSING


def _read_value(kind: Any, value: Json, where: str) -> object:  # noqa: ANN401 - a type or a generic alias
    if get_origin(kind) is UnionType:
        (kind,) = (each for each in get_args(kind) if each is not NoneType)
        return None if value is None else _read_value(kind, value, where)
    if get_origin(kind) is tuple:
        return _read_tuple(get_args(kind), value, where)
    if is_dataclass(kind):
        return _read_config(kind, value, where)
    if issubclass(kind, StrEnum):
        return _read_choice(kind, value, where)
    if type(value) is int and kind is float:
        return float(value)
    if type(value) is not kind:
        raise BundleError(f"{where}: expected {kind.__name__}")
    return value


def _read_tuple(kinds: tuple[Any, ...], value: Json, where: str) -> tuple[object, ...]:
    if not isinstance(value, list):
        raise BundleError(f"{where}: expected a list")
    if kinds[-1] is Ellipsis:
        kinds = kinds[:1] * len(value)
    if len(value) != len(kinds):
        raise BundleError(f"{where}: expected {len(kinds)} values")
    return tuple(_read_value(kind, item, where) for kind, item in zip(kinds, value, strict=True))


def _read_choice(kind: type[StrEnum], value: Json, where: str) -> StrEnum:
    if value not in list(kind):
        raise BundleError(f"{where}: expected one of {', '.join(kind)}")
    return kind(str(value))
