from dataclasses import replace

import pytest

from foreframe_engines.testing import toy_contract, toy_tokens
from foreframe_server.codec.counts import describe_counts
from foreframe_server.codec.observations import observation_frames
from foreframe_server.codec.tokens import context_frames, scaled, target_windows

SINGLE = toy_tokens()
WINDOWED = toy_tokens(window_frames=17, window_grids=3, max_grids=12)


@pytest.mark.parametrize(("tokens", "expected"), [(SINGLE, list(range(1, 16))), (WINDOWED, [17, 34, 51])])
def test_a_context_is_whole_windows_that_leave_room_for_one_more(tokens, expected):
    assert list(context_frames(tokens)) == expected


@pytest.mark.parametrize(
    ("tokens", "context", "expected"), [(SINGLE, 1, 15), (SINGLE, 15, 1), (WINDOWED, 17, 3), (WINDOWED, 51, 1)]
)
def test_context_and_target_fill_the_model_s_length_and_no_more(tokens, context, expected):
    windows = target_windows(tokens, context)

    assert list(windows) == list(range(1, expected + 1))
    num_grids = (context // tokens.window_frames + windows[-1]) * tokens.window_grids
    assert num_grids <= tokens.max_grids < num_grids + tokens.window_grids


@pytest.mark.parametrize(
    ("contract", "expected"),
    [
        (toy_contract(), [4]),
        (toy_contract(tokens=SINGLE), list(range(4, 16))),
        (replace(toy_contract(tokens=SINGLE), capabilities=("likelihood",)), list(range(1, 16))),
        (toy_contract(tokens=WINDOWED), [17, 34, 51]),
        (toy_contract(tokens=toy_tokens(window_frames=3)), list(range(6, 46, 3))),
    ],
)
def test_an_upload_suits_every_model_of_the_contract(contract, expected):
    assert list(observation_frames(contract)) == expected


@pytest.mark.parametrize(
    ("counts", "words"), [(range(4, 5), "4"), (range(1, 16), "1 to 15"), (range(17, 52, 17), "17, 34, 51")]
)
def test_counts_in_words(counts, words):
    assert describe_counts(counts) == words


def test_scaled_counts_are_every_count_times_the_size():
    assert list(scaled(range(1, 4), 17)) == [17, 34, 51]
