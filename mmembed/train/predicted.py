"""What a language head predicts of packed rows: the next tokens, or those that were masked; and the texts that it learns from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..batch import Batch, Sample, pack, plan
from ..embedder import Embedder
from ..errors import SpecError
from ..inputs import Text
from ..model import EmbeddingModel
from ..nn.transfer import to_device
from ..towers import backbone as backbones
from .compared import Predicted
from .data import Columns, Example
from .losses.language import mask_tokens
from .recipe import Masking

Head = Callable[[Tensor], Tensor]
"""States (m, D) -> logits (m, V): `mmembed.towers.language_head.LanguageHead`, or any other."""


def next_tokens(model: EmbeddingModel, head: Head, batch: Batch, chosen: Bool[Tensor, " T"] | None = None) -> Predicted:
    """Tokens of texts, each from the state before it (autoregressive; GritLM's generative half).

    Args:
        batch: under a causal mask, whatever that of the model. chosen: which tokens; None: all but the first of each text.

    Raises:
        SpecError: rows that share tokens or hold pictures, or a mask that looks ahead.
    """
    if batch.spans.mask == "bidirectional":
        raise SpecError("behind a mask that looks ahead the next token is no secret: use mask='causal'")
    follows = _follows(batch)
    return _predicted(model, head, batch, batch.ids, follows if chosen is None else chosen & follows)


def masked_tokens(
    model: EmbeddingModel, head: Head, batch: Batch, chosen: Bool[Tensor, " T"], ids: Int[Tensor, " T"]
) -> Predicted:
    """The chosen tokens, each from the state before it (masked next token prediction, LLM2Vec, arXiv 2404.05961).

    Args:
        batch: with some tokens masked, see `mask_tokens`. chosen: which; ids: (T,) what they were.

    Raises:
        SpecError: as `next_tokens`.
    """
    return _predicted(model, head, batch, ids, chosen & _follows(batch))


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


# ---- texts of a step -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spoken:
    """A packed row of texts that a language head learns from.

    Attributes:
        task: its number. batch: the row, with masks in it where there are some.
        chosen: (T,) which tokens are predicted; ids: (T,) what they are. masked: whether they are hidden, and else the next ones.
        tokens, texts: how many tokens are predicted, and of how many texts. truncated: texts that were cut, predicted or not.
    """

    task: int
    batch: Batch
    chosen: Bool[Tensor, " T"]
    ids: Int[Tensor, " T"]
    masked: bool
    tokens: int
    texts: int
    truncated: int

    def to(self, device: torch.device) -> Spoken:
        return replace(
            self,
            batch=self.batch.to(device),
            chosen=to_device(self.chosen, device),
            ids=to_device(self.ids, device),
        )

    def predicted(self, model: EmbeddingModel, head: Head) -> Predicted:
        if self.masked:
            return masked_tokens(model, head, self.batch, self.chosen, self.ids)
        return next_tokens(model, head, self.batch, self.chosen)


def spoken(
    embedder: Embedder,
    task: int,
    texts: Sequence[tuple[str, ...]],
    masking: Masking | None,
    *,
    budget: int,
    seeds: Sequence[Sequence[int]],
) -> list[Spoken]:
    """Texts as packed rows, as they are, without prompts, between the tokenizer's special tokens.

    Args:
        texts: one each, all of which is predicted; or two, what is given and what is said to it, which alone is predicted.
        masking: tokens are masked, and the rows read under the mask of the model; None: the next token is predicted, under a
            causal mask. budget: tokens of a row. seeds: what the masks of each example hang on.

    Raises:
        UnknownName: no such mask in the vocabulary.
    """
    words, spec = embedder.tokenizer, embedder.spec
    tokens = iter(words.encode([text for own in texts for text in own]))
    special = [*words.prefix, *words.suffix]
    samples: list[Sample] = []
    due: list[np.ndarray] = []
    for own, seed in zip(texts, seeds, strict=True):
        pieces = [np.asarray(next(tokens).ids, dtype=np.int64) for _ in own]
        ids = np.concatenate([np.asarray(words.prefix, np.int64), *pieces, np.asarray(words.suffix, np.int64)])
        learnt = np.ones(len(ids), dtype=bool)
        if len(pieces) > 1:
            learnt[: len(words.prefix) + len(pieces[0])] = False
        excess = max(0, len(ids) - spec.max_length)
        ids, learnt = ids[: len(ids) - excess], learnt[: len(ids) - excess]
        shown = ids
        if masking is not None:
            shown, hidden = mask_tokens(
                ids,
                np.random.default_rng(list(seed)),
                mask=words.id_of(masking.token),
                vocabulary=len(words),
                share=masking.share,
                replaced=masking.replaced,
                kept=masking.kept,
                special=special,
                among=learnt,
            )
            learnt = hidden
        learnt[:1] = False
        samples.append(Sample(shown, np.ones(len(ids), dtype=bool), (), excess))
        due.append(np.stack([ids, learnt]))
    mask = str(spec.mask) if masking is not None else "causal"
    rows = []
    for places in plan(samples, budget):
        batch = pack([samples[k] for k in places], places, mask)
        ids, learnt = np.concatenate([due[k] for k in places], axis=1)
        rows.append(
            Spoken(
                task=task,
                batch=batch,
                chosen=torch.from_numpy(learnt.astype(bool)),
                ids=torch.from_numpy(ids),
                masked=masking is not None,
                tokens=int(learnt.sum()),
                texts=sum(bool(due[k][1].any()) for k in places),
                truncated=sum(bool(samples[k].truncated) for k in places),
            )
        )
    return rows


def texts_of(example: Example, chosen: int, columns: Columns) -> tuple[str, ...]:
    """The texts of an example: its query, and the positive where its data has a column for that; a recipe refuses pictures."""
    items = [example.query] if columns.positive is None else [example.query, example.positives[chosen]]
    found = []
    for (part,) in items:
        assert isinstance(part, Text)
        found.append(part.text)
    return tuple(found)
