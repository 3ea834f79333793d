"""Vision towers of transformers: CLIP, SigLIP, SigLIP 2 (NaFlex), DINOv2 and others of their shape."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import PIL.Image
import torch
from einops import rearrange, repeat
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoModel, PreTrainedModel

from ..errors import LoadError, SpecError
from ..spec import described
from .backbone import config_of
from .vision import INTERPOLATIONS, Preprocess, VisionTower, level_of

ROUNDING = 3
"""Levels of 255 by which resizing a smooth picture in torchvision, which processors do by default, may lie from Pillow's."""


class TransformersTower(VisionTower):
    """Patch states of a ViT of transformers: the last ones as the model gives them, or those of an earlier block."""

    def __init__(self, model: PreTrainedModel, preprocess: Preprocess, layer: str | int):
        level_of(layer, int(model.config.num_hidden_layers))
        super().__init__(model, int(model.config.hidden_size), preprocess)
        self.layer = layer
        self.patch = int(model.config.patch_size)
        self.naflex = model.config.model_type == "siglip2_vision_model"
        self.fixed = getattr(model.config, "image_size", None)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        return height // self.patch, width // self.patch

    def features(self, x: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N P C"]:
        rows, columns = self.grid(*x.shape[-2:])
        out = self.model(**self._inputs(x), output_hidden_states=self.layer != "last")
        states = out.last_hidden_state if self.layer == "last" else out.hidden_states[self.layer]
        # Class and register tokens stand in front, where a model has them.
        return states[:, states.shape[1] - rows * columns :]

    def check_places(self, pixels: UInt8[Tensor, "2 3 H W"]) -> None:
        """Before the first block what stands for a patch hangs on the picture, and nothing else does (YOLOS has its own
        tokens behind the patches)."""
        rows, columns = self.grid(*pixels.shape[-2:])
        out = self.model(**self._inputs(self.normalised(pixels)), output_hidden_states=True)
        one, two = out.hidden_states[0].flatten(1, -2)[:, -rows * columns :]
        if (one == two).all(-1).any():
            raise SpecError("its last tokens are not those of the patches")

    def _inputs(self, x: Float[Tensor, "N 3 H W"]) -> dict[str, Any]:
        if self.naflex:
            return naflex_inputs(x, self.patch)
        other_size = self.fixed is not None and tuple(x.shape[-2:]) != (self.fixed, self.fixed)
        return {"pixel_values": x, **({"interpolate_pos_encoding": True} if other_size else {})}


def naflex_inputs(x: Float[Tensor, "N 3 H W"], patch: int) -> dict[str, Tensor]:
    """What the NaFlex tower of SigLIP 2 takes for pictures of one size: their patches, none of them padding."""
    rows, columns = x.shape[-2] // patch, x.shape[-1] // patch
    patches = rearrange(x, "n c (h p) (w q) -> n (h w) (p q c)", p=patch, q=patch)
    shape = repeat(torch.tensor([rows, columns], device=x.device), "two -> n two", n=len(x))
    mask = torch.ones(patches.shape[:2], dtype=torch.long, device=x.device)
    return {"pixel_values": patches, "pixel_attention_mask": mask, "spatial_shapes": shape}


def build(*, config: Mapping[str, Any], preprocess: Preprocess, layer: str | int = "last") -> VisionTower:
    """A tower with fresh weights from the dict of its transformers configuration."""
    return tower(_create(config), preprocess, layer)


def tower(model: PreTrainedModel, preprocess: Preprocess, layer: str | int) -> VisionTower:
    return TransformersTower(model, preprocess, layer)


def compose(
    *,
    path: str | os.PathLike[str] | None = None,
    config: Mapping[str, Any] | None = None,
    processor: Any = None,
    layer: str | int = "last",
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A vision model of transformers and its spec entry.

    Args:
        path: folder or hub name of a model with its image processor; of a two-tower model the image side is taken.
        config: instead, the dict of a configuration, for fresh weights.
        processor: an image processor; needed with `config`, else the one at `path`.
    """
    if (path is None) == (config is None):
        raise SpecError("a transformers tower needs a 'path' or a 'config', one of the two")
    if config is not None:
        if processor is None:
            raise SpecError("a tower from a config needs its image 'processor' as well")
        model = _create(config)
    else:
        try:
            model = _image_side(AutoModel.from_pretrained(path, trust_remote_code=False, dtype=torch.float32))
            processor = processor or AutoImageProcessor.from_pretrained(path, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise LoadError(f"no vision tower at {path!r}: {str(error).splitlines()[0]}") from None
    return model, {
        "library": "transformers",
        "config": described(model.config),
        "layer": layer,
        "preprocess": preprocess_of(processor, int(model.config.patch_size)),
    }


def _create(config: Mapping[str, Any]) -> PreTrainedModel:
    return _image_side(AutoModel.from_config(config_of(config), trust_remote_code=False))


def _image_side(model: nn.Module) -> PreTrainedModel:
    side = getattr(model, "vision_model", model)
    said = ("patch_size", "hidden_size", "num_hidden_layers")
    if not isinstance(side, PreTrainedModel) or any(not isinstance(getattr(side.config, n, None), int) for n in said):
        raise SpecError(f"{type(model).__name__} of transformers is no vision tower with square patches")
    return side


def preprocess_of(processor: Any, patch: int) -> dict[str, Any]:
    """What an image processor of transformers does, as `Preprocess` settings; it is tried whether that is all.

    Raises:
        SpecError: it does something that no setting says.
    """
    name = type(processor).__name__
    try:
        said = _read(processor, name, patch)
        prepare = Preprocess.of(said)
        apart = max(_apart(processor, prepare, *shape) for shape in _shapes(prepare))
    except SpecError:
        raise
    except Exception as error:
        raise SpecError(f"{name} is no processor that makes pixels of one picture: {error}") from error
    if not apart <= ROUNDING:
        raise SpecError(f"{name} does more to a picture than its size, crop, mean and std say: not supported")
    return said


def _shapes(prepare: Preprocess) -> list[tuple[int, int]]:
    """Heights and widths: wide and smaller than what it makes, and high and larger."""
    side = prepare.crop or prepare.size or int(prepare.patch * prepare.max_patches**0.5)  # type: ignore[operator]
    return [(side // 3 + 1, side // 2 + 1), (3 * side, 2 * side)]


def _apart(processor: Any, prepare: Preprocess, height: int, width: int) -> float:
    """By how many of 255 levels what the processor makes of a smooth picture lies from ours."""
    down, along = np.linspace(0, 255, height)[:, None], np.linspace(0, 255, width)[None]
    rgb = np.stack(np.broadcast_arrays(down, along, (down + along) / 2), axis=-1).astype(np.uint8)
    ours = prepare(rgb)
    theirs = np.asarray(processor(PIL.Image.fromarray(rgb), return_tensors="np")["pixel_values"])[0]
    if prepare.resize == "patches":
        rows, columns = (side // prepare.patch for side in ours.shape[1:])
        theirs = theirs[: rows * columns]
        theirs = rearrange(theirs, "(r c) (p q k) -> k (r p) (c q)", r=rows, p=prepare.patch, q=prepare.patch)
    if theirs.shape != ours.shape:
        return math.inf
    mean, std = (np.reshape(values, (3, 1, 1)) for values in (prepare.mean, prepare.std))
    return float(np.abs((theirs * std + mean) * 255 - ours).max())


def _read(processor: Any, name: str, patch: int) -> dict[str, Any]:
    """What its settings say."""
    if not (processor.do_resize and processor.do_rescale) or abs(processor.rescale_factor * 255 - 1) > 1e-6:
        raise SpecError(f"{name} does not resize, or does not bring pixels to 0..1: not supported")
    size = dict(processor.size) if getattr(processor, "size", None) else {}
    normal = bool(processor.do_normalize)
    common = {
        "interpolation": INTERPOLATIONS[int(processor.resample)],
        "mean": list(processor.image_mean) if normal else [0.0] * 3,
        "std": list(processor.image_std) if normal else [1.0] * 3,
    }
    if getattr(processor, "max_num_patches", None):
        return {"resize": "patches", "patch": patch, "max_patches": int(processor.max_num_patches), **common}
    if "shortest_edge" in size:
        crop = dict(processor.crop_size) if getattr(processor, "do_center_crop", False) else {}
        if not crop or crop["height"] != crop["width"]:
            raise SpecError(f"{name} keeps the shape without a square crop: not supported")
        return {"resize": "shortest", "size": int(size["shortest_edge"]), "crop": int(crop["height"]), **common}
    crop = dict(processor.crop_size) if getattr(processor, "do_center_crop", False) else size
    if size.get("height") == size.get("width") and "height" in size and crop == size:
        return {"resize": "square", "size": int(size["height"]), **common}
    raise SpecError(f"{name} resizes to {size}: not supported")
