"""Why a thing was found: how much of its score goes away when a part of it is covered (occlusion)."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np

from ..errors import InputError
from ..images import Image
from ..inputs import Thing
from ..report import Report
from .vectors import unit
from .words import SPACELESS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..embedder import Embedder

GRID = 7
MOST_WORDS = 96


@dataclass(frozen=True)
class Covered:
    """Parts of a text and what each of them gives to the score: (start, end, change of the cosine)."""

    text: str
    parts: list[tuple[int, int, float]]


@dataclass(frozen=True)
class Matched:
    """Tokens of a query (n) and of a document (m), and the dot product of the vectors of every two of them, (n, m)."""

    query: list[str]
    document: list[str]
    similarity: NDArray[np.float32]


def why_picture(
    embedder: Embedder, query: NDArray[np.float32], picture: Image, *, grid: int = GRID
) -> NDArray[np.float32]:
    """What each place of a picture gives to its cosine with a query.

    A window of two by two cells is laid over the picture in its median colour, at every place; a cell has the mean
    of what the windows over it take away (occlusion, arXiv 1311.2901). The picture is embedded (grid + 1)^2 + 1 times.

    Args:
        query: (D,), of any length. grid: cells along each side.

    Returns:
        (grid, grid); what is above zero speaks for the match, what is below against it.
    """
    pixels = picture.load()
    height, width, _ = pixels.shape
    colour = np.median(pixels.reshape(-1, 3), axis=0).astype(np.uint8)  # the ground, of most drawings
    rows, columns = (np.linspace(0, side, grid + 1).round().astype(int) for side in (height, width))
    windows = [(r, c) for r in range(-1, grid) for c in range(-1, grid)]

    def looks() -> Iterator[Image]:  # one by one: 64 copies of a photograph would take gigabytes
        yield Image(pixels)
        for r, c in windows:
            copy = pixels.copy()
            copy[rows[max(r, 0)] : rows[min(r + 2, grid)], columns[max(c, 0)] : columns[min(c + 2, grid)]] = colour
            yield Image(copy)

    lost = _lost(embedder, query, looks())
    total, times = np.zeros((grid, grid)), np.zeros((grid, grid))
    for (r, c), drop in zip(windows, lost, strict=True):
        where = np.s_[max(r, 0) : min(r + 2, grid), max(c, 0) : min(c + 2, grid)]
        total[where] += drop
        times[where] += 1
    return (total / times).astype(np.float32)


def why_text(embedder: Embedder, query: NDArray[np.float32], text: str) -> Covered:
    """What each word of a text, or character of a script without spaces, gives to its cosine with a query, by leaving it out.

    Of a long text the first words alone are asked, and the rest is one part. Without its one word a text is empty: the word gives
    what the score is above that of the empty text, or all of it where the model gives an empty text no vector.

    Args:
        query: (D,), of any length.
    """
    read = _read(embedder, text)
    parts = _parts(text, read)
    if not parts:
        return Covered(text, [])
    asked = [text[:read], *(_without(text[:read], begin, end) for begin, end in parts)]
    lost = _lost(embedder, query, asked, empty=[row for row, left in enumerate(asked) if not left])
    return Covered(text, [(begin, end, float(drop)) for (begin, end), drop in zip(parts, lost, strict=True)])


def why_tokens(embedder: Embedder, query: Thing, document: Thing) -> Matched:
    """How near each token of a document lies to each of a query, for models of token vectors: MaxSim sums the greatest of
    each row. Tokens go by what the tokenizer writes for them, those of pictures by their number.

    Raises:
        InputError: one of them cannot be embedded. SpecError: a prompt that puts a thing in several ways.
    """
    asked, left = _tokens(embedder, query, "query")
    found, right = _tokens(embedder, document, "document")
    return Matched(asked, found, left @ right.T)


def _tokens(
    embedder: Embedder, thing: Thing, side: Literal["query", "document"]
) -> tuple[list[str], NDArray[np.float32]]:
    (sample,) = embedder.samples([thing], prompt_name=embedder.spec.prompt_of(side), output="tokens", side=side)
    if isinstance(sample, InputError):
        raise sample
    numbers = {image.first + k: k + 1 for image in sample.images for k in range(image.count)}
    names = [
        f"picture {numbers[place]}" if place in numbers else embedder.tokenizer.token_of(int(sample.ids[place]))
        for place in np.flatnonzero(sample.counted).tolist()
    ]
    return names, embedder.encode_tokens([thing], side=side)[0]


def _read(embedder: Embedder, text: str) -> int:
    """Characters of a text that the model reads, and as many again or more, for what comes up where a word is left out: they
    are tokenised once a part, and a text may be a book. Counted, as not every tokenizer says where in a text a token is."""
    most = read = 2 * embedder.spec.max_length
    while read < len(text) and len(embedder.tokenizer.encode([text[:read]])[0].ids) < most:
        read *= 2
    return min(read, len(text))


def _parts(text: str, read: int) -> list[tuple[int, int]]:
    """Parts of what is read of a text, and the rest of it."""
    found: list[tuple[int, int]] = []
    for word in re.finditer(r"\S+", text[:read]):
        cut = [word.start()]
        for k in range(word.start(), word.end()):
            if SPACELESS.match(text[k]):
                cut += [k, k + 1]
        edges = sorted({k for k in cut if not _follows(text, k)} | {word.start(), word.end()})
        found += pairwise(edges)
    if read < len(text.rstrip()):
        found.append((read, len(text.rstrip())))
    if len(found) > MOST_WORDS:
        found[MOST_WORDS - 1 :] = [(found[MOST_WORDS - 1][0], found[-1][1])]
    return found


def _without(text: str, begin: int, end: int) -> str:
    """A text less a part, and less the white space on one side of a word: all other stays, or the words would be told to give
    what it gives."""
    before, behind = text[:begin], text[end:]
    if not before.strip():
        behind = behind.lstrip()
    elif not behind or behind[0].isspace():
        before = before.rstrip()
    left = before + behind
    return left if left.strip() else ""


def _follows(text: str, at: int) -> bool:
    """Whether a character goes with the one before it: a vowel sign, a tone, a full stop."""
    return at < len(text) and unicodedata.category(text[at]) in ("Mn", "Mc", "Me", "Pe", "Po")


def _lost(
    embedder: Embedder, query: NDArray[np.float32], things: Iterable[Thing], empty: Container[int] = ()
) -> NDArray[np.float32]:
    """How much lower the cosine of each of the things is than that of the first, whatever lengths the model gives vectors.

    Args:
        empty: rows of empty texts: one that the model gives no vector has a cosine of 0.
    """
    width = None if len(query) == embedder.dimension else len(query)
    told = Report()
    vectors = embedder.encode_document(things, truncate_dim=width, on_error="skip", report=told)
    for skipped in told.skipped:
        if skipped.row not in empty:
            raise InputError(skipped.reason, skipped.row)
        vectors[skipped.row] = 0
    cosines = unit(vectors) @ unit(query)
    return cosines[0] - cosines[1:]
