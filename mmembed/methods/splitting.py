"""Where long texts are split: at the ends of sentences, or every so many tokens; pieces laid end to end are the text."""

from __future__ import annotations

import re
from itertools import pairwise

from ..errors import SpecError
from ..prompts import check_text
from ..tokenizer import Tokenizer

_SENTENCE_END = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s)|[。！？｡؟۔।॥]+[\"'”’」』）]*|\n{2,}")
"""A mark and a space, a mark of scripts that write none after it, or an empty line."""


def by_sentences(text: str, sentences: int = 1) -> list[str]:
    """Pieces of so many sentences; space between two goes with the one before. Abbreviations are not known: "Dr. No" is two.

    Raises:
        SpecError: pieces of no sentence.
    """
    _check(sentences, "sentences")
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    ends = [end + len(text[end:]) - len(text[end:].lstrip()) for end in ends]
    return _between(text, ends[sentences - 1 :: sentences])


def by_tokens(text: str, size: int, tokenizer: Tokenizer) -> list[str]:
    """Pieces of `size` tokens, the last of what is left; a character of several tokens is not torn apart.

    Raises:
        SpecError: pieces of no token.
    """
    _check(size, "size")
    begins = _begins(text, tokenizer)
    return _between(text, begins[size::size])


def windows_of_tokens(text: str, size: int, tokenizer: Tokenizer) -> list[str]:
    """Pieces of `size` tokens, the last of which reads back as far as it must to have as many.

    Raises:
        SpecError: pieces of no token.
    """
    _check(size, "size")
    begins = [*_begins(text, tokenizer), len(text)]
    count = len(begins) - 1
    if count <= size:
        return [text]
    firsts = [*range(0, count - size + 1, size), *([count - size] if count % size else [])]
    pieces = [text[(begins[first] if first else 0) : begins[first + size]] for first in firsts]
    return [piece for piece in pieces if piece]


def _check(number: int, name: str) -> None:
    if not isinstance(number, int) or number < 1:
        raise SpecError(f"{name}={number!r}: a piece has a whole number of them, 1 at least")


def _begins(text: str, tokenizer: Tokenizer) -> list[int]:
    """Where each token begins that shares no character with the one before; where it would, after that character."""
    check_text(text)
    begins: list[int] = []
    reached = 0
    for begin, end in tokenizer.encode([text])[0].spans:
        begins.append(max(begin, reached))
        reached = max(reached, end)
    return begins


def _between(text: str, ends: list[int]) -> list[str]:
    borders = sorted({0, *ends, len(text)})
    return [text[a:b] for a, b in pairwise(borders)]
