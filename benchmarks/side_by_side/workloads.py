"""The workloads: what is embedded, by seed, and how much of it."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from .texts import lognormal, of_lengths, tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Thing:
    """One item: words, a picture (a file), or a picture and then words."""

    text: str | None = None
    picture: str | None = None


@dataclass(frozen=True)
class Workload:
    """What every system is asked to embed.

    Attributes:
        name, said: as a file and as a table name it.
        things: the items, in the order in which they come. prompt: words before each, on top of none of the model's own.
        side: "query" takes the model's own prompt of queries.
        templates: each item goes through all of them, and the mean of its vectors is its vector (MetaEOL).
        alone: one item a call, and the time is that of a call; else all items in one call.
    """

    name: str
    said: str
    things: tuple[Thing, ...]
    prompt: str | None = None
    side: str = "document"
    templates: tuple[str, ...] = ()
    alone: bool = False

    @property
    def pictured(self) -> bool:
        return any(thing.picture for thing in self.things)

    def head(self, count: int) -> Workload:
        """The first few of it, to warm up with."""
        return replace(self, things=self.things[:count])


TEXTS = ("queries", "few-shot", "documents", "one query", "one query, no prompt", "metaeol")
PICTURES = ("images", "mixed", "one image, eight prompts")
ENCODED = ("sentences", "documents", "one query, no prompt")
"""What an encoder is asked for."""
EVERY = (*TEXTS, "sentences", *PICTURES)
COUNTS = {
    "tiny": dict(zip(EVERY, (12, 6, 8, 3, 3, 2, 12, 3, 6, 1), strict=True)),
    "cpu": dict(zip(EVERY, (192, 64, 96, 30, 30, 24, 768, 16, 48, 4), strict=True)),
    "cpu, large": dict(zip(EVERY, (24, 8, 12, 5, 5, 3, 48, 4, 12, 1), strict=True)),
    "cuda": dict(zip(EVERY, (8192, 2048, 4096, 200, 200, 512, 16384, 256, 1024, 64), strict=True)),
}
"""How many items each has, by size of run; of "one image, eight prompts" how many images."""
ASKED = (
    "What is shown here?", "Quelles sont les couleurs ?", "Was steht im Vordergrund?", "这张图片里有什么？",
    "¿Dónde se tomó la foto?", "どんな天気ですか。", "Summarise the picture in one word:", "Что здесь главное?",
)  # fmt: skip


def make(name: str, count: int, pictures: Path) -> Workload:
    """The workload of that name with so many items; files of pictures are written to the folder `pictures`."""
    words = tokenizer(close=False)
    draw = random.Random(name)
    short = [draw.randint(6, 14) for _ in range(count)]
    if name == "queries":
        things = _texts(of_lengths(short, 1, words))
        return Workload(name, "queries of 10 tokens, instruction of 54", things, side="query")
    if name == "few-shot":
        return Workload(
            name, "queries of 10 tokens, few-shot prompt of 500", _texts(of_lengths(short, 2, words)), few_shot(words)
        )
    if name == "documents":
        return Workload(
            name, "documents of 20 to 500 tokens", _texts(of_lengths(lognormal(count, 3, 20, 500), 3, words))
        )
    if name == "sentences":
        return Workload(name, "sentences of 5 to 40 tokens", _texts(of_lengths(lognormal(count, 9, 5, 40), 9, words)))
    if name == "one query":
        things = _texts(of_lengths(short, 4, words))
        return Workload(name, "one query a call, instruction of 54", things, side="query", alone=True)
    if name == "one query, no prompt":
        return Workload(name, "one query a call, no instruction", _texts(of_lengths(short, 5, words)), alone=True)
    if name == "metaeol":
        from mmembed.methods import METHODS

        things = _texts(of_lengths([draw.randint(10, 40) for _ in range(count)], 6, words))
        templates = (METHODS["metaeol"].templates or {})["text"]
        return Workload(name, "eight prompts a text (MetaEOL)", things, templates=tuple(templates))
    if name == "images":
        return Workload(name, "photographs, 640 x 480", tuple(Thing(picture=p) for p in photographs(count, pictures)))
    if name == "mixed":
        files = photographs(max(1, count // 4), pictures)
        told = of_lengths([draw.randint(10, 60) for _ in range(count)], 7, words)
        mixed = [
            Thing(None if k % 8 == 0 else text, files[k // 4] if k % 4 == 0 and k // 4 < len(files) else None)
            for k, text in enumerate(told)
        ]
        draw.shuffle(mixed)
        return Workload(name, "texts, photographs, and both in one", tuple(mixed))
    if name == "one image, eight prompts":
        files = photographs(count, pictures)
        return Workload(
            name, "a photograph under eight questions", tuple(Thing(text, file) for file in files for text in ASKED)
        )
    raise ValueError(f"no workload {name!r}; known: {', '.join(EVERY)}")


def few_shot(words: PreTrainedTokenizerFast) -> str:
    """Questions with their answers, 500 tokens of them, and then the word that the next question follows."""
    last = "\nQuestion: "
    length = 500 - len(words(last, add_special_tokens=False)["input_ids"])
    pairs = of_lengths([40] * 24, 8, words)
    told = "".join(f"\nQuestion: {q}\nAnswer: {a}" for q, a in zip(pairs[::2], pairs[1::2], strict=True))
    offsets = words(told, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return told[: offsets[length - 1][1]] + last


def photographs(count: int, folder: Path) -> list[str]:
    """JPEG files of 640 x 480 with soft shapes and grain, which no system has to make another size of: the ways to do so differ
    by some grey levels, and then so would vectors."""
    import numpy as np
    import PIL.Image

    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for number in range(count):
        path = folder / f"{number}.jpg"
        if not path.exists():
            draw = np.random.default_rng(number)
            coarse = PIL.Image.fromarray(draw.integers(0, 256, (6, 8, 3), dtype=np.uint8))
            soft = np.asarray(coarse.resize((640, 480), PIL.Image.Resampling.BICUBIC), dtype=np.int16)
            grain = draw.integers(-12, 13, soft.shape, dtype=np.int16)
            PIL.Image.fromarray(np.clip(soft + grain, 0, 255).astype(np.uint8)).save(path, quality=90)
        files.append(str(path))
    return files


def _texts(texts: list[str]) -> tuple[Thing, ...]:
    return tuple(Thing(text) for text in texts)
