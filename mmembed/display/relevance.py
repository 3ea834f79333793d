"""Why a thing was found, as a picture: its own picture under a film of colour, its words on grounds of colour."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError
from ..images import Image
from ..inputs import Text, Thing, to_item
from ..search.hits import Hit
from ..search.query import Query
from ..search.why import GRID, MOST_WORDS, Covered, why_picture, why_text
from .figures import SOFT, Plot, plotting, small, words
from .lettering import is_rtl, legible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure
    from numpy.typing import NDArray

    from ..embedder import Embedder

WIDTH = 7.2
ROOM = WIDTH - 1.7
"""Inches of a figure, and of a line of words in it, which leaves room for a bar and its numbers."""
PICTURE, ASKED = 3.2, 0.9
"""Inches of a row of pictures: of what was found, and of the query."""
LETTERS, MOST = 15, 400
"""Points of the words, and how many letters no line holds."""
LINE, MARGIN = 0.36, 0.75
"""Inches of a line of words, and beside all lines."""
COLOURS = "PuOr"
"""Orange speaks against, purple for; the two differ to all eyes."""


def draw_relevance(embedder: Embedder, query: Thing | Query, found: Thing | Hit, *, grid: int = GRID) -> Plot:
    """Draw what each place of a picture and each word of a text gives to its cosine with a query, see `mmembed.search.why`:
    for models of one vector an item, by what goes away when it is covered. Parts of a mixed item are asked each by itself.
    The query stands above: its words as the title, pictures that it asks for small.

    Args:
        query: what was asked, one thing or several with weights.
        found: a picture, a text, both, or a hit, of which the index keeps a small picture.
        grid: cells along each side of a picture; it is embedded (grid + 1)^2 + 1 times.

    Raises:
        InputError: a query or a part that cannot be embedded, or a hit without text and picture.

    Example:
        >>> hits = index.search("a red apple")
        >>> draw_relevance(embedder, "a red apple", hits[0])
    """
    item = _parts_of(found)
    asked = Query.of(query)
    vector = asked.vector(embedder)
    pictures = [part for part in item if isinstance(part, Image)]
    seen = [(picture.load(), why_picture(embedder, vector, picture, grid=grid)) for picture in pictures]
    read = [why_text(embedder, vector, part.text) for part in item if isinstance(part, Text)]
    shown = [part for thing, weight in asked.parts if weight > 0 for part in to_item(thing)]
    title = (
        str(query) if isinstance(query, Query) else " + ".join(part.text for part in shown if isinstance(part, Text))
    )
    return _draw(seen, read, title, [small(part) for part in shown if isinstance(part, Image)])


def _parts_of(found: Thing | Hit) -> tuple[Text | Image, ...]:
    if not isinstance(found, Hit):
        return to_item(found)
    parts: list[Text | Image] = [Image(found.thumbnail)] if found.thumbnail else []
    parts += [Text(found.text)] if found.text else []
    if not parts:
        raise InputError(f"the hit {found.id!r} holds neither text nor picture")
    return tuple(parts)


def _draw(
    seen: list[tuple[NDArray[np.uint8], NDArray[np.float32]]],
    read: list[Covered],
    asked: str,
    pictures: list[NDArray[np.uint8]],
) -> Plot:
    with plotting(WIDTH, 1) as figure:
        lined = [_lines(figure, covered) for covered in read]
        heights = [PICTURE] * len(seen) + [MARGIN + LINE * len(lines) for lines in lined]
        heads = [ASKED] if pictures else []
        figure.set_size_inches(WIDTH, sum(heads + heights) + (0.4 if asked else 0))
        rows = figure.subfigures(len(heads + heights), 1, height_ratios=heads + heights, squeeze=False)[:, 0]
        for row in rows[: len(heads)]:
            _draw_query(row, pictures)
        rows = rows[len(heads) :]
        for row, (pixels, relevance) in zip(rows, seen, strict=False):
            _draw_picture(row, pixels, relevance)
        for row, lines, covered in zip(rows[len(seen) :], lined, read, strict=True):
            _draw_text(row, lines, len(covered.parts) == MOST_WORDS)
        if asked:
            figure.suptitle(words(asked, 70), fontsize=12)
    return figure


def _draw_query(figure: SubFigure, pictures: list[NDArray[np.uint8]]) -> None:
    for axes, pixels in zip(figure.subplots(1, len(pictures), squeeze=False)[0], pictures, strict=True):
        axes.imshow(pixels)
        axes.set_axis_off()
        axes.set_title("query", fontsize=8, color=SOFT, pad=2)


def _draw_picture(figure: SubFigure, pixels: NDArray[np.uint8], relevance: NDArray[np.float32]) -> None:
    plain, under = figure.subplots(1, 2)
    plain.imshow(pixels)
    under.imshow(pixels.mean(-1), cmap="gray", vmin=0, vmax=255)  # the colours are those of the film alone
    for axes in (plain, under):
        axes.set_axis_off()
    height, width = pixels.shape[:2]
    reach = _reach(relevance)
    film = under.imshow(
        relevance, cmap=COLOURS, vmin=-reach, vmax=reach, extent=(-0.5, width - 0.5, height - 0.5, -0.5), alpha=0.7
    )
    _bar(figure, film, under)


@dataclass(frozen=True)
class _Piece:
    """A part of a text: where it begins (inches from the side where its line begins), how wide it is, what it gives, and whether
    lines run from the right, and it does itself."""

    text: str
    at: float
    width: float
    change: float
    rtl: bool
    own: bool


def _lines(figure: Plot, covered: Covered) -> list[list[_Piece]]:
    """Parts of a text in lines, in the order of reading; a space stands between those that a space stood between."""
    probe = figure.text(0, 0, "", fontsize=LETTERS)
    room, rtl = ROOM, bool(is_rtl(covered.text))
    ways = _ways([covered.text[begin:end] for begin, end, _ in covered.parts], rtl)
    lines: list[list[_Piece]] = [[]]
    at, before = 0.0, 0
    for (begin, end, change), own in zip(covered.parts, ways, strict=True):
        text, width = _fitted(probe, figure, legible(covered.text[begin:end], MOST), room)
        at += 0.07 if begin > before and lines[-1] else 0
        if lines[-1] and at + width > room:
            lines.append([])
            at = 0.0
        lines[-1].append(_Piece(text, at, width, change, rtl, own))
        at, before = at + width + 0.02, end
    probe.remove()
    return [_turned(line) for line in lines]


def _ways(parts: list[str], rtl: bool) -> list[bool]:
    """Whether each part of a text runs from the right. What has no letter goes with the text, but for a number, which goes with
    what it follows, and a sign between two that do not (rules W7 and N1 of Unicode's UAX 9)."""
    own = [is_rtl(part) for part in parts]
    found: list[bool] = []
    for number, (part, way) in enumerate(zip(parts, own, strict=True)):
        last = found[-1] if found else rtl
        following = next((way for way in own[number:] if way is not None), rtl)
        joined = last if last == following or any(map(str.isdigit, part)) else rtl
        found.append(joined if way is None else way)
    return found


def _turned(line: list[_Piece]) -> list[_Piece]:
    """A line in which neighbours that run the other way than the text stand in their own order."""
    turned: list[_Piece] = []
    for other, group in groupby(line, key=lambda piece: piece.own != piece.rtl):
        run = list(group)
        ends = run[0].at + run[-1].at + run[-1].width
        turned += [replace(piece, at=ends - piece.at - piece.width) for piece in run] if other else run
    return turned


def _fitted(probe: Any, figure: Plot, text: str, room: float) -> tuple[str, float]:
    """A part that is longer than a line is cut; and how wide it is, in inches."""

    def width(shown: str) -> float:
        probe.set_text(shown)
        return float(probe.get_window_extent(figure.pen).width / figure.dpi)

    if len(text) < MOST and (wide := width(text)) <= room:
        return text, wide
    low, high = 0, min(len(text), MOST)  # letters that are kept
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if width(text[:middle] + "…") <= room else (low, middle - 1)
    cut = text[:low].rstrip() + "…"
    return cut, width(cut)


def _draw_text(figure: SubFigure, lines: list[list[_Piece]], long: bool) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.patches import Rectangle

    axes = figure.subplots()
    axes.set_axis_off()
    axes.set(xlim=(-0.1, ROOM + 0.1), ylim=(len(lines) + MARGIN / LINE, 0))
    reach = _reach(np.array([piece.change for line in lines for piece in line]))
    colour = ScalarMappable(Normalize(-reach, reach), COLOURS)
    for number, line in enumerate(lines):
        for piece in line:
            left = ROOM - piece.at - piece.width if piece.rtl else piece.at
            (ground,) = colour.to_rgba(np.array([piece.change]))
            axes.add_patch(Rectangle((left, number + 0.1), piece.width, 0.8, facecolor=ground, edgecolor="none"))
            light = np.dot(ground[:3], (0.2126, 0.7152, 0.0722)) > 0.45
            letters = "black" if light else "white"
            axes.text(left, number + 0.68, piece.text, fontsize=LETTERS, color=letters, va="baseline")
    if long:
        note = f"what follows the first {MOST_WORDS - 1} words is one part"
        axes.text(0, len(lines) + 0.2, note, fontsize=8, color=SOFT, va="top")
    _bar(figure, colour, axes)


def _reach(changes: NDArray[Any]) -> float:
    return max(float(np.abs(changes).max(initial=0.0)), 1e-6)


def _bar(figure: SubFigure, shown: Any, axes: Axes) -> None:
    bar = figure.colorbar(shown, ax=axes, pad=0.02, fraction=0.046, aspect=12)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, colors=SOFT)
    bar.set_label("given to the cosine", fontsize=8, color=SOFT)
