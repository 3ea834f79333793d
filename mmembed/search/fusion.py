"""Rankings of one query made one: by their scores, brought to one scale, or by their ranks; a document may be missing in some."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

from ..errors import SpecError

Document = TypeVar("Document", bound=Hashable)


def fuse_scores(
    rankings: Sequence[Mapping[Document, float]], weights: Sequence[float] | None = None
) -> dict[Document, float]:
    """Weighted sum of scores, each ranking brought to 0..1 by its own least and greatest (PromptReps, arXiv 2404.18424).

    A document that a ranking lacks has 0 there, as its last one has. A ranking whose scores are all one has 0 for all.

    Args:
        rankings: {document: score}, higher is better. weights: one a ranking; None is equal parts of 1.

    Returns:
        {document: score}, best first; equals keep the order in which they were first seen.

    Raises:
        SpecError: not one weight a ranking, or a score that is no finite number.
    """
    shares = [1 / max(len(rankings), 1)] * len(rankings) if weights is None else list(weights)
    if len(shares) != len(rankings):
        raise SpecError(f"{len(shares)} weights were given for {len(rankings)} rankings")
    total: dict[Document, float] = {}
    for ranking, share in zip(rankings, shares, strict=True):
        scores = ranking.values()
        if any(not abs(score) < float("inf") for score in scores):
            raise SpecError("a score is no finite number: leave the document out of the ranking")
        least = min(scores, default=0.0)
        span = max(max(scores, default=0.0) - least, 1e-9)
        for document, score in ranking.items():
            total[document] = total.get(document, 0.0) + share * (score - least) / span
    return _best_first(total)


def fuse_ranks(rankings: Sequence[Sequence[Document]], k: int = 60) -> dict[Document, float]:
    """Reciprocal rank fusion: the sum of 1 / (k + rank), ranks from 1 on (Cormack et al., SIGIR 2009).

    A document that a ranking lacks gets nothing from it.

    Args:
        rankings: documents, best first, each at most once.

    Returns:
        {document: score}, best first; equals keep the order in which they were first seen.

    Raises:
        SpecError: a document twice in one ranking.
    """
    total: dict[Document, float] = {}
    for ranking in rankings:
        if len(set(ranking)) < len(ranking):
            raise SpecError("a ranking names a document twice")
        for rank, document in enumerate(ranking, 1):
            total[document] = total.get(document, 0.0) + 1 / (k + rank)
    return _best_first(total)


def _best_first(total: dict[Document, float]) -> dict[Document, float]:
    return dict(sorted(total.items(), key=lambda each: -each[1]))
