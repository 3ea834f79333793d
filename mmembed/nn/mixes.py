"""Mixes: several layers become one, state by state, or, where a mix says so, pooled vector by pooled vector."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import SpecError
from ..registry import Registry
from .perceiver import Perceiver

Layers = Float[Tensor, "L T D"]
States = Float[Tensor, "T D"]
"""Of tokens; of items where the mix has `of_vectors`: every layer is pooled by itself then, before it."""

mixes: Registry[Callable[..., nn.Module]] = Registry("mix of layers")


def build_mix(settings: Mapping[str, Any], layers: int, width: int) -> nn.Module:
    """The mix that `settings["kind"]` names, of so many `layers` of states of `width`."""
    made: nn.Module = mixes.build(settings, layers=layers, width=width)
    return made


@mixes.register("mean")
class Mean(nn.Module):
    """The mean of the layers."""

    def __init__(self, layers: int, width: int):
        super().__init__()

    def forward(self, states: Layers) -> States:
        return states[0] if len(states) == 1 else states.mean(0)


@mixes.register("weights")
class Weights(nn.Module):
    """The sum of the layers, each times a given number."""

    def __init__(self, layers: int, width: int, *, weights: Sequence[float]):
        super().__init__()
        if len(weights) != layers:
            raise SpecError(f"{len(weights)} weights were given for {layers} layers")
        self.weights = tuple(weights)

    def forward(self, states: Layers) -> States:
        return torch.einsum("l,ltd->td", states.new_tensor(self.weights), states)


@mixes.register("softmax")
class Softmax(nn.Module):
    """Learned weights w and one scale g: g * sum_l softmax(w)_l h_l (the scalar mix of ELMo, arXiv 1802.05365)."""

    def __init__(self, layers: int, width: int):
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(layers))
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, states: Layers) -> States:
        return self.scale.to(states) * torch.einsum("l,ltd->td", self.weights.float().softmax(0).to(states), states)


@mixes.register("weighted_mean")
class WeightedMean(nn.Module):
    """Learned weights w: sum_l w_l h_l / sum_l w_l (WeightedLayerPooling of sentence-transformers)."""

    def __init__(self, layers: int, width: int):
        super().__init__()
        self.weights = nn.Parameter(torch.ones(layers))

    def forward(self, states: Layers) -> States:
        weights = self.weights.float()
        return torch.einsum("l,ltd->td", (weights / weights.sum()).to(states), states)


@mixes.register("perceiver")
class PerceiverMix(nn.Module):
    """`Perceiver` over one vector a layer, each with a trained vector of its layer added (PoolingAndAttn, arXiv 2409.02727):
    pooling "last" behind a causal mask, "mean" behind a bidirectional one, layers 1 to the last."""

    of_vectors = True

    def __init__(self, layers: int, width: int, *, latents: int = 768, heads: int = 32, head_width: int = 2048):
        super().__init__()
        self.places = nn.Parameter(torch.randn(layers, width))
        self.perceiver = Perceiver(width, latents=latents, heads=heads, head_width=head_width)

    def forward(self, vectors: Float[Tensor, "L B D"]) -> Float[Tensor, "B D"]:
        layers, items = vectors.shape[:2]
        placed = (vectors + self.places[:, None].to(vectors)).transpose(0, 1).flatten(0, 1)
        mixed: Tensor = self.perceiver(placed, torch.full((items,), layers, device="cpu"))
        return mixed
