"""`LanguageReport`: one question asked in many languages, and how much of the same was found."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from statistics import median

import numpy as np

from ..errors import check_known
from .hits import Hits, columns, isolated, visible

WEAK = 0.5
"""A language drops where it shares with the others less than so much of what is usual (the median)."""


@dataclass(frozen=True)
class LanguageReport:
    """What one question found in each language. Prints as a table; a notebook shows one too.

    Attributes:
        hits: {language: what was found}. reference: the language that others are held to.
    """

    hits: Mapping[str, Hits]
    reference: str

    def __post_init__(self) -> None:
        check_known("language", self.reference, self.hits)

    @cached_property
    def overlap(self) -> np.ndarray:
        """(L, L): what share of the hits two languages have in common, |A and B| / max(|A|, |B|), in the order of `hits`."""
        found = [{hit.id for hit in hits} for hits in self.hits.values()]
        return np.array([[len(a & b) / max(len(a), len(b), 1) for b in found] for a in found])

    @property
    def shared(self) -> dict[str, float]:
        """The mean overlap of each language with all others."""
        own = (self.overlap.sum(1) - self.overlap.diagonal()) / (len(self.hits) - 1)
        return dict(zip(self.hits, own.tolist(), strict=True))

    @property
    def weak(self) -> list[str]:
        """Languages that drop: those that share less than half of the median with the others."""
        usual = median(self.shared.values())
        return [language for language, share in self.shared.items() if share < WEAK * usual]

    @property
    def rows(self) -> list[tuple[str, str, float, float, float | None, str]]:
        """Of each language: its name, the question, its overlap with the reference and with all others, the relevance of its best
        hit, and what that is."""
        names = list(self.hits)
        held = self.overlap[:, names.index(self.reference)].tolist()
        return [
            (
                name,
                hits.query,
                held[at],
                self.shared[name],
                hits[0].relevance if hits else None,
                hits[0].label if hits else "",
            )
            for at, (name, hits) in enumerate(self.hits.items())
        ]

    def __str__(self) -> str:
        wide = max(map(len, [*self.hits, "language"]))
        lines = [f"{'language':<{wide}}  {'question':<28}  as {self.reference:<6}  others  relevance  best hit"]
        for name, query, held, shared, relevance, label in self.rows:
            mark = " !" if name in self.weak else "  "
            asked = isolated(query, 28)
            told = "        -" if relevance is None else f"{relevance:9.2f}"
            pad = " " * (28 - columns(asked))
            lines.append(
                f"{name:<{wide}}  {asked}{pad}  {held:9.2f}  {shared:6.2f}{mark[1]} {told}  {isolated(label, 30)}"
            )
        return "\n".join([*lines, self._verdict()])

    def _verdict(self) -> str:
        if not self.weak:
            return (
                f"No language drops: each shares at least half of what is usual ({median(self.shared.values()):.2f})."
            )
        return f"{', '.join(self.weak)}: less than half of what is usual ({median(self.shared.values()):.2f}) is found."

    def _repr_html_(self) -> str:
        head = ("language", "question", f"as {self.reference}", "as others", "relevance", "best hit")
        lines = []
        for name, query, held, shared, relevance, label in self.rows:
            numbers = (f"{held:.2f}", f"{shared:.2f}", "" if relevance is None else f"{relevance:.2f}")
            name = f"<b>{html.escape(visible(name))}</b>" if name in self.weak else html.escape(visible(name))
            words = (f'<bdi dir="auto">{html.escape(visible(text))}</bdi>' for text in (query, label))
            asked, best = words
            lines.append("".join(f"<td>{cell}</td>" for cell in (name, asked, *numbers, best)))
        rows = "".join(f"<tr>{line}</tr>" for line in lines)
        heads = "".join(f"<th>{html.escape(visible(cell))}</th>" for cell in head)
        return f"<table><tr>{heads}</tr>{rows}</table><div>{html.escape(self._verdict())}</div>"
