"""Pictures for people: a contact sheet of clips, one clip as a film or a strip, a heat map of the variance.

It knows clips and what was predicted, and nothing of engines or files. Pictures are uint8 RGB.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import cache
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float32, Float64, UInt8
from PIL import Image, ImageDraw, ImageFont

from foreframe_engines.episodes import Clip
from foreframe_server.evaluation import psnr, squared_errors

_BACKGROUND, _TEXT, _DIM = (17, 19, 24), (236, 238, 242), (160, 166, 178)
_MARGIN, _GAP, _GROUP_GAP = 24, 8, 28
_TITLE_PX, _GROUP_PX, _TEXT_PX = 26, 17, 14
_LINE_SPACING = 1.5
_COLOUR_BAR = (240, 12)
_HEAT = np.array([(8, 8, 18), (64, 16, 92), (146, 38, 103), (219, 76, 62), (249, 155, 40), (252, 243, 166)], np.float64)
_OUTLINE = (120, 225, 255)
_MIN_TOP = 1.0
_HELD_FRAMES = 4


class Group(Enum):
    """Who speaks in a column or row of tiles: its words and its colour."""

    SEEN = ("what the robot saw", (160, 166, 178))
    PREDICTED = ("what the model predicts", (104, 170, 255))
    WANTED = ("what it should see", (249, 155, 40))
    HAPPENED = ("what happened", (112, 208, 142))
    UNSURE = ("how unsure it is", (249, 155, 40))
    NEXT = ("what comes next", (104, 170, 255))

    @property
    def words(self) -> str:
        """What stands above the group."""
        return self.value[0]

    @property
    def colour(self) -> tuple[int, int, int]:
        """The line below those words."""
        return self.value[1]


@dataclass(frozen=True, slots=True, eq=False)
class Drawing:
    """A clip and what a model says of its future, for every frame of the horizon.

    label: what `predicted` is, such as "mean of 8". variance: units where white is 1; None without an ensemble, as is
    `sample`, one of its members.
    """

    clip: Clip
    label: str
    predicted: UInt8[np.ndarray, "f h w 3"]
    sample: UInt8[np.ndarray, "f h w 3"] | None = None
    variance: Float32[np.ndarray, "f h w"] | None = None

    @property
    def context(self) -> UInt8[np.ndarray, "t h w 3"]:
        """What was seen."""
        return self.clip.frames[: -len(self.predicted)]

    @property
    def truth(self) -> UInt8[np.ndarray, "f h w 3"]:
        """What happened."""
        return self.clip.frames[-len(self.predicted) :]

    @property
    def masks(self) -> Bool[np.ndarray, "f h w"]:
        """Where the objects with hidden dynamics are."""
        return self.clip.masks[-len(self.predicted) :] > 0


@dataclass(frozen=True, slots=True)
class HeatScale:
    """The colours of a variance map: from 0 to `top`, a standard deviation in grey levels."""

    top: float

    @classmethod
    def over(cls, drawings: Sequence[Drawing]) -> "HeatScale":
        """Choose the scale that only the highest five in a thousand pixels leave."""
        maps = [drawing.variance for drawing in drawings if drawing.variance is not None]
        levels = np.concatenate([grey_levels(each).ravel() for each in maps]) if maps else np.zeros(1, np.float32)
        return cls(max(_MIN_TOP, float(np.quantile(levels, 0.995))))

    def paint(self, variance: Float32[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
        """Paint a variance map; what is beyond the scale gets its last colour."""
        return _heat(grey_levels(variance) / self.top)


def grey_levels(variance: Float32[np.ndarray, "..."]) -> Float32[np.ndarray, "..."]:
    """Turn variances in units where white is 1 into standard deviations in grey levels 0..255."""
    return np.sqrt(variance) * np.float32(255)


def _heat(values: Float32[np.ndarray, "h w"] | Float64[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    places = np.linspace(0, 1, len(_HEAT))
    channels = [np.interp(values, places, _HEAT[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).astype(np.uint8)


@dataclass(frozen=True, slots=True, eq=False)
class Tile:
    """One picture and what stands below it."""

    picture: UInt8[np.ndarray, "h w 3"]
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Column:
    """What stands above tiles; neighbours of one group share its words."""

    heading: str
    group: Group


def tile_sheet(
    columns: Sequence[Column], rows: Sequence[Sequence[Tile]], *, title: str, notes: Sequence[str] = ()
) -> UInt8[np.ndarray, "height width 3"]:
    """Lay equally large tiles out below headings."""
    return _Grid(columns, rows, title=title, notes=notes).paint()


def contact_sheet(
    drawings: Sequence[Drawing], *, fps: float, title: str, zoom: int = 3
) -> UInt8[np.ndarray, "height width 3"]:
    """Show each clip as a row: what was seen, then the last frame of the horizon as predicted and as it was.

    Every drawing needs a sample and a variance.
    """
    first, scale = drawings[0], HeatScale.over(drawings)
    start, ahead = _seconds(1 - len(first.context), fps), _seconds(len(first.predicted), fps)
    columns = [
        Column(start, Group.SEEN),
        Column("0.00 s (now)", Group.SEEN),
        Column(f"{ahead}, {first.label}", Group.PREDICTED),
        Column(f"{ahead}, one sample", Group.PREDICTED),
        Column(f"{ahead}, truth", Group.HAPPENED),
        Column(f"{ahead}, variance map", Group.UNSURE),
    ]
    rows = [_sheet_row(drawing, scale, zoom) for drawing in drawings]
    given = f"{len(first.context)} frames and the robot's states of the next {ahead[1:]}"
    shown = f"{len(first.predicted)} frames, of which the last is shown. dB: closeness to the truth (PSNR)."
    hidden = "Outlined: objects whose mass, friction and kicks are hidden from the model."
    notes = (f"In go {given}; out come {shown}", f"The variance map shows where samples differ. {hidden}")
    return _Grid(columns, rows, title=title, notes=notes, scale=scale).paint()


def _sheet_row(drawing: Drawing, scale: HeatScale, zoom: int) -> list[Tile]:
    now, truth = drawing.context[-1], drawing.truth[-1]
    copied = Tile(_enlarge(now, zoom), f"if nothing moved: {_closeness(now, truth)}")
    seen = Tile(_enlarge(drawing.context[0], zoom), f"episode {drawing.clip.seed}, frame {drawing.clip.start}")
    last = [panel.tiles[-1] for panel in _panels(drawing, scale, zoom)]
    return [seen, copied, *last[1:-1], last[0], last[-1]]


def film(drawings: Sequence[Drawing], *, fps: float, zoom: int = 4) -> UInt8[np.ndarray, "n height width 3"]:
    """Play clips one after another: truth, prediction, one sample and variance side by side, the last frame held."""
    scale = HeatScale.over(drawings)
    return np.stack([frame for drawing in drawings for frame in _play(drawing, scale, fps, zoom)])


def _play(drawing: Drawing, scale: HeatScale, fps: float, zoom: int) -> Iterator[UInt8[np.ndarray, "height width 3"]]:
    panels = _panels(drawing, scale, zoom)
    for frame in range(len(drawing.clip.frames)):
        time = frame + 1 - len(drawing.context)
        title = f"{_seconds(time, fps)}  {'predicted' if time > 0 else 'seen'}"
        grid = _Grid([panel.column for panel in panels], [[panel.tiles[frame] for panel in panels]], title=title)
        yield from [grid.paint()] * (_HELD_FRAMES if frame == len(drawing.clip.frames) - 1 else 1)


def strip(drawing: Drawing, *, fps: float, title: str, zoom: int = 2) -> UInt8[np.ndarray, "height width 3"]:
    """Show one clip frame by frame: time runs to the right, truth above prediction, sample and variance."""
    scale, num_seen = HeatScale.over([drawing]), len(drawing.context)
    times = [frame + 1 - num_seen for frame in range(len(drawing.clip.frames))]
    columns = [Column(_seconds(time, fps), Group.NEXT if time > 0 else Group.SEEN) for time in times]
    truth, *others = _panels(drawing, scale, zoom)
    blank = [_blank(truth.tiles[0])] * num_seen
    named = [*truth.tiles[:num_seen], replace(truth.tiles[num_seen], caption="truth"), *truth.tiles[num_seen + 1 :]]
    rows = [named, *([*blank, *panel.tiles[num_seen:]] for panel in others)]
    labels = ["", *(panel.column.heading for panel in others)]
    shown = None if drawing.variance is None else scale
    return _Grid(columns, rows, title=title, labels=labels, scale=shown).paint()


@dataclass(frozen=True, slots=True, eq=False)
class _Panel:
    """One aspect of a clip over time: a tile for each frame of context and horizon."""

    column: Column
    tiles: Sequence[Tile]


def _panels(drawing: Drawing, scale: HeatScale, zoom: int) -> list[_Panel]:
    seen = [Tile(_enlarge(frame, zoom)) for frame in drawing.context]
    truth = [Tile(_enlarge(frame, zoom)) for frame in drawing.truth]
    panels = [_Panel(Column("truth", Group.HAPPENED), seen + truth)]
    for label, frames in ((drawing.label, drawing.predicted), ("one sample", drawing.sample)):
        if frames is not None:
            tiles = [
                Tile(_enlarge(frame, zoom), _closeness(frame, true))
                for frame, true in zip(frames, drawing.truth, strict=True)
            ]
            panels.append(_Panel(Column(label, Group.PREDICTED), seen + tiles))
    if drawing.variance is not None:
        tiles = [
            _unsure_tile(variance, mask, scale, zoom)
            for variance, mask in zip(drawing.variance, drawing.masks, strict=True)
        ]
        panels.append(_Panel(Column("variance map", Group.UNSURE), [_blank(tile) for tile in seen] + tiles))
    return panels


def _blank(tile: Tile) -> Tile:
    return Tile(np.full_like(tile.picture, _BACKGROUND))


def _unsure_tile(
    variance: Float32[np.ndarray, "h w"], mask: Bool[np.ndarray, "h w"], scale: HeatScale, zoom: int
) -> Tile:
    level = 255 * float(np.sqrt(variance.mean(dtype=np.float64)))
    return Tile(_outlined(_enlarge(scale.paint(variance), zoom), _enlarge(mask, zoom)), f"{level:.1f} grey levels")


def _seconds(num_frames: int, fps: float) -> str:
    return f"{num_frames / fps:+.2f} s" if num_frames else "0.00 s"


def _closeness(frame: UInt8[np.ndarray, "h w 3"], truth: UInt8[np.ndarray, "h w 3"]) -> str:
    return f"{psnr(squared_errors(frame[None], truth[None])):.1f} dB"


def _enlarge(picture: np.ndarray, zoom: int) -> np.ndarray:
    return picture.repeat(zoom, axis=0).repeat(zoom, axis=1)


def _outlined(picture: UInt8[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    inner = np.pad(mask, 1, mode="edge")
    inner = inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:]
    return np.where((mask & ~inner)[..., None], np.array(_OUTLINE, np.uint8), picture)


@dataclass(frozen=True, slots=True, eq=False)
class _Grid:
    """Rows of equally large tiles below headings; `scale` adds the key to a variance map's colours.

    labels: one a row, written over its first tiles.
    """

    columns: Sequence[Column]
    rows: Sequence[Sequence[Tile]]
    title: str
    notes: Sequence[str] = ()
    labels: Sequence[str] = ()
    scale: HeatScale | None = None

    def paint(self) -> UInt8[np.ndarray, "height width 3"]:
        """Paint the grid."""
        height, width = self.rows[0][0].picture.shape[:2]
        lefts = self._lefts(width)
        top = _MARGIN + _line(_TITLE_PX) + len(self.notes) * _line(_TEXT_PX) + _GAP
        first_row = top + _line(_GROUP_PX) + _line(_TEXT_PX) + _GAP
        row_height = height + _line(_TEXT_PX) + _GAP
        size = (lefts[-1] + width + _MARGIN, first_row + row_height * len(self.rows) + _MARGIN - _GAP)
        image = Image.new("RGB", size, _BACKGROUND)
        draw = ImageDraw.Draw(image)
        self._paint_title(draw)
        self._paint_headings(draw, lefts, top, width)
        for index, row in enumerate(self.rows):
            for left, tile in zip(lefts, row, strict=True):
                _paint_tile(image, tile, left, first_row + index * row_height)
        for index, label in enumerate(self.labels):
            draw.text((_MARGIN, first_row + index * row_height), label, _TEXT, _font(_GROUP_PX))
        if self.scale is not None:
            _paint_scale(image, self.scale)
        return np.asarray(image)

    def _lefts(self, width: int) -> list[int]:
        lefts = [_MARGIN]
        for before, after in pairwise(self.columns):
            lefts.append(lefts[-1] + width + (_GAP if before.group is after.group else _GROUP_GAP))
        return lefts

    def _paint_title(self, draw: ImageDraw.ImageDraw) -> None:
        draw.text((_MARGIN, _MARGIN), self.title, _TEXT, _font(_TITLE_PX))
        for index, note in enumerate(self.notes):
            draw.text((_MARGIN, _MARGIN + _line(_TITLE_PX) + index * _line(_TEXT_PX)), note, _DIM, _font(_TEXT_PX))

    def _paint_headings(self, draw: ImageDraw.ImageDraw, lefts: Sequence[int], top: int, width: int) -> None:
        group = None
        line_y = top + _line(_GROUP_PX)
        for left, column in zip(lefts, self.columns, strict=True):
            if column.group is not group:
                draw.text((left, top), column.group.words, _TEXT, _font(_GROUP_PX))
                start, group = left, column.group
            draw.line((start, line_y, left + width, line_y), group.colour, 3)
            draw.text((left, line_y + _GAP), column.heading, _TEXT, _font(_TEXT_PX))


def _paint_tile(image: Image.Image, tile: Tile, left: int, top: int) -> None:
    image.paste(Image.fromarray(tile.picture), (left, top))
    below = top + len(tile.picture) + 3
    ImageDraw.Draw(image).text((left, below), tile.caption, _DIM, _font(_TEXT_PX))


def _paint_scale(image: Image.Image, scale: HeatScale) -> None:
    width, height = _COLOUR_BAR
    left, top = image.width - _MARGIN - width, _MARGIN
    bar = _heat(np.linspace(0, 1, width)[None].repeat(height, axis=0))
    image.paste(Image.fromarray(bar), (left, top))
    draw, below = ImageDraw.Draw(image), top + height + 4
    draw.text((left, below), "variance map: 0", _DIM, _font(_TEXT_PX))
    draw.text((left + width, below), f"{scale.top:.0f} grey levels", _DIM, _font(_TEXT_PX), anchor="ra")


def _line(size_px: int) -> int:
    return round(size_px * _LINE_SPACING)


@cache
def _font(size_px: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size_px)
