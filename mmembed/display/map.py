"""Vectors as a map on a plane: a colour and a marker a group, a legend, and labels where there is room."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..errors import InputError
from ..search.plane import plane
from .figures import INK, LINE, SOFT, Plot, Room, plotting, style, words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from ..search.index import Index

GROUPS = 20
"""Groups with a colour of their own, the largest; the rest is grey."""
LABELS = 80
"""Labels at most; which of them are written is a matter of room."""
ROOM = 20
WIDTH, HEIGHT = 8.5, 6.0


def draw_map(
    vectors: NDArray[np.float32],
    groups: Sequence[Hashable],
    *,
    modalities: Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
    method: Literal["pca", "umap"] = "pca",
    title: str = "",
) -> Plot:
    """Draw vectors (N, D) where `plane` lays them.

    Args:
        groups: what each is coloured by, such as its modality, its language or the number of its cluster; None: nothing is known.
        modalities: a name for each: those of one name are moved to the mean of all first (the modality gap); None: as they are.
        labels: a word for each, "" for none. Written where it covers nothing, those in the front of the list first.
        method: "pca" or "umap", see `plane`.

    Raises:
        InputError: none, vectors of one number, lists of other lengths, or a vector that is not finite, by its row.
        UnknownName, MissingExtra: as `plane`.

    Example:
        >>> draw_map(embedder.encode(things), ["text", "image", "image"], labels=["cat", "", ""])
    """
    given = np.asarray(vectors)
    if given.ndim != 2 or not len(given) or given.shape[1] < 2:
        raise InputError(f"a map is of vectors (N, D) with two numbers or more, not of {given.shape}")
    for name, own in (("groups", groups), ("modalities", modalities), ("labels", labels)):
        if own is not None and len(own) != len(given):
            raise InputError(f"{len(own)} {name} for {len(given)} vectors")
    bad = np.flatnonzero(~np.isfinite(given).all(1))
    if len(bad):
        raise InputError("a vector with a number that is none has no place (a skipped item?)", int(bad[0]))
    named = ["" if group is None else str(group) for group in groups]
    return _draw(plane(given, modalities, method=method), named, labels or (), title)


def draw_index(index: Index, *, title: str = "") -> Plot:
    """Draw what an index holds by `index.layout()`, coloured by modality: of very much a fair sample. Without a title
    its name stands above, and how many things of how many are drawn.

    Raises:
        InputError: it is empty.
    """
    rows = index.layout()
    if not rows:
        raise InputError(f"{index.path} holds nothing that could be drawn")
    places = np.array([(row["x"], row["y"]) for row in rows], dtype=np.float32)
    labels = [row["label"] for row in rows]
    if not title:
        part = f" ({len(rows):,} of {len(index):,})" if len(rows) < len(index) else ""
        title = words(PurePath(index.path).name, 80 - len(part)) + part
    return _draw(places, [row["modality"] for row in rows], labels, title)


def _draw(places: NDArray[np.float32], groups: Sequence[str], labels: Sequence[str], title: str) -> Plot:
    counts = Counter(groups)
    kept = [name for name, _ in counts.most_common(GROUPS)]
    ways = {name: style(number) for number, name in enumerate(sorted(kept))}
    size = float(np.clip(1200 / len(places) ** 0.75, 14, 45))
    with plotting(WIDTH, HEIGHT) as figure:
        axes = figure.add_subplot()
        drawn = []
        for name in [*sorted(kept), None]:
            mine = np.array([group == name if name is not None else group not in ways for group in groups])
            if not mine.any():
                continue
            label = (
                f"{words(name, ROOM) or '(none)'} ({counts[name]})" if name is not None else f"others ({mine.sum()})"
            )
            way = ways[name] if name is not None else {"color": SOFT, "marker": "."}
            dots = axes.scatter(
                places[mine, 0], places[mine, 1], s=size, label=label, linewidths=0.5, edgecolors="white", **way
            )
            drawn.append(dots)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_color(LINE)
        axes.margins(0.08)
        figure.legend(  # of what it finds by itself it would leave out names that begin with "_"
            handles=drawn, loc="outside right upper", fontsize=9, frameon=False, markerscale=(36 / size) ** 0.5
        )
        if title:
            axes.set_title(words(title, 80), fontsize=12)
        figure.draw_without_rendering()  # sizes are known now
        _write(axes, places, labels, figure.pen, 0.71 * size**0.5 + 0.5)  # half a diamond's diagonal, and its edge
    return figure


def _write(axes: Axes, places: NDArray[np.float32], labels: Sequence[str], pen: Any, radius: float) -> None:
    """Write each label at the first of eight sides of its point where there is room for it."""
    from matplotlib.patheffects import withStroke

    room, written = Room(axes, pen, places, radius), 0
    for place, label in zip(places, labels, strict=False):
        if not label or written == LABELS:
            continue
        halo = [withStroke(linewidth=2, foreground="white")]
        text = axes.annotate(
            words(label, ROOM), place, (0, 0), textcoords="offset points", fontsize=9, color=INK, path_effects=halo
        )
        text.set_snap(False)  # strokes of Han are moved onto pixels one by one else
        if room.put(text):
            written += 1
        else:
            text.remove()
