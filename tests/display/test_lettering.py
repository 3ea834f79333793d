"""Letters in pictures: every letter of the demo has a glyph, scripts are shaped, lines keep to their width."""

from __future__ import annotations

import json

import numpy as np
import PIL.Image
import pytest
from PIL import ImageDraw, features

import mmembed
from mmembed.demo import DATA
from mmembed.display.lettering import draw_text, elided, font_of, wrapped

SENTENCES = [
    entry["text"]
    for file in ("texts.json", "questions.json")
    for entry in json.loads((DATA / file).read_text(encoding="utf-8"))
    if "text" in entry
]


def drawn(text: str, width: int = 600, **options) -> np.ndarray:
    picture = PIL.Image.new("L", (width, 60), 255)
    draw_text(ImageDraw.Draw(picture), (0, 0, width, 60), text, size=24, fill="black", **options)
    return np.asarray(picture) < 128


def test_every_letter_of_the_demo_has_a_glyph():
    assert {c for text in SENTENCES for c in text if font_of(c) is None} == set()


@pytest.mark.parametrize("letter", ["a", "é", "ư", "Ж", "λ", "ה", "ق", "ह", "ช", "நா"[0], "雪", "お", "기", "…"])
def test_scripts_of_the_demo_are_there(letter):
    assert font_of(letter) is not None


def test_every_letter_that_pico_knows_has_a_glyph():
    tokens = mmembed.load().tokenizer
    letters = {c for number in range(len(tokens)) for c in tokens.token_of(number)}
    assert len(letters) > 5000
    assert {c for c in letters if font_of(c) is None} == set()


@pytest.mark.parametrize("letter", ["🙂", "\U00012000", "ᚠ"])
def test_a_letter_that_no_font_has_is_written_as_its_code_point(letter):
    assert font_of(letter) is None
    np.testing.assert_array_equal(drawn(letter), drawn(f"<{ord(letter):X}>"))


@pytest.mark.skipif(not features.check("raqm"), reason="shaping needs Raqm")
def test_arabic_letters_join_and_run_from_the_right():
    ink = np.flatnonzero(drawn("قطة").any(0))
    assert ink.min() > 300
    assert ink.max() >= 590
    joined, apart = drawn("قطة").sum(0), drawn("ق ط ة").sum(0)
    assert np.count_nonzero(joined) < np.count_nonzero(apart)


@pytest.mark.skipif(not features.check("raqm"), reason="shaping needs Raqm")
def test_han_characters_take_the_form_of_their_language():
    assert (drawn("雪", language="ja") != drawn("雪", language="zh")).any() or (
        drawn("茶", language="ja") != drawn("茶", language="zh")
    ).any()


@pytest.mark.parametrize("text", SENTENCES[:40])
def test_a_text_is_wrapped_whole_and_no_line_starts_with_a_stop(text):
    lines = wrapped(text, 90, 16)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert not any(line[0] in "。、.," for line in lines)


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("snow capped mountain", "snow capped…"),
        ("teacup without handle", "teacup without…"),
        ("short", "short"),
    ],
)
def test_a_text_that_is_cut_ends_in_an_ellipsis(text, same):
    def line(shown: str) -> np.ndarray:
        picture = PIL.Image.new("L", (122, 18), 255)
        draw_text(ImageDraw.Draw(picture), (0, 0, 122, 18), shown, size=12, fill="black")
        return np.asarray(picture)

    np.testing.assert_array_equal(line(text), line(same))


@pytest.mark.parametrize(
    "text",
    ["an apple on the table", "abcdefghijklmnopqrstuvwxyz", "猫が雪の中で遊んでいる", "قطة تنام على السطح في الليل"],
)
def test_a_cut_line_keeps_to_its_width(text):
    (line, *_) = wrapped(text, 80, 16)
    cut = elided(line, 80, 16)
    assert cut.endswith("…")
    assert line.startswith(cut[:-1])
    assert wrapped(cut.replace(" ", "\u00a0"), 80, 16) == [cut.replace(" ", "\u00a0")]


def test_text_stays_in_its_box():
    picture = PIL.Image.new("L", (300, 100), 255)
    draw_text(ImageDraw.Draw(picture), (50, 20, 250, 80), "many words " * 30, size=16, fill="black")
    ink = np.argwhere(np.asarray(picture) < 128)
    assert ink.min(0)[0] >= 20
    assert ink.max(0)[0] < 80
    assert ink.min(0)[1] >= 49
    assert ink.max(0)[1] <= 251
