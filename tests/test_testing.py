"""What users get for tests of their own: a tokenizer of bytes, sharp tiny backbones, a tiny embedder."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmembed.errors import UnknownName
from mmembed.testing import BACKBONES, WIDTH, byte_tokenizer, tiny_backbone, tiny_embedder


def test_a_kind_that_is_not_there_is_told():
    with pytest.raises(UnknownName, match="qwen3"):
        tiny_backbone("qwen33")


BYTES = byte_tokenizer(eos=False)


@settings(max_examples=200)
@given(st.text().filter(lambda text: not any(token in text for token in ("<pad>", "<s>", "</s>"))))
def test_a_text_without_special_tokens_goes_through_the_byte_tokenizer_and_comes_back(text):
    ids = BYTES(text)["input_ids"]
    assert len(ids) == len(text.encode())
    assert all(0 <= k < 256 for k in ids)
    assert BYTES.decode(ids, clean_up_tokenization_spaces=False) == text


@pytest.mark.parametrize("text", ["", "<pad>a", "a</s>b", "  two  spaces \n", "ő é", "日本語", "🏔️", "\x00"])
def test_special_tokens_are_one_token_each_and_stand_where_asked(text):
    plain = BYTES(text)["input_ids"]
    assert byte_tokenizer(bos=True)(text)["input_ids"] == [257, *plain, 258]
    assert byte_tokenizer(special=("<image>",))("<image>")["input_ids"] == [259, 258]


@pytest.mark.parametrize("kind", BACKBONES)
def test_a_tiny_backbone_is_drawn_from_its_seed_and_leaves_the_caller_s_alone(kind):
    torch.manual_seed(1)
    due = torch.rand(3)
    torch.manual_seed(1)
    one, same, other = tiny_backbone(kind), tiny_backbone(kind), tiny_backbone(kind, seed=1)
    assert torch.equal(torch.rand(3), due)
    pairs = list(zip(one.parameters(), same.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert any(not torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert not one.training


@pytest.mark.parametrize("kind", BACKBONES)
def test_attention_of_a_tiny_backbone_is_sharp_enough_to_show_a_mistake(kind):
    """Another first token moves the state of the last one far beyond rounding."""
    model = tiny_backbone(kind)
    ids = torch.tensor([[65, 66, 67, 68]])
    with torch.no_grad():
        here = model(input_ids=ids).last_hidden_state[0, -1]
        there = model(input_ids=ids.index_fill(1, torch.tensor([0]), 97)).last_hidden_state[0, -1]
    assert (here - there).abs().max() > 1e-3


def test_a_tiny_embedder_is_the_same_each_time():
    one, two = tiny_embedder().encode(["a", "b"]), tiny_embedder().encode(["a", "b"])
    assert one.shape == (2, WIDTH)
    assert np.array_equal(one, two)
    assert not np.array_equal(tiny_embedder(seed=1).encode(["a", "b"]), one)
