"""Words for full-text search: a text of any script as terms, character n-grams that need no spaces between words."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

_HAN = r"\u3005-\u30ff\u31f0-\u31ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # and kana
_HANGUL = r"\u1100-\u11ff\u3130-\u318f\uac00-\ud7ff"
_LETTERS = r"\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\ua9e0-\ua9ff\uaa60-\uaa7f"  # Thai, Lao, Tibetan, Burmese, Khmer
SPACELESS = re.compile(f"[{_HAN}{_LETTERS}]")
"""A character of a script that is written without spaces between words."""
_TERMS = ((re.compile(f"[{_HAN}{_HANGUL}]"), (1, 2)), (re.compile(f"[{_LETTERS}]"), (2, 3)))
"""How many characters make a term: of Han, kana and Hangul (which has spaces, but whose endings grow onto words) one and two, of
Thai, Lao, Tibetan, Burmese and Khmer, whose characters are letters, two and three."""


def terms(text: str) -> str:
    """The terms of a text, set apart by spaces, as documents are stored and queries asked.

    Compatibility forms are made one and case is folded (NFKC, Unicode). A run of a script without spaces gives its characters
    and pairs of them, or pairs and triples; a word of another script its runs of three, with its two ends marked (McNamee &
    Mayfield 2004), so that other endings of a word are found too: "Cats" -> "_ca cat ats ts_". An emoji is a term of its own;
    punctuation and other signs set words apart.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(term for run in _runs(folded) for term in _grams(run))


def _runs(text: str) -> Iterator[list[str]]:
    """Runs of letters, digits and marks, each a list of characters with the marks on them; of one script kind each."""
    run: list[str] = []
    for character in text:
        kind = unicodedata.category(character)
        if kind == "Cf" or "\ufe00" <= character <= "\ufe0f":  # joiners and variation selectors make no other word
            continue
        if kind[0] == "M" and run:
            run[-1] += character
            continue
        if kind[0] in "LN" or kind == "So":
            if run and (kind == "So" or _sizes(character) != _sizes(run[-1])):
                yield run
                run = []
            run.append(character)
            if kind != "So":
                continue
        if run:
            yield run
        run = []
    if run:
        yield run


def _sizes(character: str) -> tuple[int, ...] | None:
    """How many characters make a term, in a script without spaces."""
    return next((sizes for script, sizes in _TERMS if script.match(character)), None)


def _grams(run: list[str]) -> list[str]:
    sizes = _sizes(run[0])
    if sizes is None:
        run, sizes = ["_", *run, "_"], (3,)
    elif len(run) < sizes[0]:
        sizes = (len(run),)
    return ["".join(run[at : at + size]) for size in sizes for at in range(len(run) - size + 1)]
