"""What plots share: letters of every script, a look of their own, labels that fit, pictures on axes."""

from __future__ import annotations

import io

import matplotlib.pyplot as plt
import numpy as np
import PIL.Image
import pytest
from PIL import ImageDraw

from mmembed.display import lettering
from mmembed.display.figures import COLOURS, SIDE, Plot, faces, plotting, style, words
from mmembed.errors import InputError
from mmembed.images import Image
from mmembed.search.hits import Hit

SCRIPTS = [
    "cat", "Žvėrys ẵ", "γάτα", "кошка", "猫が雪で遊ぶ", "ねこ", "고양이", "قطة", "گربه ڀ", "חתול", "बिल्ली", "বিড়াল",
    "ਬਿੱਲੀ", "બિલાડી", "ବିଲେଇ",
    "பூனை", "పిల్లి", "ಬೆಕ್ಕು", "പൂച്ച", "බළලා", "แมว", "ແມວ", "ကြောင်", "ឆ្មា", "ድመት", "კატა", "կատու", "ᏪᏌ", "𐴁𐴞𐴓𐴠", "貓 ▁ → − ≤ ✓ €",
]  # fmt: skip


def ink(text: str) -> np.ndarray:
    with plotting(3, 1) as figure:
        figure.text(0.1, 0.4, text, fontsize=20)
    picture = PIL.Image.open(io.BytesIO(figure._repr_png_())).convert("L")
    return np.asarray(picture) < 128


@pytest.mark.filterwarnings("error:Glyph")
@pytest.mark.parametrize("text", SCRIPTS)
def test_every_script_is_drawn_with_a_bundled_font(text):
    assert words(text, 40) == text
    assert ink(text).any()


@pytest.mark.filterwarnings("error:Glyph")
def test_what_no_font_has_is_a_code_point_and_a_dollar_is_a_dollar():
    assert words("🙂\u202e$x_1$", 40) == "<1F642>\\u202e$x_1$"
    assert ink("$x_1$").sum() > ink("x").sum() * 2


def test_arabic_letters_join():
    assert np.count_nonzero(ink("قطة").any(0)) < np.count_nonzero(ink("ق ط ة").any(0))


def test_a_label_is_cut_by_the_columns_it_takes():
    assert words("a long label", 7) == "a long…"
    assert words("一二三四五", 7) == "一二三…"
    assert words("short", 7) == "short"


def test_a_figure_looks_the_same_in_a_dark_style():
    with plotting(2, 1) as light:
        light.add_subplot().plot([0, 1])
    with plt.style.context("dark_background"):
        with plotting(2, 1) as dark:
            dark.add_subplot().plot([0, 1], color="C0")
        png = dark._repr_png_()
    corner = PIL.Image.open(io.BytesIO(png)).convert("RGB").getpixel((1, 1))
    assert corner == (255, 255, 255)
    assert [t.get_color() for t in dark.axes[0].get_xticklabels()] == [
        t.get_color() for t in light.axes[0].get_xticklabels()
    ]
    assert isinstance(dark, Plot)


def test_the_callers_style_is_left_as_it_was():
    before = dict(plt.rcParams)
    with plotting(1, 1):
        pass
    assert dict(plt.rcParams) == before


def test_groups_differ_in_colour_or_marker():
    looks = {(way["color"], way["marker"]) for way in map(style, range(49))}
    assert len(looks) == 49
    assert {way["color"] for way in map(style, range(7))} == set(COLOURS)
    assert len({way["marker"] for way in map(style, range(7))}) == 7


def test_things_have_faces():
    pixels = np.zeros((300, 150, 3), dtype=np.uint8)
    data = io.BytesIO()
    PIL.Image.new("RGB", (40, 20), "red").save(data, "WEBP")
    hits = [Hit(1, 0.5, "a", "text", text="ein Text"), Hit(2, 0.4, "b", "image", thumbnail=data.getvalue())]
    shown = faces(["a word", Image(pixels), ("both", Image(pixels)), *hits], 20)
    assert [text for text, _ in shown] == ["a word", "", "both", "ein Text", ""]
    assert [None if small is None else small.shape for _, small in shown] == [
        None, (SIDE, SIDE // 2, 3), (SIDE, SIDE // 2, 3), None, (20, 40, 3)
    ]  # fmt: skip
    with pytest.raises(InputError, match="item 1: 3 bytes"):
        faces(["fine", Image(b"bad")], 20)
    with pytest.raises(InputError, match=r"item 0.*not guessed at"):
        faces([3], 20)


def test_of_a_book_no_more_is_read_than_the_label_holds(monkeypatch):
    seen = []
    monkeypatch.setattr(lettering, "font_of", lambda c: seen.append(c) or "NotoSans.ttf")
    assert words(" \n" * 500 + "a \n" * 500 + "b" * 1_000_000, 7) == "a a a …"
    assert words("\u0301".join("c" * 100_000), 7) == "c\u0301" * 6 + "…"
    canvas = ImageDraw.Draw(PIL.Image.new("L", (100, 50)))
    lettering.draw_text(canvas, (0, 0, 100, 50), "many words " * 100_000, size=16)
    assert len(seen) < 2000


@pytest.mark.parametrize("style", [{"savefig.transparent": True}, {"savefig.facecolor": "black"}])
def test_a_figure_is_saved_on_white_whatever_the_callers_style(style, tmp_path):
    with plotting(1, 1) as figure:
        figure.text(0, 0, "a")
    with plt.rc_context(style):
        figure.savefig(tmp_path / "own.png")
        figure.savefig(tmp_path / "asked.png", transparent=True)
    assert PIL.Image.open(tmp_path / "own.png").convert("RGBA").getpixel((99, 1)) == (255, 255, 255, 255)
    assert PIL.Image.open(tmp_path / "asked.png").convert("RGBA").getpixel((99, 1))[3] == 0
