"""FlexAttention's blocks held to the rule of the mask, and its compiled kernel to the reference."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.attention.flex_attention import create_block_mask

from mmembed.nn import flex as flex_module
from mmembed.nn.attention import reference
from mmembed.nn.flex import BLOCK, blocks, flex, seen
from mmembed.nn.spans import Spans
from mmembed.spec import MASKS

from .test_attention import ASKED, TREES, draw, spans_of, tree_of


def long_tree(seed, mask, images=True):
    """Some hundred tokens in a random tree, with pictures of up to 60 tokens."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 90, (14,), generator=generator).tolist()
    parents = [-1]
    for segment in range(1, len(lengths)):
        above = [segment - 1]
        while above[-1] >= 0:
            above.append(parents[above[-1]])
        parents.append(above[int(torch.randint(len(above), (), generator=generator))])
    block, image = [], 0
    for length in lengths:
        own = [-1] * length
        if length > 70 and images:
            own[5:65], image = [image] * 60, image + 1
        block += own
    flat = [-1] * len(lengths)
    return Spans.of(lengths, mask, torch.tensor(block), flat if mask == "bidirectional" else parents)


@pytest.mark.parametrize("window", [None, 40, 300])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("seed", range(6))
def test_blocks_leave_out_nothing_that_is_seen_and_call_nothing_whole_that_is_not(seed, mask, window):
    spans = long_tree(seed, mask)
    row = torch.arange(len(spans.start))
    rule = spans.may_look(row[:, None], row[None], window)
    some, whole = seen(spans, window)
    for (q, k), said in [((q, k), (some[q, k], whole[q, k])) for q in range(len(some)) for k in range(len(some))]:
        own = rule[q * BLOCK : (q + 1) * BLOCK, k * BLOCK : (k + 1) * BLOCK]
        assert said[0] or not own.any()
        assert own.all() or not said[1]


@pytest.mark.parametrize("mask", ["causal", "bidirectional"])
@pytest.mark.parametrize("seed", range(6))
def test_blocks_of_a_tree_are_no_more_than_are_seen(seed, mask):
    spans = long_tree(seed, mask, images=False)
    row = torch.arange(len(spans.start))
    rule = spans.may_look(row[:, None], row[None])
    some, whole = seen(spans, None)
    count = len(some)
    padded = torch.nn.functional.pad(rule, (0, count * BLOCK - len(row)) * 2)
    own = padded.view(count, BLOCK, count, BLOCK).transpose(1, 2)
    assert torch.equal(some, own.any(-1).any(-1))
    assert torch.equal(whole[:-1, :-1], own.all(-1).all(-1)[:-1, :-1])
    mine, theirs = (
        blocks(spans, None),
        create_block_mask(lambda _b, _h, q, k: spans.may_look(q, k), None, None, len(row), len(row), device="cpu"),
    )
    for lists in ("kv", "full_kv", "q", "full_q"):
        counts, places = getattr(mine, f"{lists}_num_blocks"), getattr(mine, f"{lists}_indices")
        assert torch.equal(counts, getattr(theirs, f"{lists}_num_blocks"))
        listed = torch.arange(count) < counts[..., None]
        assert torch.equal(places[listed], getattr(theirs, f"{lists}_indices")[listed])


@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("mask", MASKS)
def test_a_long_row_is_what_the_reference_says(mask, window):
    spans = long_tree(1, mask)
    q, k, v = draw((len(spans.start),), (2, 1))
    how = {"scaling": 0.4, "window": window, "softcap": None}
    assert (flex(q, k, v, spans, **how) - reference(q, k, v, spans, **how)).abs().max() <= 1e-5


@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
@pytest.mark.parametrize("mask", MASKS)
def test_queries_of_some_tokens_are_answered_as_among_all(mask, asked, window):
    spans = long_tree(3, mask)
    some = asked(spans)
    rule = spans.may_look(some[:, None], torch.arange(spans.tokens)[None], window)
    for which, said in enumerate(seen(spans.asked(some), window)):
        for q, k in said.nonzero() if which else (~said).nonzero():
            own = rule[q * BLOCK : (q + 1) * BLOCK, k * BLOCK : (k + 1) * BLOCK]
            assert own.all() if which else not own.any()
    q, k, v = draw((spans.tokens,), (2, 1))
    how = {"scaling": 0.4, "window": window, "softcap": None}
    due = reference(q, k, v, spans, **how)[:, :, some]
    assert (flex(q[:, :, some], k, v, spans.asked(some), **how) - due).abs().max() <= 1e-5


def test_blocks_are_laid_out_once_for_all_layers_of_a_kind():
    spans = tree_of("levels", "causal")
    assert blocks(spans, 3) is blocks(spans, 3)
    assert blocks(spans, 3) is not blocks(spans, None)


def test_one_kernel_serves_batches_of_every_length_every_window_and_every_cap(monkeypatch):
    """Compiled as on CUDA but for the last step, which makes the kernel itself: once for the first lengths, once for any."""
    counter = CompileCounterWithBackend("aot_eager")
    torch.compiler.reset()
    compiled = torch.compile(torch.nn.attention.flex_attention.flex_attention, fullgraph=True, backend=counter)
    monkeypatch.setattr("torch.nn.attention.flex_attention.flex_attention", compiled)

    def run(lengths, window, softcap):
        q, k, v = draw(lengths, (4, 2), width=16)
        spans = Spans.of(lengths, "causal")
        how = {"scaling": 0.05, "window": window, "softcap": softcap}
        with torch.no_grad():
            told = flex(q, k, v, spans, **how)
        assert (told - reference(q, k, v, spans, **how)).abs().max() <= 1e-5

    kinds = [(None, None), (3, None), (None, 5.0)]
    for kind, (window, softcap) in enumerate(kinds, 1):
        run((150, 5), window, softcap)
        run((140, 40, 90), window, softcap)
        assert counter.frame_count <= 2 * kind
    learnt = counter.frame_count
    for window, softcap in [(None, None), (7, None), (40, None), (None, 6.0)]:
        for lengths in [(3, 130, 260), (700,), (150, 6), (139, 41, 90)]:
            run(lengths, window, softcap)
    assert counter.frame_count == learnt


@pytest.mark.gpu
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("mask", MASKS)
def test_the_compiled_kernel_in_fp32_on_cuda(mask, window, softcap):
    assert torch.get_float32_matmul_precision() == "highest"  # torch's default: no TF32
    spans = long_tree(1, mask)
    q, k, v = draw((len(spans.start),), (4, 2), width=64, device="cuda")
    how = {"scaling": 0.05, "window": window, "softcap": softcap}
    due = reference(q, k, v, spans.to("cuda"), **how)
    assert (flex(q, k, v, spans.to("cuda"), **how) - due).abs().max() <= 2e-5
    some = spans.last
    told = flex(q[:, :, some], k, v, spans.asked(some).to("cuda"), **how)
    assert (told - due[:, :, some]).abs().max() <= 2e-5


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_tree_in_half_precision_on_cuda(dtype, name, window):
    spans = tree_of(name, "causal+image").to("cuda")
    q, k, v = draw((len(spans.start),), (4, 2), width=64, device="cuda", dtype=dtype)
    how = {"scaling": 0.05, "window": window, "softcap": None}
    exact = reference(q.float(), k.float(), v.float(), spans, **how)
    told = flex(q, k, v, spans, **how).float()
    assert (told - exact).abs().max() <= (0.06 if dtype is torch.bfloat16 else 0.01)


@pytest.mark.gpu
@pytest.mark.parametrize("mask", MASKS)
def test_gradients_of_the_compiled_kernel_on_cuda(mask):
    spans = long_tree(2, mask).to("cuda")
    sides = []
    for backend in (flex, reference):
        leaves = [x.requires_grad_() for x in draw((len(spans.start),), (4, 2), width=64, device="cuda")]
        backend(*leaves, spans, scaling=0.05, window=None, softcap=None).square().sum().backward()
        sides.append([x.grad for x in leaves])
    assert all((a - b).abs().max() <= 1e-4 * b.abs().max() for a, b in zip(*sides, strict=True))


@pytest.mark.gpu
def test_a_row_without_pictures_goes_through_the_kernel_of_one_with_them():
    spans = spans_of((1, 1), "causal").to("cuda")
    q, k, v = draw((2,), (4, 2), width=64, device="cuda")
    how = {"scaling": 0.05, "window": None, "softcap": None}
    assert (flex(q, k, v, spans, **how) - reference(q, k, v, spans, **how)).abs().max() <= 2e-5


def test_older_torch_is_told_how_many_kernels_there_may_be_for_as_long_as_a_call_takes(monkeypatch):
    def compiled(model, *, fullgraph):
        assert fullgraph
        return lambda: torch._dynamo.config.recompile_limit

    monkeypatch.setattr(torch, "compile", compiled)
    before = torch._dynamo.config.recompile_limit
    assert flex_module._compiled.__wrapped__()() == flex_module.KERNELS
    assert torch._dynamo.config.recompile_limit == before
