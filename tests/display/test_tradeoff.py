"""The curve: a line a kind of number, a point a length, at the bytes and the overlap that were measured."""

from __future__ import annotations

import pytest

from mmembed.display import draw_tradeoff
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


def test_nothing_measured_is_told():
    with pytest.raises(InputError, match="nothing was measured"):
        draw_tradeoff([])
