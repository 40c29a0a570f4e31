"""The prompt: the empty text as diffusers pads it, and files that are not one."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import UMT5EncoderModel

from foreframe_engines.errors import CheckpointError
from foreframe_models.prompts import encode_empty_prompt, read_prompt, write_prompt
from foreframe_models.testing import write_toy_pipeline


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_pipeline(tmp_path_factory.mktemp("base"))


def test_the_empty_prompt_is_what_the_padded_and_masked_text_becomes(base: Path) -> None:
    encoder = UMT5EncoderModel.from_pretrained(base / "text_encoder", dtype=torch.bfloat16)
    ids, mask = torch.zeros(1, 16, dtype=torch.long), torch.zeros(1, 16, dtype=torch.long)
    ids[0, 0], mask[0, 0] = 1, 1  # the tokenizer ends every text with </s> and pads with 0
    with torch.no_grad():
        expected = encoder(ids, mask).last_hidden_state[0, 0].float()
    prompt = encode_empty_prompt(base, 16, 8)
    assert (prompt.shape, prompt.dtype) == ((1, 16, 8), torch.float32)
    torch.testing.assert_close(prompt[0, 0], expected, atol=1e-2, rtol=0)
    assert prompt[0, 0].abs().max() > 0.1
    assert not prompt[0, 1:].any()


def test_a_prompt_that_was_written_is_read_back(tmp_path: Path) -> None:
    prompt = torch.randn(1, 3, 8)
    write_prompt(tmp_path / "prompt.safetensors", prompt)
    assert torch.equal(read_prompt(tmp_path / "prompt.safetensors", 3, 8), prompt)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "prompt.safetensors"
    write_prompt(path, torch.zeros(1, 3, 8))
    with pytest.raises(CheckpointError, match=r"prompt\.safetensors holds .*\(3, 8\).*; expected 'prompt' of 512 rows"):
        read_prompt(path, 512, 4096)
    save_file({"other": torch.zeros(3, 8)}, path)
    with pytest.raises(CheckpointError, match="'other'"):
        read_prompt(path, 3, 8)
    with pytest.raises(CheckpointError, match="is a pickle"):
        read_prompt(tmp_path / "prompt.pt", 3, 8)


def test_a_base_without_a_fitting_text_encoder_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no text_encoder"):
        encode_empty_prompt(tmp_path, 16, 8)
    with pytest.raises(CheckpointError, match="has width 8; the model takes 4096"):
        encode_empty_prompt(base, 16, 4096)
    (tmp_path / "text_encoder").mkdir()
    (tmp_path / "text_encoder/config.json").write_bytes((base / "text_encoder/config.json").read_bytes())
    with pytest.raises(CheckpointError, match="not a whole text encoder"):
        encode_empty_prompt(tmp_path, 16, 8)
