"""LLaVA-NeXT: a picture whole and, beside it, in tiles of the best of some grids; rows of patches end with a newline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from transformers.image_processing_utils import select_best_resolution

from ..batch import Picture
from ..nn.transfer import to_device

if TYPE_CHECKING:
    from .native import NativeTower

PROCESSOR = "LlavaNextImageProcessorPil"


def image_ids(tower: NativeTower, picture: Picture) -> list[int]:
    """A token for every patch of the whole, and of the tiles less what only fills them up, and one at every row's end."""
    side, rows, columns = patches(tower, picture)
    return [tower.token] * (side**2 + rows * (columns + 1))


def patches(tower: NativeTower, picture: Picture) -> tuple[int, int, int]:
    """Patches along a side of the whole, rows of them in the tiles, and columns, without those that fill up."""
    config = tower.config
    side = config.vision_config.image_size // config.vision_config.patch_size
    height, width = (int(length) for length in picture.also["image_sizes"][0])
    best = select_best_resolution((height, width), config.image_grid_pinpoints)
    rows, columns = (length // config.vision_config.image_size * side for length in best)
    if width / height > columns / rows:
        rows -= (rows - int(round(height * columns / width, 7))) // 2 * 2
    else:
        columns -= (columns - int(round(width * rows / height, 7))) // 2 * 2
    return side, rows, columns


def seen(tower: NativeTower, pictures: Sequence[Picture], device: torch.device) -> dict[str, Tensor]:
    """Tiles are (images, most tiles of any, 3, side, side); the model takes of each image those that it has."""
    tiles = [to_device(torch.from_numpy(picture.pixels[0]), device) for picture in pictures]
    sizes = np.concatenate([picture.also["image_sizes"] for picture in pictures])
    padded = torch.nn.utils.rnn.pad_sequence(tiles, batch_first=True)
    return {
        "pixel_values": tower.normalised(padded, channels=2),
        "image_sizes": to_device(torch.from_numpy(sizes), device),
    }


def inputs(tower: NativeTower, ids: Int[Tensor, "B T"], pictures: Sequence[Picture]) -> dict[str, Tensor]:
    return seen(tower, pictures, ids.device)
