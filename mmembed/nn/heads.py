"""Heads: layers that a pooled vector goes through before it is shortened and brought to unit length."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import SpecError, check_known
from ..registry import Registry
from .precision import unit

Vectors = Float[Tensor, "B D"]

heads: Registry[Callable[..., nn.Module]] = Registry("head")

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "tanh": lambda x: x.tanh(),
    "gelu": F.gelu,
    "relu": F.relu,
}


def build_head(settings: Mapping[str, Any], width: int) -> nn.Module:
    """The head that `settings["kind"]` names, for vectors of `width`; its `.out` is the width of what it returns."""
    return heads.build(settings, width=width)


@heads.register("dense")
class Dense(nn.Module):
    """activation(x W^T + b), as sentence-transformers' Dense module (whose missing activation means tanh); `residual`: x is
    added to that, through a layer of its own where the widths differ."""

    def __init__(
        self, width: int, *, out: int, bias: bool = True, activation: str = "identity", residual: bool = False
    ):
        super().__init__()
        check_known("activation", activation, ACTIVATIONS)
        self.out = out
        self.activation = activation
        self.linear = nn.Linear(width, out, bias=bias)
        self.adds = residual
        if residual and width != out:
            self.residual = nn.Linear(width, out, bias=False)

    def forward(self, vectors: Vectors) -> Vectors:
        made = ACTIVATIONS[self.activation](self.linear(vectors))
        if not self.adds:
            return made
        return made + (self.residual(vectors) if hasattr(self, "residual") else vectors)


@heads.register("layer_norm")
class LayerNorm(nn.Module):
    """Layer normalisation of the pooled vector (nomic-embed v1.5 shortens after it)."""

    def __init__(self, width: int, *, eps: float = 1e-5):
        super().__init__()
        self.out = width
        self.norm = nn.LayerNorm(width, eps=eps)

    def forward(self, vectors: Vectors) -> Vectors:
        return self.norm(vectors)


@heads.register("whiten")
class Whiten(nn.Module):
    """(x + bias) kernel, fitted on vectors, not trained (BERT-whitening, arXiv 2103.15316; see `mmembed.methods.whitening`).

    Centred before it is turned: the spread of raw vectors may be far smaller than their mean.
    """

    fitted = True

    def __init__(self, width: int, *, out: int):
        super().__init__()
        self.out = out
        self.bias = nn.Parameter(torch.zeros(width))
        self.kernel = nn.Parameter(torch.eye(width, out))

    def forward(self, vectors: Vectors) -> Vectors:
        return (vectors + self.bias) @ self.kernel


@heads.register("standardize")
class Standardize(nn.Module):
    """(x - mean) / std, fitted on vectors, not trained; a number whose std is infinite, for it never moved, becomes zero."""

    fitted = True

    def __init__(self, width: int):
        super().__init__()
        self.out = width
        self.mean = nn.Parameter(torch.zeros(width))
        self.std = nn.Parameter(torch.ones(width))

    def forward(self, vectors: Vectors) -> Vectors:
        return (vectors - self.mean) / self.std


@heads.register("unit_blocks")
class UnitBlocks(nn.Module):
    """Blocks of numbers, each brought to length sqrt(weight): a dot product of such vectors is the weighted sum of the blocks'
    cosines, one similarity for several kinds of numbers. A block of weight 0 is left out.

    Args:
        widths: numbers of each block, `width` together. weights: one a block, none negative.
    """

    def __init__(self, width: int, *, widths: Sequence[int], weights: Sequence[float]):
        super().__init__()
        if sum(widths) != width or len(weights) != len(widths) or min(weights) < 0 or not any(weights):
            raise SpecError(f"blocks of {list(widths)} numbers with weights {list(weights)} make no vector of {width}")
        self.widths, self.weights = tuple(widths), tuple(weights)
        self.out = sum(block for block, weight in zip(widths, weights, strict=True) if weight)

    def forward(self, vectors: Vectors) -> Vectors:
        blocks = vectors.split(self.widths, dim=-1)
        return torch.cat([unit(b) * w**0.5 for b, w in zip(blocks, self.weights, strict=True) if w], dim=-1)
