"""Relevance: how far a score stands out from what a query scores with things it has nothing to do with, for each modality."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import log_ndtr

if TYPE_CHECKING:
    from numpy.typing import NDArray

SAMPLE = 2048
"""Vectors of a modality that stand for all of them."""
LEAST = 20
"""Below so many a mean and a spread say little, and no relevance is told."""
NO_MATCH = 0.95
"""A relevance below it is what the best of unrelated things often has."""


@dataclass(frozen=True)
class Background:
    """Things that a query mostly has nothing to do with: a sample (n, D) of the vectors of each modality, and how many there are.

    Texts lie nearer to texts than pictures do (the modality gap), and one query lies nearer to everything than another; so a
    cosine says little by itself. Here it is told against the scores of the same query with the sample: z = (score - mean) /
    spread, and the relevance is the chance that the best of as many unrelated things, normally spread, would score less:
    Phi(z) ** count. It orders hits of several modalities by what stands out most.
    """

    samples: Mapping[str, NDArray[np.float32]]
    counts: Mapping[str, int]

    def log_relevance(
        self, query: NDArray[np.float32], kind: str, scores: NDArray[np.float32]
    ) -> NDArray[np.float64] | None:
        """ln of the relevance of `scores` (n,) of the unit vector `query` (D,) with things of one modality; it orders also
        where the relevance itself rounds to 1. None: there are too few things of it.
        """
        sample = self.samples.get(kind)
        if sample is None or len(sample) < LEAST:
            return None
        usual = sample.astype(np.float64) @ query.astype(np.float64)
        spread = max(float(usual.std()), 1e-6)
        return self.counts[kind] * log_ndtr((scores.astype(np.float64) - usual.mean()) / spread)
