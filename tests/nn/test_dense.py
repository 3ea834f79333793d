"""Dense attention by products, held to torch's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mmembed.nn import dense as own
from mmembed.nn.attention import reference
from mmembed.nn.dense import FEWEST, MOST, are_short, batched, by_products, dense, products
from mmembed.nn.grouped import grouped
from mmembed.nn.spans import Spans

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="the products are oneDNN's")


def draw(n, heads, of_keys, m, length, width=16):
    generator = torch.Generator().manual_seed(0)
    shapes = (n, m, heads, width), (n, length, of_keys, width), (n, length, of_keys, width)
    return [torch.randn(shape, generator=generator).transpose(1, 2) for shape in shapes]


@pytest.fixture
def _for_all(monkeypatch):
    """Products for all sizes, on this processor too."""
    monkeypatch.setattr(own, "slowed", lambda: True)
    monkeypatch.setattr(own, "LEAST", 0)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("heads", "of_keys"), [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("length", [1, 63, 64, 65, 300, 700])
def test_products_are_what_torch_says(length, heads, of_keys, causal):
    q, k, v = draw(2, heads, of_keys, length, length)
    due = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=0.3, enable_gqa=heads != of_keys)
    with torch.inference_mode():
        told = products(q, k, v, scaling=0.3, causal=causal)
    assert told.shape == due.shape
    assert (told - due).abs().max() <= 1e-5


@pytest.mark.parametrize(("m", "length"), [(1, 70), (130, 64), (600, 54)])
def test_queries_of_other_tokens_than_the_keys(m, length):
    q, k, v = draw(1, 4, 2, m, length)
    due = F.scaled_dot_product_attention(q, k, v, scale=0.3, enable_gqa=True)
    with torch.inference_mode():
        assert (products(q, k, v, scaling=0.3, causal=False) - due).abs().max() <= 1e-5


@pytest.mark.usefixtures("_for_all")
@pytest.mark.parametrize("mask", ["causal", "bidirectional"])
def test_a_packed_row_by_products_is_what_the_reference_says(mask):
    lengths = (90, 90, 7, 130, 1)
    spans = Spans.of(lengths, mask)
    q, k, v = draw(1, 4, 2, sum(lengths), sum(lengths))
    how = {"scaling": 0.4, "window": None, "softcap": None}
    with torch.inference_mode():
        assert (grouped(q, k, v, spans, **how) - reference(q, k, v, spans, **how)).abs().max() <= 1e-5


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("heads", "of_keys"), [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize(("m", "length"), [(1, 1), (12, 12), (16, 16), (1, 9), (5, 14)])
def test_many_short_items_are_what_torch_says(m, length, heads, of_keys, causal):
    if causal and m != length:
        pytest.skip("each query of a causal item has a key")
    q, k, v = draw(MOST + 3, heads, of_keys, m, length)
    due = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=0.3, enable_gqa=heads != of_keys)
    with torch.inference_mode():
        for told in (batched(q, k, v, scaling=0.3, causal=causal), dense(q, k, v, scaling=0.3, causal=causal)):
            assert told.shape == due.shape
            assert (told - due).abs().max() <= 1e-5


def test_short_items_are_multiplied_together_in_fp32_without_gradients():
    with torch.inference_mode():
        q, k, _ = draw(FEWEST, 4, 2, 16, 16)
        assert are_short(q, k)
        assert not are_short(q[1:], k[1:])
        assert not are_short(q, draw(FEWEST, 4, 2, 17, 17)[1])
        assert not are_short(q.bfloat16(), k.bfloat16())
    assert not are_short(q, k)


@pytest.mark.parametrize("mask", ["causal", "bidirectional"])
def test_a_row_of_many_short_items_is_what_the_reference_says(mask):
    spans = Spans.of((7,) * 5 + (30,) + (12,) * 4, mask)
    q, k, v = draw(1, 4, 2, spans.tokens, spans.tokens)
    how = {"scaling": 0.4, "window": None, "softcap": None}
    with torch.inference_mode():
        assert (grouped(q, k, v, spans, **how) - reference(q, k, v, spans, **how)).abs().max() <= 1e-5


def test_products_are_for_many_numbers_in_fp32_without_gradients(monkeypatch):
    monkeypatch.setattr(own, "slowed", lambda: True)
    with torch.inference_mode():
        q, k, v = draw(1, 4, 2, 400, 400)
        assert by_products(q, k)
        assert not by_products(q[:, :, :300], k)
        assert not by_products(q.bfloat16(), k.bfloat16())
        with torch.autocast("cpu", torch.bfloat16):
            assert not by_products(q, k)
        with torch.backends.mkldnn.flags(enabled=False):
            assert not by_products(q, k)
        hidden = torch.ones(1, 1, 400, 400, dtype=torch.bool).tril(-1)
        hidden[..., 0] = True
        due = F.scaled_dot_product_attention(q, k, v, hidden, scale=0.3, enable_gqa=True)
        assert torch.equal(dense(q, k, v, hidden, scaling=0.3, causal=False), due)
        monkeypatch.setattr(own, "slowed", lambda: False)
        assert not by_products(q, k)
    leaf = q.clone().requires_grad_()
    dense(leaf, k.clone(), v.clone(), scaling=0.3, causal=True).sum().backward()
    assert leaf.grad is not None


def test_what_a_process_makes_things_in_by_default_has_no_say():
    own._ahead.cache_clear(), own._unseen.cache_clear()
    torch.set_default_dtype(torch.bfloat16)
    try:
        query, key, value = (torch.randn(6, 4, 5, 8, dtype=torch.float32) for _ in range(3))
        with torch.no_grad():
            out = dense(query, key, value, scaling=0.3, causal=True)
    finally:
        torch.set_default_dtype(torch.float32)
    due = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=0.3)
    assert (out - due).abs().max() <= 1e-5
