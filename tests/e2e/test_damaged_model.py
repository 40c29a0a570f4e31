"""A model that is not what its manifest says is never served: one clear line, and an exit code."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from foreframe_engines import builtin_bundle, write_manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(builtin_bundle(), tmp_path / "model"))


def serve(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "foreframe_server", "serve", "--bundle", str(folder), "--port", "0"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def flip_one_byte(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_one_flipped_byte_of_the_weights_is_never_served(folder: Path) -> None:
    flip_one_byte(folder)
    done = serve(folder)
    assert done.returncode != 0
    assert "'model.safetensors' differs from the manifest" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_hostile_file_with_a_manifest_is_never_served(folder: Path) -> None:
    (folder / "tokenizer.jit").write_bytes(b"PK\3\4")
    write_manifest(folder)
    done = serve(folder)
    assert done.returncode != 0
    assert "'tokenizer.jit' is not a kind of file that a bundle has" in done.stderr
    assert "Traceback" not in done.stderr
