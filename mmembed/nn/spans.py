"""Spans: which tokens of one packed row may look at which, and which of them a pooling counts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

Mask = Literal["causal", "bidirectional", "causal+image"]


@dataclass(frozen=True)
class Spans:
    """Runs of tokens in one packed row of T tokens, one run an item.

    A token q may look at a token k when k's span is still open at q: `start[q] <= k < end[q]`, for the mask "causal"
    also `k <= q`. Under "causal+image" the tokens of one image see each other both ways besides: `block` holds the
    number of the image a token belongs to, -1 for text. In layers from `open_from` on, counted from 0, every token sees
    all of its item. `positions` count the tokens of an item from 0, `numbers` are what the backbone is told in their
    place, and None: the same. Where `windows` is false, layers that slide see all that the mask lets them.
    """

    lengths: tuple[int, ...]
    mask: Mask
    start: Int[Tensor, " T"]
    end: Int[Tensor, " T"]
    positions: Int[Tensor, " T"]
    block: Int[Tensor, " T"] | None = None
    open_from: int | None = None
    numbers: Tensor | None = None
    windows: bool = True

    @classmethod
    def of(cls, lengths: Sequence[int], mask: Mask, block: Int[Tensor, " T"] | None = None) -> Spans:
        """Spans of items that lie one after the other; `block` counts only for the mask "causal+image"."""
        counts = torch.tensor(lengths, dtype=torch.long)
        ends = counts.cumsum(0)
        start = (ends - counts).repeat_interleave(counts)
        positions = torch.arange(int(counts.sum())) - start
        end = ends.repeat_interleave(counts)
        keep = block if mask == "causal+image" and block is not None and bool((block >= 0).any()) else None
        return cls(tuple(int(n) for n in lengths), mask, start, end, positions, keep)

    def to(self, device: torch.device | str) -> Spans:
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in ("start", "end", "positions")}
        return replace(self, **moved, block=None if self.block is None else self.block.to(device, non_blocking=True))

    @property
    def last(self) -> Int[Tensor, " B"]:
        """The last token of each item."""
        return self.boundaries[1:].long() - 1

    @cached_property
    def opened(self) -> Spans:
        """The same items, where every token sees all of its own."""
        return replace(self, mask="bidirectional", block=None, open_from=None)

    @property
    def causal(self) -> bool:
        return self.mask != "bidirectional"

    def runs(self) -> Iterator[tuple[int, int, int]]:
        """Runs of neighbours of equal length, as (first token, number of items, length): each is one dense batch."""
        first = 0
        for length, group in groupby(self.lengths):
            count = len(list(group))
            yield first, count, length
            first += count * length

    @cached_property
    def boundaries(self) -> Int[Tensor, " B_plus_1"]:
        """Where items begin and the last one ends, int32, as variable-length kernels want it."""
        ends = torch.tensor((0, *self.lengths), dtype=torch.int32, device=self.start.device).cumsum(0)
        return ends.to(torch.int32)

    def may_look(self, q: Tensor, k: Tensor, window: int | None = None) -> Bool[Tensor, " *T"]:
        """The one rule of the mask, for token numbers `q` and `k` that broadcast; `window` as in transformers: a
        sliding layer sees tokens less than `window` positions away."""
        same = (self.start[q] <= k) & (k < self.end[q])
        seen = same & (k <= q) if self.causal else same
        if self.block is not None:
            seen = seen | (same & (self.block[q] >= 0) & (self.block[q] == self.block[k]))
        if window is not None:
            seen = seen & ((self.positions[q] - self.positions[k]).abs() < window)
        return seen


@dataclass(frozen=True)
class Counted:
    """The tokens that pooling reads: `index` (C,) into the packed row, in order, and `item` (C,), whose they are.

    For a pooling every one of the `items` items has at least one counted token; token vectors and sparse weights may have none.
    """

    index: Int[Tensor, " C"]
    item: Int[Tensor, " C"]
    items: int

    def to(self, device: torch.device | str) -> Counted:
        return Counted(self.index.to(device, non_blocking=True), self.item.to(device, non_blocking=True), self.items)
