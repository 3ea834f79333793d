"""Every backend of attention held to the plain reference, and the reference to a loop over items."""

from __future__ import annotations

import itertools

import pytest
import torch

from mmembed.errors import UnknownName
from mmembed.nn.attention import BACKENDS, attend, choose, reference
from mmembed.nn.spans import Spans
from mmembed.spec import MASKS

LENGTHS = {
    "one token": (1,),
    "one item": (9,),
    "ones": (1, 1, 1),
    "equal": (4, 4, 4),
    "mixed": (5, 1, 7, 7, 1, 1, 12, 3),
}
HEADS = {"one key a head": (4, 4), "grouped keys": (4, 2), "one key": (4, 1)}
WINDOWS = (None, 3, 1, 100)
ON_CPU = [name for name in BACKENDS if name != "varlen"]


def draw(lengths, heads, *, width=8, seed=0, device="cpu", dtype=torch.float32):
    """Query, key and value of a packed row; attention is sharp, so that a wrong mask shows."""
    generator = torch.Generator().manual_seed(seed)
    tokens = sum(lengths)
    shapes = [(1, n, tokens, width) for n in (heads[0], heads[1], heads[1])]
    return [(torch.randn(shape, generator=generator) * 2).to(device, dtype) for shape in shapes]


def spans_of(lengths, mask):
    """Spans with two images in every item long enough, the second one next to the first."""
    block, image = [], 0
    for length in lengths:
        own = [-1] * length
        if length >= 5:
            own[1:3], own[3:4] = [image, image], [image + 1]
            image += 2
        block += own
    return Spans.of(lengths, mask, torch.tensor(block))


def by_item(query, key, value, lengths, mask, block, scaling, window, softcap):
    """Attention of each item, head and token by itself: sums over the tokens it may see, nothing else."""
    out = torch.zeros_like(query)
    groups = query.shape[1] // key.shape[1]
    first = 0
    for length in lengths:
        for head, q in itertools.product(range(query.shape[1]), range(first, first + length)):
            seen = []
            for k in range(first, first + length):
                ok = mask == "bidirectional" or k <= q
                ok = ok or (mask == "causal+image" and block is not None and block[q] >= 0 and block[q] == block[k])
                if ok and (window is None or abs(q - k) < window):
                    seen.append(k)
            scores = key[0, head // groups, seen] @ query[0, head, q] * scaling
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            out[0, head, q] = scores.softmax(0) @ value[0, head // groups, seen]
        first += length
    return out


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("mask", MASKS)
def test_the_reference_is_a_loop_over_items_heads_and_tokens(mask, window, softcap):
    lengths = (6, 1, 3)
    q, k, v = draw(lengths, (4, 2))
    spans = spans_of(lengths, mask)
    told = reference(q, k, v, spans, scaling=0.4, window=window, softcap=softcap)
    assert (told - by_item(q, k, v, lengths, mask, spans.block, 0.4, window, softcap)).abs().max() <= 1e-5


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("backend", [name for name in ON_CPU if name != "reference"])
def test_every_backend_says_what_the_reference_says(backend, lengths, heads, mask, window):
    q, k, v = draw(lengths, heads)
    spans = spans_of(lengths, mask)
    how = {"scaling": 0.4, "window": window, "softcap": None}
    assert (BACKENDS[backend](q, k, v, spans, **how) - reference(q, k, v, spans, **how)).abs().max() <= 1e-5


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("backend", ON_CPU)
def test_an_item_does_not_hear_its_neighbours(backend, mask):
    lengths = LENGTHS["mixed"]
    q, k, v = draw(lengths, (4, 2))
    how = {"scaling": 0.4, "window": 3, "softcap": None}
    told = BACKENDS[backend](q, k, v, spans_of(lengths, mask), **how)
    first = sum(lengths[:3])
    own = slice(first, first + lengths[3])
    loud = [torch.where((torch.arange(q.shape[2]) // 1 >= own.start)[:, None], x, x * -7 + 100) for x in (q, k, v)]
    for x, y in zip(loud, (q, k, v), strict=True):
        x[:, :, own.stop :] = 1000 * y[:, :, own.stop :]
    assert (BACKENDS[backend](*loud, spans_of(lengths, mask), **how)[:, :, own] - told[:, :, own]).abs().max() <= 1e-5


@pytest.mark.parametrize("backend", ["reference", "grouped"])
def test_gradients_of_a_backend_are_those_of_the_reference(backend):
    lengths = LENGTHS["mixed"]
    spans = spans_of(lengths, "causal+image")
    sides = []
    for chosen in (backend, "reference"):
        leaves = [x.double().requires_grad_() for x in draw(lengths, (4, 2))]
        out = BACKENDS[chosen](*leaves, spans, scaling=0.4, window=4, softcap=None)
        out.square().sum().backward()
        sides.append([x.grad for x in leaves])
    assert all((a - b).abs().max() <= 1e-4 for a, b in zip(*sides, strict=True))


TREES = {
    "instruction": ((5, 3, 3, 2), (-1, 0, 0, 0)),
    "levels": ((4, 2, 3, 1, 1, 6, 2), (-1, 0, 1, 1, 0, -1, 5)),
    "beside items": ((4, 2, 9, 4, 3, 3), (-1, 0, 0, -1, 3, 3)),
}


def paths(lengths, parents):
    """The tokens that each segment's last token comes after, itself included, in order."""
    firsts = [sum(lengths[:k]) for k in range(len(lengths))]
    own = []
    for first, length, parent in zip(firsts, lengths, parents, strict=True):
        own.append([*(own[parent] if parent >= 0 else []), *range(first, first + length)])
    return own


def tree_of(name, mask):
    lengths, parents = TREES[name]
    block = torch.full((sum(lengths),), -1)
    block[1:3] = 0  # an image in the first segment
    return Spans.of(lengths, mask, block, parents)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("mask", ["causal", "causal+image"])
@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize("backend", ["reference", "grouped", "flex"])
def test_a_tree_gives_each_item_what_it_would_have_alone(backend, name, mask, window):
    lengths, parents = TREES[name]
    q, k, v = draw((sum(lengths),), (4, 2))
    spans = tree_of(name, mask)
    told = BACKENDS[backend](q, k, v, spans, scaling=0.4, window=window, softcap=None)
    for path in paths(lengths, parents):
        block = None if spans.block is None else spans.block[path]
        alone = Spans.of((len(path),), mask, block)
        due = reference(q[:, :, path], k[:, :, path], v[:, :, path], alone, scaling=0.4, window=window, softcap=None)
        assert (told[:, :, path] - due).abs().max() <= 1e-5


def test_gradients_of_a_tree_are_those_of_the_reference():
    spans = tree_of("levels", "causal+image")
    sides = []
    for chosen in ("grouped", "reference"):
        leaves = [x.double().requires_grad_() for x in draw((sum(spans.lengths),), (4, 2))]
        BACKENDS[chosen](*leaves, spans, scaling=0.4, window=4, softcap=None).square().sum().backward()
        sides.append([x.grad for x in leaves])
    assert all((a - b).abs().max() <= 1e-4 for a, b in zip(*sides, strict=True))


@pytest.mark.parametrize("name", [*LENGTHS, *TREES])
def test_gradients_under_autocast_are_of_products_in_fp32(name):
    """What bf16 hands to attention is measured and learnt from as if it were fp32."""
    spans = tree_of(name, "causal") if name in TREES else spans_of(LENGTHS[name], "causal")
    q, k, v = (x.bfloat16() for x in draw((spans.tokens,), (4, 2)))
    sides = []
    for autocast in (True, False):
        leaves = [(x if autocast else x.float()).clone().requires_grad_() for x in (q, k, v)]
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = BACKENDS["grouped"](*leaves, spans, scaling=0.4, window=None, softcap=None)
        assert out.dtype == leaves[0].dtype
        out.backward(torch.ones_like(out))
        sides.append([out.detach().float(), *(x.grad.float() for x in leaves)])
    for told, due in zip(*sides, strict=True):
        assert torch.equal(told, due.bfloat16().float())


ASKED = {
    "the last of each": lambda spans: spans.last,
    "some": lambda spans: torch.arange(0, spans.tokens, 3),
    "of one": lambda spans: torch.tensor([spans.tokens - 1]),
    "behind the first": lambda spans: torch.arange(spans.lengths[0], spans.tokens),
    "all but the last": lambda spans: torch.arange(max(spans.tokens - 1, 1)),
}


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
@pytest.mark.parametrize("backend", ["reference", "grouped"])
def test_queries_of_some_tokens_are_answered_as_among_all(backend, asked, mask, window):
    rows = [spans_of(lengths, mask) for lengths in LENGTHS.values() if sum(lengths) > 1]
    rows += [] if mask == "bidirectional" else [tree_of(name, mask) for name in TREES]
    for spans in rows:
        q, k, v = draw((spans.tokens,), (4, 2))
        how = {"scaling": 0.4, "window": window, "softcap": None}
        some = asked(spans)
        if not len(some):
            continue
        due = reference(q, k, v, spans, **how)[:, :, some]
        told = BACKENDS[backend](q[:, :, some], k, v, spans.asked(some), **how)
        assert told.shape == due.shape
        assert (told - due).abs().max() <= 1e-5
        # Without gradients the parts of a tree are joined by their log-sum-exp, with them in one softmax.
        leaves = [x.double().requires_grad_() for x in (q, k, v)]
        out = BACKENDS[backend](leaves[0][:, :, some], *leaves[1:], spans.asked(some), **how)
        assert (out - due).abs().max() <= 1e-5
        out.square().sum().backward()
        mine = [x.grad.clone() for x in leaves]
        for x in leaves:
            x.grad = None
        reference(*leaves, spans, **how)[:, :, some].square().sum().backward()
        assert all((a - x.grad).abs().max() <= 1e-4 for a, x in zip(mine, leaves, strict=True))


def test_what_is_recalled_stands_for_the_keys_of_the_row():
    q, k, v = draw((9,), (4, 2))
    spans = spans_of((9,), "causal").asked(torch.tensor([7, 8]))
    layer = Module()
    layer.layer_idx = 3
    told, _ = attend(
        *(layer, q[:, :, 7:], k[:, :, 7:], v[:, :, 7:], None),
        spans=spans,
        recall=lambda number, key, value: (
            (torch.cat([k[:, :, :7], key], 2), torch.cat([v[:, :, :7], value], 2)) if number == 3 else None
        ),
    )
    due = reference(q, k, v, spans.asked(None), scaling=8**-0.5, window=None, softcap=None)[:, :, 7:]
    assert (told.transpose(1, 2) - due).abs().max() <= 1e-5
    with pytest.raises(NotImplementedError, match="which layer"):
        attend(Module(), q[:, :, 7:], k, v, None, spans=spans, recall=lambda _, key, value: (key, value))


def test_flex_caps_scores_as_the_reference_does():
    q, k, v = draw((5, 2), (4, 2))
    how = {"scaling": 0.4, "window": None, "softcap": 2.0}
    spans = spans_of((5, 2), "causal")
    assert (BACKENDS["flex"](q, k, v, spans, **how) - reference(q, k, v, spans, **how)).abs().max() <= 1e-5


def test_the_grouped_backend_refuses_a_soft_cap():
    q, k, v = draw((5, 2), (4, 2))
    capped = {"scaling": 0.4, "window": None, "softcap": 2.0}
    with pytest.raises(NotImplementedError, match="soft cap"):
        BACKENDS["grouped"](q, k, v, spans_of((5, 2), "causal"), **capped)


class Module(torch.nn.Module):
    """A layer of transformers as far as `attend` sees it."""


def test_attend_gives_tokens_before_heads_and_scales_by_the_width_unless_told():
    q, k, v = draw((5, 2), (4, 2))
    spans = spans_of((5, 2), "causal")
    out, weights = attend(Module(), q, k, v, None, spans=spans, deterministic=True)
    expected = reference(q, k, v, spans, scaling=8**-0.5, window=None, softcap=None)
    assert out.shape == (1, 7, 4, 8)
    assert weights is None
    assert (out.transpose(1, 2) - expected).abs().max() <= 1e-5
    scaled, _ = attend(Module(), q, k, v, None, spans=spans, scaling=0.1, sliding_window=2, backend="grouped")
    expected = reference(q, k, v, spans, scaling=0.1, window=2, softcap=None)
    assert (scaled.transpose(1, 2) - expected).abs().max() <= 1e-5


def test_attend_serves_a_soft_cap_on_the_cpu():
    q, k, v = draw((5, 2), (4, 2))
    spans = spans_of((5, 2), "causal")
    out, _ = attend(Module(), q, k, v, None, spans=spans, softcap=2.0)
    expected = reference(q, k, v, spans, scaling=8**-0.5, window=None, softcap=2.0)
    assert torch.equal(out.transpose(1, 2), expected)


def test_attend_refuses_what_no_backend_does():
    q, k, v = draw((3,), (4, 2))
    spans = spans_of((3,), "causal")
    with pytest.raises(UnknownName, match=r"attention backend.*'group'.*Did you mean 'grouped'"):
        attend(Module(), q, k, v, None, spans=spans, backend="group")
    with pytest.raises(NotImplementedError, match="attention_mask"):
        attend(Module(), q, k, v, torch.ones(1, 1, 3, 3), spans=spans)
    with pytest.raises(NotImplementedError, match="dropout"):
        attend(Module(), q, k, v, None, spans=spans, dropout=0.1, backend="flex")


@pytest.mark.parametrize("backend", ["reference", "grouped"])
@pytest.mark.parametrize("shared", [False, True])
def test_dropout_leaves_out_a_share_of_what_is_looked_at_and_raises_the_rest(backend, shared):
    """Values are unit vectors, so that what comes out are the weights themselves."""
    q, k, _ = draw((3, 3, 2), (4, 4))
    v = torch.eye(8)[None, None].expand(1, 4, 8, 8)
    spans = Spans.of((3, 3, 2), "causal", parents=[-1, 0, 0]) if shared else spans_of((3, 3, 2), "causal")
    whole, _ = attend(Module(), q, k, v, None, spans=spans, backend=backend)
    torch.manual_seed(0)
    seen = torch.stack(
        [attend(Module(), q, k, v, None, spans=spans, backend=backend, dropout=0.25)[0] for _ in range(200)]
    )
    kept = seen != 0
    torch.testing.assert_close(seen[kept], (whole / 0.75).expand_as(seen)[kept], rtol=1e-5, atol=1e-6)
    share = 1 - kept[:, whole > 0].float().mean()
    assert abs(float(share) - 0.25) < 0.01


def test_the_cpu_is_served_by_a_backend_that_runs_there():
    q, *_ = draw((3,), (4, 2))
    spans = spans_of((3,), "causal")
    assert choose(q, spans, None, None) == "grouped"
    assert choose(q, spans, None, 2.0) == "reference"


@pytest.mark.gpu
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", ["varlen", "flex", "grouped"])
def test_backends_in_half_precision_on_cuda(backend, dtype, heads, mask, window):
    if backend == "varlen" and mask == "causal+image":
        pytest.skip("variable-length kernels know no image blocks")
    lengths = (5, 1, 130, 130, 1, 300, 3)
    q, k, v = draw(lengths, heads, width=64, device="cuda", dtype=dtype)
    spans = spans_of(lengths, mask).to("cuda")
    how = {"scaling": 0.05, "window": window, "softcap": None}
    told = BACKENDS[backend](q, k, v, spans, **how).float()
    exact = reference(q.float(), k.float(), v.float(), spans, **how)
    # Values are of size 2; the output is rounded to 8 (bf16) or 11 (fp16) bits, the weights inside as well.
    assert (told - exact).abs().max() <= (0.06 if dtype is torch.bfloat16 else 0.01)


@pytest.mark.gpu
def test_every_backend_is_chosen_on_cuda_where_it_serves():
    half = torch.zeros(1, 4, 13, 64, device="cuda", dtype=torch.bfloat16)
    row, tree = spans_of((13,), "causal").to("cuda"), tree_of("instruction", "causal").to("cuda")
    assert choose(half, row, None, None) == "varlen"
    assert choose(half, row, 3, None) == "varlen"
    assert choose(half, tree, None, None) == "varlen"
    assert choose(half, tree, 100, None) == "varlen"
    assert choose(half, tree, 3, None) == "flex"
    assert choose(half, tree, None, None, learning=True) == "flex"
    assert choose(half, spans_of((13,), "causal+image").to("cuda"), None, None) == "flex"
    assert choose(half, row, None, 2.0) == "flex"
    assert choose(half.detach().float(), row, None, None) == "flex"
    narrow = torch.zeros(1, 4, 13, 8, device="cuda")
    assert choose(narrow, row, None, None) == "grouped"
    assert choose(narrow, row, None, 2.0) == "reference"
