"""Dual encoders of open_clip: whatever its factory builds, from a folder of weights, a file, or a tag of its own."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..errors import LoadError, SpecError, UnknownName
from .dual import DualTowers
from .vision import Preprocess
from .vision_open_clip import check_activation, preprocess_of, read_config


@dataclass(frozen=True)
class OpenClipModel:
    """A model of open_clip with its weights.

    Attributes:
        model: open_clip's module. config: what it is built from. preprocess: `Preprocess` settings.
    """

    model: nn.Module
    config: Mapping[str, Any]
    preprocess: Mapping[str, Any]

    @property
    def text(self) -> Mapping[str, Any]:
        """Settings of the text side: context_length, hf_tokenizer_name, tokenizer_kwargs, ..."""
        said: Mapping[str, Any] = self.config["text_cfg"]
        return said

    @property
    def towers(self) -> DualTowers:
        return OpenClipDual(self.model, self.config, Preprocess.of(self.preprocess))


class OpenClipDual(DualTowers):
    """`encode_text` and `encode_image` of a model of open_clip. Texts come padded to its whole context, as its own
    tokenizers hand them over: its causal mask has that length."""

    def __init__(self, model: nn.Module, config: Mapping[str, Any], preprocess: Preprocess):
        both_ways = bool(config["text_cfg"].get("no_causal_mask", False))
        super().__init__(model, int(config["embed_dim"]), "bidirectional" if both_ways else "causal", preprocess)

    def text(self, ids: Int[Tensor, "N L"], real: Bool[Tensor, "N L"]) -> Float[Tensor, "N D"]:
        out: Tensor = self.model.encode_text(ids, normalize=False)  # type: ignore[operator]
        return out

    def image(self, x: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N D"]:
        out: Tensor = self.model.encode_image(x, normalize=False)  # type: ignore[operator]
        return out


def build(config: Mapping[str, Any], preprocess: Preprocess) -> DualTowers:
    """The towers with fresh weights from open_clip's `model_cfg`: embed_dim, vision_cfg, text_cfg, ..."""
    return OpenClipDual(_create(config), config, preprocess)


def load(folder: Path) -> OpenClipModel:
    """A folder of open_clip: open_clip_config.json and weights.

    Raises:
        LoadError: files missing, or weights that do not fit. SpecError: a model that cannot be rebuilt from its folder.
    """
    said = read_config(folder)
    _check(said["model_cfg"])
    return _found(f"local-dir:{folder}", None, said["model_cfg"])


def named(architecture: str, pretrained: str | None) -> OpenClipModel:
    """An architecture of open_clip with weights from a file, or by a tag, for which open_clip goes to the network.

    Raises:
        UnknownName: open_clip has no such architecture. LoadError: no weights named, or they could not be had.
        SpecError: weights that were trained with another activation than the architecture has.
    """
    if architecture not in open_clip.list_models():
        raise UnknownName("open_clip model", architecture, open_clip.list_models())
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if not pretrained:
        known = f"one of {', '.join(tags)}, which open_clip downloads, or " if tags else ""
        raise LoadError(
            f"open_clip:{architecture} is an architecture; say whose weights it takes, open_clip:{architecture}:<weights>: "
            f"{known}a file"
        )
    if pretrained not in tags and not Path(pretrained).expanduser().is_file():
        raise UnknownName(f"file, or tag of weights for {architecture},", pretrained, tags)
    config = open_clip.get_model_config(architecture)
    _check(config)
    if pretrained in tags:
        check_activation(architecture, pretrained)
    else:
        pretrained = str(Path(pretrained).expanduser())
    return _found(architecture, pretrained, config)


def _found(name: str, pretrained: str | None, config: Mapping[str, Any]) -> OpenClipModel:
    try:
        model = open_clip.create_model(name, pretrained, require_pretrained=True)
    except (OSError, RuntimeError, ValueError) as error:
        asked = name if pretrained is None else f"{name}:{pretrained}"
        raise LoadError(f"open_clip could not load {asked}: {str(error).strip().splitlines()[0]}") from error
    given = open_clip.get_model_preprocess_cfg(model)
    kept = {key: value for key, value in config.items() if key not in ("vision_cfg",)}
    vision = {key: value for key, value in config["vision_cfg"].items() if key != "timm_model_pretrained"}
    return OpenClipModel(model.eval(), {**kept, "vision_cfg": vision}, preprocess_of(model.visual, given))


def _check(config: Mapping[str, Any]) -> None:
    """Refuse what a folder does not hold all of."""
    text = config["text_cfg"]
    if text.get("hf_model_name"):
        raise SpecError(
            f"the text tower is {text['hf_model_name']}, whose configuration open_clip takes from a hub each time it is "
            "built: not supported"
        )
    if text.get("tokenizer_mode"):
        raise SpecError(f"open_clip's tokenizer mode {text['tokenizer_mode']!r} is not supported")


def _create(config: Mapping[str, Any]) -> nn.Module:
    settings = copy.deepcopy(dict(config))
    custom = settings.pop("custom_text", False)
    if "timm_model_name" in settings["vision_cfg"]:
        settings["vision_cfg"]["timm_model_pretrained"] = False
    kind = (open_clip.CoCa if "multimodal_cfg" in settings else open_clip.CustomTextCLIP) if custom else open_clip.CLIP
    try:
        return kind(**settings)
    except (TypeError, ValueError) as error:
        raise SpecError(f"open_clip cannot build {kind.__name__}: {error}") from None
