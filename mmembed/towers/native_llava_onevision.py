"""LLaVA-OneVision: LLaVA-NeXT's tiles, more of them, and made smaller where they are too many."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..batch import Picture
from . import native_llava_next
from .native_llava_next import inputs, seen

if TYPE_CHECKING:
    from .native import NativeTower

__all__ = ["MOST", "PROCESSOR", "image_ids", "inputs", "seen"]
PROCESSOR = "LlavaOnevisionImageProcessorPil"
MOST = 1
"""Of several images in an item it sees each in fewer patches, which is not here."""


def image_ids(tower: NativeTower, picture: Picture) -> list[int]:
    side, rows, columns = native_llava_next.patches(tower, picture)
    most = int(tower.config.vision_aspect_ratio.removeprefix("anyres_max_"))
    ratio = math.sqrt(rows * columns / (most * side**2))
    if ratio > 1.1:
        rows, columns = int(rows // ratio), int(columns // ratio)
    return [tower.token] * (side**2 + rows * (columns + 1))
