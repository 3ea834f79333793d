"""Precision by name: what weights and matrix products are kept in; norms of vectors, pooling and scores are fp32."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import UnknownName

PRECISIONS: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def dtype_of(precision: str) -> torch.dtype:
    """The torch dtype of "fp32", "bf16" or "fp16".

    Raises:
        UnknownName: another name.
    """
    try:
        return PRECISIONS[precision]
    except KeyError:
        raise UnknownName("precision", precision, PRECISIONS) from None


def unit(vectors: Float[Tensor, "*N D"]) -> Float[Tensor, "*N D"]:
    """Vectors of length one, in fp32. A zero vector stays zero."""
    return torch.nn.functional.normalize(vectors.float(), dim=-1)
