"""Why, by tokens and by characters: parts that a reader would name."""

from __future__ import annotations

import numpy as np
import pytest

import mmembed
from mmembed import Image
from mmembed.demo import DATA
from mmembed.errors import InputError
from mmembed.search.why import why_picture, why_text, why_tokens
from mmembed.testing import byte_tokenizer, tiny_embedder
from mmembed.tokenizer import TransformersTokenizer


@pytest.fixture(scope="module")
def pico():
    return mmembed.load()


def test_vowel_signs_and_stops_stay_with_their_character(pico):
    (query,) = pico.encode_query(["cat"])
    told = why_text(pico, query, "อยู่บน ดี! 猫。 བོད 𠀀𠀁 고양이")
    assert [told.text[a:b] for a, b, _ in told.parts] == [
        "อ",
        "ยู่",
        "บ",
        "น",
        "ดี!",
        "猫。",
        "བོ",
        "ད",
        "𠀀",
        "𠀁",
        "고양이",
    ]


def test_the_one_word_of_a_text_gives_all_that_the_empty_text_lacks(pico):
    (query,) = pico.encode_query(["cat"])
    (part,) = why_text(pico, query, " cat ").parts
    word, empty = pico.encode_document(["cat", ""]) @ query
    assert part == (1, 4, pytest.approx(word - empty, abs=1e-6))
    assert part[2] > 0.3


def test_the_one_word_of_a_text_gives_the_whole_score_where_an_empty_text_has_no_vector():
    bare = tiny_embedder(close=False)
    with pytest.raises(InputError, match="no token"):
        bare.encode_document([""])
    (query,) = bare.encode_query(["cat"])
    assert why_text(bare, query, "cat").parts == [(0, 3, pytest.approx(1, abs=1e-6))]
    assert why_text(bare, query, " ").parts == []
    word, _ = why_text(bare, query, "cat" * 1000).parts
    assert word[2] == pytest.approx((bare.encode_document(["cat" * 1000]) @ query)[0], abs=1e-6)


def test_of_a_book_no_more_is_read_than_the_model_reads(pico):
    (query,) = pico.encode_query(["cat"])
    page = "a dog and a cat " * 60
    short, book = why_text(pico, query, page), why_text(pico, query, page + "the end " * 50_000)
    assert [part[:2] for part in book.parts[:95]] == [part[:2] for part in short.parts[:95]]
    assert book.parts[95][:2] == (short.parts[95][0], len(page) + 399_999)
    np.testing.assert_allclose([p[2] for p in book.parts[:95]], [p[2] for p in short.parts[:95]], atol=1e-5)


def test_of_a_word_without_end_no_more_is_read_than_the_model_reads(pico):
    (query,) = pico.encode_query(["cat"])
    word = "cat" * 100_000
    (first, rest) = why_text(pico, query, word).parts
    assert (first[0], first[1], rest[1]) == (0, rest[0], len(word))
    assert rest[2] == pytest.approx(0, abs=1e-6)


def test_tokens_are_those_whose_greatest_similarities_sum_to_the_score(pico):
    told = why_tokens(pico, "a red cat", "eine rote Katze")
    left, right = (
        pico.encode_tokens(["a red cat"], side="query"),
        pico.encode_tokens(["eine rote Katze"], side="document"),
    )
    assert told.similarity.shape == (len(told.query), len(told.document)) == (len(left[0]), len(right[0]))
    assert told.similarity.max(1).sum() == pytest.approx(pico.similarity(left, right)[0, 0], rel=1e-5)
    assert "".join(told.document).replace("▁", " ").strip().endswith("eine rote katze</s>")


def test_tokens_of_pictures_are_numbered(pico):
    told = why_tokens(pico, "cat", (Image(DATA / "pictographs" / "cat.png"), "cat"))
    numbered = [name for name in told.document if name.startswith("picture ")]
    assert numbered == [f"picture {n}" for n in range(1, len(numbered) + 1)]
    assert numbered
    assert np.isfinite(told.similarity).all()
    with pytest.raises(InputError, match="3 bytes"):
        why_tokens(pico, "cat", Image(b"bad"))


def test_it_tells_cosines_where_vectors_are_of_any_length():
    model, text = tiny_embedder(), "a cat on a mat"
    loose = model.respecified(normalize=False)
    (query,) = model.encode_query(["cat"])
    expected = why_text(model, query, text).parts
    found = why_text(loose, 3 * query, text).parts
    assert [part[:2] for part in found] == [part[:2] for part in expected]
    np.testing.assert_allclose([part[2] for part in found], [part[2] for part in expected], atol=1e-6)


class Asked:
    """An embedder that writes down what it is asked."""

    def __init__(self, embedder):
        self._embedder, self.things, self.held = embedder, [], 0

    def __getattr__(self, name):
        return getattr(self._embedder, name)

    def encode_document(self, things, **options):
        self.held = len(things) if isinstance(things, list) else 0
        self.things = list(things)
        return self._embedder.encode_document(self.things, **options)


def test_white_space_stays_but_where_a_word_is_left_out(pico):
    asked = Asked(pico)
    (query,) = pico.encode_query(["cat"])
    why_text(asked, query, "\na cat\n\n红 色  dog\n")
    assert asked.things == [
        "\na cat\n\n红 色  dog\n",
        "\ncat\n\n红 色  dog\n",
        "\na\n\n红 色  dog\n",
        "\na cat 色  dog\n",
        "\na cat\n\n红  dog\n",
        "\na cat\n\n红 色\n",
    ]


@pytest.mark.parametrize("clean", [None, "lower"])
def test_of_a_book_no_more_is_asked_than_the_model_reads_whatever_its_tokenizer_knows(clean):
    model = tiny_embedder(tokenizer=TransformersTokenizer(byte_tokenizer(), clean=clean))
    asked = Asked(model)
    (query,) = model.encode_query(["cat"])
    why_text(asked, query, "a cat and a dog " * 10_000)
    assert max(map(len, asked.things)) <= 4 * model.spec.max_length


def test_copies_of_a_picture_are_made_as_they_are_read(pico):
    asked = Asked(pico)
    (query,) = pico.encode_query(["cat"])
    cat = Image(DATA / "pictographs" / "cat.png")
    given = why_picture(asked, query, cat, grid=2)
    assert (len(asked.things), asked.held) == (10, 0)
    np.testing.assert_array_equal(given, why_picture(pico, query, cat, grid=2))
