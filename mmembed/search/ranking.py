"""Rankings of a table's rows: by vectors, by full text, and both fused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..inputs import MODALITIES
from .background import Background
from .fusion import fuse_ranks
from .hits import Hit
from .table import Table

if TYPE_CHECKING:
    from numpy.typing import NDArray

DEPTH = 200
"""So many of each ranking are fused, or as many as hits are wanted, where these are more."""

TERMS = 2048
"""So many terms of a query are searched for, the first, which is about 2,000 letters: the time grows faster than their number."""

SHARE = 0.5
"""Matches that are fused hold so much of the terms of a query."""


def by_vector(
    table: Table,
    background: Background,
    vector: NDArray[np.float32],
    k: int,
    where: str | None,
    kind: str | None,
    balanced: bool,
    exact: bool = False,
) -> list[Hit]:
    """The `k` nearest of a modality, or of all: by cosine, or, balanced, by relevance over all modalities."""

    def nearest(kind: str | None) -> list[Hit]:
        found = table.nearest(vector, k, where, kind, exact=exact)
        return _hits(found, (background, vector), [score for score, _ in found])

    if kind is not None or not balanced:
        return _ranked(nearest(kind), k)
    found = [hit for kind in MODALITIES for hit in nearest(kind)]
    found.sort(key=lambda hit: hit.id)
    if all(hit.log_relevance is not None for hit in found):
        found.sort(key=lambda hit: (-(hit.log_relevance or 0.0), -hit.score))
    else:  # too few things of some modality to say what stands out
        found.sort(key=lambda hit: -hit.score)
    return _ranked(found, k)


def by_text(
    table: Table,
    told: tuple[Background, NDArray[np.float32]] | None,
    terms: str,
    k: int,
    where: str | None,
    kind: str | None,
    share: float = 0.0,
) -> list[Hit]:
    """The `k` rows of the greatest BM25, less those that hold less than a share of the terms, of which the first `TERMS` are
    asked; by a background and a vector their relevance is told too."""
    first = terms.split()[:TERMS]
    asked = set(first)
    found = [
        (score, row)
        for score, row in table.matching(" ".join(first), k, where, kind)
        if len(asked.intersection(row["terms"].split())) >= share * len(asked)
    ]
    cosines = [0.0 if told is None else float((row["vector"].astype(np.float64) * told[1]).sum()) for _, row in found]
    return _ranked(_hits(found, told, cosines), k)


def fused(
    table: Table,
    background: Background,
    vector: NDArray[np.float32],
    terms: str,
    k: int,
    where: str | None,
    kind: str | None,
    balanced: bool,
    exact: bool = False,
) -> list[Hit]:
    """The `k` best by reciprocal rank fusion of both rankings, 1 / (60 + rank) summed.

    What has no text of its own, a picture, takes on the side of full text at least the rank that it has among vectors: no text
    was there to match, and every text with a word of the query would go before it. Matches of less than half of the terms are
    left out: a rank does not say how little was matched.
    """
    depth = max(k, DEPTH)
    near = by_vector(table, background, vector, depth, where, kind, balanced, exact)
    matching = by_text(table, (background, vector), terms, depth, where, kind, SHARE)
    hits = {hit.id: hit for hit in (*matching, *near)}
    scores = fuse_ranks([[hit.id for hit in near], [hit.id for hit in matching]])
    for name, score in fuse_ranks([[hit.id for hit in near]]).items():
        if hits[name].text is None:
            scores[name] = max(scores[name], 2 * score)
    order = sorted(scores, key=lambda name: (-scores[name], name))
    return _ranked([replace(hits[name], score=scores[name]) for name in order], k)


def _ranked(hits: list[Hit], k: int) -> list[Hit]:
    return [replace(hit, rank=rank) for rank, hit in enumerate(hits[:k], 1)]


def _hits(
    found: Sequence[tuple[float, Mapping[str, Any]]],
    told: tuple[Background, NDArray[np.float32]] | None,
    cosines: Sequence[float],
) -> list[Hit]:
    """Rows with their scores as hits; their relevance is told by a background and their cosines to the vector."""
    kinds = [row["modality"] for _, row in found]
    relevances: list[float | None] = [None] * len(found)
    if told is not None:
        background, vector = told
        for kind in set(kinds):
            at = [place for place, own in enumerate(kinds) if own == kind]
            known = background.log_relevance(vector, kind, np.array([cosines[place] for place in at], dtype=np.float32))
            for place, value in zip(at, [None] * len(at) if known is None else known.tolist(), strict=True):
                relevances[place] = value
    return [
        Hit.of(row, score=score, log_relevance=relevance)
        for (score, row), relevance in zip(found, relevances, strict=True)
    ]
