"""SelfExtend over packed rows: near tokens look at each other by their distance, distant ones by that of their groups.

The door of attention sees queries and keys after they were turned to their positions. Turns add up, R(a) R(b) = R(a + b), so a
query turned to position p is turned on by p' - p to stand at p'; nothing need be turned back, and no model is rewritten.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .positions import Groups
from .spans import Spans

Turn = tuple[Float[Tensor, "1 T E"], Float[Tensor, "1 T E"]]
"""Cosine and sine of what each token is turned on by."""


@dataclass(frozen=True)
class Extension:
    """`Groups` for one row: what queries and keys are turned on by to stand at the positions of their groups."""

    groups: Groups
    query: Turn
    key: Turn


def turned(states: Float[Tensor, "1 H T E"], turn: Turn) -> Float[Tensor, "1 H T E"]:
    """States turned on, as transformers' Llama and its kin turn them: the halves of a head are the two axes of each plane."""
    cos, sin = (part[:, None] for part in turn)
    first, second = states.chunk(2, dim=-1)
    return states * cos + torch.cat((-second, first), dim=-1) * sin


def extended(
    query: Float[Tensor, "1 H T E"],
    key: Float[Tensor, "1 H T E"],
    value: Float[Tensor, "1 H T E"],
    spans: Spans,
    extension: Extension,
    *,
    scaling: float,
    window: int | None,
) -> Float[Tensor, "1 H T E"]:
    """Attention of items longer than `original` by groups, of others as always; one item after the other, softmax in fp32."""
    groups = extension.groups
    sharp = groups.sharpened(spans.positions).to(query)[:, None]
    far_query, far_key = turned(query, extension.query), turned(key, extension.key)
    parts, first = [], 0
    for length in spans.lengths:
        own = slice(first, first + length)
        row = torch.arange(first, own.stop, device=query.device)
        scores = _scores(query, key, own, sharp if length > groups.original else None)
        if length > groups.original:
            apart = (row[:, None] - row[None, :]) >= groups.near
            scores = torch.where(apart, _scores(far_query, far_key, own, sharp), scores)
        scores = (scores * scaling).masked_fill(~spans.may_look(row[:, None], row[None, :], window), float("-inf"))
        parts.append(scores.softmax(-1).to(value) @ value[:, :, own])
        first = own.stop
    return torch.cat(parts, dim=2)


def _scores(query: Tensor, key: Tensor, own: slice, sharp: Tensor | None) -> Float[Tensor, "1 H t t"]:
    q = query[:, :, own] if sharp is None else query[:, :, own] * sharp[own]
    return q.float() @ key[:, :, own].float().transpose(-1, -2)
