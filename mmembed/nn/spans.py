"""Spans: which tokens of one packed row may look at which, and which of them a pooling counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, groupby
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from .transfer import to_device

if TYPE_CHECKING:
    from numpy.typing import NDArray

Mask = Literal["causal", "bidirectional", "causal+image"]
Stretch = tuple[int, int]
"""Neighbours in a row: the first, and what stands behind the last."""


def numbered(stretches: Sequence[Stretch]) -> NDArray[np.int64]:
    """All that lies in stretches of a row, one stretch after the other."""
    firsts, lasts = np.array(stretches, dtype=np.int64).T
    counts = lasts - firsts
    ends = counts.cumsum()
    return np.arange(ends[-1]) + (firsts - ends + counts).repeat(counts)


@dataclass(frozen=True)
class Run:
    """Neighbours of equal length that go on from the same tokens: one dense batch.

    Attributes:
        first: first token. count: how many. length: tokens of each. before: the runs of tokens that all of them come
            after, as slices of the row, from the root of the tree on.
    """

    first: int
    count: int
    length: int
    before: tuple[slice, ...]

    @property
    def tokens(self) -> slice:
        return slice(self.first, self.first + self.count * self.length)


@dataclass(frozen=True)
class Spans:
    """Segments of tokens in one packed row of T tokens: an item each, or, where items begin with the same tokens, a tree of
    segments in depth-first order, in which an item is the path from a root to where it ends.

    A token q may look at a token k exactly when k's subtree is still open at q: `k <= q < end[k]`; for the mask
    "bidirectional", which shares nothing, within its own item: `start[q] <= k < end[q]`. Under "causal+image" the tokens of
    one image see each other both ways besides: `block` holds the number of the image a token belongs to, -1 for text. In
    layers from `open_from` on, counted from 0, every token sees all of its item; nothing is shared then.

    Attributes:
        lengths: tokens of each segment. parents: the segment that each goes on from, -1 for none.
        start: (T,) where a token's segment begins. end: (T,) where the subtree of its segment ends.
        positions: (T,) depth in the tree: how many tokens of its item come before it. numbers: what the backbone is told in
            their place, (T,) or, along several axes, (A, T); None: the same. windows: false where layers that slide see all
            that the mask lets them.
        asking: (Q,) the tokens whose queries are asked for, in order; None: all. Keys and values are of the whole row always.
    """

    lengths: tuple[int, ...]
    parents: tuple[int, ...]
    mask: Mask
    start: Int[Tensor, " T"]
    end: Int[Tensor, " T"]
    positions: Int[Tensor, " T"]
    block: Int[Tensor, " T"] | None = None
    open_from: int | None = None
    numbers: Tensor | None = None
    windows: bool = True
    asking: Int[Tensor, " Q"] | None = None

    @classmethod
    def of(
        cls,
        lengths: Sequence[int],
        mask: Mask,
        block: Int[Tensor, " T"] | None = None,
        parents: Sequence[int] | None = None,
    ) -> Spans:
        """Spans of segments that lie one after the other, each behind its parent; without parents each is an item.
        `block` counts only for the mask "causal+image".

        Raises:
            ValueError: parents under the mask "bidirectional", or not in depth-first order.
        """
        above = tuple(parents) if parents is not None else (-1,) * len(lengths)
        if mask == "bidirectional" and any(p >= 0 for p in above):
            raise ValueError("items that are read both ways share no tokens")
        counts = torch.tensor(lengths, dtype=torch.long, device="cpu")
        last = counts.cumsum(0)
        first = last - counts
        depth, subtree = [0] * len(lengths), last.tolist()
        for segment, parent in enumerate(above):
            if parent >= segment:
                raise ValueError("a segment stands before its parent")
            if parent >= 0:
                depth[segment] = depth[parent] + lengths[parent]
        for segment in reversed(range(len(lengths))):
            if above[segment] >= 0:
                subtree[above[segment]] = max(subtree[above[segment]], subtree[segment])
        start = first.repeat_interleave(counts)
        positions = torch.arange(int(counts.sum()), device="cpu") - start
        positions += torch.tensor(depth, device="cpu").repeat_interleave(counts)
        end = torch.tensor(subtree, dtype=torch.long, device="cpu").repeat_interleave(counts)
        keep = block if mask == "causal+image" and block is not None and bool((block >= 0).any()) else None
        return cls(tuple(int(n) for n in lengths), above, mask, start, end, positions, keep)

    def to(self, device: torch.device | str) -> Spans:
        tensors = ("start", "end", "positions", "block", "numbers", "asking")
        known = {name: own for name in tensors if (own := getattr(self, name)) is not None}
        moved: dict[str, Any] = {name: to_device(own, device) for name, own in known.items()}
        return replace(self, **moved)

    def asked(self, tokens: Int[Tensor, " Q"] | None) -> Spans:
        """The same row, asked for the states of `tokens` only, in order; None: of all."""
        return replace(self, asking=tokens)

    @property
    def tokens(self) -> int:
        """T, tokens of the whole row."""
        return len(self.start)

    @cached_property
    def queries(self) -> Int[Tensor, " Q"]:
        """The tokens whose queries are asked for."""
        return torch.arange(self.tokens, device=self.start.device) if self.asking is None else self.asking

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

    @property
    def shared(self) -> bool:
        """Whether some tokens belong to several items."""
        return any(parent >= 0 for parent in self.parents)

    @cached_property
    def levels(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """The segments that others go on from, by how many come before them: each with the token where its subtree ends."""
        last, depth = list(accumulate(self.lengths)), [0] * len(self.lengths)
        for segment, parent in enumerate(self.parents):
            depth[segment] = depth[parent] + 1 if parent >= 0 else 0
        for segment in reversed(range(len(self.lengths))):
            if self.parents[segment] >= 0:
                last[self.parents[segment]] = max(last[self.parents[segment]], last[segment])
        inner = sorted({parent for parent in self.parents if parent >= 0})
        return tuple(
            tuple((segment, last[segment]) for segment in inner if depth[segment] == level)
            for level in range(max((depth[segment] + 1 for segment in inner), default=0))
        )

    @cached_property
    def memo(self) -> dict[object, Any]:
        """What a backend of attention makes of these spans once and reads in every layer."""
        return {}

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest item."""
        depth = [0] * len(self.lengths)
        for segment, parent in enumerate(self.parents):
            depth[segment] = self.lengths[segment] + (depth[parent] if parent >= 0 else 0)
        return max(depth)

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        """The row as dense batches: neighbours of equal length with the same parent go together."""
        firsts = [0, *accumulate(self.lengths)]
        before: list[tuple[slice, ...]] = []
        for parent in self.parents:
            own = () if parent < 0 else (*before[parent], slice(firsts[parent], firsts[parent + 1]))
            before.append(own)
        segments = zip(self.lengths, self.parents, firsts, before, strict=False)
        runs = []
        for (length, _), group in groupby(segments, key=lambda each: each[:2]):
            alike = list(group)
            runs.append(Run(alike[0][2], len(alike), length, alike[0][3]))
        return tuple(runs)

    @cached_property
    def boundaries(self) -> Int[Tensor, " B_plus_1"]:
        """Where segments begin and the last one ends, int32, as variable-length kernels want it."""
        ends = torch.tensor((0, *self.lengths), dtype=torch.int32, device=self.start.device).cumsum(0)
        return ends.to(torch.int32)

    def may_look(self, q: Tensor, k: Tensor, window: int | Tensor | None = None) -> Bool[Tensor, " *T"]:
        """The one rule of the mask, for token numbers `q` and `k` that broadcast; `window` as in transformers: a
        sliding layer sees tokens less than `window` positions away."""
        seen = (k <= q) & (q < self.end[k]) if self.causal else (self.start[q] <= k) & (k < self.end[q])
        if self.block is not None:
            beside = (self.start[q] == self.start[k]) & (self.block[q] == self.block[k])  # no segment parts an image
            seen = seen | (beside & (self.block[q] >= 0))
        if window is not None:
            seen = seen & ((self.positions[q] - self.positions[k]).abs() < window)
        return seen


@dataclass(frozen=True)
class Counted:
    """The tokens that pooling reads: `index` (C,) into the packed row, in order, and `item` (C,), whose they are.

    A token that several items share may be counted for each of them. Items come in their order; for a pooling every one of
    the `items` has at least one counted token, token vectors and sparse weights may have none.
    """

    index: Int[Tensor, " C"]
    item: Int[Tensor, " C"]
    items: int

    @cached_property
    def sizes(self) -> Int[Tensor, " B"]:
        """How many tokens of each item are counted, without waiting for a CUDA device, as torch.bincount does."""
        none = torch.zeros(self.items, dtype=torch.long, device=self.item.device)
        return none.index_add(0, self.item, torch.ones_like(self.item))

    def to(self, device: torch.device | str) -> Counted:
        moved = Counted(to_device(self.index, device), to_device(self.item, device), self.items)
        tokens, among = self.read  # worked out where it waits for no device
        place = to_device(among.index, device)
        moved.__dict__["read"] = to_device(tokens, device, keep=True), Counted(place, moved.item, self.items)
        return moved

    @cached_property
    def read(self) -> tuple[Int[Tensor, " R"], Counted]:
        """The tokens that are counted at all, each once and in order, and the same by their places among these."""
        tokens, place = torch.unique(self.index, return_inverse=True)
        return tokens, Counted(place, self.item, self.items)
