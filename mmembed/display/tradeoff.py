"""What a smaller vector costs, as curves: neighbours kept against bytes of a vector."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import InputError
from ..search.tradeoff import Cost
from .figures import LINE, SOFT, Plot, plotting, style, words


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
        for number, kind in enumerate(dict.fromkeys(cost.kind for cost in costs)):
            above = number % 2  # so that numbers of neighbours lie apart
            own = sorted((cost for cost in costs if cost.kind == kind), key=lambda cost: cost.size)
            way = style(number)
            axes.plot([c.size for c in own], [c.overlap for c in own], label=kind, markersize=7, linewidth=1.5, **way)
            for cost in own:
                axes.annotate(
                    str(cost.numbers),
                    (cost.size, cost.overlap),
                    (0, 7 if above else -7),
                    textcoords="offset points",
                    ha="center",
                    va="bottom" if above else "top",
                    fontsize=8,
                    color=way["color"],
                )
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
        axes.legend(frameon=False)
        if title:
            axes.set_title(words(title, 80), fontsize=12)
    return figure
