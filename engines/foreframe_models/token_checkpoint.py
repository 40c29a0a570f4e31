"""A token model on disk, as training leaves it and as a user may bring it: a folder of three files, no pickle.

`model.json` holds the architecture under the key `likelihood`, `model.safetensors` (or shards with an index) its
tensors by name in any floating point type, `stats.json` what the training states were.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from foreframe_engines.contract_json import StateStatistics, statistics_from_json, statistics_to_json
from foreframe_engines.errors import CheckpointError
from foreframe_models.checkpoint_files import StoredTensor, find_tensors
from foreframe_models.config_json import MODEL_FILE, ModelConfig, config_from_json, config_to_json
from foreframe_models.st_transformer import StTransformer
from foreframe_models.weights import WEIGHTS

STATISTICS_FILE = "stats.json"


@dataclass(frozen=True, slots=True, eq=False)
class TokenCheckpoint:
    """A trained token model and what its training states were."""

    model: StTransformer
    statistics: StateStatistics

    def save(self, folder: Path) -> None:
        """Write the folder's three files; weights keep their precision."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: part.cpu().contiguous() for name, part in self.model.state_dict().items()}, folder / WEIGHTS)
        (folder / MODEL_FILE).write_text(config_to_json(ModelConfig(likelihood=self.model.config)), encoding="utf-8")
        (folder / STATISTICS_FILE).write_text(statistics_to_json(self.statistics), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "TokenCheckpoint":
        """Read the three files. Raises BundleError naming the file, key or tensor that is wrong."""
        model = load_token_model(folder)
        statistics = statistics_from_json(_read_text(folder / STATISTICS_FILE))
        if len(statistics.mean) != model.config.state.num_states:
            raise CheckpointError(
                f"{folder / STATISTICS_FILE} is of {len(statistics.mean)} states, "
                f"the model takes {model.config.state.num_states}"
            )
        return cls(model, statistics)


def load_token_model(folder: Path, prefix: str = "") -> StTransformer:
    """Load a model from `model.json` and the tensors whose names begin with a prefix, in evaluation mode and float32.

    Raises BundleError naming the file, key or tensor that is wrong.
    """
    config = config_from_json(_read_text(folder / MODEL_FILE)).likelihood
    if config is None:
        raise CheckpointError(f"{folder / MODEL_FILE}: likelihood: there is no such model")
    with torch.device("meta"):
        model = StTransformer(config)
    stored = {name.removeprefix(prefix): part for name, part in find_tensors(folder).items() if name.startswith(prefix)}
    _check_tensors(model, stored, folder)
    model.load_state_dict({name: part.read(torch.float32) for name, part in stored.items()}, assign=True)
    return model.eval()


def _check_tensors(model: StTransformer, stored: Mapping[str, StoredTensor], folder: Path) -> None:
    shapes = {name: tuple(part.shape) for name, part in model.state_dict().items()}
    if missing := sorted(shapes.keys() - stored.keys()):
        raise CheckpointError(f"{folder}: tensor {missing[0]!r} is missing")
    if extra := sorted(stored.keys() - shapes.keys()):
        raise CheckpointError(f"{folder}: tensor {extra[0]!r} is not part of the model")
    for name, part in stored.items():
        if part.shape != shapes[name]:
            raise CheckpointError(f"{part.path}: tensor {name!r} is {part.shape}, the model's is {shapes[name]}")


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing") from error
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
