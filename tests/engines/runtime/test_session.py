import pytest

from foreframe_engines import BundleError
from foreframe_engines.runtime.session import TensorSpec, require_tensors

SPEC = TensorSpec("x", "float32", (None, 4, 3))


@pytest.mark.parametrize("shape", [(None, 4, 3), (2, 4, 3), (None, None, None)])
def test_axes_of_free_length_fit_any_length(shape: tuple[int | None, ...]) -> None:
    assert SPEC.fits(TensorSpec("other", "float32", shape))
    assert TensorSpec("other", "float32", shape).fits(SPEC)


@pytest.mark.parametrize(
    "other",
    [
        TensorSpec("x", "uint8", (None, 4, 3)),
        TensorSpec("x", "float32", (4, 3)),
        TensorSpec("x", "float32", (None, 5, 3)),
    ],
)
def test_another_dtype_rank_or_length_does_not_fit(other: TensorSpec) -> None:
    assert not SPEC.fits(other)


def test_tensors_are_found_by_name_among_others() -> None:
    require_tensors("the graph's input", [SPEC], [TensorSpec("y", "bool", ()), TensorSpec("x", "float32", (2, 4, 3))])


@pytest.mark.parametrize("actual", [[], [TensorSpec("y", "float32", (2, 4, 3))], [TensorSpec("x", "int64", (2, 4, 3))]])
def test_a_tensor_that_is_missing_or_another_is_refused_by_name(actual: list[TensorSpec]) -> None:
    with pytest.raises(BundleError, match=r"the graph's input 'x' is not float32 \[None, 4, 3\]"):
        require_tensors("the graph's input", [SPEC], actual)
