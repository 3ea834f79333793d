"""Tiny random models of real architectures, made on the spot, for tests that run offline, yours too."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedModel, PreTrainedTokenizerFast

from .embedder import Embedder
from .errors import check_known
from .loading import compose

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


_READS: dict[str, Any] = {
    **_DECODER,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
}
_SEES: dict[str, Any] = {
    "depth": 2,
    "hidden_size": 32,
    "num_heads": 2,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
_EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_LINEAR: dict[str, Any] = {
    **{"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8},
    "num_hidden_layers": 3,
    "layer_types": ["linear_attention", "linear_attention", "full_attention"],
}
_QWEN_VISION: dict[str, Any] = {**_SEES, "intermediate_size": 48, "out_hidden_size": WIDTH}

_CLIP: dict[str, Any] = {
    "model_type": "clip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
_TILES = [[32, 64], [64, 32], [64, 64], [96, 32], [32, 96]]

VLMS: dict[str, dict[str, Any]] = {
    "qwen2_vl": {"text_config": _READS, "vision_config": {**_SEES, "embed_dim": 32, "mlp_ratio": 2}},
    "qwen2_5_vl": {
        "text_config": _READS,
        "vision_config": {**_QWEN_VISION, "window_size": 56, "fullatt_block_indexes": [1]},
    },
    "qwen3_vl": {
        "text_config": _READS,
        "vision_config": {**_QWEN_VISION, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]},
    },
    "qwen3_vl_moe": {
        "text_config": {**_READS, **_EXPERTS},
        "vision_config": {**_QWEN_VISION, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]},
    },
    "qwen3_5": {
        "text_config": {**_READS, **_LINEAR},
        "vision_config": {**_QWEN_VISION, "num_position_embeddings": 64},
    },
    "qwen3_5_moe": {
        "text_config": {**_READS, **_LINEAR, **_EXPERTS, "shared_expert_intermediate_size": 16},
        "vision_config": {**_QWEN_VISION, "num_position_embeddings": 64},
    },
    "llava_next": {
        "text_config": {**_DECODER, "model_type": "llama"},
        "vision_config": _CLIP,
        "image_grid_pinpoints": _TILES,
    },
    "llava_onevision": {
        "text_config": {**_DECODER, "model_type": "qwen2"},
        "vision_config": {**_CLIP, "model_type": "siglip_vision_model", "vision_use_head": False},
        "image_grid_pinpoints": _TILES,
        "vision_aspect_ratio": "anyres_max_2",
    },
    "mllama": {
        "text_config": {**_SMALL, "num_key_value_heads": 2, "num_hidden_layers": 4, "cross_attention_layers": [1, 3]},
        "vision_config": {
            "hidden_size": 16,
            "intermediate_size": 24,
            "attention_heads": 2,
            "num_hidden_layers": 3,
            "num_global_layers": 1,
            "intermediate_layers_indices": [0, 2],
            "vision_output_dim": 48,
            "image_size": 32,
            "patch_size": 8,
            "max_num_tiles": 4,
        },
    },
    "qwen2_5_omni_thinker": {
        "text_config": _READS,
        "vision_config": {**_QWEN_VISION, "window_size": 56, "fullatt_block_indexes": [1]},
        "audio_config": {
            "d_model": 16,
            "encoder_layers": 1,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 16,
            "output_dim": WIDTH,
        },
    },
    "embedding_gemma2": {
        "text_config": {
            **_DECODER,
            "num_hidden_layers": 3,
            "sliding_window": 5,
            "sliding_window_pattern": 3,
            "global_head_dim": 16,
            "num_global_key_value_heads": 1,
            "hidden_size_per_layer_input": 12,
            "embedding_dim": 24,
        },
        "vision_config": {
            "model_type": "gemma4_vision",
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "patch_size": 4,
            "position_embedding_size": 64,
        },
    },
}
"""Settings of tiny vision-language models, by transformers' model_type."""

QWEN_VLMS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe")
"""Those whose positions run in rows and columns."""
QWEN_TOKENS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
VLM_TOKENS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(QWEN_VLMS, (*QWEN_TOKENS, "<|video_pad|>")),
    "llava_next": ("<image>",),
    "llava_onevision": ("<image>", "<video>", *QWEN_TOKENS[:3]),
    "mllama": ("<|image|>", "<|begin_of_text|>"),
    "qwen2_5_omni_thinker": (
        *QWEN_TOKENS[:3],
        *("<|IMAGE|>", "<|VIDEO|>", "<|AUDIO|>", "<|vision_bos|>", "<|vision_eos|>", "<|audio_bos|>", "<|audio_eos|>"),
    ),
    "embedding_gemma2": (
        *("<bos>", "<eos>", "<|image|>", "<|image>", "<image|>", "<|video|>"),
        *("<|audio|>", "<|audio>", "<audio|>"),
    ),
}
"""Special tokens of their tokenizers besides those of `byte_tokenizer`."""
_QWEN_MARKS: Mapping[str, str] = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}
VLM_MARKS: Mapping[str, Mapping[str, str]] = {
    **dict.fromkeys(QWEN_VLMS, _QWEN_MARKS),
    "llava_next": {"image_token_index": "<image>"},
    "llava_onevision": {"image_token_index": "<image>", "video_token_index": "<video>"},
    "mllama": {"image_token_index": "<|image|>"},
    "qwen2_5_omni_thinker": {
        "image_token_index": "<|IMAGE|>",
        "video_token_index": "<|VIDEO|>",
        "audio_token_index": "<|AUDIO|>",
        "vision_start_token_id": "<|vision_bos|>",
        "vision_end_token_id": "<|vision_eos|>",
        "audio_start_token_id": "<|audio_bos|>",
        "audio_end_token_id": "<|audio_eos|>",
    },
    "embedding_gemma2": {
        "image_token_id": "<|image|>",
        "boi_token_id": "<|image>",
        "eoi_token_id": "<image|>",
        "video_token_id": "<|video|>",
        "audio_token_id": "<|audio|>",
        "boa_token_id": "<|audio>",
        "eoa_token_index": "<audio|>",
    },
}
"""Which of those tokens their configurations name."""
IMAGE_PROCESSORS: Mapping[str, dict[str, Any]] = {
    **{
        kind: {
            "image_processor_type": "Qwen2VLImageProcessor",
            "size": {"shortest_edge": 3136, "longest_edge": 12544},
            **own,
        }
        for kind, own in {
            "qwen2_vl": {},
            "qwen2_5_vl": {},
            **{kind: {"patch_size": 16, "image_mean": [0.5] * 3, "image_std": [0.5] * 3} for kind in QWEN_VLMS[2:]},
            "qwen2_5_omni_thinker": {},
        }.items()
    },
    "llava_next": {
        "image_processor_type": "LlavaNextImageProcessor",
        "size": {"shortest_edge": 32},
        "crop_size": {"height": 32, "width": 32},
        "image_grid_pinpoints": _TILES,
    },
    "llava_onevision": {
        "image_processor_type": "LlavaOnevisionImageProcessor",
        "size": {"height": 32, "width": 32},
        "image_grid_pinpoints": _TILES,
    },
    "mllama": {
        "image_processor_type": "MllamaImageProcessor",
        "size": {"height": 32, "width": 32},
        "max_image_tiles": 4,
    },
    "embedding_gemma2": {"image_processor_type": "Gemma4ImageProcessor", "patch_size": 4, "max_soft_tokens": 70},
}
"""Settings of their image processors: pictures of a few tokens."""


def tiny_vlm(
    folder: Path,
    kind: str = "qwen3_vl",
    seed: int = 0,
    tokenizer: PreTrainedTokenizerFast | None = None,
    **changed: Any,
) -> PreTrainedModel:
    """A tiny random vision-language model, written with tokenizer and image processor as transformers writes them;
    `changed` goes over its configuration.

    Raises:
        UnknownName: a kind that is not in `VLMS`.
    """
    check_known("tiny vision-language model", kind, VLMS)
    tokenizer = tokenizer or byte_tokenizer(eos=False, special=VLM_TOKENS[kind])
    number = tokenizer.get_vocab()
    marks = {key: number[token] for key, token in VLM_MARKS[kind].items()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModel.from_config(AutoConfig.for_model(kind, **{**VLMS[kind], **marks, **changed}))
        sharpen(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(IMAGE_PROCESSORS[kind]))
    return model.eval()


def tiny_backbone(kind: str = "qwen3", seed: int = 0, **changed: Any) -> PreTrainedModel:
    """A tiny random backbone. Norm weights lie away from 1 and attention is sharp: with the usual small initialisation a
    mistake of mask, norm or position would move vectors by less than rounding does.

    Raises:
        UnknownName: a kind that is not in `BACKBONES`.
    """
    check_known("tiny backbone", kind, BACKBONES)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModel.from_config(AutoConfig.for_model(kind, **{**BACKBONES[kind], **changed}))
        sharpen(model)
    return model.eval()


def sharpen(model: nn.Module) -> None:
    """Draw norm weights and gates, which start shut, from 0.5 to 1.5, and scale the query and key projections by 8; less those of
    a wide tower without norms of its queries, in which 24 layers would make a percent of a rounding."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ("norm" in name.lower() and name.endswith("weight")) or weight.numel() == 1:
                weight.uniform_(0.5, 1.5)
            elif any(part in name for part in ("q_proj.weight", "k_proj.weight", "query.weight", "key.weight")):
                weight.mul_(8)
            elif "qkv.weight" in name:
                weight[: 2 * len(weight) // 3].mul_(8 * min(1.0, 384 / weight.shape[1]))


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
