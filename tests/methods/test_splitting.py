"""Pieces laid end to end are the text; where they are split."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmembed.methods.splitting import by_sentences, by_tokens, windows_of_tokens
from mmembed.testing import byte_tokenizer
from mmembed.tokenizer import TransformersTokenizer

BYTES = TransformersTokenizer(byte_tokenizer())


@given(st.text(alphabet="ab .!?\n猫é。", max_size=40), st.integers(1, 5))
def test_pieces_laid_end_to_end_are_the_text(text, size):
    for pieces in (by_sentences(text, size), by_tokens(text, size, BYTES)):
        assert "".join(pieces) == text
        assert all(pieces)


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("A b. C d! E?", ["A b. ", "C d! ", "E?"]),
        ("It is 3.5 m. So?", ["It is 3.5 m. ", "So?"]),
        ('He said "no." Then he left.', ['He said "no." ', "Then he left."]),
        ("猫。犬！", ["猫。", "犬！"]),
        ("यह घर है। वह गया।", ["यह घर है। ", "वह गया।"]),
        ("one\n\ntwo", ["one\n\n", "two"]),
        ("no end", ["no end"]),
    ],
)
def test_sentences_end_where_they_end(text, pieces):
    assert by_sentences(text) == pieces


def test_several_sentences_a_piece():
    assert by_sentences("A. B. C. D. E", 2) == ["A. B. ", "C. D. ", "E"]


def test_so_many_tokens_a_piece():
    assert by_tokens("abcdefgh", 3, BYTES) == ["abc", "def", "gh"]
    assert windows_of_tokens("abcdefgh", 3, BYTES) == ["abc", "def", "fgh"]
    assert windows_of_tokens("abcdef", 3, BYTES) == ["abc", "def"]
    assert windows_of_tokens("ab", 3, BYTES) == ["ab"]
    assert by_tokens("a猫b", 2, BYTES) == ["a猫", "b"]


@given(st.lists(st.sampled_from("abcdefghijklm 猫é写真をñü"), unique=True), st.integers(1, 9))
def test_windows_hold_all_of_the_text(letters, size):
    text = "".join(letters)
    pieces = windows_of_tokens(text, size, BYTES)
    reached = 0
    for piece in pieces:
        where = text.find(piece, max(0, reached - len(piece)))
        assert 0 <= where <= reached
        reached = max(reached, where + len(piece))
    assert reached == len(text)
