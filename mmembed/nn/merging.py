"""Parts of one softmax put together: attention of the same rows over different keys, told apart by the log-sum-exps of their
scores (as in FlashAttention, arXiv 2205.14135, and ring attention)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from .transfer import to_device

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class PartialAttention:
    """Attention of some rows over some of their keys, and the log-sum-exp of their scores."""

    out: Float[Tensor, "n H E"]
    lse: Float[Tensor, "n H"]


@dataclass(frozen=True)
class MergeIndex:
    """Which rows have several parts.

    Attributes:
        rows: of the first part, which holds all. among: of each part behind it the row in which each of `rows` stands, -1 where
            it has none there.
    """

    rows: Int[Tensor, " R"]
    among: Int[Tensor, "P R"]

    @classmethod
    def of(cls, rows: NDArray[np.int64], parts: Sequence[NDArray[np.int64]], device: torch.device) -> MergeIndex:
        """From the rows that have several parts, in order, and those of each part."""
        among = np.full((len(parts), len(rows)), -1, dtype=np.int32)
        for own, part in zip(among, parts, strict=True):
            own[np.searchsorted(rows, part)] = np.arange(len(part))
        rows_moved, among_moved = (to_device(torch.from_numpy(x), device) for x in (rows, among))
        return cls(rows_moved, among_moved)


def merged(whole: PartialAttention, parts: Sequence[PartialAttention], places: MergeIndex) -> Float[Tensor, "Q H E"]:
    """Attention over all keys of parts that have seen some of them each, put together in fp32, in the memory of the first: rows
    that it alone has seen stay as they are.

    On CUDA by one kernel that reads each part once; in plain torch it would be a walk over fp32 copies for every part and more.
    """
    if whole.out.is_cuda and (kernel := _kernel()) is not None:
        with torch.cuda.device(whole.out.device):  # Triton launches where the thread is, not where its tensors are
            kernel(whole, parts, places)
    else:
        _merge(whole, parts, places)
    return whole.out


def _merge(whole: PartialAttention, parts: Sequence[PartialAttention], places: MergeIndex) -> None:
    """Of two parts the softmax gives each its share by what it summed: the sigmoid of how far their log-sum-exps lie apart."""
    out, lse = whole.out[places.rows].float(), whole.lse[places.rows]
    for part, among in zip(parts, places.among, strict=True):
        own, has = among.clamp(min=0).long(), among[:, None] >= 0
        there = part.lse[own].where(has, -torch.inf)
        out = torch.lerp(out, part.out[own].float(), torch.sigmoid(there - lse)[..., None])
        lse = torch.logaddexp(lse, there)
    whole.out[places.rows] = out.to(whole.out.dtype)


@cache
def _kernel() -> Any:
    """The kernel, as a function of what `merged` takes; None where Triton is not installed."""
    try:
        from .merging_triton import merge
    except ImportError:
        return None
    return merge
