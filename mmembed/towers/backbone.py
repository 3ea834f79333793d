"""The shared LLM backbone: any transformers decoder or encoder, run over a packed row or, where it must be, padded."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedModel

from ..errors import LoadError, SpecError, UnknownName
from ..nn import attention
from ..nn.spans import Spans

PACKABLE_LAYERS = {"full_attention", "sliding_attention"}


def build_backbone(config: Mapping[str, Any]) -> PreTrainedModel:
    """A backbone with fresh weights from the dict of its transformers configuration.

    Args:
        config: as `PreTrainedConfig.to_dict()` gives it, "model_type" included.

    Raises:
        UnknownName: transformers has no model of that type.
        SpecError: the configuration makes no model.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    settings = {key: value for key, value in config.items() if key != "model_type"}
    kind = config["model_type"]
    if kind not in CONFIG_MAPPING:
        raise UnknownName("model_type of transformers", kind, CONFIG_MAPPING.keys())
    try:
        model = AutoModel.from_config(AutoConfig.for_model(kind, **settings), trust_remote_code=False)
    except ValueError as error:
        raise SpecError(f"a {kind} backbone cannot be built: {error}") from None
    return cast(PreTrainedModel, model)


def load_backbone(path: str | os.PathLike[str]) -> PreTrainedModel:
    """The body of a transformers model with its weights, from a folder or by its hub name.

    Raises:
        LoadError: no such model, remote code, or weights that the file does not hold.
    """
    try:
        model, told = AutoModel.from_pretrained(
            path, trust_remote_code=False, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError) as error:
        raise LoadError(f"no backbone at {os.fspath(path)!r}: {str(error).splitlines()[0]}") from None
    # A pooler is drawn fresh where an encoder came without one; nothing here reads it.
    missing = [key for key in told["missing_keys"] if not key.startswith("pooler.")]
    if missing:
        raise LoadError(f"{os.fspath(path)!r} lacks weights: {', '.join(sorted(missing)[:5])}")
    return model


def prepare_backbone(model: PreTrainedModel, mask: str, layout: str | None) -> PreTrainedModel:
    """Set a backbone to a mask and a layout: which attention it calls, and whether that is causal.

    Raises:
        SpecError: they do not go with the backbone.
    """
    packed = packable(model) if layout is None else layout == "packed"
    if packed and not packable(model):
        raise SpecError(f"a {model.config.model_type} backbone cannot run packed; use layout='padded'")
    if not packed and mask == "causal+image":
        raise SpecError("the mask 'causal+image' needs a packed layout")
    encoder = _is_encoder(model)
    if encoder and mask != "bidirectional":
        raise SpecError(f"a {model.config.model_type} backbone is an encoder: use mask='bidirectional'")
    if not encoder:
        # One flag that every decoder's own mask builder honours (bidirectional decoders are trained with it set).
        model.config.is_causal = mask != "bidirectional"
    model.set_attn_implementation(attention.NAME if packed else "sdpa")
    return model


def natural_mask(model: PreTrainedModel) -> str:
    """The mask a backbone was made for: an encoder's, a decoder's, or that of a decoder whose configuration says that it
    reads both ways (`is_causal: false`, or EmbeddingGemma's `use_bidirectional_attention`)."""
    config = model.config
    both_ways = getattr(config, "is_causal", None) is False or getattr(config, "use_bidirectional_attention", False)
    return "bidirectional" if both_ways or _is_encoder(model) else "causal"


def _is_encoder(model: PreTrainedModel) -> bool:
    """Encoders take no key-value cache; a decoder does, whatever mask it runs under."""
    if getattr(model.config, "is_decoder", False):
        return False
    takes = inspect.signature(model.forward).parameters
    return "use_cache" not in takes or model.config.model_type in _ENCODERS_WITH_CACHE


_ENCODERS_WITH_CACHE = {
    "bert",
    "roberta",
    "xlm-roberta",
    "xlm-roberta-xl",
    "camembert",
    "electra",
    "data2vec-text",
    "ernie",
}
"""Their classes can also decode, so their forward takes a cache."""


def packable(model: PreTrainedModel) -> bool:
    """Whether every token mixing of the backbone goes through the attention door: a recurrent, convolutional or linear
    layer would mix the neighbours of a packed row."""
    kinds = getattr(model.config, "layer_types", None)
    plain = kinds is None or set(kinds) <= PACKABLE_LAYERS
    return bool(getattr(model, "_supports_attention_backend", False)) and plain


def is_packed(model: PreTrainedModel) -> bool:
    return model.config._attn_implementation == attention.NAME


def states(
    model: PreTrainedModel,
    ids: Int[Tensor, " T"],
    embeds: Float[Tensor, "T D"] | None,
    spans: Spans,
) -> Float[Tensor, "T D"]:
    """Last hidden states, after the final norm, of a packed row. `embeds`, where given, stand in for `ids`."""
    if is_packed(model):
        inputs = {"input_ids": ids[None]} if embeds is None else {"inputs_embeds": embeds[None]}
        positions = (spans.positions + _first_position(model))[None]
        extra = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
        return model(**inputs, position_ids=positions, spans=spans, **extra).last_hidden_state[0]
    return _padded(model, ids, embeds, spans)


def _padded(
    model: PreTrainedModel, ids: Int[Tensor, " T"], embeds: Float[Tensor, "T D"] | None, spans: Spans
) -> Float[Tensor, "T D"]:
    """The same by a padded batch, right-padded: what comes later cannot change what a causal layer saw before."""
    longest = max(spans.lengths)
    item = torch.arange(len(spans.lengths), device=ids.device).repeat_interleave(
        torch.tensor(spans.lengths, device=ids.device)
    )
    where = item * longest + spans.positions
    cells = len(spans.lengths) * longest
    mask = torch.zeros(cells, dtype=torch.long, device=ids.device).index_fill(0, where, 1)
    pad = model.config.pad_token_id or 0
    if embeds is None:
        grid = torch.full((cells,), pad, dtype=ids.dtype, device=ids.device).index_copy(0, where, ids)
        inputs = {"input_ids": grid.view(-1, longest)}
    else:
        grid = embeds.new_zeros(cells, embeds.shape[-1]).index_copy(0, where, embeds)
        inputs = {"inputs_embeds": grid.view(-1, longest, embeds.shape[-1])}
    takes = inspect.signature(model.forward).parameters
    if "position_ids" in takes:
        row = torch.arange(longest, device=ids.device) + _first_position(model)
        inputs["position_ids"] = row.expand(len(spans.lengths), -1)
    if "use_cache" in takes:
        inputs["use_cache"] = False  # type: ignore[assignment]
    out = model(**inputs, attention_mask=mask.view(-1, longest)).last_hidden_state
    return out.reshape(cells, -1)[where]


def _first_position(model: PreTrainedModel) -> int:
    """RoBERTa's family counts positions from the padding id on (its learned table keeps those rows free)."""
    embeddings = getattr(model, "embeddings", None)
    offset = getattr(embeddings, "padding_idx", None)
    return 0 if offset is None else int(offset) + 1
