"""EmbeddingGemma 2, for text and pictures: patches of a picture of its own shape, with the place of each."""

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

PROCESSOR = "Gemma4ImageProcessorPil"


def image_ids(tower: NativeTower, picture: Picture) -> list[int]:
    """A token for every square of `pooling_kernel_size` x `pooling_kernel_size` patches, between two that bracket them."""
    count = int(picture.also["num_soft_tokens_per_image"][0])
    return [tower.config.boi_token_id, *[tower.token] * count, tower.config.eoi_token_id]


def inputs(tower: NativeTower, ids: Int[Tensor, "B T"], pictures: Sequence[Picture]) -> dict[str, Tensor]:
    """Patches are (images, most patches of any, 3 * side * side); places are (x, y), -1 where there is no patch."""
    patches = np.concatenate([picture.pixels for picture in pictures])
    places = np.concatenate([picture.also["image_position_ids"] for picture in pictures])
    # The processor fills every picture up to the most patches that any could have.
    longest = int((places[..., 0] >= 0).sum(1).max())
    return {
        "pixel_values": tower.normalised(to_device(torch.from_numpy(patches[:, :longest]), ids.device), channels=2),
        "image_position_ids": to_device(torch.from_numpy(places[:, :longest]), ids.device),
    }
