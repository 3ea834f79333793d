"""Chunk and average: texts longer than a model reads, embedded piece by piece, and the mean of the pieces' vectors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..embedder import Embedder
from ..errors import InputError
from ..inputs import Text
from ..walk import many
from .mean_of_several import OPTIONS, check, mean_of_several
from .splitting import windows_of_tokens

WRAPPING = ("prompt_name", "prompt", "instruction", "language")

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def encode(
    embedder: Embedder, texts: str | Text | Iterable[str | Text], *, size: int | None = None, **options: Any
) -> NDArray[np.float32]:
    """One vector a text of any length, float32 (N, D); nothing is cut.

    A text is split every `size` tokens, the last piece reading back to have as many; each goes through the prompt and the
    model by itself; the mean is over vectors before unit length (LongEmbed's parallel context windows, arXiv 2404.12096, code
    dwzhu-pku/LongEmbed). Pieces are slices of the text, where that code decodes tokens, which loses what a vocabulary lacks.

    Args:
        size: tokens of a piece without prompt and special tokens; None: as many as fit.
        options: see `mean_of_several`, less `truncate`.

    Raises:
        InputError: no text, or a prompt that leaves no room for one. TruncationError: a `size` that does not fit.
        SpecError: pieces of no token.
    """
    things = list(many(texts))
    options = check(options, len(things), [key for key in OPTIONS if key != "truncate"])
    wrapping = {key: value for key, value in options.items() if key in WRAPPING}
    groups = []
    for row, given in enumerate(things):
        if not isinstance(given, (str, Text)):
            raise InputError("texts are split here, and nothing else", row)
        text = given if isinstance(given, str) else given.text
        own = {key: value if isinstance(value, str) or value is None else value[row] for key, value in wrapping.items()}
        try:
            groups.append(
                _fitting(embedder, text, own) if size is None else windows_of_tokens(text, size, embedder.tokenizer)
            )
        except InputError as error:
            raise type(error)(error.reason, row) from None
    return mean_of_several(embedder, groups, truncate="error", **options)


def _fitting(embedder: Embedder, text: str, wrapping: dict[str, Any]) -> list[str]:
    """Windows of as many tokens as go through the model with the prompt around them."""
    most = embedder.spec.max_length
    size = most
    while True:
        pieces = windows_of_tokens(text, size, embedder.tokenizer)
        longest = max(embedder.count_tokens(pieces, **wrapping))
        if longest <= most:
            return pieces
        # What is too much goes; where a template says a text twice that is more than there is, and it shrinks in proportion.
        size = size - (longest - most) if size > longest - most else min(size - 1, size * most // longest)
        if size < 1:
            raise InputError(f"the prompt leaves no room for a text in {most} tokens")
