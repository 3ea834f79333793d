"""PrefixCache: keys and values of tokens with which items began before, so that a query under a long instruction costs no more
than its own tokens.

Behind a causal mask what a layer makes of a token hangs on the tokens before it alone, so of two items that begin alike the
second can look at the keys and values of the first. They are found on ids, never on words.
"""

from __future__ import annotations

from bisect import bisect
from collections import deque
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..cache import LRUCache
from ..nn.precision import PART, alike
from ..nn.spans import Spans
from ..nn.stamps import generation
from . import backbone

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEAST = 16
"""Tokens of the shortest prefix that is kept, by which it is looked up too."""
TOGETHER = 8
"""Prefixes that begin with the same `LEAST` tokens, the latest ones."""
LONE = 8
"""Of rows of at most so many items the beginnings are remembered: two calls in a row tell that a prefix is shared."""
LONGEST = 4096
"""Tokens of the longest prefix."""

Pair = tuple[Float[Tensor, "1 K P E"], Float[Tensor, "1 K P E"]]
"""Keys and values of P tokens in one layer."""


@dataclass(frozen=True, eq=False)
class Prefix:
    """The first P tokens of some items: their ids, the keys and values of every layer by its number, and the layers whose own are
    too large to be kept, without which the others are of no use."""

    ids: NDArray[np.int64]
    layers: dict[int, Pair] = field(default_factory=dict)
    lacking: list[int] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Bytes it takes."""
        return sum(part.numel() * part.element_size() for pair in self.layers.values() for part in pair)


@dataclass(frozen=True, eq=False)
class NewPrefix:
    """A prefix that is worth knowing: where in the row it begins, and those that are known with which it begins alike."""

    prefix: Prefix
    first: int
    others: tuple[Prefix, ...] = ()


@dataclass(frozen=True, eq=False)
class PrefixUse:
    """One forward over a row of which some prefixes are known, and others are to be known after it.

    Attributes:
        asking: (Q,) the tokens that go through the model; None: all.
        known: prefixes, and how many of their tokens stand in the row. wanted: those that are to be known.
        order: (T,) the row's tokens among those of `known` and the rest, one after the other; None: they lie so.
        most: bytes that the keys and values of one layer of a prefix may take.
    """

    asking: Int[Tensor, " Q"] | None = None
    known: tuple[tuple[Prefix, int], ...] = ()
    wanted: tuple[NewPrefix, ...] = ()
    order: Int[Tensor, " T"] | None = None
    most: float = float("inf")
    scope: tuple[object, ...] = ()

    def recall(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the whole row, of those of the tokens that went through a layer."""
        if self.known:
            key, value = (self._whole(layer, part, own) for part, own in enumerate((key, value)))
        for each in self.wanted:
            own = slice(each.first, each.first + len(each.prefix.ids))
            pair = key[:, :, own], value[:, :, own]
            if sum(part.numel() * part.element_size() for part in pair) > self.most:
                each.prefix.lacking.append(layer)
                each.prefix.layers.clear()
            elif not each.prefix.lacking:
                each.prefix.layers[layer] = pair[0].clone(), pair[1].clone()
        return key, value

    def _whole(self, layer: int, part: int, own: Tensor) -> Tensor:
        row = torch.cat([*(prefix.layers[layer][part][:, :, :count] for prefix, count in self.known), own], dim=2)
        return row if self.order is None else row[:, :, self.order]


class PrefixCache:
    """The prefixes of one model's backbone, shared by all of its specs, for many threads.

    They are kept by the identity of the weights that made them: where one of these is changed or moved, nothing that was made
    before is found again.

    Attributes:
        store: the prefixes; its `limit` in bytes may be changed, 0 keeps nothing.
    """

    def __init__(self, limit: int = 0):
        self.store: LRUCache[tuple[object, ...], tuple[Prefix, ...]] = LRUCache(limit)
        self._seen: deque[NDArray[np.int64]] = deque(maxlen=LONE)

    def take(
        self, body: PreTrainedModel, ids: NDArray[np.int64], counted: NDArray[np.int64], spans: Spans, blocks: int
    ) -> PrefixUse | None:
        """What is known of a row, and what is worth knowing after it; None: nothing of both.

        Args:
            body: what the row goes through, and `blocks`, how many of its blocks run. ids: (T,) of the row; counted: its tokens
                whose states are read, in order; both on the host.
        """
        roots = [root for root in _roots(spans, counted) if root[1] >= LEAST] if len(counted) else []
        if self.store.limit <= 0 or not roots:
            return None
        weights = generation(body)
        if weights is None:
            return None
        device = spans.start.device
        scope = (weights, blocks, device)
        known, wanted = [], []
        for first, length, shared in roots:
            own = ids[first : first + min(length, LONGEST)]
            found = self.store.get((*scope, own[:LEAST].tobytes())) or ()
            best = max(found, key=lambda prefix: _alike(own, prefix.ids), default=None)
            count = 0 if best is None else _alike(own, best.ids)
            if best is not None:
                known.append((best, count, first))
            worth = len(own) if shared else max((_alike(own, each) for each in list(self._seen)), default=0)
            if worth >= count + LEAST:
                wanted.append(NewPrefix(Prefix(own[:worth].copy()), first, found))
            if not shared and len(roots) <= LONE:
                self._seen.append(own.copy())
        if not (known or wanted) or not _serves(body):
            return None
        asking = order = None
        if known:
            laid = [np.arange(first, first + count) for _, count, first in known]
            laid.append(np.setdiff1d(np.arange(len(ids)), np.concatenate(laid), assume_unique=True))
            asking = torch.from_numpy(laid[-1]).to(device, non_blocking=True)
            row = np.concatenate(laid)
            if (np.diff(row) < 0).any():
                order = torch.from_numpy(np.argsort(row)).to(device, non_blocking=True)
        of_each = tuple((prefix, count) for prefix, count, _ in known)
        return PrefixUse(asking, of_each, tuple(wanted), order, self.store.limit / blocks, scope)

    def keep(self, use: PrefixUse) -> None:
        """Hold what a forward made of the prefixes that were wanted, in the place of those that they go on from."""
        for each in use.wanted:
            if not each.prefix.layers:
                continue
            longer = tuple(own for own in each.others if _alike(own.ids, each.prefix.ids) < len(own.ids))
            held = (each.prefix, *longer)[:TOGETHER]
            sizes = list(accumulate(prefix.size for prefix in held))
            fitting = bisect(sizes, self.store.limit)  # of too many together none would be held
            if fitting:
                key = (*use.scope, each.prefix.ids[:LEAST].tobytes())
                self.store.put(key, held[:fitting], sizes[fitting - 1])

    def __getstate__(self) -> int:
        return self.store.limit

    def __setstate__(self, limit: int) -> None:
        PrefixCache.__init__(self, limit)


def _roots(spans: Spans, counted: NDArray[np.int64]) -> list[tuple[int, int, bool]]:
    """Of every segment that an item begins with: its first token, how many come before one whose state is read, and whether
    several items go through it."""
    parents, lengths = np.asarray(spans.parents), np.asarray(spans.lengths)
    firsts = np.cumsum(lengths) - lengths
    roots = np.flatnonzero(parents < 0)
    place = np.searchsorted(counted, firsts[roots])
    read = np.append(counted, firsts[-1] + lengths[-1])[place] - firsts[roots]
    shared = np.isin(roots, parents)
    return list(zip(firsts[roots].tolist(), np.minimum(read, lengths[roots]).tolist(), shared.tolist(), strict=True))


def _alike(a: NDArray[np.int64], b: NDArray[np.int64]) -> int:
    """How many numbers two rows begin with alike."""
    least = min(len(a), len(b))
    apart = a[:least] != b[:least]
    place = int(apart.argmax()) if least else 0
    return place if least and apart[place] else least


_tried: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
"""Of a body whether it is served."""


def _serves(body: PreTrainedModel) -> bool:
    """Whether on a probe tokens have the same states behind a prefix that was kept as behind one that is not."""
    if body not in _tried:
        rows, device = body.get_input_embeddings().num_embeddings, body.device
        ids = torch.arange(7, device=device) * (rows // 11) + rows // 5
        spans = Spans.of([7], "causal").to(device)
        behind = torch.arange(4, 7, device=device)
        prefix = Prefix(np.arange(4))
        sides = []
        try:
            for use in (PrefixUse(wanted=(NewPrefix(prefix, 0),)), PrefixUse(behind, ((prefix, 4),))):
                asked = spans.asked(use.asking)
                sides.append(backbone.layer_states(body, ids, None, asked, only=behind, recall=use.recall))
            _tried[body] = alike(sides[1], sides[0], PART)
        except (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError):
            _tried[body] = False  # a model that numbers or mixes its tokens in a way of its own
    return _tried[body]
