"""Vision towers of timm: any model with `forward_intermediates`."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

import timm
from einops import rearrange
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import LoadError, SpecError, UnknownName
from .vision import Preprocess, VisionTower, level_of


class TimmTower(VisionTower):
    """Features of one level of a timm model, as an NCHW map, prefix tokens left out."""

    def __init__(self, model: nn.Module, preprocess: Preprocess, layer: str | int):
        if not hasattr(model, "forward_intermediates"):
            raise SpecError(f"{type(model).__name__} of timm gives no intermediate features")
        levels: Any = model.feature_info
        self.level, self.norm = level_of(layer, len(levels)), layer == "last"
        info = levels[self.level]
        self.reduction = int(info["reduction"])
        super().__init__(model, int(info["num_chs"]), preprocess)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        return -(-height // self.reduction), -(-width // self.reduction)

    def features(self, x: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N P C"]:
        maps = self.model.forward_intermediates(  # type: ignore[operator]
            x, indices=[self.level], norm=self.norm, output_fmt="NCHW", intermediates_only=True
        )
        return rearrange(maps[0], "n c h w -> n (h w) c")


def build(
    *, name: str, preprocess: Preprocess, options: Mapping[str, Any] | None = None, layer: str | int = "last"
) -> VisionTower:
    """A timm tower with fresh weights, `options` handed to `timm.create_model`."""
    return tower(_create(name, options or {}, pretrained=False), preprocess, layer)


def tower(model: nn.Module, preprocess: Preprocess, layer: str | int) -> VisionTower:
    return TimmTower(model, preprocess, layer)


def compose(
    *,
    name: str,
    options: Mapping[str, Any] | None = None,
    layer: str | int = "last",
    pretrained: bool = False,
    weights: str | os.PathLike[str] | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """A timm model and its spec entry.

    Args:
        name, options: for `timm.create_model`. pretrained: fetch timm's weights of that name, which uses the network.
        weights: a safetensors file instead, of any input size or layout that timm itself converts.

    The picture is resized to the square that the model was built for: timm's own evaluation transform crops the middle
    even for SigLIP, which was never trained so. Mean, std and interpolation are those of the pretrained settings.
    """
    model = _create(name, options or {}, pretrained)
    if weights is not None:
        adapt = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
        known: Any = getattr(model, "pretrained_cfg", None) or {}
        head = known.get("classifier") or ()
        heads = tuple(f"{name}." for name in ((head,) if isinstance(head, str) else head))
        try:
            state = load_file(weights)
            state = adapt(state, model) if adapt else state
            # As timm itself loads a model without its classes.
            model.load_state_dict({key: own for key, own in state.items() if not (heads and key.startswith(heads))})
        except (OSError, RuntimeError, SafetensorError) as error:
            raise LoadError(f"{weights} holds no weights of {name!r}: {error}") from None
    config = timm.data.resolve_model_data_config(model)
    built_for = getattr(getattr(model, "patch_embed", None), "img_size", None)
    size = built_for[0] if built_for else config["input_size"][-1]
    return model, {
        "library": "timm",
        "name": name,
        "options": dict(options or {}),
        "layer": layer,
        "preprocess": {
            "resize": "square",
            "size": int(size),
            "interpolation": config["interpolation"],
            "mean": list(config["mean"]),
            "std": list(config["std"]),
        },
    }


def _create(name: str, options: Mapping[str, Any], pretrained: bool) -> nn.Module:
    if not timm.is_model(name):
        raise UnknownName("timm model", name, timm.list_models())
    return timm.create_model(name, pretrained=pretrained, num_classes=0, **options)
