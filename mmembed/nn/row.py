"""The doors of attention as operators of torch: a compiled graph holds it whole, and the row's spans come past the graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor

from .extension import Extension
from .spans import Spans

Recall = Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]
"""recall(layer, key, value) -> those of the whole row, (1, K, T, E), where a layer was given no more than some of its tokens."""


@dataclass(frozen=True)
class AttentionContext:
    """What attention in one layer is told of a row, beside queries, keys and values, see `mmembed.nn.attention.attend`.

    Attributes:
        layer: its number, -1 where it is not known.
    """

    spans: Spans
    layer: int
    recall: Recall | None = None
    extension: Extension | None = None


_now: ContextVar[AttentionContext] = ContextVar("mmembed_row")


@contextmanager
def of(row: AttentionContext) -> Iterator[None]:
    """While this context lasts, and in its thread, the operator attends in this row."""
    before = _now.set(row)
    try:
        yield
    finally:
        _now.reset(before)


@torch.library.custom_op("mmembed::attend", mutates_args=())
def attend(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int | None, softcap: float | None, causal: bool
) -> Tensor:
    """Queries (1, H, Q, E) over keys and values (1, K, T, E) -> (1, Q, H, E), as `mmembed.nn.attention.attend` gives them to
    a layer that is `causal` by make."""
    from . import attention

    return attention.in_row(
        query, key, value, _now.get(), scaling=scaling, window=window, softcap=softcap, causal=causal
    )


@attend.register_fake
def _like(query: Tensor, key: Tensor, value: Tensor, *_: object) -> Tensor:
    return query.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[3])


@torch.library.custom_op("mmembed::within", mutates_args=())
def within(query: Tensor, key: Tensor, value: Tensor, cuts: Tensor, scaling: float) -> Tensor:
    """The same within the segments between `cuts` (S + 1,), as `mmembed.nn.attention.within` gives them."""
    from . import attention

    return attention.within(nowhere, query, key, value, None, cu_seq_lens_q=cuts, scaling=scaling)[0]


within.register_fake(_like)

nowhere = torch.nn.Module()
"""Stands for the layer, of which the door is told all it asks for."""
