"""What a language head predicts of packed rows: the next tokens, or those that were masked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from ..batch import Batch
from ..errors import SpecError
from ..model import EmbeddingModel
from ..towers import backbone as backbones
from .compared import Predicted
from .losses.language import mask_tokens

Head = Callable[[Tensor], Tensor]
"""States (m, D) -> logits (m, V): `mmembed.towers.language_head.LanguageHead`, or any other."""


def next_tokens(model: EmbeddingModel, head: Head, batch: Batch) -> Predicted:
    """Every token but the first of each text, from the state before it (autoregressive; GritLM's generative half, where the mask
    of the model is causal).

    Raises:
        SpecError: rows that share tokens or hold pictures, or a model that reads both ways.
    """
    if batch.spans.mask == "bidirectional":
        raise SpecError("behind a mask that looks ahead the next token is no secret: use mask='causal'")
    return _predicted(model, head, batch, batch.ids, _follows(batch))


def masked_tokens(
    model: EmbeddingModel, head: Head, batch: Batch, chosen: Bool[Tensor, " T"], ids: Tensor
) -> Predicted:
    """The chosen tokens, each from the state before it (masked next token prediction, LLM2Vec, arXiv 2404.05961).

    Args:
        batch: with some tokens masked, see `masked`. chosen: which; ids: (T,) what they were.

    Raises:
        SpecError: as `next_tokens`.
    """
    return _predicted(model, head, batch, ids, chosen & _follows(batch))


def masked(
    batch: Batch,
    generator: np.random.Generator,
    *,
    mask: int,
    vocabulary: int,
    share: float = 0.2,
    replaced: float = 0.1,
    kept: float = 0.1,
    special: Sequence[int] = (),
) -> tuple[Batch, Bool[Tensor, " T"]]:
    """The same rows with some tokens masked, and which; see `mask_tokens`. Never the first of a text."""
    given = {"mask": mask, "vocabulary": vocabulary, "share": share, "replaced": replaced, "kept": kept}
    ids, chosen = mask_tokens(batch.ids.cpu().numpy(), generator, **given, special=special)  # type: ignore[arg-type]
    device = batch.ids.device
    picked = torch.from_numpy(chosen).to(device) & _follows(batch)
    return replace(batch, ids=torch.where(picked, torch.from_numpy(ids).to(device), batch.ids)), picked


def _follows(batch: Batch) -> Bool[Tensor, " T"]:
    """Which tokens stand behind another one of their text."""
    return batch.spans.start != torch.arange(len(batch.ids), device=batch.ids.device)


def _predicted(model: EmbeddingModel, head: Head, batch: Batch, ids: Tensor, chosen: Tensor) -> Predicted:
    if batch.spans.shared or batch.pictures:
        raise SpecError("tokens are predicted of texts that share none: pack them with share=False")
    place = chosen.nonzero().flatten()
    states = backbones.states(model.backbone, batch.ids, None, batch.spans)
    sample = torch.searchsorted(batch.spans.boundaries[1:].long(), place, right=True)
    return Predicted(states=states[place - 1], targets=ids[place], sample=sample, head=head)
