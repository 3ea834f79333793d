"""Regularisers: vectors that spread out, weights of terms that are few; to be added to another loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..compared import Compared, Embedded, blockwise, cosine
from ..signatures import Range, filled
from .contrastive import infonce
from .objective import Above0, Least0, objective

Things = Literal["queries", "positives", "negatives"]
Warmup = Annotated[int, Range(least=0)]


@objective("spread_out", "vectors")
def spread_out(
    compared: Compared,
    *,
    mean: Least0 = 0.0,
    second: Least0 = 1.0,
    beyond: bool = False,
    of: Annotated[Sequence[Things], filled] = ("queries", "positives"),
) -> Float[Tensor, ""]:
    """Things of one side lie apart as random directions do (GOR, arXiv 1708.06320; as in EmbeddingGemma, arXiv 2509.20354):

    L = sum over the sets in `of` of  mean * M1^2 + second * M2
    M1, M2 = mean over i != j of cos_ij, of cos_ij^2

    Args:
        mean, second: weights of the two moments. beyond: only what M2 exceeds 1 / D by counts, as in the paper.
        of: sets of "queries", "positives", "negatives".
    """
    total = compared.queries.of("vectors").new_zeros(())
    for name in of:
        kept = compared.positive if name == "positives" else ~compared.positive
        side = compared.queries if name == "queries" else compared.documents.take(kept.nonzero().flatten())
        total = total + _moments(side, mean, second, beyond)
    return total


def _moments(side: Embedded, mean: float, second: float, beyond: bool) -> Float[Tensor, ""]:
    every = torch.arange(len(side), device=side.device)

    def rows(index: Int[Tensor, " R"]) -> Float[Tensor, "R 2"]:
        near = cosine(side.take(index), side) * (index[:, None] != every)
        return torch.stack([near.sum(1), near.square().sum(1)], dim=1)

    one, two = blockwise(rows, every, len(side)).sum(0) / max(len(side) * (len(side) - 1), 1)
    if beyond:
        two = (two - 1 / side.of("vectors").shape[1]).relu()
    return mean * one.square() + second * two


@objective("flops", "sparse")
def flops(
    compared: Compared, *, queries: Least0 = 5e-5, documents: Least0 = 3e-5, warmup: Warmup = 0
) -> Float[Tensor, ""]:
    """Expected products of a sparse look-up (arXiv 2004.05665): FLOPS = sum over terms of (mean over things of |w|)^2.

    L = lambda(step) * (queries * FLOPS of the queries + documents * FLOPS of the documents),     lambda = min(1, step / warmup)^2

    SPLADE's weights (arXiv 2109.10086); LACONIC takes 1e-3 and warms up over 100 steps.
    """
    parts = [x.of("sparse").abs().mean(0).square().sum() for x in (compared.queries, compared.documents)]
    share = min(1.0, compared.step / warmup) ** 2 if warmup else 1.0
    return share * (queries * parts[0] + documents * parts[1])


@objective("splade", "sparse", contrastive=True)
def splade(
    compared: Compared,
    *,
    temperature: Above0 | Tensor = 1.0,
    queries: Least0 = 5e-5,
    documents: Least0 = 3e-5,
    warmup: Warmup = 0,
) -> Float[Tensor, ""]:
    """InfoNCE of the dot products of sparse weights, and FLOPS (SPLADE v2, arXiv 2109.10086)."""
    few = flops(compared, queries=queries, documents=documents, warmup=warmup)
    return infonce(compared, temperature=temperature, similarity="sparse") + few
