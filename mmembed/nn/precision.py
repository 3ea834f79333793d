"""Precision by name: what weights and matrix products are kept in; norms of vectors, pooling and scores are fp32."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any, TypeVar

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


def is_fitted(part: nn.Module) -> bool:
    """Whether a part was fitted on vectors, not trained. It stays in fp32 whatever the model is in: what it divides by may be
    smaller than what half precision keeps."""
    return bool(getattr(part, "fitted", False))


def cast(module: M, dtype: torch.dtype) -> M:
    """Weights, and what is saved beside them, in a dtype. What a module computes when it is built stays in fp32: rotary
    frequencies in bf16 (which `module.to` would give) turn token 1000 by up to two radians too much. So does what a model of
    transformers says it needs in fp32 beside half precision, routers of experts mostly, and what was fitted."""
    full = in_full(module, dtype)
    with torch.no_grad():
        for part in module.modules():
            for weight in part.parameters(recurse=False):
                if weight.is_floating_point():
                    weight.data = weight.data.to(torch.float32 if id(weight) in full else dtype)
            for name, buffer in part.named_buffers(recurse=False):
                if buffer.is_floating_point() and name not in part._non_persistent_buffers_set:
                    part.register_buffer(name, buffer.to(torch.float32 if id(buffer) in full else dtype))
    return module


def in_full(module: nn.Module, dtype: torch.dtype) -> set[int]:
    """What of a module stays in fp32 beside weights in a dtype, by `id`."""
    return {id(own) for part in module.modules() for own in _in_full(part, dtype)}


def _in_full(part: nn.Module, dtype: torch.dtype) -> Iterator[Tensor]:
    """What of a part is in fp32 beside weights in `dtype`: all of a fitted one, and what a model of transformers says, by
    patterns, as it reads them itself."""
    plan: Any = getattr(part, "_get_dtype_plan", None)
    patterns = [re.compile(pattern.replace("*", ".*")) for pattern in (plan(dtype) if plan else ())]
    for name, own in chain(part.named_parameters(), part.named_buffers()):
        if is_fitted(part) or any(pattern.search(name) for pattern in patterns):
            yield own


MODEL, PART = (1e-4, 0.2), (1e-5, 0.05)
"""By how much of its length what a whole model gives, or a few blocks, may move by rounding: in fp32, and in half precision, in
which mistakes of a mask or a position are of the length itself."""
BYTES = (0.5, 0.5)
"""And by linear layers in bytes: more of it where experts are chosen, but never all of it, as codes taken for weights move it."""


def alike(ours: Tensor, due: Tensor, rounding: tuple[float, float] = MODEL) -> bool:
    """Whether what was computed in two ways, in one precision, is the same but for rounding; no number that is none is."""
    bound = rounding[0] if due.dtype == torch.float32 else rounding[1]
    return ours.shape == due.shape and bool((ours.float() - due.float()).norm() <= bound * due.float().norm())


def unit(vectors: Float[Tensor, "*N D"]) -> Float[Tensor, "*N D"]:
    """Vectors of length one, in fp32. A zero vector stays zero."""
    return torch.nn.functional.normalize(vectors.float(), dim=-1)
