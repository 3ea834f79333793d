"""A teacher: a frozen embedder that is asked about each thing once, as long as there is room for its answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..cache import LRUCache
from ..embedder import Embedder
from ..inputs import Item
from ..spec import PROMPTS
from .data import Example, digest
from .stamp import of_model

ROOM = 2**29
"""Bytes of answers that are kept: half a million of 256 numbers."""


class Teacher:
    """What an embedder says of things, under its own prompts.

    Args:
        embedder: it. room: bytes of its answers that are kept.
    """

    def __init__(self, embedder: Embedder, room: int = ROOM):
        self._embedder = embedder
        self._kept: LRUCache[tuple[str, bytes], NDArray[np.float32]] = LRUCache(room)
        prompts, plain = embedder.spec.prompts, embedder.spec.default_prompt_name
        names = {side: embedder.spec.prompt_of(side) or plain for side in PROMPTS}
        # Where both sides have one prompt, a thing has one answer.
        self._prompts = {side: repr(prompts.get(name)) if name else "" for side, name in names.items()}

    @property
    def stamp(self) -> str:
        """Of its weights and spec, see `stamp.of_model`."""
        return of_model(self._embedder.model, self._embedder.spec)

    @property
    def dimension(self) -> int:
        return self._embedder.dimension

    def of(self, rows: Sequence[tuple[Example, int]]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(n, W) and (m, W), its vectors of the queries and of the documents of examples, of each the positive that was drawn."""
        documents = [(row.sources[1][chosen], *row.negatives) for row, chosen in rows]
        return (
            self.said([row.sources[0] for row, _ in rows], "query"),
            self.said([item for own in documents for item in own], "document"),
        )

    def said(self, items: Sequence[Item], side: Literal["query", "document"]) -> NDArray[np.float32]:
        """(n, W), its vectors of items as queries or as documents."""
        keys = [(self._prompts[side], digest(item)) for item in items]
        found = {key: vector for key in set(keys) if (vector := self._kept.get(key)) is not None}
        asked = {key: item for key, item in zip(keys, items, strict=True) if key not in found}
        if asked:
            encode = self._embedder.encode_query if side == "query" else self._embedder.encode_document
            for key, vector in zip(asked, encode([*asked.values()]), strict=True):
                found[key] = vector = vector.copy()  # not a view, which would keep all of the batch
                self._kept.put(key, vector, vector.nbytes)
        if not keys:
            return np.zeros((0, self.dimension), np.float32)
        return np.stack([found[key] for key in keys])
