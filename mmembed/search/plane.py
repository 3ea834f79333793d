"""Vectors laid out on a plane: by their two greatest principal components, or by UMAP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from ..errors import MissingExtra, check_known

if TYPE_CHECKING:
    from numpy.typing import NDArray

METHODS = ("pca", "umap")


def plane(
    vectors: NDArray[np.float32], groups: Sequence[str] | None = None, *, method: Literal["pca", "umap"] = "pca"
) -> NDArray[np.float32]:
    """Coordinates (N, 2) of vectors (N, D), within -1..1.

    Args:
        groups: a name for each, such as its modality: each group is moved to the mean of all first, or the plane would show
            the gap between the groups and little else.
        method: "pca", along the two greatest principal components, the sign of each set so that its largest weight is positive;
            or "umap" (arXiv 1802.03426; extra [umap]), which keeps neighbours together and says nothing by distances; of cosines,
            from a fixed seed.

    Raises:
        UnknownName: no such method. MissingExtra: "umap" without umap-learn.
    """
    check_known("method", method, METHODS)
    if len(vectors) < 2:
        return np.zeros((len(vectors), 2), dtype=np.float32)
    moved = vectors.astype(np.float64)
    for group in sorted(set(groups or [""])):
        mine = np.array([g == group for g in groups]) if groups else np.ones(len(moved), bool)
        moved[mine] -= moved[mine].mean(0)
    laid = _principal(moved) if method == "pca" else _umap(moved)
    return (laid / max(float(np.abs(laid).max()), 1e-12)).astype(np.float32)


def _principal(moved: NDArray[np.float64]) -> NDArray[np.float64]:
    """Along the two greatest principal components, looked for where powers of the covariance lead (block Krylov, arXiv
    1504.05477): all components of 4,096 numbers would take half a minute. Of 128 numbers and less that is everywhere."""
    block = np.random.default_rng(0).normal(size=(moved.shape[1], 16))
    powers = []
    for _ in range(8):
        block, _ = np.linalg.qr(moved.T @ (moved @ block))
        powers.append(block)
    basis, _ = np.linalg.qr(np.hstack(powers))
    within = moved @ basis
    values, axes = np.linalg.eigh(within.T @ within)
    best = basis @ axes[:, np.argsort(-values)[:2]]
    best *= np.sign(best[np.abs(best).argmax(0), [0, 1]])
    return moved @ best


def _umap(moved: NDArray[np.float64]) -> NDArray[np.float64]:
    try:
        from umap import UMAP
    except ImportError as error:
        raise MissingExtra("umap-learn", "umap") from error
    start = _principal(moved)
    if len(moved) < 4:  # too few for neighbours
        return start
    near = min(15, len(moved) - 1)
    laid = UMAP(n_neighbors=near, metric="cosine", init=start, random_state=0, n_jobs=1).fit_transform(moved)
    return np.asarray(laid - laid.mean(0), dtype=np.float64)
