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
from ..images import Image, open_image
from ..inputs import Item, Text, Thing, modality, to_item
from ..sources import Entry, printable
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
    thumbnail: bytes | None
    metadata: str | None
    pixels: int

    def stands_in(self, known: Mapping[str, Mapping[str, Any]]) -> bool:
        stored = known.get(self.id)
        return stored is not None and stored["content"] == self.content and self.metadata in (None, stored["metadata"])

    def as_stored(self, known: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        before = known[self.id]["metadata"] if self.id in known else "{}"
        metadata = before if self.metadata is None else self.metadata
        name = json.loads(metadata).get("name")
        file = Path(self.path).stem if self.path else None
        return {
            "id": self.id,
            "content": self.content,
            "modality": modality(self.item),
            "text": self.text,
            "path": self.path,
            "thumbnail": self.thumbnail,
            "metadata": metadata,
            "terms": terms("\n".join(str(words) for words in (name, self.text, file) if words)),
        }


def read_row(number: int, entry: Entry) -> Row:
    """Raises: InputError: there is no such thing, or its id or metadata is no such."""
    item, name, path = to_item(entry.thing), entry.id, entry.path
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
        rgb, _ = open_image(part)
        digest.update(b"image %dx%d:" % rgb.shape[:2])
        digest.update(rgb.data)
        thumbnail = thumbnail or _thumbnail(rgb)
        pixels += rgb.shape[0] * rgb.shape[1]
        parts.append(Image(rgb))
        source = part.source
        if path is None and not part.allow_url and _is_path(source):
            path = Path(source)  # type: ignore[arg-type]
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
        path=None if path is None else printable(path.absolute()),
        thumbnail=thumbnail,
        metadata=None if entry.metadata is None else _json(entry.metadata),
        pixels=pixels,
    )


def _is_path(source: object) -> bool:
    return isinstance(source, os.PathLike) or (isinstance(source, str) and source[:5].lower() != "data:")


def _utf8(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        raise InputError("the text holds half a surrogate pair, which no Unicode text does") from None


def _json(metadata: Mapping[str, Any]) -> str:
    try:
        return json.dumps(dict(metadata), ensure_ascii=True, sort_keys=True, allow_nan=False)
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
    named: Iterator[Any] = repeat(None) if ids is None else chain(_not_one_text(ids, "ids"), repeat(end))
    said: Iterator[Any] = repeat(None) if metadata is None else chain(metadata, repeat(end))
    count = 0
    for thing, name, extra in zip(things, named, said, strict=False):
        if name is end or extra is end:
            raise StoreError(f"{count} {'ids' if name is end else 'metadata'} were given, and there are more things")
        count += 1
        yield Entry(described(thing) if name is None else str(name), thing, name, metadata=extra)
    for rest, what in ((named, "ids"), (said, "metadata")):
        if isinstance(rest, chain) and next(rest) is not end:
            raise StoreError(f"more {what} were given than the {count} things")


def _not_one_text(ids: Iterable[str], what: str) -> Iterable[str]:
    if isinstance(ids, str):
        raise InputError(f"{what} are many; one goes in a list")
    return ids
