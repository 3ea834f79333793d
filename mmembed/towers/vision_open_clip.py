"""Vision towers of open_clip: its VisionTransformer and whatever it builds on timm."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
from einops import rearrange
from jaxtyping import Float
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from ..errors import LoadError, SpecError, UnknownName
from .vision import Preprocess, VisionTower, level_of
from .vision_timm import TimmTower

CONFIG_FILE = "open_clip_config.json"


def read_config(folder: Path) -> dict[str, Any]:
    """What open_clip_config.json of a folder says; its model_cfg is there.

    Raises:
        LoadError: no such file, or it does not say that.
    """
    try:
        said = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LoadError(f"{folder} holds no {CONFIG_FILE}") from None
    except ValueError as error:
        raise LoadError(f"{folder / CONFIG_FILE} is no JSON: {error}") from None
    if "model_cfg" not in said:
        raise LoadError(f"{folder / CONFIG_FILE} says no 'model_cfg'")
    return dict(said)


class OpenClipTower(VisionTower):
    """Patch states of one block of open_clip's VisionTransformer, the last ones normed where it norms patches: CLIPA's norm comes
    after pooling, and so does CoCa's."""

    def __init__(self, model: VisionTransformer, preprocess: Preprocess, layer: str | int):
        super().__init__(model, int(model.conv1.out_channels), preprocess)
        pooled_first = model.attn_pool is not None and model.attn_pool_contrastive is None
        self.level = level_of(layer, len(model.transformer.resblocks))
        self.norm = layer == "last" and not (model.final_ln_after_pool or pooled_first)
        self.patch = model.patch_size

    def grid(self, height: int, width: int) -> tuple[int, int]:
        return height // self.patch[0], width // self.patch[1]

    def features(self, x: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N P C"]:
        out = self.model.forward_intermediates(  # type: ignore[operator]
            x, indices=[self.level], normalize_intermediates=self.norm, output_fmt="NCHW", intermediates_only=True
        )
        return rearrange(out["image_intermediates"][0], "n c h w -> n (h w) c")


def build(
    *,
    preprocess: Preprocess,
    name: str | None = None,
    config: Mapping[str, Any] | None = None,
    layer: str | int = "last",
) -> VisionTower:
    """The image side of an open_clip model with fresh weights, by `name` or by its `config` (embed_dim, vision_cfg)."""
    return tower(_create(name, config, None), preprocess, layer)


def tower(visual: nn.Module, preprocess: Preprocess, layer: str | int) -> VisionTower:
    """The tower around a `visual` module."""
    if isinstance(visual, VisionTransformer):
        return OpenClipTower(visual, preprocess, layer)
    if isinstance(visual, TimmModel):
        return TimmTower(visual.trunk, preprocess, layer)
    raise SpecError(f"{type(visual).__name__} of open_clip gives no patch features; use a ViT or a timm trunk")


def compose(
    *,
    name: str | None = None,
    config: Mapping[str, Any] | None = None,
    layer: str | int = "last",
    pretrained: str | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """The `visual` module of an open_clip model and its spec entry, its own preprocessing read from it.

    Args:
        name: an architecture of open_clip, or "local-dir:folder" (with weights), or "hf-hub:..." (uses the network).
        config: instead, `{"embed_dim": ..., "vision_cfg": {...}, "preprocess_cfg": {...}}`.
        pretrained: a file of weights, or a tag of open_clip, which uses the network.

    Raises:
        SpecError: it letterboxes ("longest"), which no tower here does; weights for a config; weights that were trained with
            another activation.
    """
    if pretrained is not None and (config is not None or str(name).startswith("local-dir:")):
        raise SpecError(
            f"pretrained={pretrained!r} goes with a name of open_clip's; a config alone has fresh weights, a folder its own"
        )
    if name is not None and pretrained is not None and name in open_clip.list_models():
        check_activation(name, pretrained)
    if name is not None and name.startswith("local-dir:") and config is None:
        found = read_config(Path(name.removeprefix("local-dir:")))
        config = {**found["model_cfg"], "preprocess_cfg": found.get("preprocess_cfg", {})}
        visual = open_clip.create_model(name).visual
    else:
        visual = _create(name, config, pretrained, whole=name is not None and name.startswith("hf-hub:"))
    given = (config or {}).get("preprocess_cfg") or getattr(visual, "preprocess_cfg", None) or {}
    said = ("embed_dim", "vision_cfg", "quick_gelu")
    kept = {key: config[key] for key in said if key in config} if config is not None else None
    return visual, {
        "library": "open_clip",
        **({"name": name} if kept is None else {"config": kept}),
        "layer": layer,
        "preprocess": preprocess_of(visual, given),
    }


def check_activation(architecture: str, tag: str) -> None:
    """Hold weights of a tag to the activation that an architecture is built with.

    Raises:
        SpecError: they were trained with another, of which open_clip only warns.
    """
    if tag not in open_clip.list_pretrained_tags_by_model(architecture):
        return
    trained = open_clip.get_pretrained_cfg(architecture, tag).get("quick_gelu", False)
    if trained != (open_clip.get_model_config(architecture) or {}).get("quick_gelu", False):
        raise SpecError(
            f"{tag!r} was trained with quick_gelu={trained}, which {architecture} is not built with; "
            f"open_clip has another architecture for it, such as {architecture}-quickgelu"
        )


def preprocess_of(visual: nn.Module, given: Mapping[str, Any]) -> dict[str, Any]:
    """open_clip's `preprocess_cfg` of an image tower, as `Preprocess` settings.

    Raises:
        SpecError: it letterboxes ("longest"), which nothing here does.
    """
    image_size: Any = visual.image_size
    sides = image_size if isinstance(image_size, (tuple, list)) else (image_size, image_size)
    size = int(sides[0])
    mode = given.get("resize_mode", "shortest")
    if mode not in ("shortest", "squash"):
        raise SpecError(f"open_clip's resize mode {mode!r} is not supported; known: shortest, squash")
    if sides[0] != sides[1]:
        raise SpecError(f"open_clip's towers for pictures of {sides[0]} x {sides[1]} pixels are not supported")
    return {
        **({"resize": "square"} if mode == "squash" else {"resize": "shortest", "crop": size, "rounding": "even"}),
        "size": size,
        "interpolation": given.get("interpolation", "bicubic"),
        "mean": list(given.get("mean", open_clip.OPENAI_DATASET_MEAN)),
        "std": list(given.get("std", open_clip.OPENAI_DATASET_STD)),
    }


def _create(
    name: str | None, config: Mapping[str, Any] | None, pretrained: str | None, *, whole: bool = False
) -> nn.Module:
    """The image side, with the weights of `pretrained`, or of the repository that it names where it is to be `whole`."""
    if config is not None:
        # The text side is never used: the smallest that open_clip builds.
        text = {"context_length": 8, "vocab_size": 8, "width": 8, "heads": 1, "layers": 1}
        vision = copy.deepcopy(dict(config["vision_cfg"]))
        quick = bool(config.get("quick_gelu", False))
        return open_clip.CLIP(embed_dim=config["embed_dim"], vision_cfg=vision, text_cfg=text, quick_gelu=quick).visual
    if name is None:
        raise SpecError("an open_clip tower needs a 'name' or a 'config'")
    if ":" not in name and name not in open_clip.list_models():
        raise UnknownName("open_clip model", name, open_clip.list_models())
    return open_clip.create_model(name, pretrained=pretrained, load_weights=whole or pretrained is not None).visual
