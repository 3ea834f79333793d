"""Vectors laid out on a plane: their two greatest principal components."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def plane(vectors: NDArray[np.float32], groups: list[str] | None = None) -> NDArray[np.float32]:
    """Coordinates (N, 2) of vectors (N, D) along their two greatest principal components, within -1..1.

    Args:
        groups: a name for each, such as its modality: each group is moved to the mean of all first, or the plane would show
            the gap between the groups and little else. A component's sign is set so that its largest weight is positive.
    """
    moved = vectors.astype(np.float64)
    for group in sorted(set(groups or [""])):
        mine = np.array([g == group for g in groups]) if groups else np.ones(len(moved), bool)
        moved[mine] -= moved[mine].mean(0)
    if len(moved) < 2:
        return np.zeros((len(moved), 2), dtype=np.float32)
    values, axes = np.linalg.eigh(moved.T @ moved)
    best = axes[:, np.argsort(-values)[:2]]
    best *= np.sign(best[np.abs(best).argmax(0), [0, 1]])
    laid = moved @ best
    return (laid / max(float(np.abs(laid).max()), 1e-12)).astype(np.float32)
