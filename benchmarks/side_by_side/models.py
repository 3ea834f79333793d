"""The models: shapes of Qwen3, Qwen3-VL and BERT with random weights, written once as the folders that all systems load."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .texts import INSTRUCTION, tokenizer

QUERY = f"Instruct: {INSTRUCTION}\nQuery:"
"""What Qwen3-Embedding puts before a query."""
TEMPLATE = """{% for message in messages %}<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}\
{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}\
{% endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
"""The chat of Qwen3-VL, as far as texts and pictures go."""


@dataclass(frozen=True)
class Shape:
    """A model by name.

    Attributes:
        sizes: of the configuration of transformers' Qwen3 or BERT, or of the text part of its Qwen3-VL. sight: of the vision
            part; none for a model of texts. pixels: the fewest and the most of a picture.
        said: how a table names it. encodes: whether it is a BERT, read both ways, the mean of all tokens pooled.
    """

    name: str
    said: str
    sizes: dict[str, int]
    sight: dict[str, Any] = field(default_factory=dict)
    pixels: tuple[int, int] = (64 * 64, 1024 * 1024)
    encodes: bool = False

    @property
    def numbers(self) -> str:
        """Of which its weights are, written in fp32: of bf16, as those of released decoders, or of fp32, as BERT's."""
        return "fp32" if self.encodes else "bf16"


def _bert(width: int, inner: int, layers: int, heads: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }


def _sizes(width: int, inner: int, layers: int, heads: int, key_heads: int, head: int) -> dict[str, int]:
    return {**_bert(width, inner, layers, heads), "num_key_value_heads": key_heads, "head_dim": head}


def _sight(depth: int, width: int, inner: int, heads: int, out: int) -> dict[str, Any]:
    deep = list(range(depth))[-3:] if depth < 9 else [depth // 4, depth // 2, 3 * depth // 4]
    return {
        "depth": depth,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_heads": heads,
        "out_hidden_size": out,
        "deepstack_visual_indexes": deep,
        "num_position_embeddings": 2304,
    }


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("tiny", "Qwen3 of 2 layers", _sizes(64, 128, 2, 4, 2, 16)),
        Shape("tiny-vl", "Qwen3-VL of 2+2 layers", _sizes(64, 128, 2, 4, 2, 16), _sight(2, 32, 64, 2, 64)),
        Shape("tiny-encoder", "BERT of 2 layers", _bert(64, 128, 2, 4), encodes=True),
        Shape("small", "Qwen3 of 8 layers, 41 M", _sizes(512, 1536, 8, 8, 4, 64)),
        Shape("small-vl", "Qwen3-VL of 4+4 layers, 39 M", _sizes(512, 1536, 4, 8, 4, 64), _sight(4, 384, 1536, 6, 512)),
        Shape("0.6b", "Qwen3-0.6B", _sizes(1024, 3072, 28, 16, 8, 128)),
        Shape("1.7b", "Qwen3-1.7B", _sizes(2048, 6144, 28, 16, 8, 128)),
        Shape("2b-vl", "Qwen3-VL-2B", _sizes(2048, 6144, 28, 16, 8, 128), _sight(24, 1024, 4096, 16, 2048)),
        Shape("encoder", "BERT of 6 layers, 23 M", _bert(384, 1536, 6, 12), encodes=True),
    )
}
"""Of the released ones (the encoder's is all-MiniLM-L6's) all but the vocabulary, which is the benchmark's own: the words of a
model take no time."""


def folder_of(name: str, shelf: Path) -> Path:
    """The folder of a model, written under `shelf` if it is not there: a folder of sentence-transformers that `mmembed.load`
    opens as well. Of decoders the last token is pooled, and prompts are those of Qwen3-Embedding."""
    shape = SHAPES[name]
    folder = shelf / f"{name}-{_mark(shape)}"
    done = folder / "written"
    if not done.exists():
        folder.mkdir(parents=True, exist_ok=True)
        (_write_seeing if shape.sight else _write)(shape, folder)
        done.touch()
    return folder


def _mark(shape: Shape) -> str:
    import hashlib

    return hashlib.sha256(repr((shape, shape.numbers, QUERY, TEMPLATE)).encode()).hexdigest()[:8]


def _random(kind: str, settings: dict[str, Any], numbers: str) -> Any:
    """Random weights under which a mistake would show: norms away from 1, attention that is not flat (see mmembed.testing)."""
    import torch
    from transformers import AutoConfig, AutoModel

    from mmembed.testing import sharpen

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModel.from_config(AutoConfig.for_model(kind, **settings), dtype=torch.float32)
        sharpen(model)
    if numbers == "bf16":
        with torch.no_grad():
            for weight in model.parameters():
                weight.copy_(weight.bfloat16())
    return model.eval()


def _write(shape: Shape, folder: Path) -> None:
    import mmembed

    words = tokenizer(close=True)
    ids = {f"{end}_token_id": words.eos_token_id for end in ("pad", "bos", "eos")}
    longest = 512 if shape.encodes else 8192
    limits = {"vocab_size": len(words), "max_position_embeddings": longest, "tie_word_embeddings": True}
    before = "" if shape.encodes else QUERY
    mmembed.compose(
        backbone=_random("bert" if shape.encodes else "qwen3", {**shape.sizes, **limits, **ids}, shape.numbers),
        tokenizer=words,
        pooling="mean" if shape.encodes else "last",
        prompts={"query": {"text": before + "{text}"}, "document": {"text": "{text}"}},
        max_length=longest,
        name=shape.name,
        device="cpu",
    ).save_sentence_transformers(folder)


def _write_seeing(shape: Shape, folder: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Normalize, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling
    from transformers import Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

    words = tokenizer(close=False)
    number = words.get_vocab()
    marks = {
        "image_token_id": number["<|image_pad|>"],
        "video_token_id": number["<|video_pad|>"],
        "vision_start_token_id": number["<|vision_start|>"],
        "vision_end_token_id": number["<|vision_end|>"],
    }
    third = shape.sizes["head_dim"] // 2
    sections = [third - 2 * (third // 3), third // 3, third // 3]
    rope = {"rope_type": "default", "rope_theta": 5_000_000.0, "mrope_section": sections, "mrope_interleaved": True}
    reads = {**shape.sizes, "vocab_size": len(words), "max_position_embeddings": 8192, "rope_parameters": rope}
    _random("qwen3_vl", {"text_config": reads, "vision_config": shape.sight, **marks}, shape.numbers).save_pretrained(
        folder
    )
    size = dict(zip(("shortest_edge", "longest_edge"), shape.pixels, strict=True))
    half = [0.5] * 3
    images = Qwen2VLImageProcessor(patch_size=16, image_mean=half, image_std=half, size=size)
    Qwen3VLProcessor(images, words, Qwen3VLVideoProcessor(), chat_template=TEMPLATE).save_pretrained(folder)
    body = Transformer(str(folder), processing_kwargs={"chat_template": {"add_generation_prompt": True}})
    modules = [body, Pooling(shape.sizes["hidden_size"], pooling_mode="lasttoken"), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(folder))
    # one word of the image processor, which every reader knows, for the newer file that holds it with the rest
    (folder / "preprocessor_config.json").write_text(json.dumps(images.to_dict()))
