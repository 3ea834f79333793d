"""Sparse heads: the states of the counted tokens of an item become weights of the terms of a vocabulary, in fp32."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from einops import repeat
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..errors import check_known
from ..registry import Registry
from .spans import Counted

States = Float[Tensor, "T D"]
Weights = Float[Tensor, "B V"]
Logits = Callable[[Float[Tensor, "n D"]], Float[Tensor, "n V"]]
"""The language head of a backbone: states -> a score for every term."""

BLOCK = 1 << 25
"""Numbers that stand at once while logits are reduced (128 MB in fp32): T x V of a whole batch would be gigabytes."""

sparse_heads: Registry[Callable[..., nn.Module]] = Registry("sparse head")

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "log1p_relu": lambda x: x.relu().log1p(),
    "log1p_log1p_relu": lambda x: x.relu().log1p().log1p(),
    "relu": torch.relu,
}
"""By their formula: SPLADE's log(1 + relu(x)), and OpenSearch's, which takes the logarithm twice (arXiv 2504.14839)."""

REDUCE = ("max", "sum", "last")
"""The greatest weight of a term over the counted tokens, their sum (SPLADE v1), or the weight at the last one."""


def build_sparse_head(settings: Mapping[str, Any], width: int, vocabulary: int) -> nn.Module:
    """The head that `settings["kind"]` names, for states of `width` and a tokenizer of `vocabulary` ids.

    Its `.out` is the number of terms, `.needs_logits` says whether it reads the backbone's language head, and `.of_ids`, where it
    has that, that a token is the term of its id, so that the place of a picture has none; called, it
    takes `(states (T, D), ids (C,) of the counted tokens, counted, logits or None)` and gives (B, V), never negative.
    """
    return sparse_heads.build(settings, width=width, vocabulary=vocabulary)


@sparse_heads.register("term_weights")
class TermWeights(nn.Module):
    """relu(w . h + b), a weight a token; a term has the greatest of its tokens (BGE-M3, arXiv 2402.03216)."""

    needs_logits = False
    of_ids = True

    def __init__(self, width: int, vocabulary: int):
        super().__init__()
        self.out = vocabulary
        self.linear = nn.Linear(width, 1)

    def forward(self, states: States, ids: Int[Tensor, " C"], counted: Counted, logits: Logits | None) -> Weights:
        weights = self.linear(states[counted.index].to(self.linear.weight.dtype)).float().relu().squeeze(-1)
        every = weights.new_zeros(counted.items * self.out)
        return every.scatter_reduce(0, counted.item * self.out + ids, weights, "amax").view(counted.items, self.out)


@sparse_heads.register("splade")
class Splade(nn.Module):
    """Scores of every term at every counted token, activated, then reduced over the tokens (SPLADE, arXiv 2107.05720).

    Args:
        terms: a lexicon of so many rows of its own in the place of the language head: LENS' centroids of token embeddings
            (arXiv 2501.09749); None is the backbone's language head.
        activation: one of `ACTIVATIONS`. reduce: one of `REDUCE`.
        normalize: bring the weights of an item to unit length (LENS).
    """

    def __init__(
        self,
        width: int,
        vocabulary: int,
        *,
        terms: int | None = None,
        activation: str = "log1p_relu",
        reduce: str = "max",
        normalize: bool = False,
    ):
        super().__init__()
        for value, kind, known in ((activation, "activation", ACTIVATIONS), (reduce, "reduction", REDUCE)):
            check_known(kind, value, known)
        self.needs_logits = terms is None
        self.out = vocabulary if terms is None else terms
        self.lexicon = None if terms is None else nn.Linear(width, terms, bias=False)
        self.activation, self.reduce, self.normalize = activation, reduce, normalize

    def forward(self, states: States, ids: Int[Tensor, " C"], counted: Counted, logits: Logits | None) -> Weights:
        if self.reduce == "last":
            counted = _last(counted)
        score = logits if self.lexicon is None else self.lexicon
        assert score is not None, "a model gives the language head to a head that needs one"
        activate, how = ACTIVATIONS[self.activation], {"sum": "sum"}.get(self.reduce, "amax")
        out = torch.zeros(counted.items, self.out, dtype=torch.float32, device=states.device)
        step = max(1, BLOCK // self.out)
        for index, item in zip(counted.index.split(step), counted.item.split(step), strict=True):
            taken = states[index] if self.lexicon is None else states[index].to(self.lexicon.weight.dtype)
            weights = activate(score(taken).float())
            out = out.scatter_reduce(0, repeat(item, "n -> n v", v=self.out), weights, how)
        # All weights are at least 0, so terms that no token gives stay at the 0 they began with.
        return nn.functional.normalize(out, dim=-1) if self.normalize else out


def _last(counted: Counted) -> Counted:
    """The last counted token of every item that has one."""
    sizes = torch.bincount(counted.item, minlength=counted.items)
    last = (sizes.cumsum(0) - 1)[sizes > 0]
    return Counted(counted.index[last], counted.item[last], counted.items)


def strongest(weights: Weights, top: int | None) -> Weights:
    """The `top` greatest weights of each row, the others 0; of equal ones those of lower ids."""
    if top is None or top >= weights.shape[-1]:
        return weights
    kept = weights.sort(dim=-1, descending=True, stable=True).indices[:, :top]
    return torch.zeros_like(weights).scatter(1, kept, weights.gather(1, kept))


def items_of(counted: Counted, first: int, last: int) -> Counted:
    """The items from `first` on, before `last`, as if they were all."""
    mine = (counted.item >= first) & (counted.item < last)
    return Counted(counted.index[mine], counted.item[mine] - first, last - first)
