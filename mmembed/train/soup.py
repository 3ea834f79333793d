"""A model soup: the mean of the weights of several models that were trained from one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..errors import SpecError


def soup(models: Sequence[nn.Module], shares: Sequence[float] | None = None) -> Mapping[str, Tensor]:
    """The mean of weights, by name, made in fp32 and given in the first model's types (arXiv 2203.05482; EmbeddingGemma's and
    Qwen3-Embedding's last step). `embedder.model.load_state_dict(soup([a.model, b.model]))` puts it into one of them.

    Args:
        models: of one shape, for example what several recipes or stages left. shares: of each; None: equal ones. They need not
            add up to 1: they are divided by their sum.

    Raises:
        SpecError: models of other weights, or shares that are not one positive number in all for each.
    """
    shares = [1.0] * len(models) if shares is None else shares
    if not models or len(shares) != len(models) or not sum(shares) > 0:
        raise SpecError(f"{len(models)} models and shares {list(shares)}: give each model a share, positive in all")
    states = [model.state_dict() for model in models]
    first = states[0]
    for number, state in enumerate(states):
        differing = [
            k
            for k in first.keys() | state.keys()
            if getattr(state.get(k), "shape", 0) != getattr(first.get(k), "shape", 1)
        ]
        if differing:
            raise SpecError(f"model {number} has other weights than the first: {', '.join(sorted(differing)[:3])}")
    mean = {}
    for name, value in first.items():
        if not value.is_floating_point():
            mean[name] = value.clone()  # counts: no mean of them means anything
            continue
        total = torch.zeros(value.shape, dtype=torch.float32, device=value.device)
        for state, share in zip(states, shares, strict=True):
            total.add_(state[name].to(total), alpha=share / sum(shares))
        mean[name] = total.to(value.dtype)
    return mean
