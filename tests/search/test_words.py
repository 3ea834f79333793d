"""Terms of texts in many scripts, the same from every way of writing one thing."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmembed.search.words import SPACELESS, terms


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("Cats!", "_ca cat ats ts_"),
        ("a, I", "_a_ _i_"),
        ("猫が好き", "猫 が 好 き 猫が が好 好き"),
        ("ไทยๆ a", "ไท ทย ยๆ ไทย ทยๆ _a_"),
        ("ก", "ก"),
        ("고양이", "고 양 이 고양 양이"),
        ("красная", "_кр кра рас асн сна ная ая_"),
        ("iPhone15を", "_ip iph pho hon one ne1 e15 15_ を"),
        ("🐱 ❤️猫", "_🐱_ _❤_ 猫"),
        ("\u200f،؟ --", ""),
    ],
)
def test_terms_are_runs_of_characters(text, told):
    assert terms(text) == told


def test_marks_stay_on_their_letters():
    assert terms("नमस्ते") == "_नम नमस् मस्ते स्ते_"


@pytest.mark.parametrize(
    ("one", "other"),
    [("ＡＢＣ", "abc"), ("ﾈｺ", "ネコ"), ("É", "e\u0301"), ("STRASSE", "straße"), ("❤", "❤️"), ("ﬁsh", "FISH")],
)
def test_ways_of_writing_one_thing_have_the_same_terms(one, other):
    assert terms(one) == terms(other) != ""


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_terms_hold_for_any_text(text):
    found = terms(text)
    assert found == " ".join(found.split())
    assert terms(unicodedata.normalize("NFD", text)) == terms(unicodedata.normalize("NFC", text))


def test_scripts_without_spaces_are_the_same_ones_where_parts_of_a_text_are_told():
    for text in ("ไทย", "ລາວ", "བོད", "မြန်မာ", "ខ្មែរ", "猫", "𠀀", "ねこ", "ネコ"):
        assert SPACELESS.match(text), text
    for text in ("cat", "кот", "고양이", "قط"):
        assert not SPACELESS.match(text), text
