"""Near-duplicates: groups of rows whose vectors lie closer than a threshold, found exactly and in bounded memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .hits import Hit, Hits
from .table import Table, among_each, matrix

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCK = 4096
"""Vectors that are compared with as many others at once: their scores take 64 MiB."""
ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class DuplicateGroup:
    """Things that are alike.

    Attributes:
        hits: the things, by their likeness to the first, which is their score; without thumbnails.
        same: all have the same content, to the letter and the pixel.
    """

    hits: Hits
    same: bool


def duplicates(table: Table, threshold: float, kind: str | None = None) -> list[DuplicateGroup]:
    """Groups of two things or more, those of the same content first, then the large ones. Each thing of a group has a cosine of
    at least `threshold` with some other thing of it; two ends of a chain may lie further apart.

    Every two vectors are compared, block by block; meanwhile they lie in a file without a name, not in memory.

    Args:
        kind: only things of this modality.

    Raises:
        UnknownName: no such modality.
    """
    ids: list[str] = []
    contents: list[str] = []
    with tempfile.TemporaryFile() as file:
        for batch in table.batches(["id", "content", "vector"], kind=kind):
            file.write(np.ascontiguousarray(matrix(batch.column("vector"))).data)
            ids += batch.column("id").to_pylist()
            contents += batch.column("content").to_pylist()
        file.flush()
        if len(ids) < 2:
            return []
        vectors = np.memmap(file, np.float32, "r", shape=(len(ids), table.dimension))
        parents = list(range(len(ids)))
        for left, right in _links(vectors, threshold - ROUNDING):
            parents[_root(parents, left)] = _root(parents, right)
        members: dict[int, list[int]] = {}
        for row in range(len(ids)):
            members.setdefault(_root(parents, row), []).append(row)
        groups = [rows for rows in members.values() if len(rows) > 1]
        scores = [vectors[rows].astype(np.float64) @ vectors[rows[0]].astype(np.float64) for rows in groups]
    known = _told(table, [ids[row] for rows in groups for row in rows])
    found = []
    for rows, score in zip(groups, scores, strict=True):
        there = [at for at, row in enumerate(rows) if ids[row] in known]  # others remove meanwhile
        if len(there) > 1:
            own = [rows[at] for at in there]
            hits = _hits([ids[row] for row in own], score[there], known)
            found.append(DuplicateGroup(hits, len({contents[row] for row in own}) == 1))
    return sorted(found, key=lambda group: (not group.same, -len(group.hits), group.hits[0].id))


def _links(vectors: NDArray[np.float32], threshold: float) -> Iterator[tuple[int, int]]:
    """Pairs of rows that join all that are alike: of each two blocks as few as join what is joined in them."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    count = len(vectors)
    for first in range(0, count, BLOCK):
        here = np.asarray(vectors[first : first + BLOCK])
        for second in range(first, count, BLOCK):
            there = np.asarray(vectors[second : second + BLOCK])
            left, right = np.nonzero(here @ there.T >= threshold)
            rows = np.concatenate([np.arange(len(here)) + first, np.arange(len(there)) + second])
            edges = coo_array((np.ones(len(left), bool), (left, len(here) + right)), shape=(len(rows), len(rows)))
            labels = connected_components(edges, directed=False)[1]
            _, places, inverse = np.unique(labels, return_index=True, return_inverse=True)
            heads = rows[places][inverse]
            other = np.flatnonzero(heads != rows)
            yield from zip(rows[other].tolist(), heads[other].tolist(), strict=True)


def _root(parents: list[int], row: int) -> int:
    while parents[row] != row:
        parents[row] = parents[parents[row]]
        row = parents[row]
    return row


def _told(table: Table, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    columns = ["id", "modality", "text", "path", "metadata"]
    return {row["id"]: row for part in among_each(ids) for row in table.read(columns, part)}


def _hits(ids: Sequence[str], scores: NDArray[np.float64], known: dict[str, dict[str, Any]]) -> Hits:
    order = [0, *sorted(range(1, len(ids)), key=lambda at: (-scores[at], ids[at]))]
    told = [(known[ids[at]], float(scores[at])) for at in order]
    return Hits([Hit.of(row, rank=rank, score=score) for rank, (row, score) in enumerate(told, 1)])
