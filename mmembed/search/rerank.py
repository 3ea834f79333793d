"""Late interaction: hits in a new order, by the vectors of their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ..errors import InputError, SpecError
from ..images import Image
from ..inputs import Thing
from .hits import Hit
from .query import Query

if TYPE_CHECKING:
    from ..embedder import Embedder


def reranked(embedder: Embedder, query: Query, hits: Sequence[Hit]) -> list[Hit]:
    """Hits by MaxSim (`Embedder.similarity` of token vectors; ColBERT, arXiv 2004.12832) with the query; of several parts it
    is the weighted sum. Equal ones keep their order. The score of a hit is what it is ordered by; its relevance stays.

    Raises:
        SpecError: a model that was made for one vector an item. InputError: a picture that is not there any more, by id.
    """
    if embedder.spec.tokens is None:
        raise SpecError(
            f"{embedder.spec.name!r} has no token vectors to rerank by: give a late-interaction model, as "
            "index.rerank(query, hits, embedder=mmembed.load(...))"
        )
    if not hits:
        return []
    things = [source(hit) for hit in hits]
    try:
        documents = embedder.encode_tokens(things, side="document")
    except InputError as error:
        if error.item is None:
            raise
        raise InputError(f"the item {hits[error.item].id!r} cannot be read again: {error.reason}", error.item) from None
    asked = embedder.encode_tokens([thing for thing, _ in query.parts], side="query")
    weights = np.array([weight for _, weight in query.parts], dtype=np.float64)
    scores = (weights @ embedder.similarity(asked, documents)).astype(np.float32)
    order = sorted(range(len(hits)), key=lambda at: -scores[at])
    return [replace(hits[at], rank=rank, score=float(scores[at])) for rank, at in enumerate(order, 1)]


def source(hit: Hit) -> Thing:
    """The item of a hit, as far as the index knows it: its text, and its picture from the file at its path, or, where it has
    none, the small copy. Of several pictures that is the first, behind the text."""
    if hit.modality == "text":
        assert hit.text is not None
        return hit.text
    if hit.path is None and hit.thumbnail is None:
        raise InputError(f"the hit {hit.id!r} of {hit.modality} has no picture with it: `index.get` has its small copy")
    picture = Image(hit.path if hit.path is not None else hit.thumbnail)  # type: ignore[arg-type]
    return picture if hit.text is None else (hit.text, picture)
