"""Losses of a language head: the next token, or one that was masked; logits of some tokens stand at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ...errors import SpecError
from ..compared import Compared, Predicted, precise
from .objective import Count, objective

if TYPE_CHECKING:
    from numpy.typing import NDArray

Mean = Literal["tokens", "samples"]
"""The mean over all tokens, or over samples of the mean over their tokens."""


@objective("language_modelling", "predicted")
def language_modelling(compared: Compared, *, over: Mean = "tokens", block: Count = 1 << 13) -> Float[Tensor, ""]:
    """Cross-entropy of the tokens that a language head predicts, in fp32: L = mean of -log softmax(head(h))[target].

    What is predicted of which state is said by `Predicted`: the next token (autoregressive, GritLM's L_gen), or a masked one
    from the state before it (MNTP).

    Args:
        over: one of `Mean`; GritLM calls them "token" and, alone in a batch, "sample". block: states whose logits stand at once.
    """
    found = compared.predicted
    if found is None:
        raise SpecError("this loss reads tokens that a language head predicts, and none were given")
    if not len(found.targets):
        return 0.0 * precise(found.states).sum()
    each = token_losses(found, block)
    if over == "tokens":
        return each.mean()
    samples = found.sample.unique(return_inverse=True)[1]
    count = torch.bincount(samples).to(each.dtype)
    return (each.new_zeros(len(count)).index_add(0, samples, each) / count).mean()


@objective("mntp", "predicted")
def mntp(compared: Compared, *, block: Count = 1 << 13) -> Float[Tensor, ""]:
    """Masked next token prediction (LLM2Vec, arXiv 2404.05961): cross-entropy of the masked tokens, each predicted from the state
    before it under bidirectional attention; `mask_tokens` masks, by the `masking` of a recipe's task."""
    return language_modelling(compared, block=block)


def token_losses(found: Predicted, block: int) -> Float[Tensor, " M"]:
    """-log softmax(head(h))[target] of each; logits of `block` states at a time, made again in the backward pass."""

    def some(states: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(precise(found.head(states)), targets, reduction="none")

    if len(found.targets) <= block:
        return some(found.states, found.targets)
    pieces = zip(found.states.split(block), found.targets.split(block), strict=True)
    return torch.cat([checkpoint(some, *piece, use_reentrant=False) for piece in pieces])


def mask_tokens(
    ids: NDArray[np.int64],
    generator: np.random.Generator,
    *,
    mask: int,
    vocabulary: int,
    share: float = 0.2,
    replaced: float = 0.1,
    kept: float = 0.1,
    special: Sequence[int] = (),
    among: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Ids (T,) with some of them masked, and which are to be predicted; never the first, which nothing comes before.

    Args:
        mask: the id of the mask. vocabulary: ids there are, for random ones. share: of tokens to be predicted (LLM2Vec: 0.2 for
            Llama 3; 0.8 for Mistral, with replaced=kept=0). replaced, kept: shares of these that become a random token, or stay.
        special: ids that are never masked. among: (T,) tokens that may be; None: all.
    """
    chosen = (generator.random(len(ids)) < share) & ~np.isin(ids, list(special))
    if among is not None:
        chosen &= among
    chosen[:1] = False
    kind = generator.random(len(ids))
    out = ids.copy()
    out[chosen & (kind >= replaced + kept)] = mask
    drawn = chosen & (kind < replaced)
    out[drawn] = generator.integers(vocabulary, size=int(drawn.sum()))
    return out, chosen
