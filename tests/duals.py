"""Tiny random dual encoders with real tokenizers and image processors, written as their releases are laid out."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import open_clip
import PIL.Image
import sentencepiece
import torch
from tokenizers import pre_tokenizers
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTokenizer,
    GemmaTokenizer,
    MetaClip2Config,
    MetaClip2Model,
    PreTrainedModel,
    Siglip2Config,
    Siglip2ImageProcessorPil,
    Siglip2Model,
    Siglip2Tokenizer,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    Tipsv2Config,
    Tipsv2ImageProcessor,
    Tipsv2Model,
    Tipsv2Tokenizer,
)

from mmembed import Image
from mmembed.testing import byte_tokenizer, sharpen

LENGTH = 20
TEXTS = [
    "Red CAT",
    "a photo, of a much longer thing; than the model reads at all, and then a little more of it!",
    "Rédé_été  schläft",
    "写真",
    "",
]
WIDE: dict[str, Any] = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
SQUARE = {"height": 32, "width": 32}


def shaken(model: nn.Module, seed: int = 0) -> Any:
    """Norms away from 1, sharp attention, and biases that are not zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.copy_(0.2 * torch.randn(weight.shape, generator=generator))
            elif "in_proj_weight" in name:
                weight[: 2 * len(weight) // 3].mul_(8)
            elif weight.ndim > 1 and weight.std() < 0.05:
                weight.mul_(3)
    torch.manual_seed(seed)
    sharpen(model)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            # SigLIP is drawn ten times as wide as CLIP: eight times that, and fp32 itself is 2e-5 off fp64.
            if any(part in name for part in ("q_proj.weight", "k_proj.weight")) and weight.std() > 0.5:
                weight.mul_(0.5 / weight.std())
    return model.eval()


def clip_tokenizer() -> CLIPTokenizer:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("r", "e"), ("re", "d</w>"), ("c", "a")]
    pieces = [*letters, *(letter + "</w>" for letter in letters), *(a + b for a, b in merges)]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={piece: k for k, piece in enumerate(pieces)}, merges=merges, model_max_length=LENGTH)


class SiglipWords:
    """SigLIP's tokenizer of transformers, which cannot be made without protobuf, written out: small letters, no punctuation,
    single spaces; the pieces of sentencepiece, an end, the end again up to the full length; no mask."""

    def __init__(self, path: Path):
        path.mkdir(parents=True, exist_ok=True)
        lines = [*TEXTS[:4], "red cat", "写真 写 真", "hello world", "a photo"] * 8
        (path / "words.txt").write_text("\n".join(lines).lower(), encoding="utf-8")
        sentencepiece.SentencePieceTrainer.train(
            input=str(path / "words.txt"),
            model_prefix=str(path / "spiece"),
            vocab_size=70,
            hard_vocab_limit=False,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            num_threads=1,
            minloglevel=2,
        )
        self.pieces = sentencepiece.SentencePieceProcessor(model_file=str(path / "spiece.model"))

    def __len__(self) -> int:
        return self.pieces.get_piece_size()

    def __call__(self, text: Sequence[str], **options: Any) -> dict[str, torch.Tensor]:
        rows = []
        for one in text:
            kept = "".join(letter for letter in one.lower() if letter not in string.punctuation)
            ids = [*self.pieces.encode(re.sub(r"\s+", " ", kept).strip())[: LENGTH - 1], 1]
            rows.append(ids + [1] * (LENGTH - len(ids)))
        return {"input_ids": torch.tensor(rows)}

    def save_pretrained(self, path: Path) -> None:
        said = {"tokenizer_class": "SiglipTokenizer", "model_max_length": LENGTH, "model_input_names": ["input_ids"]}
        (path / "tokenizer_config.json").write_text(json.dumps(said))


def gemma_pieces() -> dict[str, int]:
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{k:02X}>" for k in range(256)), "▁"]
    pieces += [chr(k) for k in range(33, 127)]
    return {piece: k for k, piece in enumerate(pieces)}


def gemma_tokenizer(kind: type = GemmaTokenizer) -> Any:
    """Gemma's, as SigLIP 2 was published with it: an end, no beginning, capitals kept (unless it is Siglip2Tokenizer)."""
    words = kind(
        vocab=gemma_pieces(),
        merges=[],
        add_bos_token=False,
        add_eos_token=True,
        padding_side="right",
        model_input_names=["input_ids"],
        model_max_length=LENGTH,
    )
    from tokenizers.processors import TemplateProcessing

    words._tokenizer.post_processor = TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", words.convert_tokens_to_ids("<eos>"))]
    )
    return words


def transformers_dual(kind: str, path: Path) -> tuple[PreTrainedModel, Any, Any]:
    """A folder of transformers of one kind; returns its model, tokenizer and image processor.

    The kinds: clip (with the end-of-text number that OpenAI's configurations wrongly give), clip-eos, metaclip_2, siglip,
    siglip2 (of fixed size), naflex, tipsv2.
    """
    text = {**WIDE, "max_position_embeddings": LENGTH}
    vision = {**WIDE, "image_size": 32, "patch_size": 8}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        processor: Any = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=SQUARE)
        words: Any
        model: Any
        if kind in ("clip", "clip-eos"):
            words = clip_tokenizer()
            ends = {"eos_token_id": words.eos_token_id if kind == "clip-eos" else 2, "bos_token_id": words.bos_token_id}
            text |= {"vocab_size": len(words), **ends}
            model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
        elif kind == "metaclip_2":
            words = byte_tokenizer(bos=True)
            words.model_max_length = LENGTH
            text |= {"vocab_size": len(words), "eos_token_id": words.eos_token_id, "bos_token_id": words.bos_token_id}
            model = MetaClip2Model(MetaClip2Config(text_config=text, vision_config=vision, projection_dim=16))
        elif kind in ("siglip", "siglip2"):
            words = SiglipWords(path) if kind == "siglip" else gemma_tokenizer()
            # Fewer pieces than numbers: SigLIP's tokenizers are smaller than their tables of vectors.
            text |= {"vocab_size": len(words) + 3, "projection_size": 24}
            processor = SiglipImageProcessorPil(size=SQUARE, resample=3 if kind == "siglip" else 2)
            model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision))
        elif kind == "naflex":
            words = gemma_tokenizer(Siglip2Tokenizer)
            text |= {"vocab_size": len(words), "projection_size": 24}
            vision = {**WIDE, "patch_size": 8, "num_patches": 16}
            processor = Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16)
            model = Siglip2Model(Siglip2Config(text_config=text, vision_config=vision))
        else:
            words = Tipsv2Tokenizer(vocab=gemma_pieces(), merges=[], model_max_length=LENGTH)
            processor = Tipsv2ImageProcessor(size=SQUARE)
            model = Tipsv2Model(Tipsv2Config(text_config={**text, "vocab_size": len(words)}, vision_config=vision))
        shaken(model)
    model.save_pretrained(path)
    words.save_pretrained(path)
    processor.save_pretrained(path)
    return model, words, processor


OPEN_CLIP: dict[str, dict[str, Any]] = {
    "clip": {
        "embed_dim": 16,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 24, "layers": 2, "head_width": 12},
        "text_cfg": {"context_length": LENGTH, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 2},
    },
    "siglip": {
        "embed_dim": 24,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {
            "image_size": 64,
            "timm_model_name": "resnet10t",
            "timm_model_pretrained": False,
            "timm_pool": "avg",
            "timm_proj": "linear",
        },
        "text_cfg": {
            "context_length": LENGTH,
            "vocab_size": 400,
            "hf_tokenizer_name": "somewhere/else",
            "tokenizer_kwargs": {"clean": "canonicalize"},
            "width": 24,
            "heads": 2,
            "layers": 2,
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
        },
    },
    "coca": {
        "embed_dim": 16,
        "custom_text": True,
        "vision_cfg": {
            "image_size": 32,
            "patch_size": 8,
            "width": 24,
            "layers": 2,
            "head_width": 12,
            "attentional_pool": True,
            "attn_pooler_heads": 2,
            "output_tokens": True,
        },
        "text_cfg": {
            "context_length": LENGTH,
            "vocab_size": 49408,
            "width": 24,
            "heads": 2,
            "layers": 2,
            "embed_cls": True,
            "output_tokens": True,
        },
        "multimodal_cfg": {"context_length": LENGTH, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 2},
    },
}
"""`model_cfg` of open_clip, tiny."""


def open_clip_dual(kind: str, path: Path, preprocess: dict[str, Any] | None = None) -> None:
    """A folder of open_clip of one kind of `OPEN_CLIP`."""
    from safetensors.torch import save_file

    path.mkdir(parents=True, exist_ok=True)
    config = OPEN_CLIP[kind]
    said = {"model_cfg": config, "preprocess_cfg": preprocess or {}}
    (path / "open_clip_config.json").write_text(json.dumps(said))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        settings = json.loads(json.dumps(config))
        custom = settings.pop("custom_text", False)
        made = open_clip.CoCa if kind == "coca" else open_clip.CustomTextCLIP if custom else open_clip.CLIP
        model = shaken(made(**settings))
    save_file({k: v.contiguous().clone() for k, v in model.state_dict().items()}, path / "open_clip_model.safetensors")
    if config["text_cfg"].get("hf_tokenizer_name"):
        gemma_tokenizer().save_pretrained(path)


def unit(rows: torch.Tensor) -> torch.Tensor:
    return nn.functional.normalize(rows, dim=-1)


def text_features(kind: str, model: Any, words: Any, texts: Sequence[str]) -> torch.Tensor:
    """What the model gives for texts that its own tokenizer made numbers of, padded as its authors say."""
    small = [text.lower() for text in texts] if kind == "siglip2" else list(texts)
    # TIPSv2 masks its padding, the CLIPs look only back: for them it is there to be unseen.
    padding = "max_length" if kind in ("siglip", "siglip2", "naflex", "tipsv2") else True
    inputs = words(text=small, padding=padding, truncation=True, max_length=LENGTH, return_tensors="pt")
    with torch.no_grad():
        return model.get_text_features(**inputs).pooler_output


def image_features(kind: str, model: Any, processor: Any, pictures: Sequence[Image]) -> torch.Tensor:
    """What the model gives for pictures through its own image processor over Pillow."""
    shown = [PIL.Image.fromarray(picture.load()) for picture in pictures]
    if kind == "tipsv2":  # its only processor is over torchvision: Pillow's pixels are given to it
        shown = [picture.resize((32, 32), PIL.Image.Resampling.BILINEAR) for picture in shown]
    with torch.no_grad():
        out = model.get_image_features(**processor(images=shown, return_tensors="pt")).pooler_output
    return out.reshape(len(shown), -1)
