"""Kept starts: keys and values of tokens with which items began before, so that a query under a long instruction costs no more
than its own tokens.

Behind a causal mask what a layer makes of a token hangs on the tokens before it alone, so of two items that begin alike the
second can look at the keys and values of the first. They are found on ids, never on words.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..kept import Kept
from ..nn.precision import PART, alike
from ..nn.spans import Spans
from ..nn.stamps import Stamp, stamp
from . import backbone

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEAST = 16
"""Tokens of the shortest start that is kept, by which it is looked up too."""
TOGETHER = 8
"""Starts that begin with the same `LEAST` tokens, the latest ones."""
LONE = 8
"""Of rows of at most so many items the beginnings are remembered: two calls in a row tell that a start is shared."""
LONGEST = 4096
"""Tokens of the longest start."""
SMALL = 2**14
"""Numbers of a weight that may be held back from the allocator."""

Pair = tuple[Float[Tensor, "1 K P E"], Float[Tensor, "1 K P E"]]
"""Keys and values of P tokens in one layer."""


@dataclass(frozen=True, eq=False)
class Start:
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
class Wanted:
    """A start that is worth knowing: where in the row it begins, and those that are known with which it begins alike."""

    start: Start
    first: int
    others: tuple[Start, ...] = ()


@dataclass(frozen=True, eq=False)
class Taking:
    """One forward over a row of which some starts are known, and others are to be known after it.

    Attributes:
        asking: (Q,) the tokens that go through the model; None: all.
        known: starts, and how many of their tokens stand in the row. wanted: those that are to be known.
        order: (T,) the row's tokens among those of `known` and the rest, one after the other; None: they lie so.
        most: bytes that the keys and values of one layer of a start may take.
    """

    asking: Int[Tensor, " Q"] | None = None
    known: tuple[tuple[Start, int], ...] = ()
    wanted: tuple[Wanted, ...] = ()
    order: Int[Tensor, " T"] | None = None
    most: float = float("inf")
    scope: tuple[object, ...] = ()

    def recall(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the whole row, of those of the tokens that went through a layer."""
        if self.known:
            key, value = (self._whole(layer, part, own) for part, own in enumerate((key, value)))
        for each in self.wanted:
            own = slice(each.first, each.first + len(each.start.ids))
            pair = key[:, :, own], value[:, :, own]
            if sum(part.numel() * part.element_size() for part in pair) > self.most:
                each.start.lacking.append(layer)
                each.start.layers.clear()
            elif not each.start.lacking:
                each.start.layers[layer] = pair[0].clone(), pair[1].clone()
        return key, value

    def _whole(self, layer: int, part: int, own: Tensor) -> Tensor:
        row = torch.cat([*(start.layers[layer][part][:, :, :count] for start, count in self.known), own], dim=2)
        return row if self.order is None else row[:, :, self.order]


class Starts:
    """Kept starts of one model's backbone, shared by all of its specs, for many threads.

    They are kept by the identity of the weights that made them: where one of these is changed or moved, nothing that was made
    before is found again.

    Attributes:
        kept: the store; its `limit` in bytes may be changed, 0 keeps nothing.
    """

    def __init__(self, limit: int = 0):
        self.kept: Kept[tuple[object, ...], tuple[Start, ...]] = Kept(limit)
        self._seen: deque[NDArray[np.int64]] = deque(maxlen=LONE)

    def take(
        self, body: PreTrainedModel, ids: NDArray[np.int64], counted: NDArray[np.int64], spans: Spans, blocks: int
    ) -> Taking | None:
        """What is known of a row, and what is worth knowing after it; None: nothing of both.

        Args:
            body: what the row goes through, and `blocks`, how many of its blocks run. ids: (T,) of the row; counted: its tokens
                whose states are read, in order; both on the host.
        """
        roots = [root for root in _roots(spans, counted) if root[1] >= LEAST] if len(counted) else []
        if self.kept.limit <= 0 or not roots:
            return None
        weights = generation(body)
        if weights is None:
            return None
        device = spans.start.device
        scope = (weights, blocks, device)
        known, wanted = [], []
        for first, length, shared in roots:
            own = ids[first : first + min(length, LONGEST)]
            found = self.kept.get((*scope, own[:LEAST].tobytes())) or ()
            best = max(found, key=lambda start: _alike(own, start.ids), default=None)
            count = 0 if best is None else _alike(own, best.ids)
            if best is not None:
                known.append((best, count, first))
            worth = len(own) if shared else max((_alike(own, each) for each in list(self._seen)), default=0)
            if worth >= count + LEAST:
                wanted.append(Wanted(Start(own[:worth].copy()), first, found))
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
        of_each = tuple((start, count) for start, count, _ in known)
        return Taking(asking, of_each, tuple(wanted), order, self.kept.limit / blocks, scope)

    def keep(self, taking: Taking) -> None:
        """Hold what a forward made of the starts that were wanted, in the place of those that they go on from."""
        for each in taking.wanted:
            if not each.start.layers:
                continue
            longer = tuple(own for own in each.others if _alike(own.ids, each.start.ids) < len(own.ids))
            held = (each.start, *longer)[:TOGETHER]
            key = (*taking.scope, each.start.ids[:LEAST].tobytes())
            self.kept.put(key, held, sum(start.size for start in held))

    def __getstate__(self) -> int:
        return self.kept.limit

    def __setstate__(self, limit: int) -> None:
        Starts.__init__(self, limit)


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


@dataclass(eq=False)
class _Weights:
    """The tensors of a model as they were last seen.

    Attributes:
        inner, children: the dicts of its modules' modules, and who stands in them. tensors: the dicts of their tensors.
        told: what they were told by. generation: a number of its own since that changed. held: small ones, which are not given
            back to the allocator so that none that comes later has their place.
    """

    inner: list[dict[str, Any]]
    children: list[int]
    tensors: list[dict[str, Any]]
    told: list[tuple[int, Stamp]] = field(default_factory=list)
    generation: int = 0
    held: list[Tensor] = field(default_factory=list)


_generations = itertools.count(1)
"""Two bodies may hold the same weights."""
_seen: WeakKeyDictionary[nn.Module, _Weights] = WeakKeyDictionary()
_looking = threading.Lock()
_tried: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def generation(body: nn.Module) -> int | None:
    """A number that changes whenever a weight is written to, moved or replaced; None: that cannot be told."""
    with _looking:
        known = _seen.get(body)
        if known is None or _children(known.inner) != known.children:
            modules = list(body.modules())
            inner = [module._modules for module in modules if module._modules]
            tensors: list[dict[str, Any]] = [own for m in modules for own in (m._parameters, m._buffers) if own]
            if any(hasattr(module, "_disable_adapters") for module in modules):
                tensors = []  # live adapters of `peft`: they are switched without a weight being touched
            known = _Weights(inner, _children(inner), tensors)
            _seen[body] = known
        every = [tensor for own in known.tensors for tensor in own.values() if tensor is not None]
        try:
            told = [(id(tensor), stamp(tensor)) for tensor in every]
        except (RuntimeError, NotImplementedError):
            return None
        if told != known.told:
            known.told, known.generation = told, next(_generations)
            known.held = [tensor.detach() for tensor in every if tensor.numel() <= SMALL]
        return known.generation if known.held else None


def _children(inner: list[dict[str, Any]]) -> list[int]:
    return [id(child) for own in inner for child in own.values()]


def _serves(body: PreTrainedModel) -> bool:
    """Whether on a probe tokens have the same states behind a start that was kept as behind one that is not."""
    if body not in _tried:
        rows, device = body.get_input_embeddings().num_embeddings, body.device
        ids = torch.arange(7, device=device) * (rows // 11) + rows // 5
        spans = Spans.of([7], "causal").to(device)
        behind = torch.arange(4, 7, device=device)
        start = Start(np.arange(4))
        sides = []
        try:
            for taking in (Taking(wanted=(Wanted(start, 0),)), Taking(behind, ((start, 4),))):
                asked = spans.asked(taking.asking)
                sides.append(backbone.layer_states(body, ids, None, asked, only=behind, recall=taking.recall))
            _tried[body] = alike(sides[1], sides[0], PART)
        except (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError):
            _tried[body] = False  # a model that numbers or mixes its tokens in a way of its own
    return _tried[body]
