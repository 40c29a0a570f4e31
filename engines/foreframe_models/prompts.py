"""The text prompt of a Wan model as a tensor: read from a file, or the empty text encoded by the model's own encoder.

Rows after the text's own are zero, as diffusers and DiffSynth-Studio pad them. Knows no tokenizer: an empty text is its
end mark alone.
"""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from foreframe_engines.errors import CheckpointError
from foreframe_models.checkpoint_files import read_header

PROMPT_FILE = "prompt.safetensors"
PROMPT_TENSOR = "prompt"
TEXT_ENCODER = "text_encoder"


def read_prompt(path: Path, length: int, text_dim: int) -> Tensor:
    """Read a prompt, float32 `1 length text_dim`, from a file. Raises CheckpointError when it holds something else."""
    tensors = read_header(path)
    found = {name: tensor.shape for name, tensor in tensors.items()}
    if found != {PROMPT_TENSOR: (length, text_dim)}:
        raise CheckpointError(f"{path} holds {found}; expected {PROMPT_TENSOR!r} of {length} rows of {text_dim}")
    return tensors[PROMPT_TENSOR].read(torch.float32)[None]


def write_prompt(path: Path, prompt: Tensor) -> None:
    """Write a prompt `1 l d`."""
    save_file({PROMPT_TENSOR: prompt[0].detach().float().contiguous()}, path)


@torch.no_grad()
def encode_empty_prompt(base: Path, length: int, text_dim: int) -> Tensor:
    """Encode the empty text, float32 `1 length text_dim`, by the text encoder in a pipeline's folder.

    Raises CheckpointError when it is missing or of another width. Takes its size in memory: 11 GB for UMT5-XXL.
    """
    if not (base / TEXT_ENCODER / "config.json").is_file():
        raise CheckpointError(f"{base} holds no {TEXT_ENCODER}; give the empty prompt's embedding as a file")
    from transformers import UMT5EncoderModel  # noqa: PLC0415 - takes seconds, and most runs never need it

    try:
        encoder = UMT5EncoderModel.from_pretrained(
            base, subfolder=TEXT_ENCODER, dtype=torch.bfloat16, local_files_only=True, use_safetensors=True
        )
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{base / TEXT_ENCODER} is not a whole text encoder: {error}") from error
    if encoder.config.d_model != text_dim:
        raise CheckpointError(f"{base / TEXT_ENCODER} has width {encoder.config.d_model}; the model takes {text_dim}")
    end_mark = torch.tensor([[encoder.config.eos_token_id]])
    prompt = torch.zeros(1, length, text_dim)
    prompt[0, 0] = encoder(end_mark).last_hidden_state[0, 0].float()
    return prompt
