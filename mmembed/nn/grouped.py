"""The attention backend of the CPU: a packed row as a few dense batches, what several items share multiplied once."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from .dense import dense
from .spans import Run, Spans

FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
"""What `scaled_dot_product_attention` calls on the CPU; it gives the log-sum-exp of the scores too."""


@dataclass(frozen=True)
class DenseBatch:
    """N neighbouring segments of L tokens behind the same P tokens, M queries of each: one dense batch.

    Attributes:
        queries: of those that were asked for. keys: tokens of the row. past: the tokens before them, in order.
        seen: (1 or N, M, P + L) where the queries may look; None: wherever an is_causal kernel would let them, or, where
            `ahead`, everywhere.
    """

    queries: slice
    keys: slice
    count: int
    past: tuple[slice, ...]
    ahead: bool
    seen: Bool[Tensor, "_ M P_plus_L"] | None


@dataclass(frozen=True)
class DenseBatches:
    """A row as steps, and where its queries and its keys are cut for them: wherever a step begins or ends."""

    steps: tuple[DenseBatch, ...]
    query_cuts: tuple[int, ...]
    key_cuts: tuple[int, ...]


def batches_of(spans: Spans, window: int | None) -> DenseBatches:
    """The row as steps, worked out once for all layers of one window."""
    known: dict[int | None, DenseBatches] = spans.__dict__.setdefault("_steps", {})
    if window not in known:
        asking = None if spans.asking is None else spans.asking.tolist()
        steps = tuple(step for run in spans.runs for step in _steps(run, spans, asking, window))
        keys = [own for step in steps for own in (step.keys, *step.past)]
        known[window] = DenseBatches(
            steps,
            _cuts([step.queries for step in steps], spans.tokens if asking is None else len(asking)),
            _cuts(keys, spans.tokens),
        )
    return known[window]


def _cuts(wanted: Sequence[slice], length: int) -> tuple[int, ...]:
    return tuple(sorted({0, length}.union(*((own.start, own.stop) for own in wanted))))


def grouped(
    query: Float[Tensor, "1 H Q E"],
    key: Float[Tensor, "1 K T E"],
    value: Float[Tensor, "1 K T E"],
    spans: Spans,
    *,
    scaling: float,
    window: int | None,
    softcap: float | None,
    dropout: float = 0.0,
) -> Float[Tensor, "1 H Q E"]:
    """One dense attention for each run of segments of equal length, no mask where none is needed; the part over what they come
    after apart, and joined by the log-sum-exp of both."""
    if softcap is not None:
        raise NotImplementedError("grouped attention knows no soft cap; the backend 'reference' does")
    learning = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)
    if (
        learning
        and query.device.type == "cpu"
        and (torch.finfo(query.dtype).bits < 32 or torch.is_autocast_enabled("cpu"))
    ):
        # Backward of short items, the flash kernel takes 2 to 9 times as long in bf16 as in fp32.
        q, k, v = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (query, key, value))
        with torch.autocast("cpu", enabled=False):
            out = grouped(q, k, v, spans, scaling=scaling, window=window, softcap=softcap, dropout=dropout)
        return out.to(query.dtype)
    groups = query.shape[1] // key.shape[1]
    if groups > 1 and (learning or query.device.type != "cpu"):
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    parts = []
    row = batches_of(spans, window)
    queries, keys, values = _Pieces(query, row.query_cuts), _Pieces(key, row.key_cuts), _Pieces(value, row.key_cuts)
    for step in row.steps:
        q, k, v = (_batch(x, step.count) for x in (queries[step.queries], keys[step.keys], values[step.keys]))
        if not step.past:
            mask = None if step.seen is None else step.seen[:, None]
            out = dense(q, k, v, mask, dropout, scaling=scaling, causal=not step.ahead and mask is None)
        elif step.seen is not None or learning or dropout or query.device.type != "cpu":
            past = keys[step.past][0], values[step.past][0]
            out = _behind(q, k, v, *past, _seen(step, past[0].shape[1], k.shape[2], k.device), scaling, dropout)
        else:
            out = _joined(q, k, v, keys[step.past][0], values[step.past][0], not step.ahead, scaling)
        parts.append(out if step.count == 1 else out.transpose(0, 1).flatten(1, 2)[None])
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


class _Pieces:
    """A row cut once; each slice would have a gradient as long as the row."""

    def __init__(self, row: Float[Tensor, "1 H T E"], cuts: tuple[int, ...]):
        self.cuts = cuts
        whole = len(cuts) == 2
        self.pieces = (row,) if whole else row.split([stop - start for start, stop in pairwise(cuts)], dim=2)

    def __getitem__(self, own: slice | tuple[slice, ...]) -> Float[Tensor, "1 H L E"]:
        """The tokens between some of the cuts, one behind the other."""
        slices = own if isinstance(own, tuple) else (own,)
        found = [
            piece
            for each in slices
            for piece in self.pieces[bisect_left(self.cuts, each.start) : bisect_left(self.cuts, each.stop)]
        ]
        return found[0] if len(found) == 1 else torch.cat(found, dim=2)


def _batch(some: Float[Tensor, "1 H NL E"], count: int) -> Float[Tensor, "N H L E"]:
    """Tokens as `count` items."""
    return some if count == 1 else some[0].unflatten(1, (count, -1)).transpose(0, 1)


def _steps(run: Run, spans: Spans, asking: list[int] | None, window: int | None) -> list[DenseBatch]:
    """The steps of a run: neighbours of which equally many tokens are asked for go together."""
    device = spans.start.device
    depth = sum(part.stop - part.start for part in run.before)
    past = tuple(run.before)
    narrow = window is not None and window < depth + run.length
    masked = narrow or (spans.block is not None and bool((spans.block[run.tokens] >= 0).any()))
    steps = []
    for first, count, queries in _asked(run, asking):
        asked = (queries.stop - queries.start) // count
        keys = slice(first, first + count * run.length)
        rows = spans.queries[queries].view(count, asked)
        offsets = None if asking is None else {row - first for row in asking[queries]}
        last = asked == 1 and offsets == {run.length * k - 1 for k in range(1, count + 1)}
        ahead = not spans.causal or last  # the last token of a segment sees all of it
        seen = None
        if masked or not (ahead or asked == run.length):
            own = torch.arange(keys.start, keys.stop, device=device).view(count, run.length)
            before = [torch.arange(part.start, part.stop, device=device).expand(count, -1) for part in past]
            columns = torch.cat([*before, own], dim=1)
            seen = spans.may_look(rows[:, :, None], columns[:, None, :], window)
        steps.append(DenseBatch(queries, keys, count, past, ahead, seen))
    return steps


def _asked(run: Run, asking: list[int] | None) -> list[tuple[int, int, slice]]:
    """First token, number and queries of neighbouring segments of a run with equally many tokens asked for, at least one."""
    if asking is None:
        return [(run.first, run.count, run.tokens)]
    bounds = [bisect_left(asking, run.first + k * run.length) for k in range(run.count + 1)]
    found = []
    for asked, group in groupby(range(run.count), key=lambda k: bounds[k + 1] - bounds[k]):
        segments = list(group)
        if asked:
            queries = slice(bounds[segments[0]], bounds[segments[-1] + 1])
            found.append((run.first + segments[0] * run.length, len(segments), queries))
    return found


def _joined(
    q: Float[Tensor, "N H M E"],
    k: Float[Tensor, "N K L E"],
    v: Float[Tensor, "N K L E"],
    past_k: Float[Tensor, "K P E"],
    past_v: Float[Tensor, "K P E"],
    causal: bool,
    scaling: float,
) -> Float[Tensor, "N H M E"]:
    """Attention of N segments over the P tokens that all of them come after, as one of N M queries, and over their own, in two
    kernels; without gradients, for none flows through a log-sum-exp."""
    n = q.shape[0]
    own, own_sum = FLASH(q, k, v, 0.0, causal, scale=scaling)
    flat = rearrange(q, "n h m e -> 1 h (n m) e")
    old, old_sum = FLASH(flat, past_k[None], past_v[None], 0.0, False, scale=scaling)
    old, old_sum = (rearrange(x, "1 h (n m) ... -> n h m ...", n=n) for x in (old, old_sum))
    return torch.lerp(own, old, (old_sum - own_sum).sigmoid().to(own)[..., None])


def _behind(
    q: Float[Tensor, "N H M E"],
    k: Float[Tensor, "N H L E"],
    v: Float[Tensor, "N H L E"],
    past_k: Float[Tensor, "H P E"],
    past_v: Float[Tensor, "H P E"],
    seen: Bool[Tensor, "_ M P_plus_L"] | None,
    scaling: float,
    dropout: float,
) -> Float[Tensor, "N H M E"]:
    """The same under a mask or with gradients: one softmax over both, in fp32 at least."""
    n, split, groups = q.shape[0], past_k.shape[1], q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        past_k, past_v = past_k.repeat_interleave(groups, dim=0), past_v.repeat_interleave(groups, dim=0)
    flat = rearrange(q, "n h m e -> h (n m) e")
    old = rearrange(flat @ past_k.transpose(-1, -2), "h (n m) p -> n h m p", n=n)
    scores = torch.cat([old, q @ k.transpose(-1, -2)], dim=-1) * scaling
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if seen is not None:
        scores = scores.masked_fill(~seen[:, None], float("-inf"))
    weights = F.dropout(scores.softmax(-1).to(v.dtype), dropout)
    long_ago = rearrange(weights[..., :split], "n h m p -> h (n m) p") @ past_v
    return rearrange(long_ago, "h (n m) e -> n h m e", n=n) + weights[..., split:] @ v


def _seen(step: DenseBatch, past: int, own: int, device: torch.device) -> Bool[Tensor, "_ M P_plus_L"] | None:
    """The mask that a step without one means."""
    if step.seen is not None or step.ahead:
        return step.seen
    columns = torch.arange(past + own, device=device)
    return (columns <= columns[past:, None])[None]
