import sys

import numpy as np
import pytest

from foreframe_engines import ModelFault, RuntimeUnavailable
from foreframe_engines.runtime.cuda import CudaDevice
from foreframe_engines.testing_gpu import ToyGpu


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ToyGpu:
    toy = ToyGpu()
    for name, module in toy.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    return toy


def test_a_device_says_what_it_is(gpu: ToyGpu) -> None:
    device = CudaDevice()
    assert (device.architecture, device.driver, device.runtime) == ("sm90", "13.1", "13.0")
    assert device.free_bytes() == gpu.total_bytes


def test_arrays_go_up_and_come_back(gpu: ToyGpu) -> None:
    device, values = CudaDevice(), np.arange(12, dtype=np.float32).reshape(3, 4)
    pointer, found = device.allocate(values.nbytes, "a test"), np.empty_like(values)
    device.upload(pointer, values)
    device.download(found, pointer)
    device.synchronise()
    np.testing.assert_array_equal(found, values)
    device.free(pointer)
    assert gpu.used_bytes == 0
    device.close()


def test_too_little_memory_is_refused_with_numbers(gpu: ToyGpu) -> None:
    with pytest.raises(RuntimeUnavailable, match=r"a test needs about 2\.0 GiB on the GPU, 1\.0 GiB are free"):
        CudaDevice().allocate(2 * 2**30, "a test")


def test_a_call_that_fails_is_a_model_fault_with_the_status(gpu: ToyGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    device = CudaDevice()
    monkeypatch.setattr(device, "free_bytes", lambda: 2**40)
    with pytest.raises(ModelFault, match="cudaMalloc says cudaErrorMemoryAllocation"):
        device.allocate(2**31, "a test")


def test_a_device_that_is_not_there_is_refused(gpu: ToyGpu) -> None:
    with pytest.raises(RuntimeUnavailable, match="GPU 3 cannot be used: CUDA says cudaErrorNoDevice"):
        CudaDevice(3)


def test_a_missing_package_comes_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(RuntimeUnavailable, match="run `pip install cuda-bindings`"):
        CudaDevice()
