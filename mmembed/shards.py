"""Tar files in the layout of webdataset, read where they lie: nothing is ever unpacked onto the disk."""

from __future__ import annotations

import io
import json
import os
import stat
import tarfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from .errors import InputError, LoadError
from .images import MAX_BYTES

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
"""Endings of pictures."""
TEXTS = ("txt", "text", "caption")
MAX_MEMBERS = 10**6
MAX_HEADER = 2**20
"""Bytes of one header: an honest one holds a name and some attributes."""


class Shard:
    """The rows of one tar file: members of one name and several endings are a row. Only their headers are read when it is opened,
    and then a row is read where it lies.

    A member that is a link, a device or sparse, whose name leads out of the archive, or that is over `MAX_BYTES` is not read: it
    is an error of the row that wants it.

    Attributes:
        path: the file. names: of the rows, in the order in which they begin.
        broken: why what comes after these rows cannot be read; None where the file is whole.

    Raises:
        LoadError: no file, or no tar file that is read by place, which a compressed one is not.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self.broken: str | None = None
        of_name: dict[str, dict[str, tuple[int, int] | str]] = {}
        try:
            for member in self._members():
                folder, _, base = member.name.replace("\\", "/").rpartition("/")
                stem, _, ending = base.partition(".")
                if stem and ending and not member.isdir():
                    name = f"{folder}/{stem}" if folder else stem
                    of_name.setdefault(name, {})[ending.lower()] = _place(member)
        except (tarfile.TarError, OSError, ValueError, RecursionError) as error:
            if not of_name:
                raise LoadError(f"{self.path}: no tar file without compression: {error}") from None
            self.broken = f"the tar file breaks off after {len(of_name)} rows: {error}"
        self.names = list(of_name)
        self._rows = list(of_name.values())

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, row: int, columns: Collection[str] | None = None) -> dict[str, Any]:
        """The columns of a row: each ending (`jpg`, `txt`, `cls`), `image` and `text` for those of any picture and any text, and
        `json.KEY` for what its JSON file says. Parts of which none of `columns` comes are not read; None: all.

        Raises:
            InputError: a part cannot be read, or does not hold what its ending says; two parts are its `image`, or its `text`.
        """
        found: dict[str, Any] = {}
        with self.path.open("rb") as file:
            for ending, place in self._rows[row].items():
                if columns is not None and not any(_gives(ending, column) for column in columns):
                    continue
                if isinstance(place, str):
                    raise InputError(f"its .{ending} {place}")
                file.seek(place[0])
                data = file.read(place[1])
                if len(data) < place[1]:
                    raise InputError(f"its .{ending} breaks off after {len(data)} of {place[1]} bytes")
                values = _values(ending, data)
                twice = [name for name in ("image", "text") if name in values and name in found]
                if twice and (columns is None or twice[0] in columns):
                    raise InputError(
                        f"it has more than one {twice[0]}, .{ending} the last: name the column that is meant"
                    )
                found |= values
        return found

    def _members(self) -> Iterator[tarfile.TarInfo]:
        if not stat.S_ISREG(self.path.stat().st_mode):  # a pipe would block
            raise tarfile.ReadError("it is not a regular file")
        with _Headers(self.path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            count, place = 0, -1
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # else it keeps them all
                count += 1
                if count > MAX_MEMBERS:
                    raise tarfile.ReadError(f"it has more than {MAX_MEMBERS} members")
                if member.offset <= place or member.size < 0:
                    raise tarfile.ReadError("its headers lead back")
                place = member.offset
                yield member
            file.seek(tar.offset)  # where it found no header
            if any(file.read(tarfile.BLOCKSIZE)):
                raise tarfile.ReadError("a header is broken")


class _Headers(io.FileIO):
    """A file of which no part is read that is larger than a header may be."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= MAX_HEADER:
            raise tarfile.ReadError(f"a header is of {size} bytes")
        return super().read(size)


def _place(member: tarfile.TarInfo) -> tuple[int, int] | str:
    """Where a member lies, or why it is not read."""
    if not member.isreg() or member.issparse():
        kind = "link" if member.issym() or member.islnk() else "sparse file" if member.issparse() else "device"
        return f"is a {kind}, and only files are read from archives"
    parts = member.name.replace("\\", "/").split("/")
    if parts[0] == "" or ".." in parts or parts[0][1:2] == ":":
        return f"lies at {member.name!r}, outside of the archive"
    if member.size > MAX_BYTES:
        return f"has {member.size} bytes, over the limit of {MAX_BYTES} ({MAX_BYTES // 2**20} MiB)"
    return member.offset_data, member.size


def _gives(ending: str, column: str) -> bool:
    return (
        column == ending
        or (column == "image" and f".{ending}" in PICTURES)
        or (column == "text" and ending in TEXTS)
        or (column.startswith("json.") and ending == "json")
    )


def _values(ending: str, data: bytes) -> dict[str, Any]:
    """The columns that one part gives."""
    if f".{ending}" in PICTURES:
        return {ending: data, "image": data}
    try:
        if ending == "json":
            values = json.loads(data)
            return {f"json.{key}": value for key, value in values.items()} if isinstance(values, dict) else {}
        if ending in TEXTS:
            text = data.decode("utf-8").strip()
            return {ending: text, "text": text}
        if ending in ("cls", "score"):
            return {ending: float(data)}
    except (ValueError, RecursionError) as error:
        raise InputError(f"its .{ending} cannot be read: {error}") from None
    return {ending: data}
