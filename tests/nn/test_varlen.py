"""The backend of variable-length kernels: all of it but the kernel runs here, over a plain one of the same meaning."""

from __future__ import annotations

from functools import wraps

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention.bias import causal_lower_right

from mmembed.nn.attention import reference
from mmembed.nn.spans import Spans
from mmembed.nn.varlen import _said, calls, varlen

from .test_attention import ASKED, HEADS, LENGTHS, TREES, WINDOWS, draw, spans_of, tree_of

DEEP = ((3, 1, 2, 5, 1, 1, 4, 2), (-1, 0, 1, 2, 3, 4, 5, 6))
FOREST = ((4, 2, 1, 3, 3, 5, 2, 2, 1, 6), (-1, 0, 0, 2, 2, -1, 5, 6, 6, -1))
SHAPES = {**TREES, "deep": DEEP, "forest": FOREST}


def plain(
    query,
    key,
    value,
    cu_seq_q,
    cu_seq_k,
    max_q,
    max_k,
    *,
    return_aux=None,
    scale=None,
    window_size=(-1, -1),
    enable_gqa=False,
    num_splits=None,
):
    """`varlen_attn` in plain torch: windows and the causal diagonal stand at the lower right of each stretch."""
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert max_q == cu_seq_q.diff().max()
    assert max_k == cu_seq_k.diff().max()
    assert cu_seq_q[-1] == len(query)
    assert cu_seq_k[-1] == len(key) == len(value)
    assert enable_gqa or query.shape[1] == key.shape[1]
    assert num_splits == 1
    groups = query.shape[1] // key.shape[1]
    outs, sums = [], []
    for q0, q1, k0, k1 in zip(
        *([int(n) for n in x][s:][: len(x) - 1] for x in (cu_seq_q, cu_seq_k) for s in (0, 1)), strict=True
    ):
        q, k, v = query[q0:q1], key[k0:k1], value[k0:k1]
        k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
        scores = torch.einsum("qhe,khe->hqk", q.float(), k.float()) * scale
        ahead = (torch.arange(k1 - k0) - (torch.arange(q1 - q0) + (k1 - k0) - (q1 - q0))[:, None]).to(q.device)
        left, right = window_size
        hidden = (ahead < -left if left >= 0 else ahead.isnan()) | (ahead > right if right >= 0 else ahead.isnan())
        scores = scores.masked_fill(hidden, float("-inf"))
        sums.append(scores.logsumexp(-1))
        outs.append(torch.einsum("hqk,khe->qhe", scores.softmax(-1), v.float()).to(q.dtype))
    out = torch.cat(outs)
    return (out, torch.cat(sums, dim=1)) if return_aux is not None and return_aux.lse else out


@pytest.fixture
def _plain(monkeypatch):
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", plain)


def tree(name, mask="causal"):
    lengths, parents = SHAPES[name]
    return Spans.of(lengths, mask, None, parents)


def test_the_plain_kernel_means_what_torch_says_of_its_own():
    (q, _, _), (_, k, v) = draw((7,), (4, 2)), draw((9,), (4, 2))
    told = {"cu_seq_q": torch.tensor([0, 3, 7]), "cu_seq_k": torch.tensor([0, 5, 9])}
    told = {name: x.int() for name, x in told.items()}
    for window, bias in (((-1, -1), None), ((-1, 0), causal_lower_right)):
        flat = [x[0].transpose(0, 1) for x in (q, k, v)]
        out = plain(*flat, **told, max_q=4, max_k=5, scale=0.4, window_size=window, enable_gqa=True, num_splits=1)
        for (q0, q1), (k0, k1) in (((0, 3), (0, 5)), ((3, 7), (5, 9))):
            mask = None if bias is None else bias(q1 - q0, k1 - k0)
            keys = [x[:, :, k0:k1].repeat_interleave(2, dim=1) for x in (k, v)]
            due = F.scaled_dot_product_attention(q[:, :, q0:q1], *keys, attn_mask=mask, scale=0.4)
            assert (out[q0:q1].transpose(0, 1) - due[0]).abs().max() <= 1e-5


@pytest.mark.usefixtures("_plain")
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("mask", ["causal", "bidirectional"])
@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_items_are_what_the_reference_says(lengths, heads, mask, window):
    q, k, v = draw(lengths, heads)
    spans = spans_of(lengths, mask)
    how = {"scaling": 0.4, "window": window, "softcap": None}
    assert (varlen(q, k, v, spans, **how) - reference(q, k, v, spans, **how)).abs().max() <= 1e-5


@pytest.mark.usefixtures("_plain")
@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("name", SHAPES)
def test_a_tree_of_any_depth_is_what_the_reference_says(name, heads, window):
    spans = tree(name)
    q, k, v = draw((len(spans.start),), heads)
    how = {"scaling": 0.4, "window": window, "softcap": None}
    assert (varlen(q, k, v, spans, **how) - reference(q, k, v, spans, **how)).abs().max() <= 1e-5


@pytest.mark.usefixtures("_plain")
@pytest.mark.parametrize("window", [None, 100, 3])
@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
@pytest.mark.parametrize("mask", ["causal", "bidirectional"])
def test_queries_of_some_tokens_are_answered_as_among_all(mask, asked, window):
    rows = [spans_of(lengths, mask) for lengths in LENGTHS.values() if sum(lengths) > 1]
    rows += [tree(name) for name in SHAPES] if mask == "causal" and window != 3 else []
    for spans in rows:
        some = asked(spans)
        if not len(some) or (mask == "bidirectional" and window == 3 and spans.longest > 3):
            continue
        q, k, v = draw((spans.tokens,), (4, 2))
        how = {"scaling": 0.4, "window": window, "softcap": None}
        due = reference(q, k, v, spans, **how)[:, :, some]
        told = varlen(q[:, :, some], k, v, spans.asked(some), **how)
        assert (told - due).abs().max() <= 1e-5


@pytest.mark.usefixtures("_plain")
def test_parts_far_apart_are_merged_without_loss():
    """Shared parts that outweigh the own ones by e^100 for some heads, and weigh nothing beside them for others."""
    spans = tree("instruction")
    q, k, v = draw((len(spans.start),), (4, 4))
    k[:, :, :5] += 40
    how = {"scaling": 0.4, "window": None, "softcap": None}
    told = varlen(q, k, v, spans, **how)
    assert (told - reference(q, k, v, spans, **how)).abs().max() <= 5e-5  # scores of 300 are rounded so


@pytest.mark.parametrize("mask", ["causal", "bidirectional"])
def test_a_kernel_that_need_not_be_told_of_heads_and_splits(monkeypatch, mask):
    """As torch 2.11 has it."""

    def older(
        query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1)
    ):
        how = {"return_aux": return_aux, "scale": scale, "window_size": window_size}
        return plain(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, **how, enable_gqa=True, num_splits=1)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", older)
    spans = tree("levels") if mask == "causal" else spans_of((3, 7), mask)
    q, k, v = draw((spans.tokens,), (4, 2))
    how = {"scaling": 0.4, "window": None, "softcap": None}
    assert (varlen(q, k, v, spans, **how) - reference(q, k, v, spans, **how)).abs().max() <= 1e-5


def test_what_is_asked_of_the_kernel_is_told_once_a_batch():
    spans = tree("levels")
    assert calls(spans) is calls(spans)
    own, outer, inner = calls(spans)[0]
    assert own.firsts_q is own.firsts_k  # kernels ask whether they are the same
    assert own.firsts_q.tolist() == [0, 4, 6, 9, 10, 11, 17, 19]
    assert (outer.most_q, outer.most_k) == (7, 6)
    assert inner.queries == slice(6, 10)
    assert inner.keys == slice(4, 6)
    some = torch.tensor([1, 2, 9, 12, 13, 16])
    own, outer, *others = calls(spans.asked(some))[0]
    assert own.queries == slice(0, 6)
    assert own.firsts_q.tolist() == [0, 2, 3, 5, 6]
    assert own.keys.tolist() == [0, 1, 2, 9, 11, 12, 13, 11, 12, 13, 14, 15, 16]
    assert outer.queries == slice(2, 3)  # what comes after [11, 17) is not asked for
    assert [other.keys for other in others] == [slice(4, 6)]


def test_the_backend_refuses_what_its_kernels_do_not_know():
    how = {"scaling": 0.4, "window": None, "softcap": None}
    q, k, v = draw((13,), (4, 2))
    spans = tree("instruction")
    with pytest.raises(NotImplementedError, match="soft cap"):
        varlen(q, k, v, spans_of((13,), "causal"), **{**how, "softcap": 2.0})
    with pytest.raises(NotImplementedError, match="image blocks"):
        varlen(q, k, v, tree_of("instruction", "causal+image"), **how)
    with pytest.raises(NotImplementedError, match="sliding window"):
        varlen(q, k, v, spans, **{**how, "window": 3})
    some = torch.tensor([2, 3])
    with pytest.raises(NotImplementedError, match="some tokens only"):
        varlen(q[:, :, some], k, v, spans_of((13,), "bidirectional").asked(some), **{**how, "window": 3})
    for k_or_v in range(3):
        leaves = [x.clone().requires_grad_(n == k_or_v) for n, x in enumerate((q, k, v))]
        with pytest.raises(NotImplementedError, match="gradient"):
            varlen(*leaves, spans, **how)


@pytest.mark.parametrize("by_token", [False, True])
def test_a_log_sum_exp_is_read_by_head_or_by_token(monkeypatch, by_token):
    @wraps(plain)
    def other(*args, **options):
        told = plain(*args, **options)
        return (told[0], told[1].T[..., None]) if isinstance(told, tuple) and by_token else told

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", other)
    spans = tree("levels")
    q, k, v = draw((len(spans.start),), (4, 2))
    how = {"scaling": 0.4, "window": None, "softcap": None}
    assert (varlen(q, k, v, spans, **how) - reference(q, k, v, spans, **how)).abs().max() <= 1e-5


def test_a_log_sum_exp_of_another_shape_is_an_error(monkeypatch):
    monkeypatch.setattr(
        "torch.nn.attention.varlen.varlen_attn",
        wraps(plain)(lambda *args, **options: (plain(*args, **options)[0], torch.zeros(3))),
    )
    spans = tree("levels")
    with pytest.raises(RuntimeError, match="log-sum-exp"):
        varlen(*draw((len(spans.start),), (4, 2)), spans, scaling=0.4, window=None, softcap=None)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_the_kernel_means_what_the_plain_one_does(dtype):
    from torch.nn.attention.varlen import AuxRequest, varlen_attn

    lengths_q, lengths_k = (3, 140, 1), (200, 140, 33)
    (q, _, _) = draw(lengths_q, (4, 2), width=64, dtype=dtype)
    (_, k, v) = draw(lengths_k, (4, 2), width=64, dtype=dtype)
    flat = [x[0].transpose(0, 1) for x in (q, k, v)]
    firsts = [torch.tensor([0, *lengths]).cumsum(0).int() for lengths in (lengths_q, lengths_k)]
    for window in ((-1, -1), (-1, 0), (20, 0)):
        how = {
            "scale": 0.05,
            "window_size": window,
            "return_aux": AuxRequest(True),
        }
        due, due_sum = plain(*flat, *firsts, 140, 200, **how, enable_gqa=True, num_splits=1)
        told, told_sum = varlen_attn(*(x.cuda() for x in (*flat, *firsts)), 140, 200, **how, **_said(varlen_attn, True))
        assert (told.cpu().float() - due.float()).abs().max() <= (0.06 if dtype is torch.bfloat16 else 0.01)
        assert (told_sum.cpu() - due_sum).abs().max() <= 1e-3


@pytest.mark.gpu
@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_tree_in_half_precision_on_cuda(dtype, name, heads):
    spans = tree(name).to("cuda")
    q, k, v = draw((len(spans.start),), heads, width=64, device="cuda", dtype=dtype)
    how = {"scaling": 0.05, "window": None, "softcap": None}
    exact = reference(q.float(), k.float(), v.float(), spans, **how)
    some = spans.last
    last = varlen(q[:, :, some], k, v, spans.asked(some), **how).float()
    assert (last - exact[:, :, some]).abs().max() <= (0.09 if dtype is torch.bfloat16 else 0.015)
    # One rounding more than without a tree: parts come rounded, and so does what they are merged to.
    told = varlen(q, k, v, spans, **how).float()
    assert (told - exact).abs().max() <= (0.09 if dtype is torch.bfloat16 else 0.015)


@pytest.mark.gpu
def test_an_item_has_the_same_bits_in_any_company_on_cuda():
    lengths = (70, 3, 300, 150)
    q, k, v = draw(lengths, (4, 2), width=64, device="cuda", dtype=torch.bfloat16)
    how = {"scaling": 0.05, "window": None, "softcap": None}
    together = varlen(q, k, v, Spans.of(lengths, "causal").to("cuda"), **how)
    own = slice(73, 373)
    alone = varlen(*(x[:, :, own] for x in (q, k, v)), Spans.of((300,), "causal").to("cuda"), **how)
    assert torch.equal(together[:, :, own], alone)


@pytest.mark.gpu
@pytest.mark.parametrize("mask", ["causal", "bidirectional"])
def test_gradients_of_items_on_cuda(mask):
    lengths = (5, 1, 130, 60)
    spans = Spans.of(lengths, mask).to("cuda")
    sides = []
    for backend in (varlen, reference):
        leaves = [x.requires_grad_() for x in draw(lengths, (4, 2), width=64, device="cuda", dtype=torch.float16)]
        backend(*leaves, spans, scaling=0.05, window=None, softcap=None).float().sum().backward()
        sides.append([x.grad.float() for x in leaves])
    assert all((a - b).abs().max() <= 0.02 * b.abs().max() + 1e-3 for a, b in zip(*sides, strict=True))
