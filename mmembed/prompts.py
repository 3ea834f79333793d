"""Prompts: the words around an item, by modality, task and language, and where its own content stands in them."""

from __future__ import annotations

import string
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field

from .errors import InputError, SpecError, UnknownName
from .images import Image
from .inputs import Item, Text, modality

PLAIN = "{content}"
"""The template of no prompt: the parts of the item in their order."""

SLOTS = ("content", "text", "image", "instruction")
"""{content}: all parts in order; {text} / {image}: the parts of one kind; {instruction}: what the caller asks for."""

Templates = Mapping[str, Mapping[str, str]]
"""{prompt name: {modality, or modality@language, or "any": template}}"""


@dataclass
class TextRun:
    """A text between two images, as it will be tokenised; `content` holds the character spans that are the item's own."""

    text: str = ""
    content: list[tuple[int, int]] = field(default_factory=list)

    def add(self, text: str, own: bool) -> None:
        if own:
            self.content.append((len(self.text), len(self.text) + len(text)))
        self.text += text


Run = TextRun | Image


def check(templates: Templates) -> None:
    """Raise `SpecError` for a template with an unknown slot or with no place for the item."""
    for name, by_modality in templates.items():
        for key, template in by_modality.items():
            slots = {slot for _, slot, _, _ in string.Formatter().parse(template) if slot is not None}
            unknown = slots - set(SLOTS)
            if unknown:
                raise SpecError(f"prompt {name!r} for {key}: unknown slot {sorted(unknown)}; known: {', '.join(SLOTS)}")
            if not slots & {"content", "text", "image"}:
                raise SpecError(f"prompt {name!r} for {key} has no place for the item: add {{content}}")


def literal(prompt: str) -> str:
    """A template that puts `prompt` before the item, whatever braces it has."""
    return prompt.replace("{", "{{").replace("}", "}}") + PLAIN


def template_for(templates: Templates, name: str | None, item: Item, language: str | None = None) -> str:
    """The template of prompt `name` for the modality of `item`: with the language first, then without, then "any".

    Raises:
        UnknownName: no prompt of that name.
        InputError: the prompt says nothing about items of that modality.
    """
    if name is None:
        return PLAIN
    if name not in templates:
        raise UnknownName("prompt", name, templates)
    kind = modality(item)
    by_modality = templates[name]
    tried = ([f"{kind}@{language}", f"any@{language}"] if language else []) + [kind, "any"]
    for key in tried:
        if key in by_modality:
            return by_modality[key]
    raise InputError(f"the prompt {name!r} has no template for {kind} items; it has: {', '.join(by_modality)}")


def wrap(item: Item, template: str, instruction: str | None = None) -> list[Run]:
    """The item inside its template, as runs of text and images in order; its own texts are NFC-normalised here, once.

    Texts that follow each other are joined by a space.

    Raises:
        InputError: the template has {instruction} and none was given, or it leaves out a part of the item.
    """
    runs: list[Run] = []
    placed = 0

    def words(text: str, own: bool) -> None:
        if not runs or isinstance(runs[-1], Image):
            runs.append(TextRun())
        run = runs[-1]
        assert isinstance(run, TextRun)
        run.add(text, own)

    for before, slot, _, _ in string.Formatter().parse(template):
        if before:
            words(before, own=False)
        if slot == "instruction":
            if instruction is None:
                raise InputError("this prompt asks for an instruction: pass instruction='...'")
            words(instruction, own=False)
        elif slot is not None:
            previous_was_text = False
            for part in item:
                if slot == "text" and isinstance(part, Image) or slot == "image" and isinstance(part, Text):
                    continue
                placed += 1
                if isinstance(part, Image):
                    runs.append(part)
                    previous_was_text = False
                else:
                    own = unicodedata.normalize("NFC", part.text)
                    words(" " + own if previous_was_text else own, own=True)
                    previous_was_text = True
    if placed != len(item):
        raise InputError(f"the template {template!r} has no place for every part of {modality(item)} items")
    return runs
