"""The curve: a line a kind of number, a point a length, at the bytes and the overlap that were measured."""

from __future__ import annotations

from itertools import combinations

import pytest

from mmembed.display import draw_tradeoff
from mmembed.display.tradeoff import MARKER
from mmembed.errors import InputError
from mmembed.search.tradeoff import Cost

COSTS = [Cost(64, "float32", 256, 1.0), Cost(32, "float32", 128, 0.8), Cost(64, "binary", 8, 0.6)]


@pytest.mark.filterwarnings("error:Glyph")
def test_points_lie_at_bytes_and_overlap():
    axes = draw_tradeoff(COSTS, title="قطة").axes[0]
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert lines == {"float32": [[128, 0.8], [256, 1.0]], "binary": [[8, 0.6]]}
    assert sorted(text.get_text() for text in axes.texts) == ["32", "64", "64"]
    assert "bytes" in axes.get_xlabel()
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["float32", "binary"]


def measured(kinds: int, shares: list[float]) -> list[Cost]:
    """Lengths 32, 64, ... of so many kinds, which keep the same share whatever the kind: their curves lie close together."""
    widths = {"float32": 32, "float16": 16, "int8": 8, "binary": 1}
    return [
        Cost(32 << n, kind, (32 << n) * bits // 8, share)
        for kind, bits in [*widths.items()][:kinds]
        for n, share in enumerate(shares)
    ]


@pytest.mark.parametrize(
    "costs",
    [
        measured(4, [0.64, 0.85, 0.934, 1.0]),
        measured(4, [0.99, 0.995, 0.998, 1.0]),
        measured(3, [1.0] * 6),
        [Cost(32 * n, kind, 512, 0.5) for n, kind in enumerate(("float32", "float16", "int8", "binary"), 1)],
    ],
    ids=["as pico", "nearly flat", "flat", "one point"],
)
def test_lengths_lie_on_no_point_and_on_no_other_length(costs):
    figure = draw_tradeoff(costs)
    figure.draw_without_rendering()
    axes = figure.axes[0]
    boxes = [text.get_window_extent() for text in axes.texts]
    assert sorted(text.get_text() for text in axes.texts) == sorted(str(cost.numbers) for cost in costs)
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    points, radius = axes.transData.transform([(c.size, c.overlap) for c in costs]), MARKER / 2 * figure.dpi / 72
    for box in boxes:
        assert not ((points + radius > box.min) & (points - radius < box.max)).all(1).any()
    legend = axes.get_legend().get_window_extent()
    assert not any(legend.overlaps(box) for box in [*boxes, axes.get_window_extent()])


def test_nothing_measured_is_told():
    with pytest.raises(InputError, match="nothing was measured"):
        draw_tradeoff([])
