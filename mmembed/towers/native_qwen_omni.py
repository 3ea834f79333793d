"""Qwen2.5-Omni's thinker, for text and pictures: the tower of Qwen-VL, positions from the row itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaxtyping import Int
from torch import Tensor

from ..batch import Picture
from .native_qwen_vl import image_ids, numbers, seen

if TYPE_CHECKING:
    from .native import NativeTower

__all__ = ["image_ids", "inputs", "numbers", "seen"]


def inputs(tower: NativeTower, ids: Int[Tensor, "B T"], pictures: Sequence[Picture]) -> dict[str, Tensor]:
    return seen(tower, pictures, ids.device)
