"""Declared vision-language checkpoints, as tiny random folders of their names, held to what their authors' code does, written
out over the processors and models of transformers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import (
    AutoModel,
    Qwen2VLImageProcessorPil,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

import mmembed
from mmembed import Image, checkpoints
from mmembed.testing import IMAGE_PROCESSORS, tiny_vlm

SHOWN = "<|vision_start|><|image_pad|><|vision_end|>"
TASK = "Find the picture of the question"
WORDS = "eine Katze, {wach} oder 写真?"
PICTURE = np.random.default_rng(5).integers(0, 256, (230, 410, 3), dtype=np.uint8)
SMALL = np.random.default_rng(6).integers(0, 256, (20, 90, 3), dtype=np.uint8)

TEMPLATE = """{% for message in messages %}{% if loop.first and message.role != 'system' and helpful %}<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif %}<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}<|im_end|>
{% else %}{% for part in message.content %}{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else \
%}{{ part.text }}{% endif %}{% endfor %}<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
"""What the chat templates of Qwen2-VL (`helpful`) and Qwen3-VL say of texts and pictures."""

Parts = Sequence[str | np.ndarray]


def chat(parts: Parts, *, helpful: bool, system: str | None = None, generate: bool = True) -> str:
    """The authors' way: messages through the chat template."""
    content = [{"type": "text", "text": p} if isinstance(p, str) else {"type": "image"} for p in parts]
    messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system is not None else []
    tokenizer = mmembed.testing.byte_tokenizer()
    return tokenizer.apply_chat_template(
        [*messages, {"role": "user", "content": content}],
        chat_template=TEMPLATE,
        tokenize=False,
        add_generation_prompt=generate,
        helpful=helpful,
    )


def smart(picture: PIL.Image.Image, factor: int, low: int, high: int) -> PIL.Image.Image:
    """smart_resize of qwen_vl_utils and resize by Pillow's own default."""
    width, height = picture.size
    h, w = max(factor, round(height / factor) * factor), max(factor, round(width / factor) * factor)
    if h * w > high:
        beta = (height * width / high) ** 0.5
        h, w = int(height / beta // factor) * factor, int(width / beta // factor) * factor
    elif h * w < low:
        beta = (low / (height * width)) ** 0.5
        h, w = -int(-height * beta // factor) * factor, -int(-width * beta // factor) * factor
    return picture.resize((w, h))


def as_is(picture: PIL.Image.Image) -> PIL.Image.Image:
    return picture


def last(states: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return states[-1]


def mean(states: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return states.mean(0)


def mean_of_the_picture(states: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    number = {name: k for k, name in enumerate(mmembed.testing.VLM_TOKENS["qwen2_5_vl"], 259)}
    begin, end = ((ids == number[name]).nonzero() for name in ("<|vision_start|>", "<|vision_end|>"))
    return states.mean(0) if not len(begin) else states[int(begin[0]) : int(end[-1]) + 1].mean(0)


@dataclass(frozen=True, kw_only=True)
class Row:
    """What the authors do.

    Attributes:
        kind: model_type. asks: (side, what) -> text with the tokens of pictures, of (words, instruction).
        first: what they do to a picture. pixels: least and most of the image processor; None: it does not resize.
        blank: the sides whose texts come with a black picture.
    """

    kind: str = "qwen2_vl"
    asks: Mapping[tuple[str, str], Callable[[str, str], str]]
    first: Callable[[PIL.Image.Image], PIL.Image.Image] = as_is
    pixels: tuple[int, int] | None = (3136, 12544)
    pool: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = last
    sequential: bool = False
    both_ways: bool = False
    unnormed: bool = False
    instructed: tuple[str, ...] = ()
    blank: tuple[str, ...] = ()


SIDES, WHAT = ("query", "document"), ("text", "image", "image+text")


def parts_of(what: str, words: str, *, words_first: bool = False) -> Parts:
    parts: list[Any] = [PICTURE] * ("image" in what) + [words] * ("text" in what)
    return parts[::-1] if words_first else parts


def of_both(make: Callable[[str, str], str]) -> dict[tuple[str, str], Callable[[str, str], str]]:
    """The same on both sides; `make` gets what and words."""
    return {(side, what): lambda words, task, what=what: make(what, words) for side in SIDES for what in WHAT}


def qwen3(words: Parts, task: str) -> str:
    return chat(words, helpful=False, system=task)


def summed(what: str, words: str, verb: str, order: str, space: str, close: str) -> str:
    above = {"text": "sentence", "image": "image", "image+text": order}[what]
    asked = f"\n{verb} above {above} in one word:" + space
    return chat([*parts_of(what, words), asked], helpful=True) + close


def vlm2vec(image: str = "Represent the given image.") -> dict[tuple[str, str], Callable[[str, str], str]]:
    return {
        **{(side, "text"): lambda words, task: words for side in SIDES},
        **{(side, "image"): lambda words, task: "<|image_pad|> " + image for side in SIDES},
        ("query", "image+text"): lambda words, task: "<|image_pad|> " + task + " " + words,
        ("document", "image+text"): lambda words, task: "<|image_pad|> " + words,
    }


def small_to_square(picture: PIL.Image.Image) -> PIL.Image.Image:
    return picture.resize((56, 56)) if picture.size[0] < 28 or picture.size[1] < 28 else picture


def jina(query: str, document: str) -> dict[tuple[str, str], Callable[[str, str], str]]:
    image = "<|im_start|>user\n" + SHOWN + "Describe the image.<|im_end|>\n"
    return {
        ("query", "text"): lambda words, task: query + words,
        ("document", "text"): lambda words, task: document + words,
        **{(side, "image"): lambda words, task: image for side in SIDES},
    }


def paged(close: str, generate: bool) -> dict[tuple[str, str], Callable[[str, str], str]]:
    """DSE and vdr: a page, or a query beside a black picture."""

    def asked(words: str) -> str:
        return chat([PICTURE, words], helpful=True, generate=generate) + close

    return {
        ("query", "text"): lambda words, task: asked("Query: " + words),
        ("document", "image"): lambda words, task: asked("What is shown in this image?"),
    }


MOST = 1280 * 28 * 28
QWEN3 = Row(
    kind="qwen3_vl",
    asks={
        (side, what): lambda words, task, what=what: qwen3(parts_of(what, words), task + ".")
        for side in SIDES
        for what in WHAT
    },
    first=lambda picture: smart(picture, 32, 4 * 32 * 32, 1800 * 32 * 32),
    pixels=None,
    instructed=SIDES,
)
GME = Row(
    asks={
        (side, what): lambda words, task, what=what, side=side: (
            chat(parts_of(what, words), helpful=True, system=task + "." if side == "query" else None) + "<|endoftext|>"
        )
        for side in SIDES
        for what in WHAT
    },
    first=lambda picture: smart(picture, 28, 4 * 28 * 28, 16384 * 28 * 28),
    pixels=(256 * 28 * 28, MOST),
    sequential=True,
    instructed=("query",),
)
VLM2VEC = Row(
    asks=vlm2vec(), first=small_to_square, pixels=(3136, MOST), sequential=True, instructed=("query image+text",)
)
UNIME = replace(
    VLM2VEC,
    asks=vlm2vec("Find an image caption describing the given image."),
    first=lambda picture: picture.resize((1344, 1344)),
)
LAMRA = Row(
    asks=of_both(lambda what, words: summed(what, words, "Summarize", "image and sentence", " ", "")), sequential=True
)
UNITE = Row(
    asks=of_both(lambda what, words: summed(what, words, "Summary", "sentence and image", "", "<|endoftext|>")),
    pixels=(256 * 28 * 28, MOST),
    sequential=True,
)
MOCA = Row(
    kind="qwen2_5_vl",
    asks=of_both(
        lambda what, words: {
            "text": words,
            "image": SHOWN + "Represent the given document image.\n",
            "image+text": SHOWN + "Represent the given image with the following question: " + words + "\n",
        }[what]
    ),
    first=lambda picture: picture.resize((max(picture.size[0], 28), max(picture.size[1], 28))),
    pixels=(256 * 28 * 28, 1024 * 28 * 28),
    pool=mean,
    both_ways=True,
)
JINA = Row(kind="qwen2_5_vl", asks=jina("Query: ", "Passage: "), pool=mean_of_the_picture)
EAGER = Row(
    kind="qwen3_vl",
    asks={
        (side, what): lambda words, task, what=what, side=side: (
            chat(
                [
                    ("Query: " if side == "query" else "") + (words if "text" in what else ""),
                    *parts_of(what.replace("text", ""), ""),
                ],
                helpful=False,
                generate=False,
            )
            + "<|endoftext|>"
        )
        for side in SIDES
        for what in WHAT
    },
    first=lambda picture: picture.resize((784, 784)),
    unnormed=True,
)
DSE = Row(asks=paged("<|endoftext|>", True), pixels=(28 * 28, 2560 * 28 * 28), blank=("query",))
VDR = Row(
    asks=paged("<|endoftext|>", False),
    first=lambda picture: smart(picture, 28, 28 * 28, 768 * 28 * 28),
    pixels=(28 * 28, 768 * 28 * 28),
    blank=("query",),
)
ROWS: Mapping[str, Row] = {
    "Qwen/Qwen3-VL-Embedding-2B": QWEN3,
    "Qwen/Qwen3-VL-Embedding-8B": QWEN3,
    "Alibaba-NLP/gme-Qwen2-VL-2B-Instruct": GME,
    "Alibaba-NLP/gme-Qwen2-VL-7B-Instruct": GME,
    "VLM2Vec/VLM2Vec-V2.0": VLM2VEC,
    "TIGER-Lab/VLM2Vec-Qwen2VL-2B": VLM2VEC,
    "TIGER-Lab/VLM2Vec-Qwen2VL-7B": VLM2VEC,
    "raghavlite/B3_Qwen2_2B": VLM2VEC,
    "raghavlite/B3_Qwen2_7B": VLM2VEC,
    "TianchengGu/UniME-V2-Qwen2VL-2B": UNIME,
    "TianchengGu/UniME-V2-Qwen2VL-7B": UNIME,
    "code-kunkun/LamRA-Ret": LAMRA,
    **{f"friedrichor/Unite-{k}-Qwen2-VL-{n}": UNITE for k in ("Base", "Instruct") for n in ("2B", "7B")},
    "moca-embed/MoCa-Qwen25VL-3B": MOCA,
    "moca-embed/MoCa-Qwen25VL-7B": MOCA,
    "jinaai/jina-embeddings-v4-vllm-retrieval": JINA,
    "jinaai/jina-embeddings-v4-vllm-code": JINA,
    "jinaai/jina-embeddings-v4-vllm-text-matching": replace(JINA, asks=jina("Query: ", "Query: ")),
    "eagerworks/eager-embed-v1": EAGER,
    "MrLight/dse-qwen2-2b-mrl-v1": DSE,
    "llamaindex/vdr-2b-multi-v1": VDR,
    "llamaindex/vdr-2b-v1": VDR,
}
FORMULA = "the authors' code over the processor and model of transformers"


def released(path: Path, repository: str, row: Row) -> Path:
    folder = path / repository.rpartition("/")[2]
    tiny_vlm(folder, row.kind)
    config = json.loads((folder / "config.json").read_text())
    if repository.startswith("friedrichor"):
        config["model_type"] = "unite_qwen2_vl"
    if repository.startswith("Alibaba"):
        config["auto_map"] = {"AutoModel": "modeling_gme_qwen2vl.GmeQwen2VL"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def processor_of(row: Row) -> Any:
    known = {key: value for key, value in IMAGE_PROCESSORS[row.kind].items() if key != "image_processor_type"}
    resize = {"do_resize": False} if row.pixels is None else {}
    if row.pixels is not None:
        known["size"] = dict(zip(("shortest_edge", "longest_edge"), row.pixels, strict=True))
    images = Qwen2VLImageProcessorPil(**{**known, **resize})
    words = mmembed.testing.byte_tokenizer(eos=False, special=mmembed.testing.VLM_TOKENS[row.kind])
    if row.kind == "qwen3_vl":
        return Qwen3VLProcessor(images, words, Qwen3VLVideoProcessor())
    return Qwen2VLProcessor(images, words, Qwen2VLVideoProcessor())


def authors(row: Row, model: Any, texts: list[str], pictures: list[np.ndarray], side: str) -> np.ndarray:
    """One padded batch through the processor and the body, as the authors' code does it."""
    processor = processor_of(row)
    processor.tokenizer.padding_side = side
    shown = [row.first(PIL.Image.fromarray(picture)) for picture in pictures]
    inputs = processor(text=texts, images=shown or None, padding=True, return_tensors="pt")
    if row.sequential:
        batch, length = inputs["input_ids"].shape
        inputs["position_ids"] = torch.arange(length).expand(3, batch, length)
    with torch.inference_mode():
        out = model(**inputs, output_hidden_states=True, use_cache=False)
    states = out.hidden_states[-1] if row.unnormed else out.last_hidden_state
    kept = inputs["attention_mask"] == 1
    pooled = [row.pool(states[k][kept[k]], inputs["input_ids"][k][kept[k]]) for k in range(len(texts))]
    return torch.nn.functional.normalize(torch.stack(pooled), dim=-1).numpy()


def body(folder: Path, row: Row) -> Any:
    config = tiny_vlm(folder, row.kind).config
    config.text_config.is_causal = not row.both_ways
    if row.unnormed:
        config.tie_last_hidden_states = config.text_config.tie_last_hidden_states = False
    return AutoModel.from_pretrained(folder, config=config, attn_implementation="sdpa").eval()


def test_every_declared_vision_language_checkpoint_has_a_row():
    native = {name for name, found in checkpoints.declared().items() if "vision" in found.said}
    assert set(ROWS) <= native
    assert {checkpoints.declared()[name].family for name in ROWS} >= {
        checkpoints.declared()[name].family for name in native if "qwen" in checkpoints.declared()[name].family
    }


@pytest.mark.parametrize("repository", ROWS)
def test_a_checkpoint_gives_the_vectors_of_its_authors_code(tmp_path, held, repository):
    row = ROWS[repository]
    family = checkpoints.declared()[repository].family
    whole = repository == next(name for name in ROWS if checkpoints.declared()[name].family == family)
    ours = mmembed.load(released(tmp_path, repository, row), device="cpu")
    theirs = body(tmp_path / "theirs", row)
    assert ours.spec.name == repository
    for side in SIDES:
        encode = ours.encode_query if side == "query" else ours.encode_document
        texts: list[str] = []
        pictures: list[np.ndarray] = []
        items: list[Any] = []
        for what in WHAT if whole else ("image",):
            if (side, what) not in row.asks:
                continue
            asked = {"instruction": TASK} if {side, f"{side} {what}"} & set(row.instructed) else {}
            item = tuple(Image(p) if isinstance(p, np.ndarray) else p for p in parts_of(what, WORDS))
            text = row.asks[side, what](WORDS, TASK)
            own = [PICTURE] * ("image" in what)
            own = own or [np.zeros((56, 56, 3), np.uint8)] * (side in row.blank)
            alone = encode([item], **asked)
            held(
                repository,
                alone,
                authors(row, theirs, [text], own, "right"),
                against=FORMULA,
                kind="checkpoint",
                family=family,
                what=what,
            )
            if bool(asked) == (side in row.instructed):
                texts.append(text)
                pictures += own
                items.append(item)
        if len(items) > 1 and row is not UNIME:  # its pictures are of 5,120 patches: one at a time is enough
            asked = {"instruction": TASK} if side in row.instructed else {}
            together = encode(items, **asked)
            for padded in ("left", "right"):
                held(
                    repository,
                    together,
                    authors(row, theirs, texts, pictures, padded),
                    against=FORMULA,
                    kind="checkpoint",
                    family=family,
                    what="image+text",
                )
