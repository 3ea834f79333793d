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


def tree(keys: Sequence[NDArray[np.int64]]) -> list[Segment]:
    """Items that begin alike as a tree in depth-first order, the longest common starts once; segments of one item stand
    together by length. An item is told by numbers, equal where its tokens are; it may end where a shared segment does."""
    order = sorted(range(len(keys)), key=lambda item: keys[item].astype(">i8").tobytes())
    # How many tokens each shares with the one before.
    alike = [0, *(_common(keys[a], keys[b]) for a, b in pairwise(order))]
    segments: list[Segment] = []
    # Items order[first:stop], which share what lies before `common`, of which `depth` tokens are laid behind `parent`. A list,
    # not a recursion: texts that each go on from the one before are a tree as deep as they are many.
    waiting = [(0, len(order), 0, 0, -1)]
    while waiting:
        first, stop, depth, common, parent = waiting.pop()
        if common > depth:
            segments.append(Segment(parent, depth, common - depth, tuple(order[first:stop])))
            parent = len(segments) - 1
        groups = []
        k = first
        while k < stop:
            end = k + 1
            while end < stop and alike[end] >= common + SHARED:
                end += 1
            groups.append((k, end))
            k = end
        alone = [order[k] for k, end in groups if end == k + 1]
        alone.sort(key=lambda item: -len(keys[item]))
        segments.extend(Segment(parent, common, len(keys[item]) - common, (item,)) for item in alone)
        shared = [(k, end, common, min(alike[k + 1 : end]), parent) for k, end in groups if end > k + 1]
        waiting.extend(reversed(shared))
    return segments


def _common(a: NDArray[np.int64], b: NDArray[np.int64]) -> int:
    """How many numbers two rows begin with alike."""
    least = min(len(a), len(b))
    apart = a[:least] != b[:least]
    return int(apart.argmax()) if apart.any() else least
