"""The demo: a small bundled collection of pictographs and sentences, asked in many languages and by picture."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .images import Image
from .inputs import Thing
from .search.hits import Hits

if TYPE_CHECKING:
    from .embedder import Embedder
    from .search.index import Index

DATA = Path(__file__).with_name("demo_data")
PICTURES, TEXTS = 5, 2
"""Hits shown of each kind: texts lie nearer to a text than pictures do, so each kind is asked for on its own."""

LANGUAGES = {
    "ar": "Arabic", "de": "German", "el": "Greek", "en": "English", "es": "Spanish", "fr": "French", "he": "Hebrew",
    "hi": "Hindi", "id": "Indonesian", "it": "Italian", "ja": "Japanese", "ko": "Korean", "nl": "Dutch",
    "pl": "Polish", "pt": "Portuguese", "ru": "Russian", "sw": "Swahili", "ta": "Tamil", "th": "Thai",
    "tr": "Turkish", "vi": "Vietnamese", "zh": "Chinese",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Question:
    """A question of the demo: a text, a picture, or both. english: what it says."""

    english: str
    text: str | None = None
    language: str | None = None
    image: str | None = None

    @property
    def picture(self) -> bytes | None:
        return None if self.image is None else (DATA / "questions" / self.image).read_bytes()

    @property
    def thing(self) -> Thing:
        parts = ([self.text] if self.text else []) + ([Image(self.picture)] if self.picture else [])
        return tuple(parts)

    @property
    def title(self) -> str:
        return self.text or ""

    @property
    def note(self) -> str:
        if self.language is None:
            return self.english
        name = LANGUAGES[self.language]
        return name if self.english == self.text else f"{name}: {self.english}"


@dataclass(frozen=True, slots=True)
class Answer:
    """A question and what was found: pictures, then texts, each best first."""

    question: Question
    pictures: Hits
    texts: Hits

    @property
    def hits(self) -> Hits:
        return Hits([*self.pictures, *self.texts], self.question.title)


@dataclass(frozen=True, slots=True)
class Demo:
    """A demo that ran: its answers, the items it searched and the seconds of each step."""

    answers: tuple[Answer, ...]
    items: int
    seconds: dict[str, float]


@cache
def questions() -> tuple[Question, ...]:
    """What the demo asks."""
    return tuple(Question(**entry) for entry in json.loads((DATA / "questions.json").read_text(encoding="utf-8")))


def add_collection(index: Index) -> int:
    """Put the demo's pictures and sentences into an index; returns how many it then holds."""
    files = sorted((DATA / "pictographs").glob("*.png"))
    index.add([Image(f) for f in files], metadata=[{"name": f.stem.replace("-", " ")} for f in files])
    texts = json.loads((DATA / "texts.json").read_text(encoding="utf-8"))
    notes = [f"{LANGUAGES[t['language']]}: {t['english']}" for t in texts]
    index.add(
        [t["text"] for t in texts],
        metadata=[{"language": t["language"], "note": note} for t, note in zip(texts, notes, strict=True)],
    )
    return len(index)


def run_demo(embedder: Embedder, *, answered: Callable[[Answer], None] | None = None) -> Demo:
    """Embed the collection into an index that is thrown away afterwards, and ask it all questions.

    Args:
        answered: called with each answer as it comes.
    """
    from .search.index import Index

    seconds: dict[str, float] = {}
    answers: list[Answer] = []
    with tempfile.TemporaryDirectory(prefix="mmembed-demo-", ignore_cleanup_errors=True) as folder:
        began = time.perf_counter()
        index = Index.create(Path(folder) / "index", embedder)
        items = add_collection(index)
        seconds["embed and store"] = time.perf_counter() - began
        began = time.perf_counter()
        for question in questions():
            found = Answer(
                question,
                pictures=index.search(question.thing, k=PICTURES, modality="image"),
                texts=index.search(question.thing, k=TEXTS, modality="text"),
            )
            answers.append(found)
            if answered is not None:
                answered(found)
        seconds["search"] = time.perf_counter() - began
    return Demo(tuple(answers), items, seconds)


def draw_demo(demo: Demo, model: str) -> Any:
    """The demo as one picture (PIL)."""
    from .display.grid import Search, draw_grid

    rows = [
        Search(a.hits, title=a.question.title, note=a.question.note, language=a.question.language,
               picture=a.question.picture)
        for a in demo.answers
    ]  # fmt: skip
    return draw_grid(
        rows,
        title=f"{len(rows)} questions to {demo.items} pictures and sentences in {len(LANGUAGES)} languages, by {model}",
        foot="Collection: Noto Emoji (OFL 1.1), sentences by mmembed. Pictures asked with: Twemoji (CC-BY 4.0).",
    )
