"""What a smaller vector costs: the neighbours that are still found when vectors are cut short and kept in fewer bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..errors import InputError, check_known
from .quantizer import Quantizer
from .vectors import unit

if TYPE_CHECKING:
    from numpy.typing import NDArray

KINDS = ("float32", "float16", "int8", "binary")
"""How a number of a stored vector is kept: in four bytes, two, one, or a bit."""


@dataclass(frozen=True, slots=True)
class Cost:
    """One way to keep vectors.

    Attributes:
        numbers: of a vector. kind: one of `KINDS`. size: bytes of a vector.
        overlap: of the k nearest by whole float32 vectors, the share that is among the k nearest by these, mean of all queries.
    """

    numbers: int
    kind: str
    size: int
    overlap: float


def tradeoff(
    queries: NDArray[np.float32],
    documents: NDArray[np.float32],
    dimensions: Sequence[int],
    *,
    kinds: Sequence[str] = KINDS,
    k: int = 10,
) -> list[Cost]:
    """Measure every way to keep the vectors of documents; queries are cut short too and stay float32.

    Args:
        queries: (N, D). documents: (M, D), the M > k things that are searched; ranges of int8 are fitted on them.
        dimensions: lengths to cut vectors to (Matryoshka), those of `embedder.spec.dimensions`. Where eight do not divide one, it
            has no binary.

    Raises:
        InputError: too few vectors, others than floats of one width, a vector that is not finite, by its row, or a length that
            they do not have. UnknownName: a kind.
    """
    if queries.ndim != 2 or documents.ndim != 2 or queries.shape[1] != documents.shape[1]:
        raise InputError(
            f"queries (N, D) and documents (M, D) are of one width, not {queries.shape}, {documents.shape}"
        )
    if not len(queries) or not 0 < k < len(documents):
        raise InputError(f"the {k} nearest of {len(documents)} documents to {len(queries)} queries say nothing")
    for name, given in (("query", queries), ("document", documents)):
        bad = np.flatnonzero(~np.isfinite(given).all(1))
        if len(bad):
            raise InputError(f"a {name} with a number that is none has no neighbours (a skipped item?)", int(bad[0]))
    for length in dimensions:
        if not 0 < length <= documents.shape[1]:
            raise InputError(f"vectors of {documents.shape[1]} numbers are not cut to {length}")
    for kind in kinds:
        check_known("kind of number", kind, KINDS)
    due = _nearest(_cut(queries, queries.shape[1]) @ _cut(documents, documents.shape[1]).T, k)
    found = []
    for length in dimensions:
        asked, kept = _cut(queries, length), _cut(documents, length)
        for kind in kinds:
            if kind == "binary" and length % 8:
                continue
            scores, size = _scores(asked, kept, kind)
            near = _nearest(scores, k)
            same = [len(np.intersect1d(a, b)) / k for a, b in zip(due, near, strict=True)]
            found.append(Cost(length, kind, size, float(np.mean(same))))
    return found


def _scores(asked: NDArray[np.float32], kept: NDArray[np.float32], kind: str) -> tuple[NDArray[np.float32], int]:
    if kind in ("int8", "binary"):
        quantizer = Quantizer.fit(kept, kind)
        return quantizer.similarity(asked, quantizer.encode(kept)), quantizer.width
    stored = kept.astype(kind)
    return asked @ stored.astype(np.float32).T, stored.shape[1] * stored.itemsize


def _cut(vectors: NDArray[np.float32], length: int) -> NDArray[np.float32]:
    return unit(vectors[:, :length])


def _nearest(scores: NDArray[np.float32], k: int) -> NDArray[np.intp]:
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]
