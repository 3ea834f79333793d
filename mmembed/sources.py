"""Things from files and folders, one by one and each with a name: pictures, .txt, .jsonl, .parquet, and lines of a stream."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from .errors import InputError, LoadError, MissingExtra
from .images import Image
from .inputs import Thing

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
"""Endings of the pictures that are taken from a folder; a file that is named itself may have any."""
ROWS = 1024
"""Rows of a parquet file that are read at once."""

Named = tuple[str, "Thing | InputError"]
"""A thing and what it is called, or why there is none."""


def read(
    paths: Iterable[str | os.PathLike[str]], stdin: IO[bytes] | None = None, *, lines: bool = False
) -> Iterator[Named]:
    """The things in files, in their order; one that cannot be read is its error, which whoever embeds it raises or reports.

    Args:
        paths: a folder gives its pictures and .txt files, all the way down, by their paths; a .txt file is one text; a .jsonl
            file and "-" hold an item a line, a JSON string or {"text": ..., "image": path, "id": name}; a .parquet file an
            item a row, in the columns text, image (path, bytes, or what datasets writes) and id; any other file is a picture.
        stdin: what "-" reads. lines: each line of a .txt file, and of "-", is one text.

    Raises:
        LoadError: a file of many things that is not there.
    """
    for path in paths:
        name = os.fsdecode(path)
        file = Path(name)
        if name == "-" or file.suffix == ".jsonl" or (lines and file.suffix == ".txt"):
            plain = lines and file.suffix != ".jsonl"
            opened = stdin if name == "-" else _opened(file)
            assert opened is not None, "there is no stdin to read"
            with opened:
                yield from _lines(opened, "stdin" if name == "-" else name, plain)
        elif file.suffix == ".parquet":
            yield from _rows(file)
        elif file.is_dir():
            for inside in sorted(file.rglob("*")):
                if inside.suffix.lower() in (*PICTURES, ".txt") and not inside.is_dir():
                    yield _file(inside)
        else:
            yield _file(file)


def _opened(file: Path) -> IO[bytes]:
    try:
        return file.open("rb")
    except OSError as error:
        raise LoadError(f"{file}: {error.strerror}") from None


def _file(file: Path) -> Named:
    name = os.fsencode(file).decode("utf-8", "backslashreplace")
    if file.suffix.lower() != ".txt":
        return name, Image(file)
    try:
        return name, file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        return name, InputError(f"{name}: cannot be read as UTF-8 text: {error}")


def _lines(file: IO[bytes], name: str, plain: bool) -> Iterator[Named]:
    for number, line in enumerate(file, 1):
        here = f"{name}:{number}"
        if plain:
            try:
                yield here, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                yield here, InputError(f"cannot be read as UTF-8 text: {error}")
        elif line.strip():
            try:
                yield _from_json(json.loads(line), here)
            except InputError as error:
                yield here, error
            except ValueError as error:
                yield here, InputError(f"no JSON: {error}")


def _from_json(value: Any, name: str) -> Named:
    if isinstance(value, str):
        return name, value
    good = isinstance(value, dict) and value and set(value) <= {"text", "image", "id"}
    if not good or not all(isinstance(part, str) for part in value.values()):
        raise InputError('a line is a JSON string, or an object with "text" and / or "image", the path of a picture')
    name = value.pop("id", name)
    return name, _thing(value)


def _rows(file: Path) -> Iterator[Named]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingExtra("pyarrow", "search") from error
    try:
        table = pq.ParquetFile(file)
    except (OSError, pa.ArrowInvalid) as error:
        raise LoadError(f"{file} is no parquet file that can be read: {error}") from None
    with table:
        columns = [column for column in ("id", "text", "image") if column in table.schema_arrow.names]
        if not {"text", "image"} & set(columns):
            raise LoadError(f"{file} has no column text or image; it has {', '.join(table.schema_arrow.names)}")
        number = 0
        for batch in table.iter_batches(batch_size=ROWS, columns=columns):
            for row in batch.to_pylist():
                given = row.pop("id", None)
                name = f"{file}:{number}" if given is None else str(given)
                number += 1
                try:
                    yield name, _thing({key: value for key, value in row.items() if value is not None})
                except InputError as error:
                    yield name, error


def _thing(parts: Mapping[str, Any]) -> Thing:
    """Text, picture or both, of what a line or a row says of them."""
    if not parts:
        raise InputError("it has neither a text nor an image")
    thing: dict[str, Thing] = {}
    for key, value in parts.items():
        if key == "image" and isinstance(value, Mapping):  # as datasets writes a picture
            value = value.get("bytes") or value.get("path")
        thing[key] = Image(value) if key == "image" else value
    return thing["text"] if thing.keys() == {"text"} else thing
