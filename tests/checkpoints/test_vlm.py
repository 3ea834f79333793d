"""Declared vision-language checkpoints, as tiny random folders of their names, held to what their authors' code does, written
out over the processors and models of transformers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import (
    AutoModel,
    AutoModelForImageTextToText,
    Qwen2VLImageProcessorPil,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

import mmembed
from mmembed import Image, checkpoints, hub
from mmembed.errors import InputError, SpecError
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


def whole(picture: PIL.Image.Image) -> PIL.Image.Image:
    """What qwen_vl_utils does by default."""
    return smart(picture, 28, 4 * 28 * 28, 16384 * 28 * 28)


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
    first=whole,
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
    first=whole,
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
NOMIC = Row(
    kind="qwen2_5_vl",
    asks={
        ("query", "text"): lambda words, task: words + "<|endoftext|>" * 10,
        **{
            (side, "image"): lambda words, task: (
                "<|im_start|>user\n" + SHOWN + "Describe the image.<|im_end|><|endoftext|>"
            )
            for side in SIDES
        },
    },
    pixels=(3136, 768 * 28 * 28),
)
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
DSE = Row(asks=paged("<|endoftext|>", True), first=whole, pixels=(28 * 28, 2560 * 28 * 28), blank=("query",))
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
    "nomic-ai/nomic-embed-multimodal-3b": NOMIC,
    "nomic-ai/nomic-embed-multimodal-7b": NOMIC,
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


def test_every_checkpoint_of_these_families_has_a_row():
    families = {checkpoints.declared()[name].family for name in ROWS}
    assert {name for name, found in checkpoints.declared().items() if found.family in families} == set(ROWS)
    known = {row["name"]: row["modalities"] for row in hub.known()}
    for name, row in ROWS.items():
        assert known[name] == [what for what in WHAT if any(asked == what for _, asked in row.asks)]


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


def encoded(folder: Path, item: Any, **asked: Any) -> np.ndarray:
    return mmembed.load(folder, device="cpu").encode([item], **asked)


def test_a_small_picture_is_made_square_and_an_instruction_with_its_own_end_is_left_alone(tmp_path, held):
    for repository, given, task in (
        ("VLM2Vec/VLM2Vec-V2.0", TASK, TASK),
        ("Qwen/Qwen3-VL-Embedding-2B", f" {TASK}? ", f"{TASK}?"),
        ("Qwen/Qwen3-VL-Embedding-2B", f"{TASK}。", f"{TASK}。"),
        ("Alibaba-NLP/gme-Qwen2-VL-2B-Instruct", f"{TASK}?", f"{TASK}?."),
    ):
        row = ROWS[repository]
        text = {
            "qwen3_vl": lambda task: qwen3([SMALL, WORDS], task),
            "gme": lambda task: chat([SMALL, WORDS], helpful=True, system=task) + "<|endoftext|>",
            "vlm2vec": lambda task: VLM2VEC.asks["query", "image+text"](WORDS, task),
        }[row.kind if row is QWEN3 else "gme" if row is GME else "vlm2vec"](task)
        ours = mmembed.load(released(tmp_path / "ours", repository, row), device="cpu")
        vectors = ours.encode_query([(WORDS, Image(SMALL))], instruction=given)
        due = authors(row, body(tmp_path / "theirs", row), [text], [SMALL], "right")
        family = checkpoints.declared()[repository].family
        held(repository, vectors, due, against=FORMULA, kind="checkpoint", family=family, what="image+text")


def test_several_pictures_go_to_their_own_places(tmp_path, held):
    for repository, pictures in (
        ("Qwen/Qwen3-VL-Embedding-2B", [PICTURE, SMALL]),
        ("code-kunkun/LamRA-Ret", [SMALL, PICTURE]),
    ):
        row = ROWS[repository]
        ours = mmembed.load(released(tmp_path, repository, row), device="cpu")
        vectors = ours.encode_document([(*map(Image, pictures), WORDS)])
        asked = "\nSummarize above image and sentence in one word: "
        text = (
            qwen3([*pictures, WORDS], "Represent the user's input.")
            if row is QWEN3
            else chat([*pictures, WORDS, asked], helpful=True)
        )
        due = authors(row, body(tmp_path / "theirs", row), [text], pictures, "left")
        family = checkpoints.declared()[repository].family
        held(repository, vectors, due, against=FORMULA, kind="checkpoint", family=family, what="image+text")


def test_an_item_of_nothing_is_null(tmp_path, held):
    repository = "Qwen/Qwen3-VL-Embedding-8B"
    folder = released(tmp_path, repository, QWEN3)
    due = authors(
        QWEN3, body(tmp_path / "theirs", QWEN3), [qwen3(["NULL"], "Represent the user's input.")], [], "right"
    )
    family = checkpoints.declared()[repository].family
    for nothing in ("", {"text": ""}):
        held(repository, encoded(folder, nothing), due, against=FORMULA, kind="checkpoint", family=family, what="text")
    shown = Image(PICTURE)
    assert np.array_equal(encoded(folder, (shown, "")), encoded(folder, shown))


def test_the_key_layout_and_the_flat_configuration_of_2024_are_read(tmp_path):
    repository = "Alibaba-NLP/gme-Qwen2-VL-2B-Instruct"
    new, old = released(tmp_path / "new", repository, GME), released(tmp_path / "old", repository, GME)
    state = load_file(old / "model.safetensors")
    renamed = {key.replace("language_model.", "model.", 1): value for key, value in state.items()}
    assert {key.partition(".")[0] for key in renamed} == {"model", "visual"}
    save_file(renamed, old / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((old / "config.json").read_text())
    text = config.pop("text_config")
    rope = text.pop("rope_parameters")
    flat = {"rope_theta": rope["rope_theta"], "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]}}
    (old / "config.json").write_text(json.dumps({**text, **config, **flat}))
    items = ["red", Image(SMALL), ("what?", Image(SMALL))]
    for item in items:
        assert np.array_equal(encoded(old, item), encoded(new, item))


@pytest.mark.parametrize("dora", [False, True])
def test_an_adapter_of_vlm2vec_is_merged_as_peft_merges_it(tmp_path, held, dora):
    repository = "TIGER-Lab/VLM2Vec-Qwen2VL-2B"
    tiny_vlm(tmp_path / "Qwen2-VL-2B-Instruct", "qwen2_vl")
    whole = AutoModelForImageTextToText.from_pretrained(tmp_path / "Qwen2-VL-2B-Instruct")
    config = peft.LoraConfig(r=4, lora_alpha=16, use_dora=dora, target_modules=["q_proj", "v_proj", "down_proj"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        tuned = peft.get_peft_model(whole, config)
        for name, weight in tuned.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.3)
            elif "magnitude" in name:
                weight.data *= torch.rand_like(weight) + 0.5
    folder = tmp_path / "VLM2Vec-Qwen2VL-2B"
    tuned.save_pretrained(folder)
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(
        json.dumps({**settings, "base_model_name_or_path": "Qwen/Qwen2-VL-2B-Instruct"})
    )
    ours = mmembed.load(folder, device="cpu")
    assert ours.spec.name == repository
    text = VLM2VEC.asks["query", "image+text"](WORDS, TASK)
    due = authors(VLM2VEC, tuned.merge_and_unload().model.eval(), [text], [PICTURE], "left")
    vectors = ours.encode_query([(WORDS, Image(PICTURE))], instruction=TASK)
    held(repository, vectors, due, against="peft", kind="checkpoint", family="vlm2vec_qwen2_vl", what="image+text")
    base = AutoModel.from_pretrained(tmp_path / "Qwen2-VL-2B-Instruct").eval()
    assert np.abs(vectors - authors(VLM2VEC, base, [text], [PICTURE], "left")).max() > 1e-2


def as_sentence_transformers(folder: Path, prompts: Mapping[str, str]) -> SentenceTransformer:
    """The folder of a vision-language model with the files that sentence-transformers adds, and what it then gives."""
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    processor = processor_of(replace(QWEN3, pixels=(4096, 65536)))
    processor.chat_template = TEMPLATE
    processor.save_pretrained(folder)
    body = Transformer(str(folder), processing_kwargs={"chat_template": {"add_generation_prompt": True}})
    model = SentenceTransformer(modules=[body, Pooling(32, pooling_mode="lasttoken"), Normalize()], device="cpu")
    model.prompts = dict(prompts)
    model.save_pretrained(str(folder))
    return SentenceTransformer(str(folder), device="cpu", local_files_only=True)


def test_a_multimodal_folder_of_sentence_transformers_gives_what_it_gives(tmp_path, held):
    folder = tmp_path / "somebody-tuned-it"
    tiny_vlm(folder, "qwen3_vl")
    theirs = as_sentence_transformers(folder, {"query": "Find {it}.", "document": ""})
    (folder / "preprocessor_config.json").unlink()
    ours = mmembed.load(folder, device="cpu")
    assert (ours.spec.modalities, ours.spec.default_prompt_name) == (WHAT, "chat")
    picture = PICTURE[: 32 * 5, : 32 * 7]  # of whole patches: sentence-transformers would resize it by torchvision
    shown = PIL.Image.fromarray(picture)
    items = {"text": WORDS, "image": Image(picture), "image+text": (Image(picture), WORDS)}
    same = {"text": WORDS, "image": shown, "image+text": {"image": shown, "text": WORDS}}
    for name in (None, "query", "document"):
        for what, item in items.items():
            due = theirs.encode([same[what]], prompt_name=name)
            vectors = ours.encode([item], prompt_name=name)
            held(
                "a multimodal folder of sentence-transformers",
                vectors,
                due,
                against="sentence-transformers",
                kind="folder",
                family="folders",
                what=what,
            )
    turned = ours.encode([(WORDS, Image(picture))])
    assert np.abs(turned - theirs.encode([{"text": WORDS, "image": shown}])).max() <= 1e-5
    assert np.abs(turned - ours.encode([items["image+text"]])).max() > 1e-3
    how = json.loads((folder / "sentence_bert_config.json").read_text())
    how["processing_kwargs"]["text"] = {"padding": "max_length"}
    (folder / "sentence_bert_config.json").write_text(json.dumps(how))
    with pytest.raises(SpecError, match="asks for more of its processor than a chat template"):
        mmembed.load(folder)


def test_a_declared_checkpoint_with_the_files_of_sentence_transformers_is_run_as_declared(tmp_path):
    repository = "Qwen/Qwen3-VL-Embedding-2B"
    plain, full = (released(tmp_path / name, repository, QWEN3) for name in ("plain", "full"))
    as_sentence_transformers(full, {"query": "Find it."})
    (full / "processor_config.json").unlink()
    ours, due = (mmembed.load(folder, device="cpu") for folder in (full, plain))
    assert {**vars(ours.spec), "tokenizer": 0, "dimensions": 0} == {**vars(due.spec), "tokenizer": 0, "dimensions": 0}
    for item in ("red", (Image(PICTURE), WORDS)):
        assert np.array_equal(ours.encode_query([item]), due.encode_query([item]))


def test_a_template_that_leaves_parts_out_is_refused(tmp_path):
    folder = tmp_path / "somebody-tuned-it"
    tiny_vlm(folder, "qwen3_vl")
    as_sentence_transformers(folder, {})
    (folder / "chat_template.jinja").write_text("{{ messages[0].content[0].text }}")
    with pytest.raises(SpecError, match="does not put parts one after the other"):
        mmembed.load(folder)


def test_what_a_family_does_not_say_of_a_modality_is_an_error(tmp_path):
    ours = mmembed.load(released(tmp_path, "jinaai/jina-embeddings-v4-vllm-code", JINA), device="cpu")
    with pytest.raises(InputError, match=r"item 0: the prompt 'query' has no template for image\+text items"):
        ours.encode_query([(WORDS, Image(SMALL))])
