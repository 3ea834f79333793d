"""Files that an index knows: which need no second look, and which rows are of a file that is another by now."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from ..sources import Entry, printable
from .table import IDS, Table, among_each, quoted

Outcome: TypeAlias = Literal["added", "replaced", "unchanged"]
"""Numbers of an `AddReport`."""
FRESH = 2 * 10**9
"""A file that was written within so many ns before we looked may be written again in the same tick of its clock."""


@dataclass(frozen=True, slots=True)
class FileStat:
    """A file as `stat` has it: its bytes, and the time in ns at which it was last written; None: too lately to tell by."""

    size: int
    time: int | None

    @classmethod
    def at(cls, path: str | os.PathLike[str]) -> FileStat | None:
        """None: there is no such file."""
        try:
            found = os.stat(path)  # noqa: PTH116 - a str will do
        except (OSError, ValueError):
            return None
        written = found.st_mtime_ns
        return cls(found.st_size, written if time.time_ns() - written > FRESH else None)

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> FileStat | None:
        """As a row has it; None: the row is of no file."""
        return None if stored["file_size"] is None else cls(stored["file_size"], stored["file_time"])

    def is_same(self, other: FileStat | None) -> bool:
        """Whether the file is surely the same, as make and rsync have it."""
        return self == other and self.time is not None


@dataclass(frozen=True, slots=True)
class Outdated:
    """A row of what a file was: its path, the id of what the file is now, and the metadata that was said of it."""

    path: str
    now: str
    metadata: str


def placed(path: str | os.PathLike[str]) -> str:
    """A path as rows have it."""
    return printable(os.path.abspath(path))  # noqa: PTH100 - without `..`, and links as they are


class Known:
    """What a table knows of the files that are being added.

    A file is known by its path. Its row has the hash of its content as id, so that a copy, or a file that was moved, is not
    embedded again; once a file has other content, the row of what it was goes.

    Args:
        reread: files are read and hashed even where size and time are as they were.
    """

    def __init__(self, table: Table, *, reread: bool = False):
        self._table = table
        self._reread = reread
        self._former: dict[str, set[str]] = {}
        self._now: dict[str, str] = {}
        self._counted: dict[str, Outcome] = {}

    def unseen(self, entries: Iterable[Entry]) -> Iterator[tuple[int, Entry, bool]]:
        """Entries by their number, and whether each is of a file that is as the table has it. Of files some are taken ahead."""
        group: list[tuple[int, Entry]] = []
        for number, entry in enumerate(entries):
            if entry.path is not None:
                group.append((number, entry))
                if len(group) < IDS:
                    continue
            yield from self._looked(group)
            group = []
            if entry.path is None:
                yield number, entry, False
        yield from self._looked(group)

    def _looked(self, group: list[tuple[int, Entry]]) -> Iterator[tuple[int, Entry, bool]]:
        if not group:
            return
        paths = [placed(entry.path) for _, entry in group if entry.path is not None]
        rows: dict[str, list[dict[str, Any]]] = {}
        where = f"id = content AND file_size IS NOT NULL AND {at(paths)}"  # rows that are the file itself
        for row in self._table.read(["id", "path", "file_size", "file_time"], where):
            rows.setdefault(row["path"], []).append(row)
        for (number, entry), path in zip(group, paths, strict=True):
            look = FileStat.at(path) if path in rows else None
            same = next((row["id"] for row in rows.get(path, ()) if look and look.is_same(FileStat.of(row))), None)
            is_known = same is not None and not self._reread and entry.id is None and entry.metadata is None
            if path in rows and not (is_known and len(rows[path]) == 1):  # a file as it was makes no row another's
                self._former[path] = {row["id"] for row in rows[path]}
            if is_known and same is not None:
                self.settle(path, same, "unchanged")
            yield number, entry, is_known

    def settle(self, path: str | None, name: str, counted: Outcome) -> None:
        """The row of that id is in the table, and is what the file is now; a report counts the file so."""
        if path in self._former:
            self._now[path] = name
            self._counted.setdefault(path, counted)

    def counted(self, path: str) -> Outcome:
        """What a report counts a file as that was settled."""
        return self._counted[path]

    def outdated(self) -> dict[str, Outdated]:
        """Rows of what files were before, by id: the files are others now, and their rows in the table."""
        former = {name: path for path, names in self._former.items() for name in names - {self._now.get(path)}}
        asked = [name for name, path in former.items() if path in self._now]  # a file that cannot be read keeps its row
        rows = [row for part in among_each(asked) for row in self._table.read(["id", "path", "metadata"], part)]
        return {
            row["id"]: Outdated(row["path"], self._now[row["path"]], row["metadata"])
            for row in rows
            if row["path"] == former[row["id"]]  # or it became another file's
        }


def gone(table: Table, folder: str | os.PathLike[str]) -> dict[str, str]:
    """Items of files that were below a folder and are surely there no more: paths by id. What lies in a folder that cannot be
    read, or behind a link, may be there. A copy elsewhere does not keep an item: a row knows of one file, see `Known`."""
    shut: list[str] = []
    walked = os.walk(_whole(folder), onerror=lambda error: shut.append(placed(error.filename) + os.sep))
    there = {printable(os.path.join(where, name)) for where, _, names in walked for name in names}  # noqa: PTH118
    rows = table.read(["id", "path"], below(folder))
    lost = {row["id"]: row["path"] for row in rows if row["path"] not in there}
    return {name: path for name, path in lost.items() if not path.startswith(tuple(shut)) and not os.path.lexists(path)}


def below(folder: str | os.PathLike[str]) -> str:
    """Rows of files below a folder, in SQL."""
    return f"starts_with(path, {quoted(placed(folder).rstrip(os.sep) + os.sep)})"


def at(paths: Iterable[str]) -> str:
    """Rows of these files, in SQL."""
    return f"path IN ({', '.join(map(quoted, paths))})"


def _whole(folder: str | os.PathLike[str]) -> str:
    return os.path.abspath(os.fsdecode(folder))  # noqa: PTH100
