"""Mllama: a picture in tiles that words attend to from layers of their own; in the row it is one token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from transformers.models.mllama.processing_mllama import (
    convert_sparse_cross_attention_mask_to_dense,
    get_cross_attention_token_mask,
)

from ..batch import Picture
from ..nn.transfer import to_device

if TYPE_CHECKING:
    from .native import NativeTower

PROCESSOR = "MllamaImageProcessorPil"
APART = True
"""A word before the first image attends to all places for pictures, those that are only filled up too, and without any
picture the layers are left out: an item would feel how many pictures others have."""


def image_ids(tower: NativeTower, picture: Picture) -> list[int]:
    return [tower.token]


def inputs(tower: NativeTower, ids: Int[Tensor, "B T"], pictures: Sequence[Picture]) -> dict[str, Tensor]:
    """Each of the B items has as many pictures; tiles are (B, pictures, tiles, 3, side, side), missing ones zero."""
    rows = len(ids)

    def told(name: str) -> Tensor:
        stacked = np.concatenate([picture.also[name][0] for picture in pictures])
        return to_device(torch.from_numpy(stacked).unflatten(0, (rows, -1)), ids.device)

    tiles = torch.from_numpy(np.concatenate([picture.pixels[0] for picture in pictures])).unflatten(0, (rows, -1))
    there = told("aspect_ratio_mask")
    marks = [get_cross_attention_token_mask(row, tower.token) for row in ids.tolist()]
    seen = convert_sparse_cross_attention_mask_to_dense(marks, there.sum(-1).tolist(), there.shape[-1], ids.shape[1])
    return {
        "pixel_values": tower.normalised(to_device(tiles, ids.device), channels=3) * there[..., None, None, None],
        "aspect_ratio_ids": told("aspect_ratio_ids"),
        "aspect_ratio_mask": there,
        "cross_attention_mask": to_device(torch.from_numpy(seen), ids.device),
    }
