"""What plots share: a figure on white, letters of the bundled fonts, colours that all eyes can tell apart, things as labels."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import cache
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ..errors import InputError, MissingExtra
from ..images import Image
from ..inputs import Text, Thing, to_item
from ..search.hits import Hit, shortened
from .lettering import fonts, legible

try:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.font_manager import fontManager
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage
except ImportError as error:
    raise MissingExtra("matplotlib", "notebook") from error

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Annotation
    from numpy.typing import NDArray

INK, SOFT, LINE = "#202124", "#5f6368", "#dadce0"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#202124")
"""Okabe and Ito's, which colour-blind people tell apart, less the yellow, which is faint on white."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DPI = 110
SIDE = 96
"""Pixels of the longer side of a picture on an axis."""
SIDES = {
    "e": (1, 0, "left", "center"),
    "ne": (1, 1, "left", "bottom"),
    "se": (1, -1, "left", "top"),
    "w": (-1, 0, "right", "center"),
    "nw": (-1, 1, "right", "bottom"),
    "sw": (-1, -1, "right", "top"),
    "n": (0, 1, "center", "bottom"),
    "s": (0, -1, "center", "top"),
}
"""Sides of a point that a label may stand at: which way they lie, and what of the label is next to the point."""


class Plot(Figure):
    """A figure of matplotlib on white, in the bundled fonts, whatever the style of the caller; a notebook shows it where it is
    the value of a cell, whatever the backend."""

    def draw(self, renderer: Any) -> None:
        with _look():  # ticks and their letters are made as a figure is drawn
            super().draw(renderer)

    def savefig(self, fname: Any, **options: Any) -> None:
        """As `matplotlib.figure.Figure.savefig`, on white unless the options say otherwise."""
        with _look():
            super().savefig(fname, **options)

    @property
    def pen(self) -> Any:
        """What measures letters, for `get_window_extent`."""
        return cast("FigureCanvasAgg", self.canvas).get_renderer()

    def _repr_png_(self) -> bytes:
        data = io.BytesIO()
        self.savefig(data, format="png")
        return data.getvalue()


@contextmanager
def plotting(width: float, height: float) -> Iterator[Plot]:
    """A figure of so many inches, to be drawn on within."""
    with _look():
        figure = Plot(figsize=(width, height), dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


def _look() -> AbstractContextManager[None]:
    paper = dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), "white")
    ink = dict.fromkeys(("text.color", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color"), INK)
    letters = {"font.family": list(families()), "font.size": 10}
    off = dict.fromkeys(("savefig.transparent", "text.usetex", "text.parse_math"), False)
    look: AbstractContextManager[None] = matplotlib.rc_context(
        {**paper, **ink, **letters, **off, "axes.edgecolor": SOFT}
    )
    return look


@cache
def families() -> tuple[str, ...]:
    """Names that the bundled fonts go by in matplotlib, which takes each letter from the first that has it. They are our
    own: under theirs it might find another file of this machine."""
    names = []
    for path in fonts():
        fontManager.addfont(str(path))
        names.append(f"mmembed {path.stem}")
        fontManager.ttflist[-1] = replace(fontManager.ttflist[-1], name=names[-1])
    return tuple(names)


def style(number: int) -> dict[str, Any]:
    """Colour and marker of a group by its number: neighbours differ in both, and the first 49 in one."""
    turn, place = divmod(number, len(COLOURS))
    return {"color": COLOURS[place], "marker": MARKERS[(place + turn) % len(MARKERS)]}


def words(text: str, room: int) -> str:
    """A text as a label in at most `room` columns, of letters that can be shown."""
    return shortened(legible(text, room), room)


def faces(things: Sequence[Thing | Hit], room: int) -> list[tuple[str, NDArray[np.uint8] | None]]:
    """What stands for each thing on an axis: its words, and its first picture, small.

    Raises:
        InputError: a thing of no known type or a broken picture, by its row.
    """
    found = []
    for row, thing in enumerate(things):
        try:
            found.append(_face(thing, room))
        except InputError as error:
            error.item = row
            raise
    return found


def _face(thing: Thing | Hit, room: int) -> tuple[str, NDArray[np.uint8] | None]:
    if isinstance(thing, Hit):
        return ("", small(Image(thing.thumbnail))) if thing.thumbnail else (_told(thing.label, room), None)
    item = to_item(thing)
    text = " ".join(part.text for part in item if isinstance(part, Text))
    picture = next((part for part in item if isinstance(part, Image)), None)
    return (_told(text, room), None) if picture is None else (words(text, room), small(picture))


def _told(text: str, room: int) -> str:
    """A text that stands alone: one without a letter is seen by its marks of quotation."""
    return words(text if text.strip() else f'"{text}"', room)


def small(picture: Image) -> NDArray[np.uint8]:
    """A picture (h, w, 3), its longer side at most `SIDE`."""
    import PIL.Image

    read = PIL.Image.fromarray(picture.load())
    read.thumbnail((SIDE, SIDE), PIL.Image.Resampling.LANCZOS)
    return np.asarray(read)


class Room:
    """Where labels may still stand on axes: within, on no marker, no curve and no other label. Everything else is drawn before
    and stays where it is.

    Args:
        places: (N, 2), the middles of the markers. radius: of the markers, in points.
    """

    def __init__(self, axes: Axes, pen: Any, places: NDArray[Any], radius: float):
        self.axes, self.pen, self.radius = axes, pen, radius
        self.inside = axes.get_window_extent(pen)
        self.taken = np.empty((0, 4))  # left, bottom, right, top of boxes, in pixels
        self._take(axes.transData.transform(places), radius)

    def fill(self, places: NDArray[Any]) -> None:
        """Take what lies under a curve through places (N, 2)."""
        corners = self.axes.transData.transform(places)
        for (x, y), (to_x, to_y) in pairwise(corners):
            steps = int(np.hypot(to_x - x, to_y - y) / 2) + 2
            self._take(np.linspace((x, y), (to_x, to_y), steps), 0.75)

    def put(self, label: Annotation, *, far: Sequence[float] = (2,), sides: Sequence[str] = tuple(SIDES)) -> bool:
        """Move a label to the first free place beside its point and take that; False: there is none.

        Args:
            far: points between the marker and the label, tried in order. sides: of `SIDES`, tried in order at each distance.
        """
        extent = label.get_window_extent(self.pen)
        size, point = np.array([extent.width, extent.height]), self.axes.transData.transform(label.xy)
        for gap, (dx, dy, ha, va) in product(far, (SIDES[side] for side in sides)):
            way, away = np.array([dx, dy]), self.radius + gap
            low = point + way * self.pen.points_to_pixels(away) - size * (1 - way) / 2
            if self._is_free(low - 1, low + size + 1):
                label.set(position=(away * dx, away * dy), ha=ha, va=va)
                self.taken = np.concatenate([self.taken, [[*low, *(low + size)]]])
                return True
        return False

    def _is_free(self, low: NDArray[Any], high: NDArray[Any]) -> bool:
        within = (self.inside.min <= low).all() and (high <= self.inside.max).all()
        return bool(within and not ((self.taken[:, :2] < high) & (self.taken[:, 2:] > low)).all(1).any())

    def _take(self, middles: NDArray[Any], points: float) -> None:
        reach = self.pen.points_to_pixels(points)
        self.taken = np.concatenate([self.taken, np.concatenate([middles - reach, middles + reach], axis=1)])


def put_picture(axes: Axes, pixels: NDArray[np.uint8], *, at: float, axis: str, points: float) -> None:
    """A picture outside the axes, beside the tick `at` of the axis "x" (above) or "y" (to the left), so many points large."""
    image = OffsetImage(pixels, zoom=points / max(pixels.shape[:2]), resample=True)
    across = axis == "x"
    axes.add_artist(
        AnnotationBbox(
            image,
            (at, 1) if across else (0, at),
            xycoords=("data", "axes fraction") if across else ("axes fraction", "data"),
            xybox=(0, 4) if across else (-4, 0),
            boxcoords="offset points",
            box_alignment=(0.5, 0) if across else (1, 0.5),
            frameon=False,
            pad=0,
            annotation_clip=False,
        )
    )
