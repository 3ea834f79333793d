"""Rows of numbers brought to unit length, so that their dot product is a cosine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def unit(vectors: NDArray[Any]) -> NDArray[np.float32]:
    """Rows (N, D) or one (D,) of unit length, in float32; a row of zeros stays one."""
    wide = vectors.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=-1, keepdims=True)
    return (wide / np.maximum(lengths, np.finfo(np.float64).tiny)).astype(np.float32)
