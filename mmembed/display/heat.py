"""Similarities of two lists of things as a heat map, with words and pictures on its axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError
from ..inputs import Thing
from ..search.hits import Hit, columns
from .figures import INK, SOFT, Plot, faces, plotting, put_picture, words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

MOST = 64
"""Things along a side."""
WRITTEN = 240
"""Cells that hold their value; more of them are colours alone."""
ROOM = 24
"""Columns of a label."""


def draw_similarity(
    scores: NDArray[Any], rows: Sequence[Thing | Hit], across: Sequence[Thing | Hit], *, title: str = ""
) -> Plot:
    """Draw scores (N, M) of N things with M others, as `embedder.similarity` gives them; NaN is a grey cell.

    Args:
        rows: the N things, or hits. across: the M things, or hits.

    Raises:
        InputError: scores of another shape, none or more than 64 things along a side, or a thing that cannot be shown.

    Example:
        >>> words, pictures = ["cat", "猫"], [Image("cat.png"), Image("dog.png")]
        >>> draw_similarity(embedder.similarity(embedder.encode_query(words), embedder.encode(pictures)), words, pictures)
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.shape != (len(rows), len(across)):
        raise InputError(f"scores of {len(rows)} things with {len(across)} are no {values.shape}")
    if not values.size or max(values.shape) > MOST:
        raise InputError(
            f"a heat map shows 1 to {MOST} things along a side, not {values.shape[0]} by {values.shape[1]}"
        )
    down, over = faces(rows, ROOM), faces(across, ROOM)
    cell = 0.52 if values.size <= WRITTEN else 0.3
    wide, tall = (
        cell * any(p is not None for _, p in side) + 0.075 * max(columns(t) for t, _ in side) for side in (down, over)
    )
    with plotting(
        values.shape[1] * cell + wide + 1.2, values.shape[0] * cell + tall + 0.2 + 0.35 * bool(title)
    ) as figure:
        axes = figure.add_subplot()
        axes.set_facecolor("#e3e5e8")  # seen where there is no number
        seen = axes.imshow(np.ma.masked_invalid(values), cmap="cividis", aspect="equal")
        _label(axes, over, "x", cell * 72 * 0.9)
        _label(axes, down, "y", cell * 72 * 0.9)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        bar = figure.colorbar(seen, ax=axes, shrink=min(1.0, 3 / (values.shape[0] * cell)), pad=0.02)
        bar.outline.set_visible(False)
        if values.size <= WRITTEN:
            _write(axes, values, seen)
        if title:
            figure.suptitle(words(title, 100), fontsize=12)
        _make_room(figure, axes)
    return figure


def _make_room(figure: Plot, axes: Axes) -> None:
    """Grow the figure until no slanted label of a column ends above it: how high they reach is known when they are laid out."""
    for _ in range(3):
        figure.draw_without_rendering()
        beyond = max(label.get_window_extent().y1 for label in axes.get_xticklabels()) - figure.bbox.y1
        if beyond <= 0:
            return
        figure.set_figheight(figure.get_figheight() + (beyond + 2) / figure.dpi)


def _label(axes: Axes, shown: Sequence[tuple[str, Any]], axis: str, points: float) -> None:
    """Words beyond the pictures, if there are any, and pictures next to the cells."""
    pictured = any(pixels is not None for _, pixels in shown)
    pad = points + 8 if pictured else 4
    texts = [text for text, _ in shown]
    if axis == "x":
        slanted = max(map(columns, texts)) > 5
        axes.xaxis.tick_top()
        axes.set_xticks(range(len(shown)), texts)
        axes.tick_params(axis="x", pad=pad)
        if slanted:
            for label in axes.get_xticklabels():
                label.set(rotation=45, ha="left", va="bottom", rotation_mode="anchor")
    else:
        axes.set_yticks(range(len(shown)), texts)
        axes.tick_params(axis="y", pad=pad)
    for at, (_, pixels) in enumerate(shown):
        if pixels is not None:
            put_picture(axes, pixels, at=at, axis=axis, points=points)


def _said(value: float) -> str:
    """A cosine to two places; larger scores, as MaxSim's, to three digits, so that they stay in their cells."""
    return f"{value:z.2f}" if abs(value) < 10 else f"{value:.3g}"


def _write(axes: Axes, values: NDArray[np.float64], seen: Any) -> None:
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            red, green, blue, _ = seen.cmap(seen.norm(value))
            light = 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.45
            axes.text(column, row, _said(value), ha="center", va="center", fontsize=9, color=INK if light else "white")
        else:
            axes.text(column, row, "–", ha="center", va="center", fontsize=9, color=SOFT)
