"""Relevance: how far a score stands out from what a query scores with things it has nothing to do with, for each modality."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

SAMPLE = 2048
"""Vectors of a modality that stand for all of them."""
LEAST = 20
"""Below so many a mean and a spread say little, and no relevance is told."""
NO_MATCH = 0.9
"""A relevance below it is what the best of unrelated things has in nine of ten cases."""
ALIKE = 0.25
"""Things are alike that lie nearer to each other than so much of how far apart two of another modality are as a rule (squared):
beside pictures of everything twenty notes about one cat are as good as one, and say nothing of what is usual."""
MIXTURES = 256
TEXTS, OTHERS = 4, 8
"""Things in a mixture. Where four texts are mixed, a relevance of 0.9 is told to 8 and 13 of 100 sentences about other things
(pico, two collections, twelve languages), and to 1 to 11 of 100 in collections of 23 to 840 names; five: 19 and 23; a normal law,
without mixtures: 36 and 34."""


@dataclass(frozen=True)
class Background:
    """Things that a query mostly has nothing to do with: a sample (n, D) of the vectors of each modality, and how many there are.

    Texts lie nearer to texts than pictures do (the modality gap), and one query lies nearer to everything than another; so a
    cosine says little by itself. Here it is told against the scores of the same query with the sample: z = (score - mean) /
    spread. How large the greatest z is of a question that nothing answers is learnt from the collection itself: such questions
    are made as mixtures, the mean of four of its texts drawn at random (of eight of its things, where texts are too few), which
    touch a few things a little and none of them much. Their greatest z follow a Gumbel law, whose place m and width b come from
    the quartiles. The relevance is the chance that the best of as many unrelated things, in all modalities, would score less:

        exp(-modalities * count / n * exp(-(z - m) / b))

    It orders hits of several modalities by what stands out most.
    """

    samples: Mapping[str, NDArray[np.float32]]
    counts: Mapping[str, int]

    @property
    def items(self) -> int:
        """Things of all modalities."""
        return sum(self.counts.values())

    def log_relevance(
        self, query: NDArray[np.float32], kind: str, scores: NDArray[np.float32]
    ) -> NDArray[np.float64] | None:
        """ln of the relevance of `scores` (n,) of the unit vector `query` (D,) with things of one modality; it orders also
        where the relevance itself rounds to 1. None: there are too few things of it.
        """
        if kind not in self._told:
            return None
        sample = self._told[kind]
        usual = sample @ query.astype(np.float64)
        z = (scores.astype(np.float64) - usual.mean()) / max(float(usual.std()), 1e-6)
        place, width = self._unanswered[kind]
        share = len(self._told) * self.counts[kind] / len(sample)
        return -share * np.exp(-(z - place) / width)

    @cached_property
    def _told(self) -> dict[str, NDArray[np.float64]]:
        """Samples that hold enough things that are not alike, in an order of their own, so that what is drawn of them hangs on
        nothing else."""
        ordered = {
            kind: sample[np.lexsort(sample.T[:4])].astype(np.float64)
            for kind, sample in self.samples.items()
            if len(sample) >= LEAST
        }
        varied = {kind: float(sample.var(0).sum()) for kind, sample in ordered.items()}
        found = {}
        for kind, sample in ordered.items():
            # Two things lie as far apart (squared) as twice the variance, as a rule.
            apart = 2 * max((of for other, of in varied.items() if other != kind), default=0.0)
            if _unlike(sample, ALIKE * apart) >= LEAST:
                found[kind] = sample
        return found

    @cached_property
    def _unanswered(self) -> dict[str, tuple[float, float]]:
        """Place and width of the greatest z of a question that nothing answers, by modality."""
        draw = np.random.default_rng(0)
        pool, size = (
            (self._told["text"], TEXTS) if "text" in self._told else (np.concatenate([*self._told.values()]), OTHERS)
        )
        asked = np.stack([pool[draw.choice(len(pool), size, replace=False)].mean(0) for _ in range(MIXTURES)])
        laws = {}
        for kind, sample in self._told.items():
            scores = asked @ sample.T  # z does not hang on the length of a question
            greatest = (scores.max(1) - scores.mean(1)) / np.maximum(scores.std(1), 1e-9)
            low, middle, high = np.quantile(greatest, [0.25, 0.5, 0.75])
            width = max(
                float(high - low) / 1.5725, 0.05
            )  # ln(ln 4 / ln(4/3)): the quartiles of a Gumbel law of width 1
            laws[kind] = float(middle) + width * float(np.log(np.log(2))), width
        return laws


def _unlike(sample: NDArray[np.float64], near: float) -> int:
    """How many there are, up to `LEAST`, of which none lies nearer than that (squared) to another."""
    kept = sample[:1]
    for vector in sample[1:]:
        if len(kept) == LEAST:
            break
        if ((kept - vector) ** 2).sum(1).min() >= near:
            kept = np.concatenate([kept, vector[None]])
    return len(kept)
