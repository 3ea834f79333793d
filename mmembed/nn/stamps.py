"""Stamps: what tells that a tensor, or any weight of a model, is another one than before, or holds other numbers."""

from __future__ import annotations

import ctypes
import itertools
import threading
from dataclasses import dataclass, field
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

from torch import Tensor, nn

PLAIN = (nn.Parameter, Tensor)
Stamp: TypeAlias = tuple[int, ...]
SMALL = 2**14
"""Numbers of a weight that may be held back from the allocator."""
_eight_bytes = ctypes.c_uint64.from_address


def stamp(tensor: Tensor) -> Stamp:
    """Equal as long as a tensor lies where it lay, torch counted no write to it, and the numbers in its middle are what they
    were.

    Of writes through `.data`, as peft merges adapters by, torch keeps no count; on a CPU eight bytes are read past torch, in
    half a microsecond. On other devices, and of tensors that do not lie in one piece, such writes are not seen.

    Raises:
        RuntimeError, NotImplementedError: a tensor without a place, or without a count (made in inference mode).
    """
    place, size = tensor.data_ptr(), tensor.nbytes
    if place and size >= 16 and type(tensor) in PLAIN and tensor.is_cpu and tensor.is_contiguous():
        return place, tensor._version, _eight_bytes(place + size // 16 * 8).value
    return place, tensor._version


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
