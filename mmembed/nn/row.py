"""The doors of attention as operators of torch: a compiled graph holds it whole, and the row's spans come past the graph."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from .spans import Spans

_now: ContextVar[Spans] = ContextVar("mmembed_row")


@contextmanager
def of(spans: Spans) -> Iterator[None]:
    """While this context lasts, and in its thread, the operator attends in a row of these spans."""
    before = _now.set(spans)
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
