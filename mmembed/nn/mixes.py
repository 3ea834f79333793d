"""Mixes: the states of several layers become those of one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import SpecError
from ..registry import Registry

Layers = Float[Tensor, "L T D"]
States = Float[Tensor, "T D"]

mixes: Registry[Callable[..., nn.Module]] = Registry("mix of layers")


def build_mix(settings: Mapping[str, Any], layers: int) -> nn.Module:
    """The mix that `settings["kind"]` names, of so many `layers`."""
    made: nn.Module = mixes.build(settings, layers=layers)
    return made


@mixes.register("mean")
class Mean(nn.Module):
    """The mean of the layers."""

    def __init__(self, layers: int):
        super().__init__()

    def forward(self, states: Layers) -> States:
        return states[0] if len(states) == 1 else states.mean(0)


@mixes.register("weights")
class Weights(nn.Module):
    """The sum of the layers, each times a given number."""

    def __init__(self, layers: int, *, weights: Sequence[float]):
        super().__init__()
        if len(weights) != layers:
            raise SpecError(f"{len(weights)} weights were given for {layers} layers")
        self.weights = tuple(weights)

    def forward(self, states: Layers) -> States:
        return torch.einsum("l,ltd->td", torch.tensor(self.weights).to(states), states)


@mixes.register("softmax")
class Softmax(nn.Module):
    """Learned weights w and one scale g: g * sum_l softmax(w)_l h_l (the scalar mix of ELMo, arXiv 1802.05365)."""

    def __init__(self, layers: int):
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(layers))
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, states: Layers) -> States:
        return self.scale.to(states) * torch.einsum("l,ltd->td", self.weights.float().softmax(0).to(states), states)


@mixes.register("weighted_mean")
class WeightedMean(nn.Module):
    """Learned weights w: sum_l w_l h_l / sum_l w_l (WeightedLayerPooling of sentence-transformers)."""

    def __init__(self, layers: int):
        super().__init__()
        self.weights = nn.Parameter(torch.ones(layers))

    def forward(self, states: Layers) -> States:
        weights = self.weights.float()
        return torch.einsum("l,ltd->td", (weights / weights.sum()).to(states), states)
