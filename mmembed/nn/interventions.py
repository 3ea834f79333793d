"""Interventions: what is changed inside a backbone while it runs, at one or a few layers, before anything is pooled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..errors import check_known
from ..registry import Registry

interventions: Registry[Callable[..., Intervention]] = Registry("intervention")


@dataclass(frozen=True)
class Places:
    """Where an intervention looks: of each of the B items its `last` token and its placeholder, by row of the states."""

    last: Int[Tensor, " B"]
    placeholder: Int[Tensor, " B"] | None = None


class Intervention(nn.Module):
    """Changes nothing; each kind says what it changes.

    Attributes:
        against: the prompt under which an item runs a second time, first, up to `layer`, for what `attended` compares with.
        layer: of that run. placed: whether it needs a place that a template gives it with {placeholder}.
    """

    against: str | None = None
    layer: int = 0
    placed: bool = False

    def placeholder(self, like: Float[Tensor, "T D"]) -> Float[Tensor, " D"]:
        """What stands at the placeholder in place of a token's embedding."""
        raise NotImplementedError

    def entering(self, layer: int, states: Float[Tensor, "R D"], at: Places) -> Float[Tensor, "R D"]:
        """What goes into block `layer`, counted from 0."""
        return states

    def attended(
        self, layer: int, heads: Float[Tensor, "R HE"], at: Places, other: Float[Tensor, "B HE"] | None
    ) -> Float[Tensor, "R HE"]:
        """What goes into the output projection of attention of block `layer`; `other`: the same of the last token of
        each item's run under `against`."""
        return heads


def build_intervention(settings: Mapping[str, Any], *, depth: int, heads: int) -> Intervention:
    """The intervention that `settings["kind"]` names, for a backbone of `depth` layers with so many `heads`."""
    made: Intervention = interventions.build(settings, depth=depth, heads=heads)
    return made


@interventions.register("token_prepending")
class TokenPrepending(Intervention):
    """A placeholder before the sentence takes the last token's state on, so that a causal backbone sees the end from the
    start (Token Prepending, arXiv 2412.11556): before block l, start <= l < stop, h[placeholder] <- h[last].

    Args:
        start, stop: blocks, counted from 0; a `stop` beyond the depth means all from `start` on.
        seed: of the placeholder's embedding, which the authors draw from a standard normal without one.
    """

    placed = True

    def __init__(self, depth: int, heads: int, *, start: int = 1, stop: int = 7, seed: int = 0):
        super().__init__()
        self.start, self.stop, self.seed = start, stop, seed

    def placeholder(self, like: Float[Tensor, "T D"]) -> Float[Tensor, " D"]:
        drawn = torch.Generator().manual_seed(self.seed)
        return torch.randn(like.shape[-1], generator=drawn, dtype=torch.float32, device="cpu").to(like)

    def entering(self, layer: int, states: Float[Tensor, "R D"], at: Places) -> Float[Tensor, "R D"]:
        if not self.start <= layer < self.stop:
            return states
        assert at.placeholder is not None
        return states.index_copy(0, at.placeholder, states[at.last])


@interventions.register("contrast")
class Contrast(Intervention):
    """At the last token of one block, less of what the same item has under a prompt that asks for the irrelevant, before
    attention's output projection (Contrastive Prompting, arXiv 2505.12831): A the item's own, B the other's.

    Args:
        against: name of that prompt. layer: the block, counted from 0. strength: c.
        how: "scaled": c (A - B); "norm": (A - B) |A| / |A - B|; "scaled_norm": c times that; "sub_head_norm": "norm" of each
            head by itself. Norms are divided by with 1e-7 added, as in the authors' code.
    """

    HOW = ("scaled", "norm", "scaled_norm", "sub_head_norm")

    def __init__(
        self, depth: int, heads: int, *, against: str, layer: int = 4, strength: float = 0.5, how: str = "scaled"
    ):
        super().__init__()
        check_known("way of contrasting", how, self.HOW)
        self.against, self.layer, self.strength, self.how = against, min(layer, depth - 1), strength, how
        self.heads = heads

    def attended(
        self, layer: int, heads: Float[Tensor, "R HE"], at: Places, other: Float[Tensor, "B HE"] | None
    ) -> Float[Tensor, "R HE"]:
        if layer != self.layer:
            return heads
        assert other is not None
        own = heads[at.last]
        changed = own - other
        if self.how == "sub_head_norm":
            split = own.unflatten(-1, (self.heads, -1))
            changed = _of_length(changed.unflatten(-1, (self.heads, -1)), split).flatten(-2)
        elif self.how != "scaled":
            changed = _of_length(changed, own)
        if self.how in ("scaled", "scaled_norm"):
            changed = self.strength * changed
        return heads.index_copy(0, at.last, changed)


def _of_length(vectors: Tensor, of: Tensor) -> Tensor:
    """`vectors` as long as `of`."""
    return vectors * (of.norm(dim=-1, keepdim=True) / (vectors.norm(dim=-1, keepdim=True) + 1e-7))
