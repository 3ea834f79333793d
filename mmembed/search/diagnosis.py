"""`Diagnosis`: how the vectors of a collection lie: modality gap, anisotropy, hubs, languages; and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .background import LEAST
from .hits import visible

if TYPE_CHECKING:
    from numpy.typing import NDArray

NEIGHBOURS = 10
HUBS = 3.0
"""Skewness of neighbour counts from which on a few items crowd the hits."""
NARROW = 0.4
"""Mean cosine of unrelated things from which on cosines say little by themselves."""
GAP = 0.5
APART = 0.9
"""Share of neighbours of the same modality, or language, from which on the groups hardly mix."""


@dataclass(frozen=True)
class GroupStatistics:
    """How vectors of one modality, or of one language, lie.

    Attributes:
        count: vectors looked at. cosine, spread: mean and standard deviation of the cosine of two of them; a mean far above 0
            is anisotropy (Ethayarajh 2019). dimensions: how many directions they fill, (sum of the variances)^2 / sum of
            squared variances (participation ratio).
        same: share of the ten nearest neighbours that are of the same group; expected: the share by chance.
    """

    count: int
    cosine: float
    spread: float
    dimensions: float
    same: float
    expected: float


@dataclass(frozen=True)
class Diagnosis:
    """What `Index.diagnose` measured. Prints as a short report.

    Attributes:
        modalities, languages: by name; languages are the "language" of the metadata, empty where items have none.
        between: {(a, b): mean cosine of things of two modalities}.
        gaps: {(a, b): distance of the means of their unit vectors} (the modality gap of Liang et al. 2022, arXiv 2203.02053).
        hubness: skewness of how often an item is among the ten nearest of others (Radovanovic et al. 2010); 0 is even.
        hubs: ids that are so most often, with the count.
    """

    modalities: Mapping[str, GroupStatistics]
    languages: Mapping[str, GroupStatistics]
    between: Mapping[tuple[str, str], float]
    gaps: Mapping[tuple[str, str], float]
    hubness: float
    hubs: Sequence[tuple[str, int]]

    @property
    def advice(self) -> list[str]:
        """What to do, in sentences; empty where nothing stands out."""
        told = []
        for (one, other), gap in self.gaps.items():
            if gap >= GAP:
                told.append(
                    f"{one} and {other} lie apart (gap {gap:.2f}): search mixed collections with balanced=True, as is the "
                    "default; cosines of the two are not on one scale."
                )
        for name, group in self.modalities.items():
            if group.cosine >= NARROW:
                told.append(
                    f"Unrelated items of {name} have a cosine of {group.cosine:.2f} (anisotropy): go by relevance, not by a "
                    "bound on the cosine; mmembed.methods.whitening spreads vectors out, in a new index."
                )
        if self.hubness >= HUBS:
            names = ", ".join(visible(name)[:24] for name, _ in self.hubs[:3])
            told.append(
                f"A few items are neighbours of very many (hubness {self.hubness:.1f}; {names}): look whether they are blank, "
                "broken or near-duplicates, and use diversify or group."
            )
        crowd = [n for n, g in self.languages.items() if g.same >= APART and g.expected < 0.5]
        if crowd:
            told.append(
                f"Neighbours are mostly of the same language ({', '.join(map(visible, crowd))}): texts of other languages will "
                "be found late; try the question in several languages (Index.compare_languages), or another model."
            )
        return told

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        told = asdict(self)
        pairs = [
            {"modalities": list(pair), "cosine": self.between[pair], "gap": gap}
            for pair, gap in told.pop("gaps").items()
        ]
        return {**told, "between": pairs, "advice": self.advice}

    def __str__(self) -> str:
        lines = [
            f"{'':<14}{'vectors':>8}{'cosine':>9}{'+-':>7}{'dimensions':>12}{'same among 10 nearest':>24}{'by chance':>11}"
            if self.modalities or self.languages
            else f"no table: it needs {LEAST} items of a modality"
        ]
        for name, group in [*self.modalities.items(), *(("  " + n, g) for n, g in self.languages.items())]:
            lines.append(
                f"{visible(name)[:14] if name[0] != ' ' else '  ' + visible(name)[:12]:<14}{group.count:>8}{group.cosine:>9.3f}"
                f"{group.spread:>7.3f}{group.dimensions:>12.1f}{group.same:>24.2f}{group.expected:>11.2f}"
            )
        for pair, gap in self.gaps.items():
            lines.append(f"{' and '.join(pair)}: mean cosine {self.between[pair]:.3f}, modality gap {gap:.3f}")
        lines.append(f"hubness {self.hubness:.2f}" + (f", greatest {self.hubs[0][1]} times" if self.hubs else ""))
        return "\n".join([*lines, *(f"- {line}" for line in self.advice or ["Nothing stands out."])])


def diagnosed(
    ids: Sequence[str], vectors: NDArray[np.float32], modalities: Sequence[str], languages: Sequence[str | None]
) -> Diagnosis:
    """What vectors (N, D), of unit length, are like; groups of less than `LEAST` are left out of the tables.

    Needs N^2 products: a sample of some thousands is meant.
    """
    wide = vectors.astype(np.float64)
    count = len(wide)
    near = np.zeros((count, 0), dtype=np.int64)
    if count > 1:
        cosines = wide @ wide.T
        np.fill_diagonal(cosines, -np.inf)
        near = np.argsort(-cosines, axis=1, kind="stable")[:, : min(NEIGHBOURS, count - 1)]
    met = np.bincount(near.reshape(-1), minlength=count)
    spread = met.std() if count else 0.0
    hubness = float((((met - met.mean()) / spread) ** 3).mean()) if spread > 0 else 0.0
    most = sorted(range(count), key=lambda at: (-met[at], ids[at]))[:5]
    kinds = _groups(modalities)
    means = {kind: wide[at].mean(0) for kind, at in kinds.items()}
    pairs = [(a, b) for n, a in enumerate(kinds) for b in list(kinds)[n + 1 :]]
    return Diagnosis(
        modalities={kind: _group(wide, at, near) for kind, at in kinds.items()},
        languages={name: _group(wide, at, near) for name, at in _groups(languages).items()},
        between={(a, b): float(means[a] @ means[b]) for a, b in pairs},
        gaps={(a, b): float(np.linalg.norm(means[a] - means[b])) for a, b in pairs},
        hubness=hubness,
        hubs=[(ids[at], int(met[at])) for at in most],
    )


def _groups(names: Sequence[str | None]) -> dict[str, NDArray[np.int64]]:
    """Rows of each name that is there often enough."""
    every = np.array([name or "" for name in names])
    found = {name: np.flatnonzero(every == name) for name in sorted({name for name in names if name})}
    return {name: at for name, at in found.items() if len(at) >= LEAST}


def _group(wide: NDArray[np.float64], at: NDArray[np.int64], near: NDArray[np.int64]) -> GroupStatistics:
    own = wide[at]
    n = len(own)
    cosines = (own @ own.T)[np.triu_indices(n, 1)]
    centred = own - own.mean(0)
    variance = (centred**2).sum()
    squares = (
        centred @ centred.T if n < own.shape[1] else centred.T @ centred
    ) ** 2  # they sum to those of the eigenvalues
    inside = np.zeros(len(wide), dtype=bool)
    inside[at] = True
    return GroupStatistics(
        count=n,
        cosine=float(cosines.mean()),
        spread=float(cosines.std()),
        dimensions=float(variance**2 / max(squares.sum(), 1e-30)),
        same=float(inside[near[at]].mean()),
        expected=(n - 1) / (len(wide) - 1),
    )
