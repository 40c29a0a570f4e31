import subprocess
import sys

import pytest

import foreframe_engines

RUNTIMES = ("torch", "onnxruntime", "tensorrt")


def loaded_runtimes(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*(name for name in {RUNTIMES} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("module", ["foreframe_engines", "foreframe_engines.testing", "foreframe_engines.runtime.ort"])
def test_importing_the_package_loads_no_runtime(module: str) -> None:
    assert loaded_runtimes(f"import {module}") == set()


def test_a_runtime_that_is_loaded_would_be_seen() -> None:
    assert loaded_runtimes("import onnxruntime") >= {"onnxruntime"}


def test_public_names_exist_and_stand_once() -> None:
    assert len(set(foreframe_engines.__all__)) == len(foreframe_engines.__all__)
    assert all(hasattr(foreframe_engines, name) for name in foreframe_engines.__all__)
