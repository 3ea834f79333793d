"""Contrastive Prompting: at one layer, less of what a sentence is under a prompt that asks for the irrelevant.

It needs a path of its own through the engine: two forwards of an item, the first of which is read inside attention, before its
output projection, and changes the second there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .in_one_word import BOTH, KNOWLEDGE, PICTURE, PRETENDED_COT, PROMPTEOL
from .method import Method

_PAPER = "Contrastive Prompting, arXiv 2505.12831"
AGAINST = "irrelevant"
"""The name of the other prompt."""
IRRELEVANT = {
    "text": 'The irrelevant information of this sentence : "{text}" means in one word:"',
    "image": "{image}\nSummary irrelevant information of above image in one word:",
    "image+text": "{image}{text}\nSummary irrelevant information of above image and sentence in one word:",
}
"""The authors' prompt for texts; those for pictures, which they do not try, are ours after E5-V's questions."""


def _contrast(strength: float, layer: int) -> dict[str, Any]:
    return {"kind": "contrast", "against": AGAINST, "layer": layer, "strength": strength}


def _method(name: str, text: str | tuple[str, ...]) -> Method:
    return Method(
        name=name,
        paper=_PAPER,
        templates={"text": text, "image": PICTURE, "image+text": BOTH},
        besides={AGAINST: IRRELEVANT},
        cleaning="one_sentence",
        layers=(-2,),
        intervention=_contrast(0.5, 4),
    )


METHODS = (
    _method("contrastive-prompting", PROMPTEOL),
    _method("contrastive-prompting-cot", PRETENDED_COT),
    _method("contrastive-prompting-ke", KNOWLEDGE),
    _method("contrastive-prompting-ck", (KNOWLEDGE, PRETENDED_COT)),
)

SETTINGS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "Llama-2-7b": ("contrastive-prompting", {"layers": (27,), "intervention": _contrast(0.5, 4)}),
    "Meta-Llama-3-8B": ("contrastive-prompting", {"layers": (-2,), "intervention": _contrast(0.25, 6)}),
}
"""The authors' choice for a backbone (their run_intervention_eval.sh): a method, here any of the four, and what
`apply(embedder, method, **choice)` changes."""
