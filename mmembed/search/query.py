"""`Query`: several things asked for together, each with a weight; a weight below zero turns hits away from its thing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..errors import InputError
from ..inputs import Text, Thing, to_item
from .rows import described
from .vectors import unit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..embedder import Embedder


@dataclass(frozen=True)
class Query:
    """Things and their weights: `Query([("a cat", 1), (Image("night.jpg"), 0.5), ("a drawing", -0.5)])`.

    Each thing v is embedded by itself as a query; they are asked for as `sum(weight * v)`, brought to unit length. A tuple
    of text and picture that is one thing, `("orange", Image("cat.png"))`, is read together by the model; what is weighed here
    is read apart and added up, which every model can do.

    Args:
        parts: (thing, weight) each; a weight is any finite number but 0.

    Raises:
        InputError: no parts, something that is no such pair, a weight that is none, or a thing of nothing but white space.
    """

    parts: Sequence[tuple[Thing, float]]

    def __post_init__(self) -> None:
        if isinstance(self.parts, str) or not isinstance(self.parts, Sequence) or not self.parts:
            raise InputError('a Query is a list of (thing, weight), such as Query([("a cat", 1), ("a dog", -0.5)])')
        for row, part in enumerate(self.parts):
            if not isinstance(part, tuple) or len(part) != 2 or isinstance(part[1], bool):
                raise InputError("a part of a Query is a pair (thing, weight)", row)
            if not isinstance(part[1], (int, float, np.number)) or not _is_finite(part[1]) or part[1] == 0:
                raise InputError(f"a weight is a finite number other than 0, not {part[1]!r}", row)
            if not any(not isinstance(each, Text) or each.text.strip() for each in to_item(part[0])):
                raise InputError(f"{described(part[0])!r} says nothing to look for: a part of the query is empty")

    @classmethod
    def of(cls, query: Thing | Query) -> Query:
        """A thing as a query of one part."""
        return query if isinstance(query, Query) else cls([(query, 1.0)])

    def __str__(self) -> str:
        """What was asked, for people: `a cat - 0.5 × a drawing`."""
        told = ""
        for thing, weight in self.parts:
            words = thing if isinstance(thing, str) else described(thing)
            sign = ("- " if weight < 0 else "") if not told else " - " if weight < 0 else " + "
            told += sign + ("" if abs(weight) == 1 else f"{abs(weight):g} × ") + words
        return told

    @property
    def words(self) -> str:
        """The texts of all parts that are asked for, for full-text search, whatever their weight; a picture has none."""
        wanted = [part for thing, weight in self.parts if weight > 0 for part in to_item(thing)]
        return "\n".join(part.text for part in wanted if isinstance(part, Text))

    def vector(self, embedder: Embedder, truncate_dim: int | None = None) -> NDArray[np.float32]:
        """The unit vector (D,) that is asked with.

        Raises:
            InputError: a thing that cannot be embedded, by its place; or the parts cancel each other.
        """
        vectors = embedder.encode_query([thing for thing, _ in self.parts], truncate_dim=truncate_dim)
        found = weighted(vectors, [weight for _, weight in self.parts])
        if found is None:
            raise InputError(f"the parts of {str(self)!r} cancel each other: nothing is left to ask for")
        return found


def weighted(vectors: NDArray[np.float32], weights: Sequence[float]) -> NDArray[np.float32] | None:
    """The sum of unit vectors (N, D) by their weights, brought to unit length; None: they cancel each other, and what is left is
    rounding, which would point anywhere."""
    shares = np.array(weights, dtype=np.float64)
    shares /= np.abs(shares).max()  # before they are summed: the sum of great ones is beyond all numbers
    total = shares / np.abs(shares).sum() @ unit(vectors)
    length = float(np.linalg.norm(total))
    return (total / length).astype(np.float32) if length >= 1e-4 else None


def _is_finite(weight: float) -> bool:
    try:
        return math.isfinite(weight)
    except OverflowError:  # a whole number beyond all floats
        return False
