"""Whitening: vectors centred, turned and scaled so that no direction stands out, fitted on things of the caller's own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..embedder import Embedder
from ..errors import InputError, SpecError
from ..inputs import Thing

if TYPE_CHECKING:
    from numpy.typing import NDArray


def whitened(embedder: Embedder, things: Iterable[Thing], *, dimension: int | None = None, **options: Any) -> Embedder:
    """The embedder with whitening behind its pooling, fitted on `things`; saved and loaded like any other.

    y = (x - mu) W with W = U / sqrt(s), where U s U^T is the covariance of the vectors before they are brought to unit
    length, as BERT-whitening has it (Su et al., arXiv 2103.15316; code bojone/BERT-whitening). Few directions of a backbone's raw
    states carry most of their length; here all that are kept count alike.

    Args:
        things: some thousands, like those to come; two more than numbers of a vector are the least for all of them.
        dimension: only the strongest so many directions; the numbers of whitened vectors come strongest first.
        options: those of `encode`: prompt_name, ...

    Raises:
        InputError: too few things, or too alike, for so many directions. SpecError: truncate_dim among the options.
    """
    if "truncate_dim" in options:
        raise SpecError("whitening is fitted on whole vectors; dimension=... keeps the strongest directions")
    kernel, bias = fit(embedder.respecified(normalize=False).encode(things, **options), dimension)
    weights = {"kernel": torch.from_numpy(kernel).float(), "bias": torch.from_numpy(bias).float()}
    return embedder.with_head({"kind": "whiten", "out": kernel.shape[1]}, weights)


def fit(vectors: NDArray[Any], dimension: int | None = None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Kernel (D, dimension) and bias (D,) of whitening, (x + bias) kernel, from vectors (N, D); computed in float64.

    Raises:
        InputError: the vectors do not span so many directions: what has no spread cannot be scaled to one.
    """
    given = np.asarray(vectors, dtype=np.float64)
    kept = given.shape[1] if dimension is None else dimension
    if not 1 <= kept <= given.shape[1]:
        raise InputError(f"vectors of {given.shape[1]} numbers have no {kept} directions")
    if len(given) < 2 or not np.isfinite(given).all():
        raise InputError("whitening is fitted on many vectors, all of them finite")
    u, spread, _ = np.linalg.svd(np.cov(given.T).reshape(given.shape[1], -1))
    # float32 vectors: what spreads 10^-6 as far as the strongest direction (squared: 10^-12) is their rounding.
    spanned = int((spread > 1e-12 * spread[0]).sum())
    if kept > spanned:
        instead = f"more things, or say dimension={spanned}" if spanned else "things that are not all alike"
        raise InputError(f"{len(given)} vectors span {spanned} directions, not {kept}: fit on {instead}")
    return u[:, :kept] / np.sqrt(spread[:kept]), -given.mean(0)
