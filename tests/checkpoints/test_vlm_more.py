"""Vision-language checkpoints beyond Qwen-VL, as tiny random folders of their names, held to their authors' formulas over
the models and processors of transformers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import torch.nn.functional as F
from PIL import Image as Pillow
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoTokenizer,
    EmbeddingGemma2Processor,
    EmbeddingGemma2VideoProcessor,
    Gemma4AudioFeatureExtractor,
    LlavaNextProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    MllamaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLProcessor,
    Qwen2_5OmniProcessor,
    Qwen2_5OmniThinkerForConditionalGeneration,
    Qwen2VLImageProcessorPil,
    Qwen2VLVideoProcessor,
    WhisperFeatureExtractor,
)
from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

import mmembed
from mmembed import Embedder, Image
from mmembed.checkpoints import declared
from mmembed.errors import InputError, SpecError
from mmembed.testing import IMAGE_PROCESSORS, VLM_MARKS, VLM_TOKENS, VLMS, byte_tokenizer, sharpen

from ..conftest import picture
from ..parity import Held
from .test_vlm import smart

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


WHOLE: Mapping[str, Any] = {
    "embedding_gemma2": AutoModel,
    "qwen2_5_omni_thinker": Qwen2_5OmniThinkerForConditionalGeneration,
}
"""What an architecture's own class is, where it is none of the ordinary ones."""
SOUND: Mapping[str, Any] = {
    "model_type": "gemma4_audio",
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "subsampling_conv_channels": [4, 4],
    "output_proj_dims": 32,
}


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
        make = WHOLE.get(kind, AutoModelForImageTextToText)
        model = make.from_config(config) if hasattr(make, "from_config") else make(config)
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
        assert (np.abs(ours[:, None] - ours[None]).max(-1) + np.eye(len(ours))).min() > 3e-4


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


# LLaVA-OneVision


def onevision(folder: Path) -> LlavaOnevisionProcessor:
    settings = {k: v for k, v in IMAGE_PROCESSORS["llava_onevision"].items() if k != "image_processor_type"}
    return LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessorPil(**settings),
        AutoTokenizer.from_pretrained(folder, padding_side="left"),
        LlavaOnevisionVideoProcessor(),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_2",
    )


def onevision_chat(words: str, *, image: bool) -> str:
    return f"<|im_start|>user {'<image>' * image}\n{words}<|im_end|><|im_start|>assistant\n"


def last_of_one(model: PreTrainedModel, processor: Any, asks: Sequence[Ask]) -> torch.Tensor:
    """Each alone: the processor of transformers takes the images of many texts for those of the first."""
    return torch.cat([last(model, processor, [ask]) for ask in asks])


ONEVISION: Mapping[str, Sequence[Side]] = {
    "DeepGlint-AI/UniME-LLaVA-OneVision-7B": [
        texts(lambda words: onevision_chat(f"{words}\nSummary above sentence in one word:\n", image=False)),
        images(lambda _: onevision_chat("Summary above image in one word:\n", image=True)),
    ],
    "TianchengGu/UniME-V2-LLaVA-OneVision-8B": [
        texts(lambda words: onevision_chat(words.strip(), image=False)),
        images(lambda _: onevision_chat("Find an image caption describing the given image.", image=True)),
        pairs(
            lambda words: onevision_chat(
                f"Represent the given image with the following question: {words}".strip(), image=True
            ),
            prompt_name="query",
        ),
    ],
}


@pytest.mark.parametrize("repository", ONEVISION)
def test_llava_onevision(tmp_path, held, repository):
    folder = tmp_path / repository.rpartition("/")[2]
    model = released(folder, "llava_onevision")
    processor = onevision(folder)
    embedder = mmembed.load(folder, device="cpu")
    first = (lambda image: image.resize((1344, 1344))) if "V2" in repository else same
    holds(held, embedder, ONEVISION[repository], lambda asks: last_of_one(model, processor, asks), first)


# Mllama


def mllama(folder: Path) -> MllamaProcessor:
    settings = {k: v for k, v in IMAGE_PROCESSORS["mllama"].items() if k != "image_processor_type"}
    return MllamaProcessor(
        MllamaImageProcessorPil(**settings), AutoTokenizer.from_pretrained(folder, padding_side="right")
    )


def llama_words(folder: Path) -> None:
    """A tokenizer that opens every text with <|begin_of_text|>, as that of Llama 3 does."""
    core = byte_tokenizer(eos=False, special=VLM_TOKENS["mllama"])._tokenizer
    bos = "<|begin_of_text|>"
    core.post_processor = TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, core.token_to_id(bos))])
    tokens = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", bos_token=bos)
    tokens.save_pretrained(folder)


def last_of_mask(model: PreTrainedModel, processor: Any, asks: Sequence[Ask]) -> torch.Tensor:
    """`last_pooling` of mmE5's demo: right padding, the last token that the mask counts."""
    told = {"images": [own for _, own in asks]} if asks[0][1] else {}
    inputs = processor(text=[text for text, _ in asks], return_tensors="pt", padding=True, **told)
    assert (inputs["input_ids"] == 258 + 1 + 1).sum(1).tolist() == [2] * len(asks), "two <|begin_of_text|> in each"
    with torch.no_grad():
        states = model(**inputs, output_hidden_states=True).hidden_states[-1]
    ends = inputs["attention_mask"].sum(1) - 1
    return F.normalize(states[torch.arange(len(asks)), ends], dim=-1)


MME5 = [
    texts(lambda words: words),
    texts(
        lambda words: f"Find me an everyday image that matches the given caption: {words}\n",
        prompt_name="image_search",
    ),
    images(lambda _: "<|image|><|begin_of_text|>Represent the given image.\n"),
    pairs(
        lambda words: f"<|image|><|begin_of_text|>Represent the given image with the following question: {words}\n",
        prompt_name="query",
    ),
]


def test_mllama(tmp_path, held):
    folder = tmp_path / "mmE5-mllama-11b-instruct"
    model = released(folder, "mllama")
    llama_words(folder)
    processor = mllama(folder)
    (folder / "modules.json").write_text(
        json.dumps([{"idx": 0, "name": "transformer", "path": "", "type": "custom_st.MultiModalTransformer"}])
    )
    embedder = mmembed.load(folder, device="cpu")
    holds(held, embedder, MME5, lambda asks: last_of_mask(model, processor, asks))
    mixed = [*TEXTS, *PICTURES, *PAIRS, (PICTURES[0], PICTURES[1], "both")]
    embedder = embedder.respecified(prompts={"p": {"any": "<|begin_of_text|>{content}"}}, default_prompt_name="p")
    alone = np.concatenate([embedder.encode([item]) for item in mixed])
    assert np.abs(embedder.encode(mixed) - alone).max() <= 1e-5


# Qwen2.5-Omni


def omni(folder: Path) -> Qwen2_5OmniProcessor:
    names = {"image": "IMAGE", "video": "VIDEO", "audio": "AUDIO"}
    tokens = {f"{name}_token": f"<|{written}|>" for name, written in names.items()}
    tokens |= {f"{tower}_{end}_token": f"<|{tower}_{end}|>" for tower in ("vision", "audio") for end in ("bos", "eos")}
    settings = {k: v for k, v in IMAGE_PROCESSORS["qwen2_5_omni_thinker"].items() if k != "image_processor_type"}
    return Qwen2_5OmniProcessor(
        Qwen2VLImageProcessorPil(**settings),
        Qwen2VLVideoProcessor(),
        WhisperFeatureExtractor(),
        AutoTokenizer.from_pretrained(folder, padding_side="left", extra_special_tokens=tokens),
    )


def omni_chat(user: str, close: str = "") -> str:
    """The chat template of Qwen2.5-Omni, with the words that it says where no system speaks."""
    return (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n{close}"
    )


SEEN = "<|vision_bos|><|IMAGE|><|vision_eos|>"
OMNI: Mapping[str, Sequence[Side]] = {
    **{
        f"Haon-Chen/e5-omni-{size}": [
            texts(lambda words: omni_chat(f"Query: {words}", "<|endoftext|>"), prompt_name="query"),
            texts(lambda words: omni_chat(words, "<|endoftext|>")),
            images(lambda _: omni_chat(SEEN, "<|endoftext|>")),
            pairs(lambda words: omni_chat(SEEN + words, "<|endoftext|>")),
        ]
        for size in ("3B", "7B")
    },
    **{
        f"LCO-Embedding/LCO-Embedding-Omni-{size}": [
            texts(lambda words: omni_chat(f"{words}\nSummarize the above text in one word:")),
            images(lambda _: omni_chat(f"{SEEN}\nSummarize the above image in one word:")),
            pairs(lambda words: omni_chat(f"{words}{SEEN}\nSummarize the above in one word:")),
        ]
        for size in ("3B", "3B-2605", "7B")
    },
}


@pytest.mark.parametrize("repository", OMNI)
def test_omni_thinkers(tmp_path, held, repository):
    folder = tmp_path / repository.rpartition("/")[2]
    model = released(folder, "qwen2_5_omni_thinker")
    processor = omni(folder)
    embedder = mmembed.load(folder, device="cpu")
    first = lambda image: smart(image, 28, 4 * 28 * 28, 16384 * 28 * 28)  # noqa: E731
    holds(held, embedder, OMNI[repository], lambda asks: last(model, processor, asks), first)


# EmbeddingGemma 2


def gemma(folder: Path) -> EmbeddingGemma2Processor:
    tokens = {f"{name}_token": f"<|{name}|>" for name in ("image", "audio")}
    tokens |= {"boi_token": "<|image>", "eoi_token": "<image|>", "boa_token": "<|audio>", "eoa_token": "<audio|>"}
    settings = {k: v for k, v in IMAGE_PROCESSORS["embedding_gemma2"].items() if k != "image_processor_type"}
    return EmbeddingGemma2Processor(
        Gemma4AudioFeatureExtractor(),
        Gemma4ImageProcessorPil(**settings),
        AutoTokenizer.from_pretrained(folder, padding_side="right", extra_special_tokens=tokens),
        EmbeddingGemma2VideoProcessor(),
    )


def mean_of_all(model: PreTrainedModel, processor: Any, asks: Sequence[Ask]) -> torch.Tensor:
    """The mean over every token that the mask counts, prompt and special tokens too, as its sentence-transformers folder."""
    told = {"images": [own for _, own in asks]} if asks[0][1] else {}
    inputs = processor(text=[f"<bos>{text}<eos>" for text, _ in asks], return_tensors="pt", padding=True, **told)
    inputs.pop("num_soft_tokens_per_image", None)
    with torch.no_grad():
        states = model(**inputs).last_hidden_state
    counted = inputs["attention_mask"][..., None]
    return F.normalize((states * counted).sum(1) / counted.sum(1), dim=-1)


def of_each_kind(before: str, **options: Any) -> list[Side]:
    return [
        texts(lambda words: before + words, **options),
        images(lambda _: f"{before}<|image|>", **options),
        pairs(lambda words: f"{before}<|image|>{words}", **options),
    ]


def test_embeddinggemma_2(tmp_path, held):
    folder = tmp_path / "embeddinggemma-2"
    model = released(folder, "embedding_gemma2", audio_config=SOUND)
    processor = gemma(folder)
    embedder = mmembed.load(folder, device="cpu")
    assert embedder.model.backbone.audio_tower is None
    sides = [
        *of_each_kind(""),
        *of_each_kind("task: search result | query: ", prompt_name="query"),
        *of_each_kind("title: none | text: ", prompt_name="document"),
    ]
    holds(held, embedder, sides, lambda asks: mean_of_all(model, processor, asks))
    with pytest.raises(SpecError, match="overflows in fp16; use precision='bf16'"):
        mmembed.load(folder, device="cpu", precision="fp16")


# Qwen2.5-VL with an adapter


NOMIC = [
    texts(lambda words: f"Query: {words}<|endoftext|>", prompt_name="query_of_the_first_engine"),
    texts(lambda words: words + "<|endoftext|>" * 10, prompt_name="query"),
    images(
        lambda _: (
            "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Describe the image.<|im_end|><|endoftext|>"
        ),
        prompt_name="document",
    ),
]


@pytest.mark.parametrize("size", ["3b", "7b"])
def test_nomic_multimodal(tmp_path, held, size):
    """The adapter is peft's own; the image processor is the adapter's, of other means than its base has."""
    base, folder = tmp_path / "Qwen2.5-VL-3B-Instruct", tmp_path / f"nomic-embed-multimodal-{size}"
    whole = released(base, "qwen2_5_vl")
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=r".*language_model.*(q_proj|o_proj|up_proj)")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        tuned = peft.get_peft_model(whole, config)
        for name, weight in tuned.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.3)
    tuned.save_pretrained(folder)
    settings = json.loads((folder / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = "Qwen/Qwen2.5-VL-3B-Instruct"
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    own = {**IMAGE_PROCESSORS["qwen2_5_vl"], "image_mean": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(own))
    processor = Qwen2_5_VLProcessor(
        Qwen2VLImageProcessorPil(size={"shortest_edge": 3136, "longest_edge": 602112}, image_mean=own["image_mean"]),
        AutoTokenizer.from_pretrained(base, padding_side="left"),
        Qwen2VLVideoProcessor(),
    )
    embedder = mmembed.load(folder, device="cpu")
    holds(held, embedder, NOMIC, lambda asks: last(tuned, processor, asks))


def test_every_declared_checkpoint_of_these_families_is_held():
    here = {
        *LLAVA,
        *ONEVISION,
        *OMNI,
        *(f"nomic-ai/nomic-embed-multimodal-{size}" for size in ("3b", "7b")),
        "google/embeddinggemma-2",
        "intfloat/mmE5-mllama-11b-instruct",
    }
    families = {declared()[name].family for name in here}
    assert {name for name, checkpoint in declared().items() if checkpoint.family in families} == here
