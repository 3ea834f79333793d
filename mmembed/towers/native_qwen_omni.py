"""Qwen2.5-Omni's thinker, for text and pictures: the tower of Qwen-VL, positions from the row itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaxtyping import Int
from torch import Tensor

from ..batch import Picture
from . import native_qwen_vl
from .native_qwen_vl import image_ids

if TYPE_CHECKING:
    from .native import NativeTower

__all__ = ["image_ids", "inputs"]


def inputs(tower: NativeTower, ids: Int[Tensor, "B T"], pictures: Sequence[Picture]) -> dict[str, Tensor]:
    told = native_qwen_vl.inputs(tower, ids, pictures)
    return {name: told[name] for name in ("pixel_values", "image_grid_thw")}
