"""Text of any script drawn into a picture with bundled fonts: wrapped, shaped, and never an empty box."""

from __future__ import annotations

import unicodedata
from functools import cache
from pathlib import Path

from PIL import ImageDraw, ImageFont, features

from ..search.hits import visible

FONTS = Path(__file__).with_name("fonts")
LATIN = "NotoSans.ttf"


def draw_text(
    canvas: ImageDraw.ImageDraw,
    box: tuple[int, int, int, int],
    text: str,
    *,
    size: int,
    fill: str = "#202124",
    language: str | None = None,
) -> int:
    """Draw a text into a box (left, top, right, bottom), as many lines as fit; returns where the next line would start.
    Where not all fit, the last that does ends in an ellipsis.

    A text of a right-to-left script is set against the right edge. A character that no bundled font has is written as
    its code point, <1F600>. Without Raqm in Pillow, Arabic, Hindi, Tamil, ... come out unshaped.

    Args:
        size: pixels. language: BCP 47, picks the forms that Han characters have in it.
    """
    left, top, right, bottom = box
    step = round(size * 1.4)
    fit = max(0, (bottom - top) // step)
    lines = wrapped(
        legible(text, (fit + 1) * 4 * (right - left) // size), right - left, size
    )  # four columns in a square
    if 0 < fit < len(lines):
        lines[fit - 1] = elided(lines[fit - 1], right - left, size)
    for line in lines[:fit]:
        runs = _runs(line)
        backwards = is_rtl(line)
        pieces = list(reversed(runs)) if backwards else runs
        x = right - _width(line, size) if backwards else left
        for name, piece in pieces:
            forms = language if features.check("raqm") else None
            canvas.text((x, top + size), piece, font=_font(name, size), fill=fill, anchor="ls", language=forms)
            x += _font(name, size).getlength(piece)
        top += step
    return top


def legible(text: str, room: int) -> str:
    """One line that bundled fonts can show: `visible`, with what none of them has as its code point, <1F600>. Of a text that is
    longer, and may be a book, some more than `room` columns."""
    most = 8 * room  # characters: marks take no column
    front = " ".join(word[:most] for word in text.split(maxsplit=room))[:most]
    return "".join(c if font_of(c) else f"<{ord(c):X}>" for c in visible(front))


def fonts() -> tuple[Path, ...]:
    """The bundled fonts, that of Latin first."""
    return tuple(FONTS / name for name in _names())


def is_rtl(text: str) -> bool | None:
    """Whether its first letter with a direction is of a script that runs from the right; None: no letter has one."""
    first = next((kind for kind in map(unicodedata.bidirectional, text) if kind in ("L", "R", "AL")), None)
    return None if first is None else first != "L"


@cache
def font_of(character: str) -> str | None:
    """File name of a bundled font that has a character; None where none has."""
    return next((name for name in _names() if _has(name, character)), None)


def wrapped(text: str, width: float, size: int) -> list[str]:
    """Lines no wider than `width` pixels, broken at spaces, and within a word that is wider than a line."""
    lines, line = [], ""
    for word in text.split(" "):
        longer = f"{line} {word}" if line else word
        if _width(longer, size) <= width:
            line = longer
            continue
        if line:
            lines.append(line)
        line = ""
        for cluster in _clusters(word):
            if line and _width(line + cluster, size) > width:
                lines.append(line)
                line = ""
            line += cluster
    return [*lines, line] if line else lines


def _clusters(word: str) -> list[str]:
    """Pieces of a word between which a line may break: marks, joiners and stops stay with what they follow."""
    pieces: list[str] = []
    for character in word:
        joined = unicodedata.category(character) in ("Mn", "Mc", "Me", "Cf", "Pe", "Po")
        if pieces and (joined or pieces[-1][-1] == "\u200d"):
            pieces[-1] += character
        else:
            pieces.append(character)
    return pieces


def elided(line: str, width: float, size: int) -> str:
    """As much of a line as leaves room for an ellipsis, and that."""
    kept = _clusters(line)
    while kept and _width("".join(kept) + "…", size) > width:
        kept.pop()
    return "".join(kept).rstrip() + "…"


def _width(text: str, size: int) -> float:
    return sum(_font(name, size).getlength(piece) for name, piece in _runs(text))


def _runs(text: str) -> list[tuple[str, str]]:
    """(font, piece) in the order of the text: one run where one font has all of it, so that shaping sees it whole."""
    for name in _names():
        if all(_has(name, c) for c in text):
            return [(name, text)]
    runs: list[tuple[str, str]] = []
    for character in text:
        name = runs[-1][0] if runs and _has(runs[-1][0], character) else font_of(character) or LATIN
        if runs and runs[-1][0] == name:
            runs[-1] = (name, runs[-1][1] + character)
        else:
            runs.append((name, character))
    return runs


@cache
def _names() -> tuple[str, ...]:
    return (LATIN, *sorted(f.name for f in FONTS.glob("*.[ot]tf") if f.name != LATIN))


@cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(FONTS / name, size)


@cache
def _plain(name: str) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(FONTS / name, 16, layout_engine=ImageFont.Layout.BASIC)


@cache
def _has(name: str, character: str) -> bool:
    """A font draws what it lacks as the same box as U+FFFF, which is no character."""
    if character in "\u200c\u200d":
        return True
    font = _plain(name)
    drawn, missing = font.getmask(character), font.getmask("\uffff")
    return (drawn.size, bytes(drawn)) != (missing.size, bytes(missing))
