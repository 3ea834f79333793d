"""Full text and hybrid search: what is found in scripts without spaces, after changes, and in what order."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mmembed import Image, Index, Query
from mmembed.demo import DATA
from mmembed.errors import InputError, StoreError, UnknownName
from mmembed.search import adding
from mmembed.search.ranking import SHARE
from mmembed.search.words import terms
from tests.conftest import picture

SAID = {
    "zh": "请把猫的照片发给我",
    "ja": "今日は猫と犬が庭で遊んでいます",
    "th": "วันนี้แมวนอนอยู่บนโต๊ะ",
    "ko": "고양이가 소파에서 잠을 잔다",
    "en": "The committee adjourned without a decision",
    "de": "Die Donaudampfschifffahrt wurde eingestellt",
    "tr": "Kitaplarımızdan birini okudum",
}
ASKED = {"zh": "照片", "ja": "庭", "th": "แมว", "ko": "소파", "en": "decisions", "de": "Schifffahrt", "tr": "kitaplar"}


@pytest.fixture
def index(tmp_path, tiny):
    return Index.create(tmp_path / "index", tiny)


def test_words_are_found_in_scripts_without_spaces_and_inside_of_words(index):
    index.add(SAID.values(), ids=SAID)
    for language, words in ASKED.items():
        assert index.search(words, mode="text")[0].id == language, words


def test_of_a_query_as_long_as_a_book_the_first_words_are_searched_for(index, monkeypatch):
    monkeypatch.setattr("mmembed.search.ranking.TERMS", 16)
    index.add(["one cat", "a dog"], ids=["cat", "dog"])
    assert [hit.id for hit in index.search("cat " * 20 + "dog", mode="text")] == ["cat"]
    assert [hit.id for hit in index.search("dog " + "cat " * 20, mode="text")] == ["cat", "dog"]
    hybrid = index.search("cat " * 20 + "dog", mode="hybrid")
    assert {hit.id for hit in hybrid} == {"cat", "dog"}  # by vectors


def test_full_text_needs_no_model(index, tiny):
    index.add(SAID.values(), ids=SAID)
    alone = Index.open(index.path)
    assert [hit.id for hit in alone.search("แมว", mode="text")] == ["th"]
    assert alone.search("แมว", mode="text")[0].relevance is None
    with pytest.raises(StoreError, match="without an embedder"):
        alone.search("แมว", mode="hybrid")


def test_scores_are_bm25(index):
    texts = ["one cat", "cat cat", "a dog", "one more dog", "nothing of it"]
    index.add(texts)
    documents = [terms(text).split() for text in texts]
    mean = sum(map(len, documents)) / len(documents)

    def bm25(query, document, k1=1.2, b=0.75):
        total = 0.0
        for term in terms(query).split():
            having = sum(term in each for each in documents)
            idf = math.log(1 + (len(documents) - having + 0.5) / (having + 0.5))
            tf = document.count(term)
            total += idf * tf * (k1 + 1) / (tf + k1 * (1 - b + b * len(document) / mean))
        return total

    hits = index.search("one dog", mode="text")
    due = {text: bm25("one dog", each) for text, each in zip(texts, documents, strict=True)}
    assert {hit.text: hit.score for hit in hits} == pytest.approx({t: s for t, s in due.items() if s > 0}, rel=0.03)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_full_text_follows_every_change(index, monkeypatch):
    monkeypatch.setattr(adding, "CHUNK", 4)
    index.add((f"text number {n}" for n in range(20)), ids=(f"{n:02}" for n in range(20)))  # compacted: indexed
    index.add(["猫がいます"], ids=["late"])  # behind the index
    assert [hit.id for hit in index.search("猫", mode="text")] == ["late"]
    index.add(["犬がいます"], ids=["late"])
    assert len(index.search("猫", mode="text")) == 0
    assert [hit.id for hit in index.search("犬", mode="text")] == ["late"]
    index.add(["猫と犬"], ids=["07"])
    assert [hit.id for hit in index.search("猫", mode="text")] == ["07"]
    assert all(hit.id != "07" for hit in index.search("number 7", mode="text", k=30))
    index.remove(["late"])
    assert [hit.id for hit in index.search("犬", mode="text")] == ["07"]
    index.add((f"more {n}" for n in range(20)), ids=(f"m{n}" for n in range(20)))  # compacted once more
    assert [hit.id for hit in Index.open(index.path).search("犬", mode="text")] == ["07"]


def test_equal_matches_come_in_the_order_of_ids_however_many(index):
    ids = [f"{n:03}" for n in np.random.default_rng(0).permutation(300)]
    index.add(["the same"] * 300, ids=ids)
    assert [hit.id for hit in index.search("same", mode="text", k=25)] == sorted(ids)[:25]


def test_names_in_metadata_and_of_files_are_words_of_a_picture(index, tmp_path):
    (tmp_path / "red_bicycle.png").write_bytes(DATA.joinpath("pictographs/cat.png").read_bytes())
    index.add([picture(0), picture(1)], ids=["named", "other"], metadata=[{"name": "ein Drachen"}, {}])
    index.add([Image(tmp_path / "red_bicycle.png")], ids=["file"])
    assert index.search("drache", mode="text")[0].id == "named"
    assert [hit.id for hit in index.search("bicycle", mode="text")] == ["file"]
    assert [hit.id for hit in index.search("bicycle", mode="text", modality="text")] == []
    index.add([picture(0)], ids=["named"], metadata=[{"name": "ein Haus"}])
    assert [hit.id for hit in index.search("drachen", mode="text")] == []


def test_hybrid_is_the_fusion_of_both_rankings(index):
    index.add([*SAID.values(), *(f"filler {n}" for n in range(30))])
    asked = "猫の照片"
    near = [hit.id for hit in index.search(asked, k=50)]
    found = index.search(asked, k=50, mode="text")
    matching = [hit.id for hit in found if _share(asked, hit.text) >= SHARE]
    assert 0 < len(matching) < len(found) < len(near)
    due = {}
    for ranking in (near, matching):
        for rank, name in enumerate(ranking, 1):
            due[name] = due.get(name, 0) + 1 / (60 + rank)
    hits = index.search(asked, k=50, mode="hybrid")
    assert [hit.id for hit in hits] == sorted(due, key=lambda name: (-due[name], name))
    assert [hit.score for hit in hits] == pytest.approx(sorted(due.values(), reverse=True))
    assert [hit.id for hit in index.search(asked, k=5, mode="hybrid")] == [hit.id for hit in hits[:5]]
    assert all(0 <= hit.relevance <= 1 for hit in hits)


def _share(asked: str, text: str) -> float:
    wanted = set(terms(asked).split())
    return len(wanted & set(terms(text).split())) / len(wanted)


def test_full_text_alone_takes_no_sample_of_the_vectors(index, monkeypatch):
    index.add(["a cat"])
    monkeypatch.setattr(Index, "background", None)
    assert index.search("cat", mode="text")


def test_a_picture_is_not_buried_by_texts_that_share_a_word(index):
    index.add([f"red {n}" for n in range(30)])
    index.add([picture(n) for n in range(30)], ids=[f"p{n}" for n in range(30)])
    best = index.search("red", k=1, modality="image")[0].id
    hits = index.search("red", k=60, mode="hybrid")
    alone = [hit.id for hit in index.search("red", k=60)]
    found = next(hit for hit in hits if hit.id == best)
    assert found.score == pytest.approx(2 / (60 + 1 + alone.index(best)))
    assert [hit.rank for hit in hits] == list(range(1, 61))


def test_a_query_without_words_is_an_error_in_full_text_and_by_vectors_alone_in_hybrid(index):
    index.add([*WORDS, picture(0)])
    for empty in (picture(1), "?!"):
        with pytest.raises(InputError, match="no words"):
            index.search(empty, mode="text")
    with pytest.raises(InputError, match="'two - cat': full text cannot turn hits away"):
        index.search(Query([("two", 1), ("cat", -1)]), mode="text")
    assert [hit.id for hit in index.search(picture(0), mode="hybrid")] == [hit.id for hit in index.search(picture(0))]
    with pytest.raises(UnknownName, match="hybrid"):
        index.search("cat", mode="hibrid")


WORDS = ["one", "two words", "three of them"]


def test_an_empty_index_answers_every_mode_with_nothing(index):
    for mode in ("vector", "text", "hybrid"):
        assert len(index.search("cat", mode=mode)) == 0
