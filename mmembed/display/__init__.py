"""Pictures of what was found: grids of hits, plots of vectors and scores, and the letters in them.

Names are imported when they are first used: plots need matplotlib (extra [notebook]), the grid does not.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_WHERE = {
    "Search": "grid",
    "draw_grid": "grid",
    "draw_index": "map",
    "draw_map": "map",
    "draw_relevance": "relevance",
    "draw_similarity": "heat",
    "draw_tradeoff": "tradeoff",
}
__all__ = list(_WHERE)

if TYPE_CHECKING:
    from .grid import Search as Search
    from .grid import draw_grid as draw_grid
    from .heat import draw_similarity as draw_similarity
    from .map import draw_index as draw_index
    from .map import draw_map as draw_map
    from .relevance import draw_relevance as draw_relevance
    from .tradeoff import draw_tradeoff as draw_tradeoff


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'mmembed.display' has no attribute {name!r}")
    return getattr(import_module(f".{_WHERE[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
