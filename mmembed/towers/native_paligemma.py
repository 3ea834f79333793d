"""PaliGemma: pictures of one size, a token for every patch, at the front of a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from ..batch import Picture
from ..nn.transfer import to_device

if TYPE_CHECKING:
    from .native import NativeTower

PROCESSOR = "SiglipImageProcessorPil"


def image_ids(tower: NativeTower, picture: Picture) -> list[int]:
    side = tower.config.vision_config.image_size // tower.config.vision_config.patch_size
    return [tower.token] * side**2


def seen(tower: NativeTower, pictures: Sequence[Picture], device: torch.device) -> dict[str, Tensor]:
    """Pixels are (pictures, 3, side, side)."""
    stacked = to_device(torch.from_numpy(np.concatenate([picture.pixels for picture in pictures])), device)
    return {"pixel_values": tower.normalised(stacked, channels=1)}


def inputs(tower: NativeTower, ids: Int[Tensor, "B T"], pictures: Sequence[Picture]) -> dict[str, Tensor]:
    return seen(tower, pictures, ids.device)
