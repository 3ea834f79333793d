"""Training data that is also in what is measured: texts that share most of their words' runs, found by MinHash."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..inputs import Text
from .data import Examples

BANDS, ROWS = 32, 4
"""Texts meet in a band of equal minima: of Jaccard 0.5 in 0.87 of all cases, of 0.7 in 0.9999, of 0.2 in 0.05."""
PRIME = (1 << 31) - 1


@dataclass(frozen=True)
class Overlap:
    """A text of the training data that is like one of the evaluation data: source and row of each, and what they share."""

    trained: tuple[str, int]
    measured: tuple[str, int]
    jaccard: float
    text: str


def overlaps(
    trained: Mapping[str, Examples], measured: Mapping[str, Examples], *, least: float = 0.5, width: int = 13
) -> list[Overlap]:
    """Pairs of texts whose runs of `width` characters have a Jaccard index of at least `least`, most alike first.

    Case, accents' form and white space do not count. Candidates come from MinHash in bands (Broder 1997); each is then compared
    exactly, so that none is reported wrongly, and few of an index near `least` are missed.

    Raises:
        InputError: a row that gives no example, unless its source says skip; or all of them.
    """
    rng = np.random.default_rng(0)
    factors = rng.integers(1, PRIME, BANDS * ROWS, dtype=np.uint64)
    terms = rng.integers(0, PRIME, BANDS * ROWS, dtype=np.uint64)
    buckets: dict[tuple[int, bytes], list[int]] = {}
    known: list[tuple[tuple[str, int], NDArray[np.uint64]]] = []
    for where, text in _texts(measured):
        runs = runs_of(text, width)
        for key in _bands(runs, factors, terms):
            buckets.setdefault(key, []).append(len(known))
        known.append((where, runs))
    found: dict[tuple[tuple[str, int], tuple[str, int]], Overlap] = {}
    for where, text in _texts(trained):
        runs = runs_of(text, width)
        for k in {k for key in _bands(runs, factors, terms) for k in buckets.get(key, ())}:
            there, others = known[k]
            shared = len(np.intersect1d(runs, others, assume_unique=True))
            jaccard = shared / (len(runs) + len(others) - shared)
            before = found.get((where, there))
            if jaccard >= least and (before is None or before.jaccard < jaccard):
                found[where, there] = Overlap(where, there, jaccard, text)
    return sorted(found.values(), key=lambda each: -each.jaccard)


def runs_of(text: str, width: int) -> NDArray[np.uint64]:
    """The runs of characters of a text by number, each once; a shorter text is one run."""
    plain = re.sub(r"\s+", " ", unicodedata.normalize("NFKC", text).casefold()).strip()
    runs = {crc32(plain[k : k + width].encode("utf-8", "surrogatepass")) for k in range(max(1, len(plain) - width + 1))}
    return np.fromiter(sorted(runs), dtype=np.uint64, count=len(runs))


def _bands(
    runs: NDArray[np.uint64], factors: NDArray[np.uint64], terms: NDArray[np.uint64]
) -> Iterator[tuple[int, bytes]]:
    folded = runs % np.uint64(PRIME)
    least = ((folded[:, None] * factors + terms) % np.uint64(PRIME)).min(0).reshape(BANDS, ROWS)
    return ((band, row.tobytes()) for band, row in enumerate(least))


def _texts(data: Mapping[str, Examples]) -> Iterable[tuple[tuple[str, int], str]]:
    """Every text of every readable row, and where it is."""
    for name, examples in data.items():
        for row in range(len(examples)):
            try:
                example = examples[row]
            except InputError as error:
                if examples.source.on_error == "raise":
                    raise
                examples.skip(row, error.reason)
                continue
            items: Sequence = [example.query, *example.positives, *example.negatives]
            for part in dict.fromkeys(part.text for item in items for part in item if isinstance(part, Text)):
                yield (name, row), part
