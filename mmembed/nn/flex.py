"""The backend of FlexAttention: the rule of the mask compiled into one kernel, which skips the blocks that nobody sees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .compiling import compiled
from .spans import Spans
from .transfer import to_device

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

NARROWEST = 16
"""Numbers of a head at least: Triton multiplies no smaller blocks."""
KERNELS = 64
"""Kinds of rules, precisions and shapes of heads for which kernels are made; torch's own limit is 8."""
BLOCK = 128
"""Tokens of a block, as the kernels take them unless told otherwise."""


def flex(
    query: Float[Tensor, "1 H Q E"],
    key: Float[Tensor, "1 K T E"],
    value: Float[Tensor, "1 K T E"],
    spans: Spans,
    *,
    scaling: float,
    window: int | None,
    softcap: float | None,
) -> Float[Tensor, "1 H Q E"]:
    """FlexAttention (arXiv 2412.05496), compiled on CUDA and run plainly elsewhere; every mask, soft caps, any precision,
    with gradients. fp32 is multiplied as torch multiplies it: in TF32 only where the caller has allowed that."""
    from torch.nn.attention.flex_attention import flex_attention

    run: Any = _compiled() if query.is_cuda else flex_attention
    out = run(
        query,
        key,
        value,
        score_mod=None if softcap is None else _cap(spans, softcap),
        block_mask=blocks(spans, window),
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
        # The kernel of few queries, which "AUTO" takes for less than 128 of them, has no form for 128 rows and more of all heads
        # that share a key: 83 queries of two heads each do not compile (torch 2.11, H100).
        kernel_options={"BACKEND": "TRITON"},
    )
    assert isinstance(out, Tensor)
    return out


def blocks(spans: Spans, window: int | None) -> BlockMask:
    """Which blocks of the row are seen, wholly or in part; told once a batch and window, from the ends of blocks: T x T is never
    laid out."""
    known = ("flex", window)
    if known not in spans.memo:
        spans.memo[known] = _blocks(spans, window)
    told: BlockMask = spans.memo[known]
    return told


def _blocks(spans: Spans, window: int | None) -> BlockMask:
    from torch.nn.attention.flex_attention import BlockMask

    # Numbers go into the kernel as tensors: torch 2.15 compiles no rule that holds a number which may change.
    reach = None if window is None else to_device(torch.tensor(window, device="cpu"), spans.start.device)
    held, asking = replace(spans), spans.asking  # without its memo: a rule that leads back to it frees nothing in time

    def rule(_batch: Tensor, _head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return held.may_look(q if asking is None else asking[q], k, reach)

    some, whole = seen(spans, window)
    partial, full = _listed(some & ~whole), _listed(whole)
    lengths = len(spans.queries), spans.tokens
    return BlockMask.from_kv_blocks(*partial, *full, BLOCK_SIZE=BLOCK, mask_mod=rule, seq_lengths=lengths)


def seen(spans: Spans, window: int | None) -> tuple[Bool[Tensor, "Q K"], Bool[Tensor, "Q K"]]:
    """Of every block of queries and every block of keys: whether any may be seen, and whether all are. The first may say too
    much, where the rule inside the block decides; the second never does, and leaves out the last block, which may be
    shorter."""
    q = {name: own[:, None] for name, own in _bounds(spans, spans.queries).items()}
    k = {
        name: own[None, :]
        for name, own in _bounds(spans, torch.arange(spans.tokens, device=spans.start.device)).items()
    }
    if spans.causal:
        some = (k["first"] <= q["last"]) & (q["first"] < k["most end"])
        whole = (k["last"] <= q["first"]) & (q["last"] < k["least end"])
    else:
        some = (q["least start"] <= k["last"]) & (k["first"] < q["most end"])
        whole = (q["most start"] <= k["first"]) & (k["last"] < q["least end"])
    if spans.block is not None:
        some = some | ((q["least image"] <= k["most image"]) & (k["least image"] <= q["most image"]))
    if window is not None:
        before = q["least position"] - k["most position"], q["most position"] - k["least position"]
        after = k["least position"] - q["most position"], k["most position"] - q["least position"]
        some = some & (torch.maximum(before[0], after[0]) < window)
        whole = whole & (torch.maximum(before[1], after[1]) < window)
    whole = whole.clone()
    whole[-1], whole[:, -1] = False, False
    return some, whole


def _bounds(spans: Spans, tokens: Int[Tensor, " N"]) -> dict[str, Int[Tensor, " blocks"]]:
    """The least and the greatest of what the rule reads of tokens, over each block of them."""
    start, end, position = spans.start[tokens], spans.end[tokens], spans.positions[tokens]
    images = {}
    if spans.block is not None:
        image = spans.block[tokens]
        images = {
            "least image": _of_blocks(torch.where(image < 0, spans.tokens, image), torch.amin),
            "most image": _of_blocks(image, torch.amax),
        }
    return images | {
        "first": _of_blocks(tokens, torch.amin),
        "last": _of_blocks(tokens, torch.amax),
        "least start": _of_blocks(start, torch.amin),
        "most start": _of_blocks(start, torch.amax),
        "least end": _of_blocks(end, torch.amin),
        "most end": _of_blocks(end, torch.amax),
        "least position": _of_blocks(position, torch.amin),
        "most position": _of_blocks(position, torch.amax),
    }


def _of_blocks(numbers: Int[Tensor, " N"], by: Callable[..., Tensor]) -> Int[Tensor, " blocks"]:
    """The least or the greatest of each block; the last one is filled up with its last number."""
    count = -(-len(numbers) // BLOCK)
    filled = torch.cat([numbers, numbers[-1:].expand(count * BLOCK - len(numbers))])
    return by(filled.view(count, BLOCK), 1)


def _listed(chosen: Bool[Tensor, "Q K"]) -> tuple[Tensor, Tensor]:
    """How many blocks of keys each block of queries has, and which, in order, the others behind them."""
    counts = chosen.sum(-1, dtype=torch.int32)
    which = chosen.to(torch.int8).argsort(dim=-1, descending=True, stable=True).to(torch.int32)
    return counts[None, None], which[None, None]


def _cap(spans: Spans, softcap: float) -> Callable[..., Tensor]:
    known = ("softcap", softcap)
    if known not in spans.memo:
        spans.memo[known] = to_device(torch.tensor(softcap, dtype=torch.float32, device="cpu"), spans.start.device)
    limit: Tensor = spans.memo[known]

    def cap(score: Tensor, *_where: Tensor) -> Tensor:
        return limit * torch.tanh(score / limit)

    return cap


@cache
def _compiled() -> Callable[..., Any]:
    """One kernel for each kind of rule: torch makes one for the first lengths, and at the second one for any. Were all sizes to
    vary from the start (dynamic=True), heads would too, and Triton must know how many share a key. Behind the last of `KERNELS`
    torch would fall back to scores of T x T, without a word; here that is an error."""
    from torch.nn.attention.flex_attention import flex_attention

    return compiled(flex_attention, KERNELS)
