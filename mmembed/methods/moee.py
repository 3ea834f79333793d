"""MoEE: the last hidden state of a mixture of experts and what its routers say there, as one vector."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Literal

import torch

from ..embedder import Embedder
from ..errors import InputError, SpecError, check_known
from ..inputs import Thing
from ..model import EmbeddingModel
from ..towers import routers
from .in_one_word import PROMPTEOL
from .method import Method

_PAPER = "MoEE, arXiv 2410.10814 (tianyi-lab/MoE-Embedding)"
PROMPTS: Mapping[str, Method] = {
    name: Method(name=name, paper=_PAPER, templates={"text": template}, cleaning="ended_sentence")
    for name, template in (("quoted", '"{text}"'), ("prompteol", PROMPTEOL))
}
"""Prompts that the authors compare, "none" and "prompteol" in their code; both are read at the last token."""


def fitted(
    embedder: Embedder,
    texts: Iterable[Thing],
    *,
    prompt: str = "quoted",
    routing: Literal["logits", "softmax"] = "logits",
    combine: Literal["concat", "sum"] = "concat",
    alpha: float = 1.0,
) -> Embedder:
    """The embedder under MoEE, its numbers standardised by mean and spread over `texts`; saved and loaded like any other.

    The authors standardise over each batch, by which a text has as many vectors as it has company. Here mean and spread are
    fitted once and kept; over the batch that was fitted on, vectors are theirs.

    Args:
        embedder: over a mixture-of-experts backbone of transformers that runs packed (OLMoE, Qwen MoE, Mixtral, ...), no heads.
        texts: some hundreds or more, like those to come.
        prompt: one of `PROMPTS`.
        routing: the paper speaks of softmax, and so does the authors' DeepSeek; their Qwen and OLMoE keep the routers' logits.
        combine: "concat" compares all numbers at once; "sum" is cos(hidden) + alpha cos(routing), which the dot product of
            these vectors is, but for 1 + alpha.
        alpha: weight of the routers under "sum".

    Raises:
        UnknownName: no such prompt, routing or combination.
        InputError: fewer than two texts. SpecError: a backbone without routers, an embedder with heads, or a weight that is no
            number.
    """
    check_known("prompt of MoEE", prompt, PROMPTS)
    check_known("combination", combine, ("concat", "sum"))
    if not isinstance(alpha, (int, float)) or not 0 <= alpha < math.inf:
        raise SpecError(f"alpha={alpha!r}: the weight of the routers is a number, 0 or more")
    if not isinstance(embedder.model, EmbeddingModel):
        raise SpecError("MoEE reads the routers of one backbone, and this is a dual encoder")
    if embedder.spec.heads:
        raise SpecError("MoEE reads raw states, and this embedder has heads behind its pooling")
    hidden = embedder.dimension
    said = routers.width(embedder.model.backbone)
    fields = {**PROMPTS[prompt].fields(), "routing": routing, "dimension": hidden + said, "dimensions": ()}
    raw = embedder.respecified(**fields)
    vectors = torch.from_numpy(raw.respecified(normalize=False).encode(texts)).double()
    if len(vectors) < 2:
        raise InputError(f"mean and spread are fitted on many texts, not on {len(vectors)}")
    spread = vectors.std(0)
    std = torch.where(spread > 0, spread + 1e-8, torch.inf)
    ours = raw.with_head({"kind": "standardize"}, {"mean": vectors.mean(0).float(), "std": std.float()})
    if combine == "concat":
        return ours
    return ours.with_head({"kind": "unit_blocks", "widths": [hidden, said], "weights": [1.0, alpha]}, {})
