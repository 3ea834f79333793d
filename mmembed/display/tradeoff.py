"""What a smaller vector costs, as curves: neighbours kept against bytes of a vector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError
from ..search.tradeoff import Cost
from .figures import LINE, SOFT, Plot, Room, plotting, style, words

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKER = 7
"""Points across a marker."""


def draw_tradeoff(costs: Sequence[Cost], *, title: str = "") -> Plot:
    """Draw what `mmembed.search.tradeoff.tradeoff` measured: a curve a kind of number, a point a length, which stands beside it.

    Raises:
        InputError: nothing was measured.

    Example:
        >>> costs = tradeoff(embedder.encode_query(questions), embedder.encode_document(things), embedder.spec.dimensions)
        >>> draw_tradeoff(costs)
    """
    if not costs:
        raise InputError("nothing was measured: tradeoff(queries, documents, embedder.spec.dimensions)")
    with plotting(7.2, 4.4) as figure:
        axes = figure.add_subplot()
        ways = {kind: style(number) for number, kind in enumerate(dict.fromkeys(cost.kind for cost in costs))}
        for kind, way in ways.items():
            own = sorted((cost for cost in costs if cost.kind == kind), key=lambda cost: cost.size)
            shares = [cost.overlap for cost in own]
            axes.plot([cost.size for cost in own], shares, label=kind, markersize=MARKER, linewidth=1.5, **way)
        sizes = sorted({cost.size for cost in costs})
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.minorticks_off()
        axes.set_xlabel("bytes a vector (numbers beside the points)")
        axes.set_ylabel("nearest that are still found")
        axes.margins(0.08, 0.14)
        axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
        axes.grid(color=LINE, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(SOFT)
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))  # beside the axes, where no label is
        if title:
            axes.set_title(words(title, 80), fontsize=12)
        figure.draw_without_rendering()  # sizes are known now
        _write(axes, costs, ways, figure.pen)
    return figure


def _write(axes: Axes, costs: Sequence[Cost], ways: dict[str, dict[str, Any]], pen: Any) -> None:
    """Write the length of each point where it lies on no curve, point or other length: above it, below, beside, then farther
    away. One that finds no room among very many is left out."""
    room = Room(axes, pen, np.array([(cost.size, cost.overlap) for cost in costs]), 0.71 * MARKER)
    for line in axes.lines:
        room.fill(np.asarray(line.get_xydata()))
    for cost in sorted(costs, key=lambda cost: (-cost.overlap, cost.size)):
        colour = ways[cost.kind]["color"]
        text = axes.annotate(
            str(cost.numbers), (cost.size, cost.overlap), (0, 0), textcoords="offset points", fontsize=8, color=colour
        )
        if not room.put(text, far=(1, 5, 10, 16, 24), sides=("n", "s", "nw", "se", "e", "w", "ne", "sw")):
            text.remove()
