"""The language head of a backbone: what a masked or causal language model of transformers does after its body."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from ..errors import SpecError
from .adapters import merge
from .backbone import config_of, from_pretrained, plain_attention, probe


class _Given(nn.Module):
    """In the place of the body: the states come from outside."""

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> BaseModelOutputWithPastAndCrossAttentions:
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=inputs_embeds)


class LanguageHead(nn.Module):
    """States (n, D) -> logits (n, V), by the class of transformers itself: transforms, biases, scales and caps of a family
    are where its authors wrote them. Weights that it ties to the body's embeddings stay tied.

    Args:
        whole: a masked or causal language model.

    Raises:
        SpecError: a class that reads more of its body than the last states.
    """

    def __init__(self, whole: PreTrainedModel):
        super().__init__()
        if getattr(whole, whole.base_model_prefix, whole) is whole:
            raise SpecError(f"{type(whole).__name__} has no language head")
        head = copy.copy(whole)
        head._modules = {**whole._modules, whole.base_model_prefix: _Given()}
        self.whole = head
        ids, _ = probe(body_of(whole))
        plain_attention(whole, "sdpa", "eager")  # the body may be packed for another embedder
        with torch.no_grad():
            due = whole.eval()(input_ids=ids[None]).logits[0].float()
            off = self(body_of(whole)(input_ids=ids[None]).last_hidden_state[0]).float() - due
        if not off.norm() <= 1e-3 * due.norm():
            raise SpecError(f"{type(whole).__name__} makes its logits of more than the last states of its body")
        self.out = due.shape[-1]

    def forward(self, states: Float[Tensor, "n D"]) -> Float[Tensor, "n V"]:
        weight = next(self.whole.parameters())
        return self.whole(inputs_embeds=states[None].to(weight.dtype)).logits[0]


def body_of(whole: PreTrainedModel) -> PreTrainedModel:
    return cast(PreTrainedModel, whole.base_model)


def vocabulary_of(body: PreTrainedModel, head: LanguageHead | None) -> int:
    """How many terms there are: those that the language head scores, or the ids that the body reads."""
    return int(body.get_input_embeddings().num_embeddings) if head is None else head.out


def build_language_model(config: Mapping[str, Any]) -> tuple[PreTrainedModel, LanguageHead]:
    """Body and head with fresh weights, from the dict of a configuration.

    Raises:
        SpecError: transformers has no language model of that type.
    """
    made = config_of(config)
    whole = _class_for(made).from_config(made, trust_remote_code=False)
    return body_of(whole), LanguageHead(whole)


def load_language_model(
    path: str | os.PathLike[str], config: PreTrainedConfig | None = None, adapters: Iterable[Path] = ()
) -> tuple[PreTrainedModel, LanguageHead]:
    """Body and head with their weights, from a folder or by hub name.

    Args:
        config: replaces its own. adapters: folders of those that are merged into body and head, in their order.

    Raises:
        LoadError: no such model, weights that the file does not hold, or an adapter that does not fit. SpecError: no language
            model.
    """
    known = config or AutoConfig.from_pretrained(path, trust_remote_code=False)
    whole = from_pretrained(_class_for(known), path, config)
    for adapter in adapters:
        whole = merge(whole, adapter)
    return body_of(whole), LanguageHead(whole)


def _class_for(config: PreTrainedConfig) -> Any:
    """Encoders have a masked language model, decoders a causal one."""
    kind = config.model_type
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return AutoModelForMaskedLM
    if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return AutoModelForCausalLM
    raise SpecError(f"transformers has no language model of type {kind!r}, and the sparse head reads one")
