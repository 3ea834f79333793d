"""The heat map: the scores that were given, in their places, with words and pictures on the axes."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.offsetbox import AnnotationBbox

from mmembed.display import draw_similarity
from mmembed.display.heat import MOST, WRITTEN
from mmembed.errors import InputError
from mmembed.images import Image

RED = Image(np.full((10, 20, 3), (255, 0, 0), dtype=np.uint8))
SCORES = np.array([[0.1, 0.9], [0.5, -0.25], [0.0, np.nan]])


def drawn(**changed):
    return draw_similarity(
        **{"scores": SCORES, "rows": ["cat", "قطة", "猫"], "across": [RED, ("both", RED)], **changed}
    )


@pytest.mark.filterwarnings("error:Glyph")
def test_cells_hold_their_values_and_axes_their_things():
    axes = drawn(title="a title").axes[0]
    image = axes.images[0].get_array()
    assert np.ma.filled(image, 7).tolist() == [[0.1, 0.9], [0.5, -0.25], [0.0, 7]]
    assert [t.get_text() for t in axes.texts] == ["0.10", "0.90", "0.50", "-0.25", "0.00", "–"]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["cat", "قطة", "猫"]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["", "both"]
    pictures = [a for a in axes.artists if isinstance(a, AnnotationBbox)]
    assert [a.xy[0] for a in pictures] == [0, 1]


def test_what_rounds_to_nought_has_no_sign():
    texts = drawn(scores=np.array([[-0.001, -0.0049], [-0.0051, -0.0], [0.004, 1e-9]])).axes[0].texts
    assert [t.get_text() for t in texts] == ["0.00", "0.00", "-0.01", "0.00", "0.00", "0.00"]


def test_large_scores_stay_in_their_cells():
    texts = drawn(scores=np.array([[123456.0, -12.345], [9.99, 31.0], [1e-9, 1000.0]])).axes[0].texts
    assert [t.get_text() for t in texts] == ["1.23e+05", "-12.3", "9.99", "31", "0.00", "1e+03"]


def test_an_empty_text_is_named_by_its_quotes():
    axes = drawn(rows=["", "cat", " "], across=[("", RED), ""]).axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == ['""', "cat", '" "']
    assert [t.get_text() for t in axes.get_xticklabels()] == ["", '""']


@pytest.mark.parametrize(
    ("rows", "across"),
    [
        (["a very long label that has to be cut", "b", "c"], ["another of the long labels", "d"]),
        ([RED] * 5, ["cat", "猫が好きです", "قطة جميلة جدا", "ภาษาไทย", *[RED] * 5]),
        ([RED], ["a photograph of a cat", "two dogs", *[RED] * 3]),
    ],
    ids=["long", "words and pictures", "one row"],
)
def test_nothing_of_it_is_cut_off(rows, across):
    figure = drawn(scores=np.zeros((len(rows), len(across))), rows=rows, across=across)
    figure.draw_without_rendering()
    inside, axes = figure.bbox, figure.axes[0]
    for text in (*axes.get_xticklabels(), *axes.get_yticklabels(), *axes.texts):
        if not text.get_text():
            continue
        box = text.get_window_extent()
        assert inside.x0 <= box.x0
        assert box.x1 <= inside.x1
        assert inside.y0 <= box.y0
        assert box.y1 <= inside.y1


def test_many_cells_are_colours_alone():
    side = int(WRITTEN**0.5) + 1
    names = [str(n) for n in range(side)]
    assert not drawn(scores=np.eye(side), rows=names, across=names).axes[0].texts


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"rows": ["cat"]}, r"1 things with 2 are no \(3, 2\)"),
        ({"scores": np.zeros((0, 2)), "rows": []}, "1 to 64 things along a side, not 0 by 2"),
        ({"scores": np.zeros((MOST + 1, 2)), "rows": ["a"] * (MOST + 1)}, "not 65 by 2"),
        ({"across": [RED, Image(b"bad")]}, "item 1: 3 bytes"),
    ],
)
def test_what_cannot_be_drawn_is_told(changed, said):
    with pytest.raises(InputError, match=said):
        drawn(**changed)
