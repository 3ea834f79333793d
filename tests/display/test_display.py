"""The room's face: its names are listed before any of them is imported."""

from __future__ import annotations

import mmembed.display


def test_every_drawing_is_listed_and_there():
    listed = dir(mmembed.display)
    drawings = {"draw_grid", "draw_index", "draw_map", "draw_relevance", "draw_similarity", "draw_tradeoff"}
    assert drawings | {"Search"} == set(listed)
    assert all(callable(getattr(mmembed.display, name)) for name in listed)
