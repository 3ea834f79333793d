"""Prefix trees: items that begin with the same tokens as segments of one row, each common start laid once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

SHARED = 8
"""Tokens that are laid once for several items only from so many on: a shorter start is cheaper said again than looked up."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens of a packed row that all of `items` go through, `length` from position `depth` on, behind segment `parent`."""

    parent: int
    depth: int
    length: int
    items: tuple[int, ...]


def tree(keys: Sequence[NDArray[np.int64]], price: float = 0.0) -> list[Segment]:
    """Items that begin alike as a tree in depth-first order, the longest common starts once; segments of one item stand
    together by length. An item is told by numbers, equal where its tokens are; it may end where a shared segment does.

    Args:
        price: what it costs a token to look up one segment more, in tokens. A start is laid once only where that saves more
            than those behind it pay.
    """
    if not keys:
        return []
    lengths = np.array([len(key) for key in keys], dtype=np.int64)
    ends = lengths.cumsum()
    flat = np.concatenate(keys)
    told = flat.astype(">i8").tobytes()
    written = [told[8 * (end - length) : 8 * end] for end, length in zip(ends.tolist(), lengths.tolist(), strict=True)]
    order = sorted(range(len(keys)), key=written.__getitem__)
    # How many tokens each shares with the one before.
    alike = [0, *_common(flat, (ends - lengths)[order], lengths[order]).tolist()]
    after = np.concatenate([[0], lengths[order].cumsum()])
    segments: list[Segment] = []
    # Items order[first:stop], which share what lies before `common`, of which `depth` tokens are laid behind `parent`. A list,
    # not a recursion: texts that each go on from the one before are a tree as deep as they are many.
    waiting = [(0, len(order), 0, 0, -1)]
    while waiting:
        first, stop, depth, common, parent = waiting.pop()
        if common > depth:
            segments.append(Segment(parent, depth, common - depth, tuple(order[first:stop])))
            parent = len(segments) - 1
        alone: list[int] = []
        shared = []
        groups = _groups(alike, first, stop, common + SHARED)  # the first one last
        while groups:
            k, end = groups.pop()
            if end == k + 1:
                alone.append(order[k])
                continue
            start = min(alike[k + 1 : end])
            behind = int(after[end] - after[k]) - (end - k) * start
            if (end - k - 1) * (start - common) >= price * behind:
                shared.append((k, end, common, start, parent))
            else:  # some of them may have more in common
                groups += _groups(alike, k, end, start + 1)
        alone.sort(key=lambda item: -len(keys[item]))
        segments.extend(Segment(parent, common, len(keys[item]) - common, (item,)) for item in alone)
        waiting.extend(reversed(shared))
    return segments


def _groups(alike: Sequence[int], first: int, stop: int, least: int) -> list[tuple[int, int]]:
    """Neighbours of which each shares at least so many tokens with the one before, the last ones first."""
    edges = [first, *(k for k in range(first + 1, stop) if alike[k] < least), stop]
    return list(pairwise(edges))[::-1]


def _common(flat: NDArray[np.int64], firsts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many numbers each of the rows in `flat` begins with that the next one begins with too. All neighbours are compared
    at once, a few numbers first and more of those that are still alike."""
    least = np.minimum(lengths[:-1], lengths[1:])
    common = np.zeros_like(least)
    going, block = np.flatnonzero(least), SHARED
    while len(going):
        count = np.minimum(least[going] - common[going], block)
        starts = count.cumsum() - count
        at = np.arange(count.sum()) - starts.repeat(count)
        a, b = firsts[going] + common[going], firsts[going + 1] + common[going]
        same = flat[a.repeat(count) + at] == flat[b.repeat(count) + at]
        run = np.minimum.reduceat(np.where(same, count.repeat(count), at), starts)
        common[going] += run
        going = going[(run == count) & (common[going] < least[going])]
        block *= 8
    return common
