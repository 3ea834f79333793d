"""Late-interaction retrievers of transformers: a vision-language model, and the layer that makes a vector of each token."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from .backbone import from_pretrained

RETRIEVERS: Mapping[str, str] = {"colqwen2": "ColQwen2ForRetrieval", "colpali": "ColPaliForRetrieval"}
"""model_type of transformers -> its class; AutoModel knows not all of them."""


def is_retriever(config: PreTrainedConfig) -> bool:
    return config.model_type in RETRIEVERS


def load_retriever(path: str | os.PathLike[str], config: PreTrainedConfig) -> tuple[PreTrainedModel, nn.Linear]:
    """The vision-language model and the layer, with their weights.

    Raises:
        LoadError: no such model, or weights that the files do not hold.
    """
    import transformers

    whole: Any = from_pretrained(getattr(transformers, RETRIEVERS[config.model_type]), path, config)
    return whole.vlm, whole.embedding_proj_layer
