"""Searches as one picture: a row a question, its hits beside it as thumbnails and cards of text."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import PIL.Image
from PIL import ImageDraw

from ..search.hits import Hit, Hits
from .lettering import draw_text

ASKED, CARD, ROW, GAP = 250, 132, 132, 10
TITLE = 34


@dataclass(frozen=True, slots=True)
class Search:
    """One row of a grid.

    Attributes:
        hits: best first. title: what was asked. note: small print under it. language: of the title.
        picture: a picture that was asked with, as the bytes of a file.
    """

    hits: Hits
    title: str
    note: str = ""
    language: str | None = None
    picture: bytes | None = None


def draw_grid(searches: Sequence[Search], *, title: str = "", foot: str = "") -> PIL.Image.Image:
    """Draw searches under each other, on white.

    A picture is drawn from its thumbnail, a text as a card two pictures wide in its own direction, and under it
    `metadata["note"]` in small print. Letters come from the bundled fonts; others are written as code points.

    Example:
        >>> draw_grid([Search(index.search(words), words) for words in ("a cat", "猫")])
    """
    wide = max((sum(map(_width_of, search.hits)) for search in searches), default=0)
    width = GAP + ASKED + GAP + max(wide, 4 * CARD)
    above, below = (TITLE if title else 0), (TITLE if foot else 0)
    picture = PIL.Image.new("RGB", (width, above + len(searches) * ROW + below + GAP), "white")
    canvas = ImageDraw.Draw(picture)
    draw_text(canvas, (GAP, 8, width, TITLE), title, size=18)
    for number, search in enumerate(searches):
        top = above + number * ROW
        canvas.line((GAP, top, width - GAP, top), fill="#dadce0")
        _draw_question(picture, canvas, search, top)
        left = GAP + ASKED + GAP
        for hit in search.hits:
            _draw_hit(picture, canvas, hit, left, top)
            left += _width_of(hit)
    bottom = above + len(searches) * ROW
    draw_text(canvas, (GAP, bottom + 8, width - GAP, bottom + TITLE), foot, size=13, fill="#5f6368")
    return picture


def _width_of(hit: Hit) -> int:
    return CARD if hit.thumbnail else 2 * CARD


def _draw_question(picture: PIL.Image.Image, canvas: ImageDraw.ImageDraw, search: Search, top: int) -> None:
    left, right = GAP, GAP + ASKED
    if search.picture:
        _paste(picture, search.picture, left, top + 12, 84)
        left += 84 + GAP
    below = draw_text(canvas, (left, top + 26, right, top + ROW - 30), search.title, size=20, language=search.language)
    draw_text(canvas, (left, below, right, top + ROW), search.note, size=13, fill="#5f6368")


def _draw_hit(picture: PIL.Image.Image, canvas: ImageDraw.ImageDraw, hit: Hit, left: int, top: int) -> None:
    width = _width_of(hit) - GAP
    if hit.thumbnail:
        _paste(picture, hit.thumbnail, left + (width - 84) // 2, top + 8, 84)
        draw_text(canvas, (left, top + 94, left + width, top + 112), hit.label, size=12)
    else:
        canvas.rounded_rectangle((left, top + 10, left + width, top + 108), 8, fill="#f1f3f4")
        box = left + 10, top + 14, left + width - 10, top + 106
        said = hit.metadata.get("language")
        below = draw_text(canvas, box, hit.label, size=16, language=said if isinstance(said, str) else None)
        note = str(hit.metadata.get("note", ""))
        draw_text(canvas, (left + 10, below, left + width - 10, top + 108), note, size=12, fill="#5f6368")
    draw_text(canvas, (left, top + 111, left + width, top + ROW), f"{hit.score:z.3f}", size=12, fill="#5f6368")


def _paste(picture: PIL.Image.Image, data: bytes, left: int, top: int, side: int) -> None:
    small = PIL.Image.open(io.BytesIO(data)).convert("RGBA")
    small = small.resize(
        (max(1, round(small.width * side / max(small.size))), max(1, round(small.height * side / max(small.size)))),
        PIL.Image.Resampling.LANCZOS,
    )
    at = left + (side - small.width) // 2, top + (side - small.height) // 2
    picture.paste(small, at, small)
