"""Hard negatives: for each query the nearest of all positives that do not answer it, by exact search, positives in mind."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..embedder import Embedder
from ..errors import SpecError
from ..files import whole
from ..inputs import Item
from ..search.vectors import unit
from .data import OF, Example, Examples, digest
from .held_out import readable

BLOCK = 1 << 26
"""Scores that stand at once."""


@dataclass(frozen=True)
class Mined:
    """The negatives of one query.

    Attributes:
        row: of the query. negatives: rows whose positive is a negative of it, nearest first. scores: how near each is.
        positive: how near its own positive is, the nearest of several.
    """

    row: int
    negatives: tuple[int, ...]
    scores: tuple[float, ...]
    positive: float


def mine(
    embedder: Embedder,
    examples: Examples,
    *,
    count: int = 4,
    skip: int = 0,
    depth: int = 100,
    margin: float = 0.0,
    relative: float = 0.05,
    show_progress_bar: bool = False,
) -> list[Mined]:
    """Negatives of every row of a source, texts and pictures alike.

    A candidate is the first positive of another row, equal ones once. It is kept if, s being cosine,
    s(q, n) < s(q, p) - margin - relative * |s(q, p)|: what is nearer likely answers too (TopK-MarginPos and TopK-PercPos of
    NV-Retriever, arXiv 2407.15831).
    What is known to answer, by an equal query, an equal positive or the same group, is no candidate.

    Args:
        count: negatives of a query at most. skip: so many of the nearest candidates are passed over.
        depth: only so many of the nearest are looked at.

    Raises:
        SpecError: settings that leave nothing, or a model without one vector for an item.
    """
    if count < 1 or skip < 0 or depth <= skip or not 0 <= relative < 1:
        raise SpecError(f"count={count}, skip={skip}, depth={depth}, relative={relative}: nothing would be left")
    if embedder.spec.pooling is None:
        raise SpecError(f"{embedder.spec.name!r} has no one vector for an item to search by")
    rows = readable(examples)
    asked, told = examples.source.prompts(embedder.spec)
    queries = embedder.encode(
        [row.query for row in rows],
        prompt_name=asked,
        instruction=examples.source.instruction,
        show_progress_bar=show_progress_bar,
    )
    items: dict[bytes, Item] = {}
    of_item: dict[bytes, int] = {}  # the first row that has it
    for row in rows:
        for item in row.positives:
            items.setdefault(digest(item), item)
        of_item.setdefault(digest(row.positives[0]), row.row)
    place = {key: k for k, key in enumerate(items)}
    vectors = embedder.encode([*items.values()], prompt_name=told, show_progress_bar=show_progress_bar)
    queries, vectors = unit(queries), unit(vectors)
    candidates = np.array([of_item.get(key, -1) for key in items])
    answers = _answers(rows, place)
    found: list[Mined] = []
    step = max(1, BLOCK // len(vectors))
    for first in range(0, len(rows), step):
        scores = queries[first : first + step] @ vectors.T
        for k, own in enumerate(scores, first):
            best = float(own[[place[digest(item)] for item in rows[k].positives]].max())
            own[candidates < 0] = -np.inf
            for key in rows[k].keys:
                own[answers[key]] = -np.inf
            found.append(_kept(rows[k].row, own, candidates, best, (count, skip, depth), margin, relative))
    return found


def _kept(
    row: int,
    scores: NDArray[np.float32],
    candidates: NDArray[np.int64],
    best: float,
    wanted: tuple[int, int, int],
    margin: float,
    relative: float,
) -> Mined:
    count, skip, depth = wanted
    most = min(depth, len(scores))
    nearest = np.argpartition(-scores, most - 1)[:most]
    nearest = nearest[np.lexsort((nearest, -scores[nearest]))][skip:]  # of equals the first
    near = nearest[scores[nearest] < best - margin - relative * abs(best)]
    near = near[np.isfinite(scores[near])][:count]
    return Mined(row, tuple(candidates[near].tolist()), tuple(map(float, scores[near])), best)


def _answers(rows: Sequence[Example], place: dict[bytes, int]) -> dict[bytes, NDArray[np.int64]]:
    """Of each key, the places of what is known to answer a query that has it: what any row brings that does."""
    found: dict[bytes, set[int]] = {}
    for row in rows:
        own = {place[key] for key in map(digest, (row.query, *row.positives)) if key in place}
        for key in row.keys:
            found.setdefault(key, set()).update(own)
    return {key: np.array(sorted(own)) for key, own in found.items()}


def write_mined(path: Path, found: Sequence[Mined], examples: Examples) -> None:
    """A line of JSON a row, behind one that says of what data; `mined = "..."` of a source reads them."""
    lines = [json.dumps({OF: examples.numbered})]
    lines += [
        json.dumps({"row": each.row, "negatives": each.negatives, "scores": each.scores, "positive": each.positive})
        for each in found
    ]
    with whole(path) as fresh:
        fresh.write_bytes("".join(f"{line}\n" for line in lines).encode())
