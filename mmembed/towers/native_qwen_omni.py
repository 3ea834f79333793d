"""Qwen2.5-Omni's thinker, for text and pictures: the tower of Qwen-VL, positions from the row itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaxtyping import Int
from torch import Tensor

from ..batch import Picture
from .native_qwen_vl import PROCESSOR, framed, image_ids, lighten, numbers, pixels, seen

if TYPE_CHECKING:
    from .native import NativeTower

__all__ = ["PROCESSOR", "image_ids", "inputs", "lighten", "numbers", "pixels", "seen"]


def inputs(tower: NativeTower, ids: Int[Tensor, "B T"], pictures: Sequence[Picture]) -> dict[str, Tensor]:
    return framed(tower, seen(tower, pictures, ids.device))
