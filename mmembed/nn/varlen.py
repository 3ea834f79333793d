"""The backend of variable-length flash kernels (CUDA, half precision): items one by one, and what they share merged in by its
log-sum-exp."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from inspect import signature
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from .merging import MergeIndex, PartialAttention, merged
from .spans import Spans, Stretch, numbered
from .transfer import numbers, to_device

if TYPE_CHECKING:
    from numpy.typing import NDArray

Rows = slice | Int[Tensor, " n"]
"""Tokens of the row: one stretch, or by number."""
HALF = (torch.float16, torch.bfloat16)
MERGED = 0.15
"""What looking up one more level costs a token, as a share of what it costs altogether: an estimate from the bytes that go
through memory for it, 28 KB a layer, and from 2.1 us that a token took (Qwen3-0.6B, bf16, H100)."""
LEVELS = 4
"""A tree of more levels is left to 'flex': every one is a kernel of its own, that reads and writes its rows again."""


@dataclass(frozen=True)
class Call:
    """One call of the kernel: stretches of queries, each against one stretch of keys.

    Attributes:
        queries: of those that were asked for. keys: tokens of the row. firsts_q, firsts_k: where stretches begin and the last
            one ends, int32. most_q, most_k: tokens of the longest.
        causal: whether a query sees only what stands up to its own place; both stretches end at the same token then.
    """

    queries: Rows
    keys: Rows
    firsts_q: Int[Tensor, " n_plus_1"]
    firsts_k: Int[Tensor, " n_plus_1"]
    most_q: int
    most_k: int
    causal: bool


def serves(query: Tensor, spans: Spans, window: int | None, softcap: float | None, learning: bool) -> bool:
    """Whether the kernels compute this exactly, and are likely the fastest to do so."""
    plain = spans.block is None and softcap is None and query.dtype in HALF
    fits = query.shape[-1] <= 256 and query.shape[-1] % 8 == 0
    known = _unknown(spans, window, learning) is None and len(spans.levels) <= LEVELS
    return plain and fits and known and _has_kernels(query.device)


def is_learning(*parts: Tensor) -> bool:
    """Whether a gradient flows back to any of them: LoRA may stand on keys and values alone."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in parts)


def _unknown(spans: Spans, window: int | None, learning: bool) -> str | None:
    """What the kernels do not know of a tree or of queries of some tokens only; None: nothing."""
    narrow = _narrow(spans, window)
    if spans.shared and narrow:
        return "variable-length kernels do not know where a sliding window ends in a tree"
    if spans.asking is not None and narrow and not spans.causal:
        return "variable-length kernels do not know where a window lies around queries of some tokens only"
    if spans.shared and learning:
        return "torch gives no gradient through the log-sum-exp of a kernel"
    return None


def varlen(
    query: Float[Tensor, "1 H Q E"],
    key: Float[Tensor, "1 K T E"],
    value: Float[Tensor, "1 K T E"],
    spans: Spans,
    *,
    scaling: float,
    window: int | None,
    softcap: float | None,
) -> Float[Tensor, "1 H Q E"]:
    """Every segment by `torch.nn.attention.varlen`, and for every level of the tree one call more: all that comes after its
    segments against them, merged by log-sum-exp, see `mmembed.nn.merging`.

    Nothing is copied but the rows of a level that has several segments others go on from, and keys behind the last token
    that is asked for.
    """
    if softcap is not None or spans.block is not None:
        raise NotImplementedError("variable-length kernels know no soft cap and no image blocks; 'flex' does")
    if (unknown := _unknown(spans, window, is_learning(query, key, value))) is not None:
        raise NotImplementedError(f"{unknown}; 'flex' does it")
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    reach = window - 1 if window is not None and _narrow(spans, window) else -1
    (own, *levels), places = calls(spans)
    if places is None:
        out = _kernel(q, k[own.keys], v[own.keys], own, scaling, reach)
        return out.transpose(0, 1)[None]
    whole, *parts = (_part(q, k, v, call, scaling, reach) for call in (own, *levels))
    return merged(whole, parts, places).transpose(0, 1)[None]


def calls(spans: Spans) -> tuple[Sequence[Call], MergeIndex | None]:
    """What is asked of the kernel: all segments against themselves, then each level of the tree against what comes after it; and
    which queries then have several parts, None where none has.

    Told once a batch.
    """
    if "varlen" not in spans.memo:
        asking = None if spans.asking is None else numbers(spans.asking)
        firsts = [0, *accumulate(spans.lengths)]
        segments = list(pairwise(firsts))
        found = []
        for level in spans.levels:
            after = [(_place(firsts[k + 1], asking), _place(last, asking), segments[k]) for k, last in level]
            asked = [((first, last), keys) for first, last, keys in after if first < last]
            if asked:
                found.append(asked)
        own = list(_own(segments, spans.causal, asking))
        told = _call(own, spans, spans.causal), *(_call(asked, spans, False) for asked in found)
        parts = [numbered([queries for queries, _ in asked]) for asked in found]  # of the first level all below are
        spans.memo["varlen"] = told, MergeIndex.of(parts[0], parts, spans.start.device) if parts else None
    known: tuple[Sequence[Call], MergeIndex | None] = spans.memo["varlen"]
    return known


def _own(segments: list[Stretch], causal: bool, asking: list[int] | None) -> Iterator[tuple[Stretch, Stretch]]:
    """Neighbours that are asked for in one segment, and what they see of it: for a causal mask what stands up to the last of
    them."""
    if asking is None:
        yield from zip(segments, segments, strict=True)
        return
    for first, last in segments:
        begin, stop = _place(first, asking), _place(last, asking)
        while begin < stop:
            end = begin + 1
            while end < stop and asking[end] == asking[end - 1] + 1:
                end += 1
            yield (begin, end), (first, asking[end - 1] + 1 if causal else last)
            begin = end


def _place(token: int, asking: list[int] | None) -> int:
    """Where a token stands, or would stand, among those that are asked for."""
    return token if asking is None else bisect_left(asking, token)


def _call(stretches: Sequence[tuple[Stretch, Stretch]], spans: Spans, causal: bool) -> Call:
    device = spans.start.device
    queries, keys = ([pair[side] for pair in stretches] for side in (0, 1))
    alike = queries == keys
    lengths = [[last - first for first, last in each] for each in (queries, keys)]
    firsts = [
        torch.tensor([0, *accumulate(each)], dtype=torch.int32, device="cpu") for each in lengths[: 1 if alike else 2]
    ]
    moved = [to_device(each, device) for each in firsts]  # one tensor where both are the same: kernels look
    most_q, most_k = map(max, lengths)
    q, k = (_rows(numbered(each), device) for each in (queries, keys))
    return Call(q, k, moved[0], moved[-1], most_q, most_k, causal)


def _rows(places: NDArray[np.int64], device: torch.device) -> Rows:
    """The same, as a slice where they are neighbours."""
    if bool((np.diff(places) == 1).all()):
        first = int(places[0]) if len(places) else 0
        return slice(first, first + len(places))
    return to_device(torch.from_numpy(places), device)


def _part(q: Tensor, k: Tensor, v: Tensor, call: Call, scaling: float, reach: int) -> PartialAttention:
    out, lse = _kernel(q[call.queries], k[call.keys], v[call.keys], call, scaling, reach, told=True)
    return PartialAttention(out, _by_token(lse, out))


def _by_token(lse: Tensor, out: Float[Tensor, "n H E"]) -> Float[Tensor, "n H"]:
    """Flash kernels say it by head, (H, n), cuDNN's by token, (n, H, 1)."""
    if lse.ndim == 3 and lse.shape == (*out.shape[:2], 1):
        return lse[..., 0]
    if lse.shape == (out.shape[1], out.shape[0]):
        return lse.T
    raise RuntimeError(f"the kernel's log-sum-exp has the shape {tuple(lse.shape)}, for an output {tuple(out.shape)}")


def _kernel(q: Tensor, k: Tensor, v: Tensor, call: Call, scaling: float, reach: int, told: bool = False) -> Any:
    """One call."""
    from torch.nn.attention.varlen import AuxRequest, varlen_attn

    return varlen_attn(
        q,
        k,
        v,
        call.firsts_q,
        call.firsts_k,
        call.most_q,
        call.most_k,
        return_aux=AuxRequest(lse=True) if told else None,
        scale=scaling,
        window_size=(reach, 0 if call.causal else reach),
        **_said(varlen_attn, q.shape[1] != k.shape[1]),
    )


@cache
def _said(kernel: Callable[..., Any], grouped: bool) -> dict[str, Any]:
    """What newer versions of torch want to be told; those before them (2.11) do so untold.

    `num_splits=1` makes a row's sums hang on nothing but its own keys (an item has one vector, to the bit), and keeps to
    the flash kernels: cuDNN would plan every new shape of a batch again.
    """
    known = signature(kernel).parameters
    return {name: value for name, value in (("enable_gqa", grouped), ("num_splits", 1)) if name in known}


def _narrow(spans: Spans, window: int | None) -> bool:
    """Whether a window hides anything at all."""
    return window is not None and window < spans.longest


@cache
def _has_kernels(device: torch.device) -> bool:
    """Whether this torch and this device have them: FlashAttention 2 begins with Ampere."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    known = {"return_aux", "window_size"} <= set(signature(varlen_attn).parameters)
    return known and torch.cuda.get_device_capability(device) >= (8, 0)
