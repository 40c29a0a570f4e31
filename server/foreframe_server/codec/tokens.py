"""Ids of tokens from the wire, and how many frames and grids a likelihood may hold. Knows the token contract only."""

import numpy as np
from jaxtyping import Int64

from foreframe_engines.types import TokenSpec
from foreframe_server.codec.counts import describe_counts
from foreframe_server.errors import InvalidRequest, Reason

_MAX_REPORTED = 8
_IDS_DTYPES = ("int32", "int64")


def context_frames(tokens: TokenSpec) -> range:
    """How many frames a context may have: whole windows that leave room for one more."""
    return scaled(range(1, tokens.max_grids // tokens.window_grids), tokens.window_frames)


def target_windows(tokens: TokenSpec, num_context_frames: int) -> range:
    """How many windows may follow a context."""
    num_windows = tokens.max_grids // tokens.window_grids
    return range(1, num_windows - num_context_frames // tokens.window_frames + 1)


def scaled(counts: range, size: int) -> range:
    """Return the range of every count times a size."""
    return range(counts.start * size, counts.stop * size, size)


def read_ids(values: object, pointer: str, tokens: TokenSpec, num_grids: range) -> Int64[np.ndarray, "g s"]:
    """Return grids of ids, whose number must lie in `num_grids`.

    Raises InvalidRequest with a pointer to each wrong id.
    """
    if isinstance(values, np.ndarray):
        ids = _check_array(values, pointer, tokens, num_grids)
    else:
        ids = np.array(_check_list(values, pointer, tokens, num_grids), np.int64)
    wrong = np.argwhere((ids < 0) | (ids >= tokens.vocabulary))
    if len(wrong):
        expected = f"0 to {tokens.vocabulary - 1}"
        reasons = [
            Reason(f"{pointer}/{grid}/{place}", "lies outside the vocabulary", expected, _side(ids[grid, place]))
            for grid, place in wrong[:_MAX_REPORTED]
        ]
        raise InvalidRequest(f"{len(wrong)} ids lie outside the vocabulary.", reasons=reasons)
    return ids


def _side(value: np.int64) -> str:
    return "a negative number" if value < 0 else "a larger number"


def _check_array(values: np.ndarray, pointer: str, tokens: TokenSpec, num_grids: range) -> Int64[np.ndarray, "g s"]:
    if values.dtype.name not in _IDS_DTYPES:
        raise _refusal(pointer, "the array's dtype is wrong", " or ".join(_IDS_DTYPES), values.dtype.name)
    if values.ndim != 2 or values.shape[1] != tokens.tokens or len(values) not in num_grids:
        received = "an array of shape " + " x ".join(str(size) for size in values.shape)
        raise _wrong_shape(pointer, tokens, num_grids, received)
    return values.astype(np.int64)


def _check_list(values: object, pointer: str, tokens: TokenSpec, num_grids: range) -> list[list[int]]:
    if not isinstance(values, list) or len(values) not in num_grids:
        received = f"{len(values)} grids" if isinstance(values, list) else "no grids"
        raise _wrong_shape(pointer, tokens, num_grids, received)
    return [_check_grid(grid, f"{pointer}/{index}", tokens, num_grids) for index, grid in enumerate(values)]


def _check_grid(grid: object, pointer: str, tokens: TokenSpec, num_grids: range) -> list[int]:
    if not isinstance(grid, list) or len(grid) != tokens.tokens:
        received = f"a grid of {len(grid)} ids" if isinstance(grid, list) else "no grid of ids"
        raise _wrong_shape(pointer, tokens, num_grids, received)
    for index, value in enumerate(grid):
        if type(value) is not int or not -(2**63) <= value < 2**63:
            raise _refusal(f"{pointer}/{index}", "is not an id", f"a whole number, 0 to {tokens.vocabulary - 1}")
    return grid


def _wrong_shape(pointer: str, tokens: TokenSpec, num_grids: range, received: str) -> InvalidRequest:
    expected = f"{describe_counts(num_grids)} grids of {tokens.tokens} ids"
    return _refusal(pointer, "the ids have the wrong shape", expected, received)


def _refusal(pointer: str, message: str, expected: str, received: str | None = None) -> InvalidRequest:
    return InvalidRequest("The ids cannot be used.", reasons=[Reason(pointer, message, expected, received)])
