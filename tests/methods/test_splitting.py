"""Pieces laid end to end are the text; where they are split."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mmembed
from mmembed.errors import SpecError
from mmembed.methods.splitting import by_sentences, by_tokens, windows_of_tokens
from mmembed.testing import WIDTH, byte_tokenizer, tiny_embedder
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


@pytest.mark.parametrize("size", [0, -1, 1.5])
def test_pieces_of_nothing_are_refused(size):
    for cut in (
        lambda: by_sentences("a. b", size),
        lambda: by_tokens("ab", size, BYTES),
        lambda: windows_of_tokens("ab", size, BYTES),
    ):
        with pytest.raises(SpecError, match="1 at least"):
            cut()


def test_a_part_that_cannot_be_embedded_is_skipped_where_that_is_said():
    ours = tiny_embedder(pooling="mean", max_length=60)
    things = [tuple(by_sentences("A cat. It sleeps.")), ("", ""), ("x" * 100,), ("red",)]
    report = mmembed.Report()
    found = ours.encode_chunks(things, joint="", on_error="skip", report=report)
    assert [each.shape for each in found] == [(2, WIDTH), (1, WIDTH), (1, WIDTH), (1, WIDTH)]
    assert [bool(np.isnan(each).all()) for each in found] == [False, True, True, False]
    assert [skipped.row for skipped in report.skipped] == [1, 2]
    assert np.abs(found[3] - ours.encode_chunks([things[3]])[0]).max() <= 1e-5
    asked = {"several": {"any": ["a {content}", "b {content}"]}}
    with pytest.raises(SpecError, match="the prompt 'several' is of several templates"):
        ours.respecified(prompts=asked).encode_chunks(things[0], prompt_name="several")


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
