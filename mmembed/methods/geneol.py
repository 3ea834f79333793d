"""GenEOL: a sentence and what a language model makes of it, each asked for one word, and the mean of their vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from ..embedder import Embedder
from ..errors import InputError
from ..walk import many
from .in_one_word import KNOWLEDGE
from .mean_of_several import mean_of_several
from .method import Method

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_PAPER = "GenEOL, arXiv 2410.14635 (raghavlite/GenEOL)"
Rewrite = Callable[[list[str]], Iterable[Iterable[str]]]
"""Texts -> other wordings of each."""

INSTRUCTIONS = (
    "Paraphrase the input sentence or phrase, providing an alternative expression with the same meaning.",
    "Rewrite the input sentence or phrase using different sentence structure and different words while preserving its "
    "original meaning.",
    "Create a sentence or phrase that is also true, assuming the provided input sentence or phrase is true.",
    "Provide a concise paraphrase of the input sentence or phrase, maintaining the core meaning while altering the words "
    "and sentence structure. Feel free to omit some of the non-essential details like adjectives or adverbs.",
)
"""What the authors ask a language model for, each twice, with five of ten examples of theirs before it. Their examples have no
licence and are not here."""

# The authors write <s> themselves and let the tokenizer add nothing; a backbone whose text opens with another token, or none,
# takes a template without it. They clean nothing, and read the tokens after "in one word": on Llama and Mistral, : and ".
# (They look for the first "means in one word" of the whole text; a sentence that says so itself is read rightly here.)
_END = ':"'
_ASKED = f"<s>{KNOWLEDGE.removesuffix(_END)}{{counted}}{_END}"

METHODS = (
    Method(
        name="geneol",
        paper=_PAPER,
        templates={"text": _ASKED},
        counted="marked",
        pooling="mean",
        opened=False,
        needs=("<s>",),
    ),
)


def encode(
    embedder: Embedder, texts: str | Iterable[str], rewrite: Rewrite, *, unit_before: bool = False, **options: Any
) -> NDArray[np.float32]:
    """One vector a text, float32 (N, D): the mean over the text and its rewrites.

    Args:
        embedder: `apply(backbone, "geneol")`, with layers=..., pooling=... if wished; or any other, since all that is done
            here is the mean. A method's own `encode` is what this is without rewrites.
        rewrite: called once, with all texts; a language model of yours, see `INSTRUCTIONS`, or a look-up of what it said.
        unit_before: bring each vector to unit length before the mean (the authors' --normalized, off by default).
        options: see `mean_of_several`.

    Raises:
        InputError: not one list of rewrites a text, or one without a word in it: it would be a vector of nothing.
    """
    own: list[Any] = list(many(texts))
    rewrites = [each if isinstance(each, str) else list(each) for each in rewrite(own)]
    if len(rewrites) != len(own):
        raise InputError(f"rewrite gave {len(rewrites)} lists for {len(own)} texts")
    for row, wordings in enumerate(rewrites):
        if isinstance(wordings, str) or not all(isinstance(text, str) and text.strip() for text in wordings):
            raise InputError(f"its rewrites are to be a list of texts with words in them, not {wordings!r}", row)
    groups = [[text, *wordings] for text, wordings in zip(own, rewrites, strict=True)]
    return mean_of_several(embedder, groups, unit_before=unit_before, **options)
