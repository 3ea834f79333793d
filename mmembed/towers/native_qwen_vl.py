"""Qwen-VL: patches of pictures of any shape in one row, with the grid of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from ..batch import Picture
from ..nn.transfer import to_device

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .native import NativeTower


def image_ids(tower: NativeTower, picture: Picture) -> list[int]:
    """A token for every square of `merge_size` x `merge_size` patches."""
    patches = int(picture.also["image_grid_thw"].prod())
    return [tower.token] * (patches // tower.processor.merge_size**2)


def numbers(tower: NativeTower, also: Mapping[str, NDArray[np.int64]]) -> NDArray[np.int64]:
    """(3, n): time, row and column of each of its tokens, counted from 0 (M-RoPE, arXiv 2409.12191)."""
    time, rows, columns = (int(length) for length in also["image_grid_thw"][0])
    merge = tower.processor.merge_size
    return np.indices((time, rows // merge, columns // merge)).reshape(3, -1)


def seen(tower: NativeTower, pictures: Sequence[Picture], device: torch.device) -> dict[str, Tensor]:
    """Patches are (P, 3 * frames * height * width)."""
    patches = to_device(torch.from_numpy(np.concatenate([picture.pixels for picture in pictures])), device)
    grids = np.concatenate([picture.also["image_grid_thw"] for picture in pictures])
    return {
        "pixel_values": tower.normalised(patches.unflatten(1, (3, -1)), channels=1).flatten(1),
        "image_grid_thw": to_device(torch.from_numpy(grids), device),
    }


def inputs(tower: NativeTower, ids: Int[Tensor, "B T"], pictures: Sequence[Picture]) -> dict[str, Tensor]:
    """The model tells images from text by `mm_token_type_ids` alone."""
    return {**seen(tower, pictures, ids.device), "mm_token_type_ids": (ids == tower.token).int()}
