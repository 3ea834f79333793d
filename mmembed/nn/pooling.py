"""Pooling: the states of the counted tokens of an item become one vector, in fp32."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

from ..registry import Registry
from .perceiver import LatentCross, Perceiver
from .spans import Counted

States = Float[Tensor, "T D"]
Vectors = Float[Tensor, "B D"]
Reduce = Callable[[States, Counted], Vectors]

poolings: Registry[Callable[..., nn.Module]] = Registry("pooling")


class Plain(nn.Module):
    """A pooling without weights: a function of the states and the counted tokens."""

    def __init__(self, reduce: Reduce):
        super().__init__()
        self.reduce = reduce

    def forward(self, states: States, counted: Counted) -> Vectors:
        return self.reduce(states, counted)


def _plain(name: str) -> Callable[[Reduce], Reduce]:
    def add(reduce: Reduce) -> Reduce:
        poolings.register(name)(lambda width: Plain(reduce))
        return reduce

    return add


def build_pooling(settings: Mapping[str, Any], width: int) -> nn.Module:
    """The pooling that `settings["kind"]` names, for states of width `width`."""
    return poolings.build(settings, width=width)


def edge_of(settings: Mapping[str, Any] | None) -> str | None:
    """ "first" or "last" of a pooling that reads no other counted token."""
    kind = None if settings is None else settings["kind"]
    return kind if kind in ("first", "last") else None


def _edges(counted: Counted) -> tuple[Tensor, Tensor]:
    """First and last counted token of each item, as places in `counted.index`."""
    last = counted.sizes.cumsum(0) - 1
    return last - counted.sizes + 1, last


def _weighted_sum(states: States, counted: Counted, weights: Float[Tensor, " C"]) -> Vectors:
    taken = states[counted.index].float() * weights[:, None]
    return taken.new_zeros(counted.items, states.shape[-1]).index_add(0, counted.item, taken)


@_plain("last")
def last(states: States, counted: Counted) -> Vectors:
    """State of the last counted token."""
    return states[counted.index[_edges(counted)[1]]].float()


@_plain("first")
def first(states: States, counted: Counted) -> Vectors:
    """State of the first counted token (CLS of encoders)."""
    return states[counted.index[_edges(counted)[0]]].float()


@_plain("mean")
def mean(states: States, counted: Counted) -> Vectors:
    """Mean over the counted tokens."""
    return _weighted_sum(states, counted, (1.0 / counted.sizes.float())[counted.item])


@_plain("mean_sqrt_len")
def mean_sqrt_len(states: States, counted: Counted) -> Vectors:
    """Sum over the counted tokens, divided by the square root of their number (sentence-transformers)."""
    return _weighted_sum(states, counted, counted.sizes.float().rsqrt()[counted.item])


@_plain("weightedmean")
def weighted_mean(states: States, counted: Counted) -> Vectors:
    """Position-weighted mean: the i-th counted token weighs i / sum(i) (SGPT, arXiv 2202.08904)."""
    begin, end = _edges(counted)
    size = (end - begin + 1).float()
    rank = torch.arange(len(counted.item), device=states.device) - begin[counted.item] + 1
    return _weighted_sum(states, counted, rank.float() / (size * (size + 1) / 2)[counted.item])


@_plain("max")
def maximum(states: States, counted: Counted) -> Vectors:
    """Greatest value of each dimension over the counted tokens."""
    taken = states[counted.index].float()
    out = taken.new_full((counted.items, states.shape[-1]), float("-inf"))
    return out.scatter_reduce(0, repeat(counted.item, "c -> c d", d=taken.shape[-1]), taken, "amax")


@poolings.register("joined")
class Joined(nn.Module):
    """Several poolings of the same tokens, one behind the other in one vector (sentence-transformers)."""

    def __init__(self, width: int, *, kinds: Sequence[str] = ("mean",)):
        super().__init__()
        self.parts = nn.ModuleList(build_pooling({"kind": kind}, width) for kind in kinds)

    def forward(self, states: States, counted: Counted) -> Vectors:
        return torch.cat([part(states, counted) for part in self.parts], dim=-1)


def pooled_width(settings: Mapping[str, Any] | None, width: int) -> int:
    """Numbers of the vector that a pooling makes of states of width `width`."""
    return width * len(settings["kinds"]) if settings is not None and "kinds" in settings else width


@poolings.register("attention")
class AttentionPooling(nn.Module):
    """Softmax-weighted sum of the counted tokens, weights by one learned query: w = softmax(h . u / sqrt(D))."""

    def __init__(self, width: int):
        super().__init__()
        self.query = nn.Parameter(torch.randn(width) * width**-0.5)

    def forward(self, states: States, counted: Counted) -> Vectors:
        scores = states[counted.index].float() @ self.query.float() * states.shape[-1] ** -0.5
        top = scores.new_full((counted.items,), float("-inf")).scatter_reduce(0, counted.item, scores, "amax")
        weights = (scores - top[counted.item]).exp()
        total = weights.new_zeros(counted.items).index_add(0, counted.item, weights)
        return _weighted_sum(states, counted, weights / total[counted.item])


@poolings.register("latent_attention")
class LatentAttention(LatentCross):
    """Tokens attend to trained latents, an MLP follows, then the mean over counted tokens (NV-Embed, arXiv 2405.17428).

    As the authors' code runs it: x = cross(norm(h), norm(latents)) + h; x = ff(norm(x)) + x.
    """

    def __init__(self, width: int, *, latents: int = 512, heads: int = 8, head_width: int | None = None):
        super().__init__(width, latents=latents, heads=heads, head_width=head_width or width)

    def forward(self, states: States, counted: Counted) -> Vectors:
        taken = states[counted.index].to(self.latents.dtype)
        q = rearrange(self.to_q(self.norm(taken)), "c (h e) -> 1 h c e", h=self.heads)
        k, v = rearrange(self.to_kv(self.norm_latents(self.latents)), "l (two h e) -> two 1 h l e", two=2, h=self.heads)
        x = self.to_out(rearrange(F.scaled_dot_product_attention(q, k, v), "1 h c e -> c (h e)")) + taken
        every = Counted(torch.arange(len(x), device=x.device), counted.item, counted.items)
        return mean(self.fed(x), every)


@poolings.register("perceiver")
class PerceiverPooling(nn.Module):
    """`Perceiver` over the counted tokens; its authors let it read the last token alone behind a causal mask (counted="eos"),
    and all of them behind a bidirectional one, padding included, which an item alone has none of."""

    def __init__(self, width: int, *, latents: int = 768, heads: int = 32, head_width: int = 2048):
        super().__init__()
        self.perceiver = Perceiver(width, latents=latents, heads=heads, head_width=head_width)

    def forward(self, states: States, counted: Counted) -> Vectors:
        read: Tensor = self.perceiver(states[counted.index], counted.sizes)
        return read
