import sys
from types import ModuleType

import pytest

from foreframe_engines import RuntimeUnavailable
from foreframe_engines.runtime.tensorrt_library import LIBRARIES, TensorRtLibrary, find_library
from foreframe_engines.testing_gpu import ToyGpu

MODULES = ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings")


def test_a_missing_library_comes_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in MODULES:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(RuntimeUnavailable, match=r"tensorrt or tensorrt-rtx is not installed; run `pip install"):
        find_library()


def test_a_library_whose_shared_files_are_missing_counts_as_missing(monkeypatch, tmp_path) -> None:
    (tmp_path / "tensorrt.py").write_text("raise OSError('libnvinfer.so.11: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    with pytest.raises(RuntimeUnavailable, match="tensorrt is not installed"):
        find_library(("tensorrt",))


@pytest.mark.parametrize("module", ["tensorrt_rtx", "tensorrt_rtx_bindings"])
def test_either_name_of_the_small_library_is_found(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    for name in MODULES:
        monkeypatch.setitem(sys.modules, name, None)
    found = ModuleType(module)
    monkeypatch.setitem(sys.modules, module, found)
    library = find_library()
    assert library.name == "tensorrt-rtx"
    assert library.module is found


def test_the_library_of_data_centres_is_preferred(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, module in ToyGpu().modules("tensorrt", "11.4").items():
        monkeypatch.setitem(sys.modules, name, module)
    library = find_library(LIBRARIES)
    assert (library.name, library.version, library.is_portable) == ("tensorrt", "11.4", False)
    assert library.architectures == ()
    library.require_architecture("sm90")  # it builds for the GPU that is here, whatever that is


def test_architectures_are_those_of_the_real_library(rtx: TensorRtLibrary) -> None:
    assert rtx.is_portable
    assert {"sm80", "sm89", "sm120"} <= set(rtx.architectures)
    rtx.require_architecture("sm89")
    with pytest.raises(RuntimeUnavailable, match=r"TensorRT-RTX [\d.]+ builds for sm75, .*, not sm90"):
        rtx.require_architecture("sm90")


def test_the_log_keeps_what_went_wrong_in_one_line(rtx: TensorRtLibrary) -> None:
    log = rtx.open_log()
    severity = rtx.module.ILogger.Severity
    for level, message in ((severity.ERROR, "it\n  broke"), (severity.WARNING, "it creaks")):
        log.sink.log(level, message)
    assert log.last_error() == "it broke"
    assert rtx.open_log().last_error() == ""
