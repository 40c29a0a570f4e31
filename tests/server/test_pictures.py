"""What stands on the pictures: every frame's own pixels, the heat of the variance, as many tiles as there are."""

import numpy as np
import pytest

from foreframe_engines.episodes import Clip
from foreframe_server.pictures import Drawing, HeatScale, contact_sheet, film, grey_levels, strip

CONTEXT, HORIZON, SIZE = 4, 8, 16
OUTLINE = (120, 225, 255)


def colour(index):
    """A colour that nothing else on a picture has."""
    return (3, 77, 100 + index)


def make_drawing(*, is_ensemble=True, has_mask=True):
    frames = np.zeros((CONTEXT + HORIZON, SIZE, SIZE, 3), np.uint8)
    for index, frame in enumerate(frames):
        frame[:] = colour(index)
    masks = np.zeros(frames.shape[:3], np.uint8)
    if has_mask:
        masks[:, 4:10, 4:10] = 1
    predicted = np.empty((HORIZON, SIZE, SIZE, 3), np.uint8)
    predicted[:] = colour(50)
    sample = np.empty_like(predicted)
    sample[:] = colour(60)
    variance = np.full(predicted.shape[:3], 0.01, np.float32)
    clip = Clip(8_000_000, 5, frames, np.zeros((CONTEXT + HORIZON, 3), np.float32), masks)
    if not is_ensemble:
        return Drawing(clip, "posterior mean", predicted)
    return Drawing(clip, "mean of 4", predicted, sample, variance)


def count(picture, wanted):
    return int((picture == np.array(wanted, np.uint8)).all(axis=-1).sum())


def test_a_variance_becomes_grey_levels():
    np.testing.assert_allclose(grey_levels(np.array([0, 1, 0.25], np.float32)), [0, 255, 127.5])


def test_heat_rises_with_the_variance_and_ends_at_the_top():
    levels = np.array([[0, 10, 20, 40, 80]], np.float32)
    painted = HeatScale(40.0).paint((levels / 255) ** 2)[0].astype(int)
    brightness = painted.sum(axis=-1)
    assert (np.diff(brightness[:4]) > 0).all()
    np.testing.assert_array_equal(painted[3], painted[4])


def test_the_scale_follows_what_is_there():
    drawing = make_drawing()
    assert HeatScale.over([drawing]).top == pytest.approx(25.5)
    assert HeatScale.over([make_drawing(is_ensemble=False)]).top > 0


def test_a_contact_sheet_shows_first_and_last_seen_then_the_last_frame_of_each_answer():
    sheet = contact_sheet([make_drawing()], fps=15.0, title="title", zoom=3)
    tile = (3 * SIZE) ** 2
    shown = {index: count(sheet, colour(index)) for index in range(CONTEXT + HORIZON)}
    assert {index for index, pixels in shown.items() if pixels} == {0, CONTEXT - 1, CONTEXT + HORIZON - 1}
    assert set(shown.values()) == {0, tile}
    assert count(sheet, colour(50)) == count(sheet, colour(60)) == tile


def test_a_contact_sheet_has_a_row_a_clip():
    heights = [len(contact_sheet([make_drawing()] * rows, fps=15.0, title="")) for rows in (1, 2, 3)]
    assert heights[1] - heights[0] == heights[2] - heights[1] > 3 * SIZE


def test_uncertain_objects_are_outlined_on_the_variance_map():
    with_mask = contact_sheet([make_drawing()], fps=15.0, title="", zoom=3)
    without = contact_sheet([make_drawing(has_mask=False)], fps=15.0, title="", zoom=3)
    assert count(without, OUTLINE) == 0
    assert count(with_mask, OUTLINE) == 4 * (6 * 3 - 1)


def test_a_film_plays_every_frame_and_holds_the_last():
    frames = film([make_drawing(), make_drawing()], fps=15.0, zoom=2)
    one = len(frames) // 2
    assert one > CONTEXT + HORIZON
    np.testing.assert_array_equal(frames[:one], frames[one:])
    np.testing.assert_array_equal(frames[one - 1], frames[CONTEXT + HORIZON - 1])
    tile = (2 * SIZE) ** 2
    assert [count(frames[index], colour(index)) for index in range(CONTEXT)] == [3 * tile] * CONTEXT
    for index in range(CONTEXT, CONTEXT + HORIZON):
        assert count(frames[index], colour(index)) == count(frames[index], colour(50)) == tile


@pytest.mark.parametrize(("is_ensemble", "num_rows"), [(True, 4), (False, 2)])
def test_a_strip_has_a_row_for_each_thing_that_is_known(is_ensemble, num_rows):
    drawing = make_drawing(is_ensemble=is_ensemble)
    picture = strip(drawing, fps=15.0, title="", zoom=2)
    tile = (2 * SIZE) ** 2
    assert all(count(picture, colour(index)) == tile for index in range(CONTEXT + HORIZON))
    assert count(picture, colour(50)) == HORIZON * tile
    assert count(picture, colour(60)) == (HORIZON * tile if is_ensemble else 0)
    assert picture.shape[0] > num_rows * 2 * SIZE


def test_a_still_world_is_drawn_without_a_spread():
    drawing = make_drawing()
    still = Drawing(drawing.clip, drawing.label, drawing.predicted, drawing.sample, np.zeros_like(drawing.variance))
    assert contact_sheet([still], fps=15.0, title="").shape == contact_sheet([drawing], fps=15.0, title="").shape
