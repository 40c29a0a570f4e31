import pytest

from foreframe_engines.runtime.session import TensorSpec

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
