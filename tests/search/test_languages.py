"""One question in many languages: what is shared, and which language drops."""

from __future__ import annotations

import numpy as np
import pytest

import mmembed
from mmembed import Hits, Index
from mmembed.demo import DATA
from mmembed.errors import InputError, UnknownName
from mmembed.search.hits import Hit
from mmembed.search.languages import LanguageReport


def found(query: str, ids: str) -> Hits:
    return Hits([Hit(rank, 0.5, id=name, modality="text", text=name) for rank, name in enumerate(ids, 1)], query)


def report() -> LanguageReport:
    hits = {
        "en": found("cat", "abcd"),
        "de": found("Katze", "abce"),
        "ar": found("قطة", "abfc"),
        "xx": found("?", "wxyz"),
    }
    return LanguageReport(hits, "en")


def test_overlap_is_the_share_of_hits_in_common():
    told = report()
    due = np.array([[1, 0.75, 0.75, 0], [0.75, 1, 0.75, 0], [0.75, 0.75, 1, 0], [0, 0, 0, 1]])
    assert told.overlap == pytest.approx(due)
    assert told.shared == pytest.approx({"en": 0.5, "de": 0.5, "ar": 0.5, "xx": 0})
    assert told.weak == ["xx"]
    assert [row[2] for row in told.rows] == [1, 0.75, 0.75, 0]


def test_it_prints_as_a_table_and_shows_as_one():
    told = report()
    lines = str(told).splitlines()
    assert len(lines) == 6
    assert lines[-1].startswith("xx:")
    assert ["!" in line for line in lines[1:5]] == [False, False, False, True]
    assert "\u2068قطة\u2069" in str(told)
    hits = {"en": found("<script>", "ab"), "de": found("b", "ab")}
    page = LanguageReport(hits, "de")._repr_html_()
    assert "<script>" not in page
    assert "No language drops" in page


def test_pico_finds_the_same_in_many_languages(tmp_path):
    index = Index.create(tmp_path / "index", mmembed.load())
    folder = DATA / "pictographs"
    index.add_folder(folder)
    asked = {
        "en": "cat",
        "de": "Katze",
        "zh": "猫",
        "ar": "قطة",
        "hi": "बिल्ली",
        "tr": "kedi",
        "ru": "кошка",
        "sw": "paka",
    }
    asked["no words"] = "qqqq zzzz"
    told = index.compare_languages(asked, k=5, reference="zh")
    assert [language for language in told.weak if language != "sw"] == ["no words"]
    cats = {"cat.png", "black-cat.png"}
    assert all(hits[0].label == "cat.png" for language, hits in told.hits.items() if language != "no words")
    for language in ("en", "de", "zh", "ar", "hi", "tr", "ru"):
        assert {hit.label for hit in told.hits[language][:2]} == cats
    assert told.reference == "zh"


def test_fewer_than_two_languages_or_an_unknown_reference_is_an_error(tiny, tmp_path):
    index = Index.create(tmp_path / "index", tiny)
    index.add(["a"])
    for odd in ({"en": "a"}, {}, ["a", "b"]):
        with pytest.raises(InputError, match="two at least"):
            index.compare_languages(odd)
    with pytest.raises(UnknownName, match="eng"):
        index.compare_languages({"en": "a", "de": "b"}, reference="eng")
