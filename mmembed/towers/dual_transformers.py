"""Dual encoders of transformers: CLIP, MetaCLIP 2, SigLIP, SigLIP 2 with fixed sizes and NaFlex, TIPSv2."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from ..errors import SpecError, check_known
from .backbone import config_of, from_pretrained
from .dual import DualTowers
from .vision import Preprocess
from .vision_transformers import naflex_inputs


@dataclass(frozen=True, kw_only=True)
class Kind:
    """How one model_type differs from the others.

    Attributes:
        mask: of the text tower. fill: whether it was trained on texts padded to their full length, which it reads and
            whose last token it pools. naflex: pictures of any shape, as patches.
    """

    mask: str
    fill: bool = False
    naflex: bool = False


KINDS: Mapping[str, Kind] = {
    "clip": Kind(mask="causal"),
    "metaclip_2": Kind(mask="causal"),
    "siglip": Kind(mask="bidirectional", fill=True),
    "siglip2": Kind(mask="bidirectional", fill=True, naflex=True),
    "tipsv2": Kind(mask="bidirectional"),
}


class TransformersDual(DualTowers):
    """`get_text_features` and `get_image_features` of a model of transformers."""

    def __init__(self, model: PreTrainedModel, preprocess: Preprocess):
        kind = KINDS[model.config.model_type]
        super().__init__(model, width_of(model.config), kind.mask, preprocess)
        self.naflex = kind.naflex
        self.patch = int(model.config.vision_config.patch_size)

    def text(self, ids: Int[Tensor, "N L"], real: Bool[Tensor, "N L"]) -> Float[Tensor, "N D"]:
        mask = None if bool(real.all()) else real.long()
        out: Tensor = self.model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output  # type: ignore[operator]
        return out

    def image(self, x: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N D"]:
        inputs = naflex_inputs(x, self.patch) if self.naflex else {"pixel_values": x}
        out: Tensor = self.model.get_image_features(**inputs).pooler_output  # type: ignore[operator]
        # TIPSv2 keeps the one pooled token as a row of its own.
        return out.reshape(len(x), -1)


def width_of(config: PreTrainedConfig) -> int:
    """Numbers in a vector of a model with this configuration."""
    projected = getattr(config, "projection_dim", None) if config.model_type in ("clip", "metaclip_2") else None
    return int(projected or config.vision_config.hidden_size)


def build(config: Mapping[str, Any], preprocess: Preprocess) -> DualTowers:
    """The towers with fresh weights from the dict of a transformers configuration.

    Raises:
        UnknownName: no dual encoder of that model_type. SpecError: the configuration makes no model.
    """
    kind = config["model_type"]
    check_known("dual encoder of transformers", kind, KINDS)
    try:
        model = AutoModel.from_config(config_of(config), trust_remote_code=False)
    except (TypeError, ValueError) as error:
        raise SpecError(f"a {kind} model cannot be built: {error}") from None
    return TransformersDual(model, preprocess)


def load(folder: Path, config: PreTrainedConfig, preprocess: Preprocess) -> DualTowers:
    """The towers with the weights of a folder; the first CLIP was never published but as a torch file.

    Raises:
        LoadError: no weights, or some that the files do not hold.
    """
    return TransformersDual(from_pretrained(AutoModel, folder, config), preprocess)
