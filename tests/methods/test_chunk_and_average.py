"""Chunk and average against LongEmbed's formula over transformers; nothing is cut, whatever the prompt."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import mmembed
from mmembed.errors import InputError, SpecError, TruncationError, UnknownName
from mmembed.methods import chunk_and_average
from mmembed.methods.mean_of_several import mean_of_several
from mmembed.testing import byte_tokenizer, tiny_backbone, tiny_embedder

from ..conftest import picture

TEXTS = ["a" * 7 + " quick brown fox jumps over the lazy dog, twice. " * 3, "short", "a naïve text of twenty", "x" * 38]
PROMPTS = {"document": {"any": "passage: {content}"}, "query": {"any": "{instruction} {content} {text}"}}


@pytest.fixture(scope="module")
def ours():
    return tiny_embedder(pooling="mean", max_length=30, prompts=PROMPTS)


def pieces_of(text: str, size: int) -> list[str]:
    """get_chunked_docs of dwzhu-pku/LongEmbed in its words."""
    words = byte_tokenizer()
    tokens = words(text, add_special_tokens=False)["input_ids"]
    pieces = []
    for first in range(0, len(tokens), size):
        if first + size > len(tokens):
            pieces.append(words.decode(tokens[-size:], skip_special_tokens=True))
            break
        pieces.append(words.decode(tokens[first : first + size], skip_special_tokens=True))
    return pieces


def published(text: str, size: int) -> torch.Tensor:
    model, words = tiny_backbone(), byte_tokenizer()
    vectors = []
    for piece in pieces_of(text, size):
        ids = words("passage: " + piece, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            vectors.append(model(ids).last_hidden_state[0].mean(0))
    mean = torch.stack(vectors).mean(0)
    return mean / mean.norm()


@pytest.mark.parametrize("size", [20, 13, None])
def test_a_long_text_is_the_mean_of_its_pieces_as_published(ours, held, size):
    fits = 30 - len("passage: ") - 1  # what the prompt and </s> leave
    expected = torch.stack([published(text, size or fits) for text in TEXTS])
    vectors = chunk_and_average.encode(ours, TEXTS, size=size, prompt_name="document")
    says = {"against": "the authors' formula over transformers", "kind": "method", "family": "chunk_and_average"}
    held("chunk and average", vectors, expected, **says)


def test_a_text_that_fits_is_embedded_as_ever(ours):
    assert np.abs(chunk_and_average.encode(ours, ["short", ""]) - ours.encode(["short", ""])).max() <= 1e-6


def test_one_text_is_one_and_texts_come_from_anywhere(ours):
    alone = chunk_and_average.encode(ours, TEXTS[0])
    assert np.array_equal(alone, chunk_and_average.encode(ours, [TEXTS[0]]))
    assert np.array_equal(chunk_and_average.encode(ours, mmembed.Text(TEXTS[0])), alone)
    assert np.array_equal(chunk_and_average.encode(ours, iter(TEXTS)), chunk_and_average.encode(ours, TEXTS))


def test_a_group_is_a_list_of_things(ours):
    groups = [["ab", "c"], ["d"]]
    means = mean_of_several(ours, groups)
    assert np.array_equal(mean_of_several(ours, (iter(group) for group in groups)), means)
    for wrong in ("abc", mmembed.Text("abc"), picture(1), {"text": "abc"}):
        with pytest.raises(InputError, match="item 1: a group is a list of things"):
            mean_of_several(ours, [["a"], wrong])
    with pytest.raises(InputError, match="item 1: there is nothing"):
        mean_of_several(ours, [["a"], []])


def test_the_end_of_a_long_text_counts(ours):
    start = "the same beginning of a text that goes on and on and "
    a, b = chunk_and_average.encode(ours, [start + "ends here", start + "ends there"])
    assert np.abs(a - b).max() > 1e-3


def test_a_text_has_one_vector_whatever_its_company(ours):
    together = chunk_and_average.encode(ours, TEXTS, batch_tokens=64)
    alone = np.concatenate([chunk_and_average.encode(ours, [text]) for text in TEXTS[::-1]])[::-1]
    assert np.abs(alone - together).max() <= 1e-5


def test_pieces_fit_whatever_the_prompt_says(ours):
    words = chunk_and_average.encode(ours, TEXTS, prompt_name="query", instruction=["a", "long one here", "b", "c"])
    assert np.isfinite(words).all()
    with pytest.raises(InputError, match="item 1: the prompt leaves no room"):
        chunk_and_average.encode(ours, ["ok", "a"], prompt=["", "p" * 40])
    with pytest.raises(TruncationError, match="item 0"):
        chunk_and_average.encode(ours, TEXTS, size=100)
    with pytest.raises(SpecError, match="size=0"):
        chunk_and_average.encode(ours, TEXTS, size=0)
    with pytest.raises(SpecError, match="1 prompts were given for 2 items"):
        chunk_and_average.encode(ours, ["a", "b"], prompt=["q: "])
    with pytest.raises(UnknownName, match="truncate"):
        chunk_and_average.encode(ours, ["a"], truncate="end")
    with pytest.raises(InputError, match="item 1: texts are split here"):
        chunk_and_average.encode(ours, ["a", picture(1)])


def test_tokens_are_counted_as_the_model_would_read_them(ours):
    assert ours.count_tokens(["red", "猫"]) == [4, 4]
    assert ours.count_tokens("x" * 100, prompt_name="document") == [110]
    assert ours.count_tokens([(picture(1), "red")]) == [16 + 4]
    with pytest.raises(InputError, match="item 1"):
        ours.count_tokens(["a", []])
    with pytest.raises(SpecError, match="1 prompts were given for 2 items"):
        ours.count_tokens(["a", "b"], prompt=["c"])


def test_a_text_that_no_tokenizer_reads_is_named(ours):
    for size in (None, 5):
        with pytest.raises(InputError, match="item 1: the text is no Unicode"):
            chunk_and_average.encode(ours, ["fine", "\ud800"], size=size)
