"""Precision by name: what weights and matrix products are kept in; norms of vectors, pooling and scores are fp32."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import UnknownName

PRECISIONS: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
INT8 = "int8"
COMPUTED: dict[str, torch.dtype] = {**PRECISIONS, INT8: torch.float32}
"""What a model computes in: what its weights can be written in, or linear layers in int8 and the rest as it says."""


def dtype_of(precision: str, known: Mapping[str, torch.dtype] = PRECISIONS) -> torch.dtype:
    """The torch dtype of a precision, "fp32", "bf16" or "fp16".

    Raises:
        UnknownName: another name.
    """
    try:
        return known[precision]
    except KeyError:
        raise UnknownName("precision", precision, known) from None


M = TypeVar("M", bound=nn.Module)


def cast(module: M, dtype: torch.dtype) -> M:
    """Weights, and what is saved beside them, in a dtype. What a module computes when it is built stays in fp32: rotary
    frequencies in bf16 (which `module.to` would give) turn token 1000 by up to two radians too much."""
    with torch.no_grad():
        for part in module.modules():
            for weight in part.parameters(recurse=False):
                if weight.is_floating_point():
                    weight.data = weight.data.to(dtype)
            for name, buffer in part.named_buffers(recurse=False):
                if buffer.is_floating_point() and name not in part._non_persistent_buffers_set:
                    part.register_buffer(name, buffer.to(dtype))
    return module


MODEL, PART = (1e-4, 0.2), (1e-5, 0.05)
"""By how much of its length what a whole model gives, or a few blocks, may move by rounding: in fp32, and in half precision, in
which mistakes of a mask or a position are of the length itself."""


def alike(ours: Tensor, due: Tensor, rounding: tuple[float, float] = MODEL) -> bool:
    """Whether what was computed in two ways, in one precision, is the same but for rounding; no number that is none is."""
    bound = rounding[0] if due.dtype == torch.float32 else rounding[1]
    return bool((ours.float() - due.float()).norm() <= bound * due.float().norm())


def unit(vectors: Float[Tensor, "*N D"]) -> Float[Tensor, "*N D"]:
    """Vectors of length one, in fp32. A zero vector stays zero."""
    return torch.nn.functional.normalize(vectors.float(), dim=-1)
