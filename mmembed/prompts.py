"""Prompts: the words around an item, by modality, task and language, and where its own content stands in them."""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial

import numpy as np

from .errors import InputError, SpecError, check_known
from .images import Image
from .inputs import MODALITIES, Item, Text, modality

PLAIN = "{content}"
"""The template of no prompt: the parts of the item in their order."""

SLOTS = ("content", "text", "image", "instruction", "counted", "blank", "placeholder", "border")
"""{content}: all parts in order; {text} / {image}: the parts of one kind; {instruction}: what the caller asks for;
{counted}: nothing, but the words of the template from there on are what counted="marked" pools; {blank}: a black picture of
56 x 56, which some models were trained to see beside every text; {placeholder}: a token that an intervention
writes to (`mmembed.nn.interventions`); {border}: the text before it and the text after it are tokenised each by itself
(not where a vision-language model of transformers makes one text of an item)."""
BLANK = Image(np.zeros((56, 56, 3), np.uint8))
"""The picture of {blank}: one, so that it is prepared once for many texts."""
MARKED = -1
"""Stands where the number of a copy would, for words of a template that {counted} marks."""
PLACED = -2
"""Stands there for a placeholder."""
LONGEST = 4096
"""Characters of an instruction that is kept for the next item: a thousand of them are a few megabytes."""

Templates = Mapping[str, Mapping[str, str | Sequence[str]]]
"""{prompt name: {modality, or modality@language, or "any": template, or several whose vectors are averaged}}; "empty" is
the modality of an item without a word or an image, where a template says it."""
KINDS = (*MODALITIES, "any", "empty")
"""What templates are told apart by, each with or without a language."""


@dataclass
class TextRun:
    """A text between two images, as it will be tokenised; `content` holds the character spans (first, end, copy) that are
    the item's own, and which time the template puts the item there, from 1, or the words after {counted}, as MARKED."""

    text: str = ""
    content: list[tuple[int, int, int]] = field(default_factory=list)
    parts: list[tuple[int, int]] = field(default_factory=list)
    """Where the parts of the item begin, and which they are: (first character, number of the part)."""

    def add(self, text: str, copy: int, part: int | None = None) -> None:
        if copy:
            self.content.append((len(self.text), len(self.text) + len(text), copy))
        if part is not None:
            self.parts.append((len(self.text), part))
        self.text += text

    def own(self) -> list[str]:
        """The item's own texts in it, once each."""
        return [self.text[begin:end] for begin, end, copy in self.content if copy == 1]


@dataclass(frozen=True)
class ImageRun:
    """An image among the texts, which copy of the item it belongs to, and which of its parts it is."""

    image: Image
    copy: int
    part: int = 0


@dataclass(frozen=True)
class Placeholder:
    """One token that stands for no text."""


Run = TextRun | ImageRun | Placeholder


def check(templates: Templates) -> None:
    """Raise `SpecError` for a template with an unknown slot or with no place for the item."""
    for name, by_modality in templates.items():
        if not isinstance(by_modality, Mapping):
            written = {name: {"any": f"{by_modality}{PLAIN}"}}
            raise SpecError(f"prompt {name!r} is a template for each modality, or for 'any': {written}")
        for key, template in ((key, each) for key, given in by_modality.items() for each in _several(given)):
            kind = key.partition("@")[0]
            check_known(f"modality of prompt {name!r}", kind, KINDS)
            try:
                slots = {slot for _, slot in pieces(template) if slot is not None}
            except ValueError as error:
                raise SpecError(
                    f"prompt {name!r} for {key}: {error}; braces that stand for themselves are doubled"
                ) from None
            unknown = slots - set(SLOTS)
            if unknown:
                raise SpecError(f"prompt {name!r} for {key}: unknown slot {sorted(unknown)}; known: {', '.join(SLOTS)}")
            if not slots & {"content", "text", "image"}:
                raise SpecError(f"prompt {name!r} for {key} has no place for the item: add {{content}}")


def literal(prompt: str) -> str:
    """A template that puts `prompt` before the item, whatever braces it has."""
    return escaped(prompt) + PLAIN


def escaped(text: str) -> str:
    """Words of a template that are to stand as they are, whatever braces they have."""
    return text.replace("{", "{{").replace("}", "}}")


def templates_for(templates: Templates, name: str | None, item: Item, language: str | None = None) -> tuple[str, ...]:
    """The templates, mostly one, of prompt `name` for the modality of `item`: with the language first, then without, then "any".

    Raises:
        UnknownName: no prompt of that name.
        InputError: the prompt says nothing about items of that modality.
    """
    if name is None:
        return (PLAIN,)
    check_known("prompt", name, templates)
    kind = modality(item)
    by_modality = templates[name]
    told = (f"@{language}", "") if language else ("",)
    for key in (each + of for own in (("empty",), (kind, "any"))[not is_empty(item) :] for of in told for each in own):
        if key in by_modality:
            return _several(by_modality[key])
    raise InputError(f"the prompt {name!r} has no template for {kind} items; it has: {', '.join(by_modality)}")


def is_empty(item: Item) -> bool:
    """Whether there is not a character in it, nor an image."""
    return not any(isinstance(part, Image) or part.text for part in item)


def _several(given: str | Sequence[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def one_sentence(text: str) -> str:
    """A text as PromptEOL's authors put it in quotes: words joined by one space, a full stop at the end where there is no
    end, double quotes as single ones, a question mark at the end as a full stop (kongds/scaling_sentemb)."""
    line = " ".join(text.split())
    if line and line[-1] not in ".?\"'":
        line += "."
    line = line.replace('"', "'")
    return line[:-1] + "." if line.endswith("?") else line


_ENGLISH = """
i me my myself we our ours ourselves you your yours yourself yourselves he him his himself she her hers herself it its itself
they them their theirs themselves what which who whom this that these those am is are was were be been being have has had having
do does did doing a an the and but if or because as until while of at by for with about against between into through during
before after above below to from up down in out on off over under again further then once here there when where why how all any
both each few more most other some such no nor not only own same so than too very s t can will just don should now d ll m o re
ve y ain aren couldn didn doesn hadn hasn haven isn ma mightn mustn needn shan shouldn wasn weren won wouldn
"""
_STOP_WORDS = frozenset(_ENGLISH.split())


def english_words(text: str) -> list[str]:
    """Words of a text in lower case, less English stop words (those of nltk) and marks; n't, 's and the like stand apart.

    A small rule of our own in the place of nltk's `word_tokenize`, whose data is no part of a package: it agrees on plain
    prose and differs on abbreviations, numbers with units, and marks of several characters, which it drops. Another rule is
    another entry of `WORDS`.
    """
    apart = re.sub(r"(n['’]t|['’](?:s|m|re|ve|ll|d))\b", lambda found: " " + found[0].replace("’", "'"), text.lower())
    found = re.findall(r"n't|'\w+|\w+(?:[-.]\w+)*", apart)
    return [word for word in found if word not in _STOP_WORDS]


WORDS: dict[str, Callable[[str], list[str]]] = {"english": english_words}
"""Rules by which the words of a text are told, for sparse weights that keep to them; put your own here by name."""


def full_stop(text: str) -> str:
    """A full stop at the end where there is none (the instructions of GME)."""
    return text if not text or text.endswith(".") else text + "."


def punctuation(text: str) -> str:
    """Stripped, and a full stop where the end is no punctuation of Unicode (the instructions of Qwen3-VL-Embedding)."""
    line = text.strip()
    return line if not line or unicodedata.category(line[-1]).startswith("P") else line + "."


def ended_sentence(text: str) -> str:
    """A text as MoEE's authors put it in quotes: a full stop at the end where there is no end, double quotes as single ones,
    underscores as spaces (tianyi-lab/MoE-Embedding)."""
    line = text if not text or text[-1] in ".?!\"'" else text + "."
    return line.replace('"', "'").replace("_", " ")


CLEANINGS: Mapping[str, Callable[[str], str]] = {
    "one_sentence": one_sentence,
    "ended_sentence": ended_sentence,
    "full_stop": full_stop,
    "punctuation": punctuation,
    "nfc": partial(unicodedata.normalize, "NFC"),
    "strip": str.strip,
    "strip_end": str.rstrip,
}


@lru_cache(maxsize=1024)
def pieces(template: str) -> tuple[tuple[str, str | None], ...]:
    """A template as pairs: words, and the slot behind them, None at the end.

    Raises:
        ValueError: a brace alone, or a slot with a format.
    """
    found = []
    for before, slot, form, conversion in string.Formatter().parse(template):
        if form or conversion:
            raise ValueError(f"{{{slot}}} takes no format and no conversion")
        found.append((before, slot))
    return tuple(found)


def _around(template: str, instruction: str | None) -> tuple[str, str] | None:
    """What stands before and behind the one text of an item, where a template is no more than that: most items of most calls,
    which `wrap` then puts together in one step. LRUCache for the next item, but for instructions that are long: whoever asks a
    server says what they are, and how many."""
    return (_parted if len(instruction or "") <= LONGEST else _parted.__wrapped__)(template, instruction)


@lru_cache(maxsize=1024)
def _parted(template: str, instruction: str | None) -> tuple[str, str] | None:
    words = [""]
    for before, slot in pieces(template):
        words[-1] += before
        if slot in ("content", "text"):
            words.append("")
        elif slot == "instruction" and instruction is not None:
            words[-1] += instruction
        elif slot is not None:
            return None
    return (words[0], words[1]) if len(words) == 2 else None


def check_text(text: str) -> None:
    """Raise `InputError` for a text that no tokenizer reads."""
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"U+{ord(text[error.start]):04X}"
        raise InputError(f"the text is no Unicode: at character {error.start} stands {half}, half of a pair") from None


def _own(part: Text, cleaning: str | None) -> str:
    check_text(part.text)
    return CLEANINGS[cleaning](part.text) if cleaning else part.text


def wrap(
    item: Item,
    template: str,
    instruction: str | None = None,
    cleaning: str | None = None,
    joint: str = " ",
    apart: bool = False,
) -> list[Run]:
    """The item inside its template, as runs of text and images in order. Its own texts stay as they are, but for `cleaning`.

    Texts that follow each other are joined by `joint`. A template may put the item more than once. `apart`: each piece
    of the template, and each text, is a run of its own.

    Raises:
        InputError: the template has {instruction} and none was given, or it leaves out a part of the item.
    """
    if (
        not apart
        and len(item) == 1
        and isinstance(part := item[0], Text)
        and (around := _around(template, instruction)) is not None
    ):
        own = _own(part, cleaning)
        begin = len(around[0])
        return [TextRun(around[0] + own + around[1], [(begin, begin + len(own), 1)], [(begin, 0)])]
    runs: list[Run] = []
    placed: set[int] = set()
    copies = {"content": 0, "text": 0, "image": 0}
    marked = 0

    def words(text: str, copy: int = 0, part: int | None = None) -> None:
        if apart or not runs or not isinstance(runs[-1], TextRun):
            runs.append(TextRun())
        run = runs[-1]
        assert isinstance(run, TextRun)
        run.add(text, copy, part)

    for before, slot in pieces(template):
        if before:
            words(before, marked)
        if slot == "counted":
            marked = MARKED
        elif slot == "instruction":
            if instruction is None:
                raise InputError("this prompt asks for an instruction: pass instruction='...'")
            words(instruction)
        elif slot == "border":
            runs.append(TextRun())
        elif slot == "placeholder":
            runs.append(Placeholder())
        elif slot == "blank":
            runs.append(ImageRun(BLANK, 0))
        elif slot is not None:
            copies[slot] += 1
            previous_was_text = False
            for number, part in enumerate(item):
                if (slot == "text" and isinstance(part, Image)) or (slot == "image" and isinstance(part, Text)):
                    continue
                placed.add(number)
                if isinstance(part, Image):
                    runs.append(ImageRun(part, copies[slot], number))
                    previous_was_text = False
                else:
                    own = _own(part, cleaning)
                    words(joint + own if previous_was_text else own, copies[slot], number)
                    previous_was_text = True
    if len(placed) != len(item):
        raise InputError(f"the template {template!r} has no place for every part of {modality(item)} items")
    return runs
