"""`Hits`: what a search found, as a table in a terminal and as a grid of pictures in a notebook."""

from __future__ import annotations

import base64
import html
import json
import math
import shutil
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, overload

CARDS = 50
"""A notebook shows so many hits; the rest is counted."""
MOST_TEXT = 300
"""Characters of a text that a card shows."""


@dataclass(frozen=True, slots=True)
class Hit:
    """One item found.

    Attributes:
        rank: 1 is the best. score: what the search ordered by; by vectors the cosine to the query, -1..1. id: of the item in
            its index.
        modality: "text", "image" or "image+text". text, path: None where the item has none.
        thumbnail: a small WebP of its first picture. metadata: as it was given.
        log_relevance: see `Background`; None where the index holds too few things to tell.
        duplicates: ids of hits that stand behind this one, being nearly the same; see `Index.group`.
    """

    rank: int
    score: float
    id: str
    modality: str
    text: str | None = None
    path: str | None = None
    thumbnail: bytes | None = field(default=None, repr=False)
    metadata: dict[str, Any] = field(default_factory=dict)
    log_relevance: float | None = None
    duplicates: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, row: Mapping[str, Any], *, rank: int = 0, score: float = 0.0, log_relevance: float | None = None
    ) -> Hit:
        """A row of the index, its columns by name; rank and score are 0 for a hit of no search."""
        named = {name: row[name] for name in ("id", "modality", "text", "path", "thumbnail") if name in row}
        metadata = json.loads(row["metadata"])
        return cls(rank, score, metadata=metadata, log_relevance=log_relevance, **named)

    @property
    def relevance(self) -> float | None:
        """0..1: the chance that the best of as many unrelated things would score less; below `NO_MATCH` it is no good match."""
        return None if self.log_relevance is None else math.exp(self.log_relevance)

    @property
    def label(self) -> str:
        """What to call it: its name in the metadata, its text, the name of its file, or its id."""
        file = Path(self.path).name if self.path else ""
        return str(self.metadata.get("name") or self.text or file or self.id)

    def as_dict(self) -> dict[str, Any]:
        """All of it but the thumbnail, for JSON."""
        told = {key: value for key, value in asdict(self).items() if key not in ("thumbnail", "log_relevance")}
        return {**told, "relevance": self.relevance}


class Hits(Sequence[Hit]):
    """Hits of one search, best first. Prints as a table; a notebook shows a grid, with nothing fetched and no script.

    Args:
        hits: best first. query: what was asked, for the caption.
    """

    def __init__(self, hits: Sequence[Hit], query: str = ""):
        self._hits = tuple(hits)
        self.query = query

    @overload
    def __getitem__(self, at: int) -> Hit: ...
    @overload
    def __getitem__(self, at: slice) -> Hits: ...
    def __getitem__(self, at: int | slice) -> Hit | Hits:
        return Hits(self._hits[at], self.query) if isinstance(at, slice) else self._hits[at]

    def __len__(self) -> int:
        return len(self._hits)

    def __iter__(self) -> Iterator[Hit]:
        return iter(self._hits)

    def __str__(self) -> str:
        return self.table(max(60, shutil.get_terminal_size((100, 24)).columns))

    def __repr__(self) -> str:
        head = f"{len(self)} hit{'' if len(self) == 1 else 's'} for {isolated(self.query, 60)}"
        return f"{head}\n{self}" if self else head

    def table(self, width: int = 100) -> str:
        """Lines of rank, score, modality and label, none wider than `width` columns of a terminal.

        Columns are aligned by what characters take in a terminal (two columns for Han, none for combining marks);
        control characters are written as escapes; a right-to-left label is isolated, so that it cannot turn the line
        around. A picture without a name or text goes by its path, whose end is kept.
        """
        kinds = max((len(hit.modality) for hit in self), default=0)
        ranks = len(str(len(self)))
        room = max(10, width - ranks - kinds - 12)
        lines = []
        for hit in self:
            nameless = hit.path is not None and not (hit.metadata.get("name") or hit.text)
            label = isolated(hit.path or "", room, keep="end") if nameless else isolated(hit.label, room)
            lines.append(f"{hit.rank:>{ranks}}  {hit.score:6.3f}  {hit.modality:<{kinds}}  {label}")
        return "\n".join(lines)

    def as_dicts(self) -> list[dict[str, Any]]:
        """The hits for JSON, without thumbnails."""
        return [hit.as_dict() for hit in self]

    def _repr_html_(self) -> str:
        cards = "".join(_card(hit) for hit in self._hits[:CARDS])
        more = len(self) - CARDS
        rest = f"<div>and {more} more</div>" if more > 0 else ""
        query = html.escape(_cut(visible(self.query), MOST_TEXT))
        return (
            f'<div><div style="margin:4px 0"><b dir="auto"><bdi>{query}</bdi></b> · {len(self)} hits</div>'
            f'<div style="display:flex;flex-wrap:wrap;gap:8px">{cards}</div>{rest}</div>'
        )


def _card(hit: Hit) -> str:
    frame = "width:150px;padding:8px;border:1px solid rgba(128,128,128,.4);border-radius:8px;overflow:hidden"
    picture = ""
    if hit.thumbnail:
        data = base64.b64encode(hit.thumbnail).decode()
        alt = html.escape(_cut(visible(hit.label), MOST_TEXT), quote=True)
        look = "display:block;margin:0 auto 6px;max-width:128px;max-height:128px;color:#333;background:#fff;border-radius:4px"
        picture = f'<img alt="{alt}" style="{look}" src="data:image/webp;base64,{data}">'
    label = html.escape(_cut(visible(hit.label), MOST_TEXT))
    tip = html.escape(visible(hit.path or hit.id), quote=True)
    return (
        f'<div style="{frame}" title="{tip}">{picture}'
        f'<div dir="auto" style="overflow-wrap:anywhere;font-size:13px">{label}</div>'
        f'<div style="opacity:.6;font-size:12px">{hit.rank} · {hit.score:.3f}</div></div>'
    )


# ---- text of strangers, in a terminal --------------------------------------------------------------------------------

_JOINERS = "\u200c\u200d"  # they shape words of Persian, Hindi, ... and join emoji
_HIDDEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def visible(text: str) -> str:
    r"""One line that shows everything: runs of white space become one space, control and format characters (escape
    sequences, bidi overrides, tags) are written \uNNNN. Joiners stay: words of many languages need them."""
    line = " ".join(text.split())
    return "".join(c if c in _JOINERS or unicodedata.category(c) not in _HIDDEN else _escape(c) for c in line)


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def columns(text: str) -> int:
    """Columns that a text takes in a terminal, by Unicode's East Asian Width (UAX 11); marks and joiners take none."""
    return sum(_columns_of(c) for c in text)


def _columns_of(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me", "Cf") or "\u1160" <= character <= "\u11ff":
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def isolated(text: str, room: int | None = None, keep: Literal["start", "end"] = "start") -> str:
    """A text of strangers in at most `room` columns, or whole; one that runs right to left is set off from the line around it."""
    line = visible(text)
    if room is not None:
        line = shortened(line, room) if keep == "start" else shortened(line[::-1], room)[::-1]
    backwards = any(unicodedata.bidirectional(c) in ("R", "AL", "AN") for c in line)
    return f"\u2068{line}\u2069" if backwards else line


def shortened(line: str, room: int) -> str:
    """A line in at most `room` columns; one that is longer ends in an ellipsis, and no more of it is looked at."""
    used = kept = 0
    for at, character in enumerate(line, 1):
        used += _columns_of(character)
        if used > room:
            return line[:kept] + "…"
        if used < room:
            kept = at
    return line


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
