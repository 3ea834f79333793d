"""Hits that are not all the same: maximal marginal relevance, and near-duplicates behind the best of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ..errors import SpecError
from .duplicates import ROUNDING
from .hits import Hit

if TYPE_CHECKING:
    from numpy.typing import NDArray


SPARE = 5
"""Hits that differ are chosen among so many times as many, where nobody says among how many."""


def diversified(hits: Sequence[Hit], vectors: NDArray[np.float32], k: int, diversity: float) -> list[Hit]:
    """Maximal marginal relevance (Carbonell & Goldstein, SIGIR 1998): `k` of `n` hits, one after the other the one with the
    greatest

        (1 - diversity) * (1 - (place - 1) / n) - diversity * max over the chosen s of cos(hit, s)

    What is relevant is told by the place among the hits (1 to n), which every way of searching gives, on one scale.
    The best hit stays the first; diversity 0 leaves the order as it is.

    Args:
        vectors: (n, D), of unit length, one a hit.

    Raises:
        SpecError: a diversity that is not within 0..1.
    """
    if not 0 <= diversity <= 1:
        raise SpecError(f"diversity lies between 0 and 1, not at {diversity}")
    n = len(hits)
    relevant = 1 - np.arange(n) / max(n, 1)
    alike = np.zeros(n)  # nothing is chosen: the best hit comes first
    left = np.ones(n, dtype=bool)
    chosen: list[int] = []
    for _ in range(min(k, n)):
        gain = (1 - diversity) * relevant - diversity * alike
        at = int(np.argmax(np.where(left, gain, -np.inf))) if chosen else 0
        left[at] = False
        near = vectors @ vectors[at]
        alike = np.maximum(alike, near) if chosen else near
        chosen.append(at)
    return [replace(hits[at], rank=rank) for rank, at in enumerate(chosen, 1)]


def grouped(hits: Sequence[Hit], vectors: NDArray[np.float32], threshold: float) -> list[Hit]:
    """Hits of which none is nearly the same as a better one: from the best on, a hit whose cosine with one that stays is at
    least `threshold` goes behind the nearest of these, into its `duplicates`."""
    kept: list[int] = []
    behind: dict[int, list[str]] = {}
    for at, hit in enumerate(hits):
        near = vectors[kept] @ vectors[at]
        if len(near) and near.max() >= threshold - ROUNDING:
            behind[kept[int(near.argmax())]] += [hit.id, *hit.duplicates]
        else:
            kept.append(at)
            behind[at] = list(hit.duplicates)
    return [replace(hits[at], rank=rank, duplicates=tuple(behind[at])) for rank, at in enumerate(kept, 1)]
