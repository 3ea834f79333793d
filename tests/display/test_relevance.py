"""Relevance as a picture: the numbers of `search/why.py`, words in the order of reading."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from matplotlib.colors import to_rgba

import mmembed
from mmembed import Image
from mmembed.demo import DATA
from mmembed.display import draw_relevance
from mmembed.errors import InputError
from mmembed.search.hits import Hit
from mmembed.search.why import why_picture, why_text


@pytest.fixture(scope="module")
def pico():
    return mmembed.load()


def axes_of(figure, part: int):
    return [sub.axes for sub in figure.subfigs][part]


@pytest.mark.filterwarnings("error:Glyph")
def test_a_picture_lies_under_what_its_places_give(pico):
    cat = Image(DATA / "pictographs" / "cat.png")
    figure = draw_relevance(pico, "cat", cat, grid=4)
    plain, under, bar = axes_of(figure, 0)
    film = under.images[1]
    (query,) = pico.encode_query(["cat"])
    np.testing.assert_allclose(film.get_array(), why_picture(pico, query, cat, grid=4), atol=1e-6)
    assert film.get_clim()[0] == -film.get_clim()[1]  # white is nothing
    assert plain.images[0].get_array().shape == (128, 128, 3)
    assert bar.get_ylabel() == "given to the cosine"
    assert figure.get_suptitle() == "cat"


@pytest.mark.filterwarnings("error:Glyph")
@pytest.mark.parametrize(
    ("text", "rtl"),
    [("seven words and among them a cat", False), ("猫在屋顶上睡觉。", False), ("قطة تنام على السطح", True)],
)
def test_words_stand_in_their_order_on_what_they_give(pico, text, rtl):
    figure = draw_relevance(pico, "cat", text)
    axes = axes_of(figure, 0)[0]
    covered = why_text(pico, pico.encode_query(["cat"])[0], text)
    assert [t.get_text() for t in axes.texts] == [text[a:b] for a, b, _ in covered.parts]
    places = [t.get_position()[0] for t in axes.texts]
    assert places == sorted(places, reverse=rtl)
    grounds = [patch.get_facecolor() for patch in axes.patches]
    strongest = int(np.argmax([change for _, _, change in covered.parts]))
    assert grounds[strongest] == to_rgba(grounds[strongest])
    assert grounds[strongest][2] > grounds[strongest][1] + 0.1  # purple: it speaks for


def test_long_texts_go_on_in_lines_that_do_not_touch(pico):
    figure = draw_relevance(pico, "cat", "a cat and " * 30)
    axes = axes_of(figure, 0)[0]
    boxes = [patch.get_extents() for patch in axes.patches]
    assert len({round(box.y0) for box in boxes}) > 3
    assert not any(a.shrunk(0.98, 0.98).overlaps(b.shrunk(0.98, 0.98)) for k, a in enumerate(boxes) for b in boxes[:k])
    assert max(box.x1 for box in boxes) < axes.get_window_extent().x1


@pytest.mark.filterwarnings("error:constrained_layout")
@pytest.mark.parametrize(
    "rest", ["a cat and " * 60, "猫在屋顶上睡觉" * 30, "a word " * 95 + "w" * 3000, "قطة على السطح " * 50]
)
def test_the_rest_of_a_long_text_is_cut_to_a_line_and_told(pico, rest):
    figure = draw_relevance(pico, "cat", rest)
    figure.draw_without_rendering()
    axes = axes_of(figure, 0)[0]
    *_, last, note = axes.texts
    assert last.get_text().endswith("…")
    assert note.get_text() == "what follows the first 95 words is one part"
    assert last.get_window_extent().x1 <= axes.get_window_extent().x1
    assert last.get_window_extent().x0 >= axes.get_window_extent().x0


def test_a_text_that_is_asked_whole_has_no_note(pico):
    figure = draw_relevance(pico, "cat", "a word " * 40)
    assert not [t for t in axes_of(figure, 0)[0].texts if "95" in t.get_text()]


def test_the_picture_of_a_query_stands_above(pico):
    cat = Image(DATA / "pictographs" / "cat.png")
    figure = draw_relevance(pico, cat, "a cat")
    (query,) = axes_of(figure, 0)
    assert query.get_title() == "query"
    assert query.images[0].get_array().shape == (96, 96, 3)
    assert [t.get_text() for t in axes_of(figure, 1)[0].texts] == ["a", "cat"]
    assert figure.get_suptitle() == ""
    both = draw_relevance(pico, ("with snow", cat), "a cat")
    assert both.get_suptitle() == "with snow"
    assert len(both.subfigs) == 2


def test_a_mixed_item_and_a_hit_show_all_their_parts(pico):
    cat = DATA / "pictographs" / "cat.png"
    assert len(draw_relevance(pico, "cat", ("a cat", Image(cat)), grid=2).subfigs) == 2
    hit = Hit(1, 0.9, "x", "image+text", text="a cat", thumbnail=cat.read_bytes())
    assert len(draw_relevance(pico, "cat", hit, grid=2).subfigs) == 2
    with pytest.raises(InputError, match="'x' holds neither"):
        draw_relevance(pico, "cat", Hit(1, 0.9, "x", "text"))
    with pytest.raises(InputError, match="3 bytes"):
        draw_relevance(pico, "cat", Image(b"bad"))


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("قرأت New York Times 24 اليوم 10 20", ["20", "10", "اليوم", "New", "York", "Times", "24", "قرأت"]),
        ("she wrote صباح الخير 10 , no", ["she", "wrote", "10", "الخير", "صباح", ",", "no"]),
        ("كتب A - B - ثم", ["ثم", "-", "A", "-", "B", "كتب"]),
    ],
)
def test_words_that_run_the_other_way_stand_in_their_own_order(pico, text, seen):
    axes = axes_of(draw_relevance(pico, "cat", text), 0)[0]
    shown = sorted(axes.texts, key=lambda t: t.get_position()[0])
    assert [t.get_text() for t in shown] == seen
    grounds = sorted((patch.get_x(), patch.get_x() + patch.get_width()) for patch in axes.patches)
    assert all(left[1] < right[0] for left, right in pairwise(grounds))


def test_a_query_of_several_parts_is_asked_as_one(pico):
    cat, dog = (Image(DATA / "pictographs" / f"{name}.png") for name in ("cat", "dog"))
    query = mmembed.Query([("a cat", 1), (cat, 0.5), (dog, -0.5)])
    figure = draw_relevance(pico, query, "a cat")
    assert figure.get_suptitle().startswith("a cat + 0.5 × [")
    assert len(axes_of(figure, 0)) == 1  # the picture that is asked for
    expected = draw_relevance(pico, "a cat", "a cat")
    one = draw_relevance(pico, mmembed.Query([("a cat", 2)]), "a cat")
    assert [p.get_facecolor() for p in axes_of(one, 0)[0].patches] == [
        p.get_facecolor() for p in axes_of(expected, 0)[0].patches
    ]
