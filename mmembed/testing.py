"""Tiny random models of real architectures, made on the spot, for tests that run offline, yours too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedModel, PreTrainedTokenizerFast

from .embedder import Embedder, compose

WIDTH = 32

_SMALL: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 300,
    "pad_token_id": 256,
    "bos_token_id": 257,
    "eos_token_id": 258,
}
_DECODER: dict[str, Any] = {**_SMALL, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 4096}

BACKBONES: dict[str, dict[str, Any]] = {
    "qwen3": {**_DECODER},
    "llama": {**_DECODER},
    "mistral": {**_DECODER, "sliding_window": 7},
    "gemma3_text": {**_DECODER, "num_hidden_layers": 3, "sliding_window": 7, "sliding_window_pattern": 2},
    "xlm-roberta": {**_SMALL, "max_position_embeddings": 600, "pad_token_id": 1},
    "modernbert": {**_SMALL, "local_attention": 8, "global_attn_every_n_layers": 2, "num_hidden_layers": 3},
    "lfm2": {**_DECODER, "full_attn_idxs": [1]},
}
"""Settings of a tiny configuration, by transformers' model_type."""

ENCODERS = ("xlm-roberta", "modernbert")
PADDED = ("lfm2",)
"""Backbones with a layer that mixes neighbours outside attention: they run padded."""


def tiny_backbone(kind: str = "qwen3", seed: int = 0, **changed: Any) -> PreTrainedModel:
    """A tiny random backbone. Norm weights lie away from 1 and attention is sharp: with the usual small initialisation a
    mistake of mask, norm or position would move vectors by less than rounding does."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModel.from_config(AutoConfig.for_model(kind, **{**BACKBONES[kind], **changed}))
        sharpen(model)
    return model.eval()


def sharpen(model: nn.Module) -> None:
    """Draw norm weights from 0.5 to 1.5, and scale the query and key projections by 8."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name.lower() and name.endswith("weight"):
                weight.uniform_(0.5, 1.5)
            elif any(part in name for part in ("q_proj.weight", "k_proj.weight", "query.weight", "key.weight")):
                weight.mul_(8)
            elif "Wqkv.weight" in name:
                weight[: 2 * len(weight) // 3].mul_(8)


def byte_tokenizer(*, bos: bool = False, eos: bool = True, special: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """A tokenizer of single bytes: every text of every language goes through it, ids 0..255, <pad> <s> </s> after them."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({symbol: k for k, symbol in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(t, special=True) for t in ("<pad>", "<s>", "</s>", *special)])
    template = f"{'<s> ' if bos else ''}$A{' </s>' if eos else ''}"
    core.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(t, core.token_to_id(t)) for t in ("<s>", "</s>")]
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


TINY_VIT: Mapping[str, Any] = {
    "library": "timm",
    "name": "vit_tiny_patch16_224",
    "options": {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3},
}


def tiny_embedder(seed: int = 0, **changed: Any) -> Embedder:
    """A tiny random embedder of texts and images (Qwen3 and a timm ViT), 32 numbers a vector; `changed` goes to `compose`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts: dict[str, Any] = {
            "backbone": tiny_backbone(seed=seed),
            "tokenizer": byte_tokenizer(),
            "vision": TINY_VIT,
            "projector": "mlp",
            "dimensions": (WIDTH, WIDTH // 2),
            "name": "tiny",
            "device": "cpu",
        }
        return compose(**{**parts, **changed})
