"""Qwen-VL: patches of pictures of any shape in one row, with the grid of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from ..batch import Picture
from ..nn.attention import WITHIN
from ..nn.transfer import to_device
from .lean import product

if TYPE_CHECKING:
    import PIL.Image
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

    from .native import NativeTower

PROCESSOR = "Qwen2VLImageProcessorPil"


def image_ids(tower: NativeTower, picture: Picture) -> list[int]:
    """A token for every square of `merge_size` x `merge_size` patches."""
    patches = int(picture.also["image_grid_thw"].prod())
    return [tower.token] * (patches // tower.processor.merge_size**2)


def numbers(tower: NativeTower, also: Mapping[str, NDArray[np.int64]]) -> NDArray[np.int64]:
    """(3, n): time, row and column of each of its tokens, counted from 0 (M-RoPE, arXiv 2409.12191)."""
    time, rows, columns = (int(length) for length in also["image_grid_thw"][0])
    merge = tower.processor.merge_size
    return np.indices((time, rows // merge, columns // merge)).reshape(3, -1)


def pixels(tower: NativeTower, image: PIL.Image.Image) -> tuple[NDArray[np.uint8], dict[str, NDArray[np.int64]]]:
    """What the processor makes of a picture, as bytes: its patches in the order in which the tower merges them, (P, 3 * side *
    side). The processor shows a still picture as equal frames, of which this is one."""
    processor = tower.processor
    side, merge = processor.patch_size, processor.merge_size
    if processor.do_resize:
        least, most = processor.size["shortest_edge"], processor.size["longest_edge"]
        height, width = smart_resize(image.height, image.width, side * merge, least, most)
        if (width, height) != image.size:
            image = image.resize((width, height), processor.resample)
    rows, columns = image.height // side, image.width // side
    patches = rearrange(
        np.asarray(image),
        "(r m y) (c n x) k -> (r c m n) (k y x)",
        r=rows // merge, m=merge, c=columns // merge, n=merge, y=side, x=side,
    )  # fmt: skip
    return np.ascontiguousarray(patches), {"image_grid_thw": np.asarray([[1, rows, columns]])}


def seen(tower: NativeTower, pictures: Sequence[Picture], device: torch.device) -> dict[str, Tensor]:
    """Patches are (P, 3 * side * side), of one frame."""
    patches = to_device(torch.from_numpy(np.concatenate([picture.pixels for picture in pictures])), device)
    grids = np.concatenate([picture.also["image_grid_thw"] for picture in pictures])
    return {
        "pixel_values": tower.normalised(patches.unflatten(1, (3, -1)), channels=1).flatten(1),
        "image_grid_thw": to_device(torch.from_numpy(grids), device),
    }


def framed(tower: NativeTower, told: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same with the equal frames that the model's own forward takes."""
    frames = tower.processor.temporal_patch_size
    return {**told, "pixel_values": repeat(told["pixel_values"], "p (k s) -> p (k t s)", k=3, t=frames)}


def inputs(tower: NativeTower, ids: Int[Tensor, "B T"], pictures: Sequence[Picture]) -> dict[str, Tensor]:
    """Patches are (P, 3 * frames * side * side); the model tells images from text by `mm_token_type_ids` alone."""
    told = framed(tower, seen(tower, pictures, ids.device))
    return {**told, "mm_token_type_ids": (ids == tower.token).int()}


class PatchProduct(nn.Module):
    """The first layer of the tower, a convolution over frames and pixels whose windows do not overlap, as the matrix product
    that it is; of a picture in one frame it is half as large, since the model would be shown that frame twice."""

    def __init__(self, embed: nn.Module):
        super().__init__()
        self.proj = embed.proj

    def forward(self, patches: Float[Tensor, "P N"]) -> Float[Tensor, "P C"]:
        weight: Tensor = self.proj.weight  # type: ignore[union-attr, assignment]
        bias: Tensor | None = self.proj.bias  # type: ignore[union-attr, assignment]
        if patches.shape[1] != weight[0].numel():
            if weight.dtype in (torch.float32, torch.float64):
                weight = weight.sum(2)
            else:  # their sum would be rounded once more
                patches = repeat(patches, "p (k s) -> p (k t s)", k=weight.shape[1], t=weight.shape[2])
        return product(patches.to(weight.dtype), weight.flatten(1), bias)


def lighten(model: PreTrainedModel) -> None:
    """Put that in the place of the tower's first layer, whose names of weights stay, and let the pictures, or the windows of
    them, in which patches see each other go through the door together, not one by one."""
    tower: Any = model.visual
    if not isinstance(tower.patch_embed, PatchProduct):
        tower.patch_embed = PatchProduct(tower.patch_embed)
    tower.config._attn_implementation = WITHIN  # its own setter would look for a package of flash kernels of that name
