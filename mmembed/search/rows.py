"""Rows: a thing becomes what the index keeps of it: id, hash of its content, text, path, thumbnail, metadata."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, StoreError
from ..images import Image
from ..inputs import Item, Text, Thing, modality, ordered, to_item
from ..sources import Entry
from .known import FileStat, placed
from .metadata import check
from .words import terms

THUMBNAIL = 128
"""Longer side, in pixels, of the picture kept of a picture, so that hits show without their source."""


@dataclass(frozen=True, slots=True)
class Row:
    """A thing on its way into the table; pictures are decoded once, for the hash, the thumbnail and the model."""

    number: int
    name: str
    item: Item
    id: str
    content: str
    text: str | None
    path: str | None
    look: FileStat | None
    thumbnail: bytes | None
    metadata: str | None
    pixels: int

    def has_content_of(self, stored: Mapping[str, Any] | None) -> bool:
        return stored is not None and stored["content"] == self.content

    def says_more_than(self, stored: Mapping[str, Any]) -> bool:
        return self.metadata not in (None, stored["metadata"])

    def is_file_of(self, stored: Mapping[str, Any]) -> bool:
        """Whether the stored row tells of our file as it is now, or of another that is surely the same to this day."""
        before = FileStat.of(stored)
        if self.look is None or (self.path == stored["path"] and self.look == before):
            return True
        other = None if before is None or self.path == stored["path"] else FileStat.at(stored["path"])
        return other is not None and other.is_same(before)

    def as_stored(self, stored: Mapping[str, Any] | None) -> dict[str, Any]:
        """For the table, in the place of what is stored of that id."""
        keeps_file = self.look is None and stored is not None and self.has_content_of(stored)
        new: dict[str, Any] = {"metadata": "{}", "path": None, "file_size": None, "file_time": None}
        before = new if stored is None else stored
        path = before["path"] if keeps_file else self.path
        metadata = before["metadata"] if self.metadata is None else self.metadata
        return {
            "id": self.id,
            "content": self.content,
            "modality": modality(self.item),
            "text": self.text,
            "path": path,
            "file_size": before["file_size"] if keeps_file else self.look and self.look.size,
            "file_time": before["file_time"] if keeps_file else self.look and self.look.time,
            "thumbnail": self.thumbnail,
            "metadata": metadata,
            "terms": terms_of(metadata, self.text, path),
        }


def terms_of(metadata: str, text: str | None, path: str | None) -> str:
    """What full text finds an item by: its name, its text, the name of its file."""
    said = json.loads(metadata).get("name"), text, Path(path).stem if path else None
    return terms("\n".join(str(words) for words in said if words))


def read_row(number: int, entry: Entry) -> Row:
    """Raises: InputError: there is no such thing, or nothing in it, or its id or metadata is no such."""
    # Before it is read: a change from now on is seen the next time.
    name, path, look = entry.id, entry.path, None if entry.path is None else FileStat.at(entry.path)
    item = to_item(entry.thing)
    if path is None:
        path = next((Path(part.source) for part in item if isinstance(part, Image) and _is_file(part)), None)  # type: ignore[arg-type]
        look = None if path is None else FileStat.at(path)
    if len(item) > 1:  # a picture and its caption are no file, nor are two pictures
        look = None
    digest = hashlib.sha256()
    parts: list[Text | Image] = []
    texts: list[str] = []
    thumbnail, pixels = None, 0
    for part in item:
        if isinstance(part, Text):
            data = _utf8(part.text)
            digest.update(b"text %d:" % len(data) + data)
            texts.append(part.text)
            parts.append(part)
            continue
        rgb = part.load()
        digest.update(b"image %dx%d:" % rgb.shape[:2])
        digest.update(rgb.data)
        thumbnail = thumbnail or _thumbnail(rgb)
        pixels += rgb.shape[0] * rgb.shape[1]
        parts.append(Image(rgb))
    if not pixels and not any(text.strip() for text in texts):
        raise InputError("it is empty: there is nothing that it could be found by")
    content = digest.hexdigest()
    if name is not None and (not isinstance(name, str) or not name):
        raise InputError(f"an id is a text of at least one character, not {name!r}")
    if name is not None:
        _utf8(name)
    return Row(
        number=number,
        name=entry.name,
        item=tuple(parts),
        id=content if name is None else name,
        content=content,
        text="\n".join(texts) if texts else None,
        path=None if path is None else placed(path),
        look=look,
        thumbnail=thumbnail,
        metadata=None if entry.metadata is None else _json(entry.metadata),
        pixels=pixels,
    )


def _is_file(image: Image) -> bool:
    source = image.source
    named = isinstance(source, os.PathLike) or (isinstance(source, str) and source[:5].lower() != "data:")
    return named and not image.allow_url


def _utf8(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        raise InputError("the text holds half a surrogate pair, which no Unicode text does") from None


def _json(metadata: Mapping[str, Any]) -> str:
    try:
        plain = dict(metadata)
        check(plain)
        return json.dumps(plain, ensure_ascii=True, sort_keys=True, allow_nan=False)
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        raise InputError(f"metadata is a mapping of what JSON can hold: {error}") from None


def _thumbnail(rgb: np.ndarray) -> bytes:
    import PIL.Image

    picture = PIL.Image.fromarray(rgb)
    picture.thumbnail((THUMBNAIL, THUMBNAIL), PIL.Image.Resampling.LANCZOS, reducing_gap=3.0)
    data = io.BytesIO()
    picture.save(data, "WEBP", quality=80)
    return data.getvalue()


def described(thing: Thing) -> str:
    """What a thing is, in a few words."""
    try:
        return " + ".join(map(said, to_item(thing)))
    except InputError:
        return type(thing).__name__


def said(part: Text | Image) -> str:
    if isinstance(part, Image):
        return f"[{part.name}]"
    return part.text if len(part.text) <= 60 else part.text[:59] + "…"


def together(
    things: Iterable[Thing], ids: Iterable[str] | None, metadata: Iterable[Mapping[str, Any]] | None
) -> Iterator[Entry]:
    """Things with their ids and metadata, one each."""
    end: Any = object()
    named: Iterator[Any] = repeat(None) if ids is None else chain(ordered(ids, "ids"), repeat(end))
    said: Iterator[Any] = (
        repeat(None) if metadata is None else chain(ordered(metadata, "metadata", Mapping), repeat(end))
    )
    count = 0
    for thing, name, extra in zip(things, named, said, strict=False):
        if name is end or extra is end:
            raise StoreError(f"{count} {'ids' if name is end else 'metadata'} were given, and there are more things")
        count += 1
        yield Entry(described(thing) if name is None else str(name), thing, name, metadata=extra)
    for rest, what in ((named, "ids"), (said, "metadata")):
        if isinstance(rest, chain) and next(rest) is not end:
            raise StoreError(f"more {what} were given than the {count} things")
