"""Vision-language checkpoints beyond Qwen-VL, as tiny random folders of their names, held to their authors' formulas over
the models and processors of transformers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image as Pillow
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoTokenizer,
    LlavaNextProcessor,
    PreTrainedModel,
)
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

import mmembed
from mmembed import Embedder, Image
from mmembed.checkpoints import declared
from mmembed.errors import InputError
from mmembed.testing import IMAGE_PROCESSORS, VLM_MARKS, VLM_TOKENS, VLMS, byte_tokenizer, sharpen

from ..conftest import picture
from ..parity import Held

TEXTS = ["red", "eine Katze schläft auf dem warmen Sofa", "写真 {one}", "x" * 70]
PICTURES = [picture(1, 60, 60), picture(2, 40, 150), picture(3, 130, 47), picture(4, 20, 30), picture(5, 33, 71)]
PAIRS = list(zip(PICTURES, ["what is this?", "make it blue", "写真", "with a dog", "x" * 30], strict=True))
TASK = "Find what the picture shows: "

Ask = tuple[str, Sequence[Pillow.Image]]
"""What the reference's processor is given: a text with the marks of its images, and the images."""


@dataclass(frozen=True)
class Side:
    """One prompt on items of one modality: what our `encode` is given, and what the authors write around each item."""

    what: str
    items: Sequence[Any]
    write: Callable[[str], str]
    options: Mapping[str, Any] = field(default_factory=dict)

    def asks(self, first: Callable[[Pillow.Image], Pillow.Image]) -> list[Ask]:
        asks = []
        for item in self.items:
            parts = item if isinstance(item, tuple) else (item,)
            words = "".join(part for part in parts if isinstance(part, str))
            asks.append((self.write(words), [first(plain(part)) for part in parts if isinstance(part, Image)]))
        return asks


def plain(image: Image) -> Pillow.Image:
    return Pillow.fromarray(image.load())


def same(image: Pillow.Image) -> Pillow.Image:
    return image


def texts(write: Callable[[str], str], **options: Any) -> Side:
    return Side("text", TEXTS, write, options)


def images(write: Callable[[str], str], **options: Any) -> Side:
    return Side("image", PICTURES, write, options)


def pairs(write: Callable[[str], str], **options: Any) -> Side:
    return Side("image+text", PAIRS, write, options)


def released(
    folder: Path, kind: str, *, bos: bool = False, special: Sequence[str] = (), **changed: Any
) -> PreTrainedModel:
    """A checkpoint of the architecture, head and all, with random weights, as transformers saves it."""
    tokenizer = byte_tokenizer(bos=bos, eos=False, special=(*VLM_TOKENS[kind], *special))
    number = tokenizer.get_vocab()
    marks = {key: number[token] for key, token in VLM_MARKS[kind].items()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = AutoConfig.for_model(kind, **{**VLMS[kind], **marks, **changed})
        model = AutoModelForImageTextToText.from_config(config)
        sharpen(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(IMAGE_PROCESSORS[kind]))
    return model.eval()


def last(model: PreTrainedModel, processor: Any, asks: Sequence[Ask]) -> torch.Tensor:
    """Left padding, the last state of the last layer, unit length: as E5-V, UniME, BGE-VL, LCO and e5-omni write it."""
    told = {"images": [image for _, own in asks for image in own]} if asks[0][1] else {}
    inputs = processor(text=[text for text, _ in asks], return_tensors="pt", padding=True, **told)
    with torch.no_grad():
        return F.normalize(model(**inputs, output_hidden_states=True).hidden_states[-1][:, -1], dim=-1)


def holds(
    held: Held,
    embedder: Embedder,
    sides: Sequence[Side],
    reference: Callable[[Sequence[Ask]], torch.Tensor],
    first: Callable[[Pillow.Image], Pillow.Image] = same,
) -> None:
    """Our vectors are the reference's, one item at a time and all of them in one batch."""
    repository = embedder.spec.name
    said = {"against": "the authors' formula over transformers", "kind": "checkpoint"}
    for side in sides:
        asks = side.asks(first)
        for due in (reference(asks), torch.cat([reference([ask]) for ask in asks])):
            ours = embedder.encode(side.items, **side.options)
            held(repository, ours, due, family=declared()[repository].family, what=side.what, **said)
        alone = np.concatenate([embedder.encode([item], **side.options) for item in side.items])
        assert np.abs(ours - alone).max() <= 1e-5
        assert (np.abs(ours[:, None] - ours[None]).max(-1) + np.eye(len(ours))).min() > 1e-3


# LLaVA-NeXT


def llava_next(folder: Path) -> LlavaNextProcessor:
    """With what the processor files of 2024 leave out, and readers have to set by hand."""
    settings = {k: v for k, v in IMAGE_PROCESSORS["llava_next"].items() if k != "image_processor_type"}
    return LlavaNextProcessor(
        LlavaNextImageProcessorPil(**settings),
        AutoTokenizer.from_pretrained(folder, padding_side="left"),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def llama3(words: str) -> str:
    return (
        f"<|start_header_id|>user<|end_header_id|>\n\n{words}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n \n"
    )


def bge(words: str, image: bool, instruction: str | None) -> str:
    """`prepare_text_input` of its repository, the query's and, without an instruction, the candidate's."""
    written = "[INST] " if instruction is None else f"[INST] \n <instruct> {instruction} <query> "
    if words:
        written = f"{written} {words} \n"
    if image:
        written = f"{written} <image>"
    return f"{written} [/INST]"


LLAMA = {"text_config": {**VLMS["llava_next"]["text_config"], "model_type": "llama"}}
MISTRAL = {"text_config": {**VLMS["llava_next"]["text_config"], "model_type": "mistral", "sliding_window": None}}
LLAVA: Mapping[str, tuple[Mapping[str, Any], Sequence[Side]]] = {
    "royokong/e5-v": (
        LLAMA,
        [
            texts(lambda words: llama3(f"{words}\nSummary above sentence in one word: ")),
            images(lambda _: llama3("<image>\nSummary above image in one word: ")),
            images(lambda _: llama3("<image>\n Describe this image in one word:"), prompt_name="composed"),
            pairs(
                lambda words: llama3(f'<image>Modify this image with "{words}", desribe modified image in one word:'),
                prompt_name="composed",
            ),
            images(
                lambda _: llama3("<image>\n Describe this shirt in one word based on its style:"),
                prompt_name="fashion",
                instruction="shirt",
            ),
            pairs(
                lambda words: llama3(
                    f"<image> change the style of this shirt to {words}\n Desribe this modified shirt in one word "
                    "based on its style:"
                ),
                prompt_name="fashion",
                instruction="shirt",
            ),
        ],
    ),
    "DeepGlint-AI/UniME-LLaVA-1.6-7B": (
        MISTRAL,
        [
            texts(lambda words: f"[INST] {words}\nSummary above sentence in one word: [/INST]"),
            images(lambda _: "[INST] <image>\nSummary above image in one word: [/INST]"),
        ],
    ),
    **{
        f"BAAI/BGE-VL-{name}": (
            MISTRAL,
            [
                texts(lambda words: bge(words, False, None)),
                images(lambda words: bge("", True, None)),
                pairs(lambda words: bge(words, True, None)),
                texts(lambda words: bge(words, False, TASK), prompt_name="query", instruction=TASK),
                images(lambda words: bge("", True, TASK), prompt_name="query", instruction=TASK),
                pairs(lambda words: bge(words, True, TASK), prompt_name="query", instruction=TASK),
                pairs(
                    lambda words: f"[INST] \n <instruct>  <query> {words} \n <image> [/INST]",
                    prompt_name="query_without_instruction",
                ),
            ],
        )
        for name in ("MLLM-S1", "MLLM-S2", "v1.5-zs", "v1.5-mmeb")
    },
    "TIGER-Lab/VLM2Vec-LLaVa-Next": (
        MISTRAL,
        [
            texts(lambda words: words),
            images(lambda _: "<image> Represent the given image."),
            pairs(
                lambda words: f"<image> Represent the given image with the following question: {words}",
                prompt_name="query",
            ),
        ],
    ),
}


@pytest.mark.parametrize("repository", LLAVA)
def test_llava_next(tmp_path, held, repository):
    folder = tmp_path / repository.rpartition("/")[2]
    config, sides = LLAVA[repository]
    model = released(folder, "llava_next", bos=True, **config)
    processor = llava_next(folder)
    first = (lambda image: image.resize((512, 512))) if repository.startswith("BAAI") else same
    holds(held, mmembed.load(folder, device="cpu"), sides, lambda asks: last(model, processor, asks), first)


def test_keys_of_2024_and_of_today_are_read(tmp_path):
    """transformers writes LLaVA-NeXT as in 2024, `language_model.model.*` and so on; since 4.52 its modules lie otherwise."""
    old, new = tmp_path / "old" / "e5-v", tmp_path / "new" / "e5-v"
    for folder in (old, new):
        released(folder, "llava_next", bos=True, **LLAMA)
    kept = load_file(old / "model.safetensors")
    assert "language_model.model.layers.0.self_attn.q_proj.weight" in kept
    moved = {
        "lm_head.weight"
        if key == "language_model.lm_head.weight"
        else "model." + key.replace("language_model.model.", "language_model."): tensor
        for key, tensor in kept.items()
    }
    save_file(moved, new / "model.safetensors", metadata={"format": "pt"})
    ways = [mmembed.load(folder, device="cpu").encode([*TEXTS, *PICTURES[:2]]) for folder in (old, new)]
    assert np.array_equal(*ways)


def test_what_the_authors_say_nothing_of_is_an_error(tmp_path):
    folder = tmp_path / "e5-v"
    released(folder, "llava_next", bos=True, **LLAMA)
    embedder = mmembed.load(folder, device="cpu")
    with pytest.raises(InputError, match="'one_word' has no template for image\\+text items"):
        embedder.encode([PAIRS[0]])
