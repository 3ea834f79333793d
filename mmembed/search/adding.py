"""Adding: things go into a table by chunks, each embedded and written as one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from ..errors import InputError, check_known
from ..inputs import Thing
from ..sources import Entry
from .known import Known, Outcome, at
from .metadata import Kind, fit
from .rows import Row, read_row, terms_of
from .table import IDS, OWN, CommitConflict, Table, among, among_each, quoted

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..embedder import Embedder

CHUNK = 256
CHUNK_PIXELS = 48 * 10**6
CHUNK_CHARACTERS = 2**24
"""A chunk is embedded and written as one: at most so many items and, beyond the first, so many decoded pixels and characters."""

AGAIN = 4096
"""So many things that stand in a chunk already are told with it at most."""

NOTHING = "{}"
"""Metadata that says nothing, as it is stored."""

OnError = Literal["raise", "skip"]


@dataclass(frozen=True, slots=True)
class SkippedEntry:
    """A thing that was not added: its row among the things given, what it is, and why."""

    row: int
    name: str
    reason: str


@dataclass(slots=True)
class AddReport:
    """What an `add` did.

    Attributes:
        added: new ids. replaced: known ids whose content or metadata was another, and files of another content. unchanged: left
            as they were.
        skipped: things that could not be embedded. truncated: rows of texts that were cut at the model's limit.
    """

    added: int = 0
    replaced: int = 0
    unchanged: int = 0
    skipped: list[SkippedEntry] = field(default_factory=list)
    truncated: list[int] = field(default_factory=list)

    def count(self, what: Outcome, things: int = 1) -> None:
        """So many things more, or less."""
        setattr(self, what, getattr(self, what) + things)

    def leave_out(self, number: int, name: str, error: InputError, on_error: OnError) -> None:
        """Tell of a thing that is skipped, or raise what is wrong with it."""
        if on_error == "raise":
            error.item = number
            raise error
        self.skipped.append(SkippedEntry(number, name, error.reason))


def add(
    table: Table,
    embedder: Embedder,
    entries: Iterable[Entry],
    *,
    total: int | None,
    reread: bool,
    on_error: OnError,
    show_progress_bar: bool,
) -> AddReport:
    """Embed what is new among entries and keep it. An error or a kill loses no chunk that was written."""
    from tqdm.auto import tqdm

    check_known("on_error", on_error, ("raise", "skip"))
    report, kinds, files = AddReport(), MetadataColumns(table), Known(table, reread=reread)
    chunk, chunks = Chunk(), 0
    with tqdm(total=total, desc="adding", unit="item", disable=not show_progress_bar) as bar:
        for number, entry, is_known in files.unseen(entries):
            if is_known:
                report.count("unchanged")
                bar.update()
                continue
            try:
                row = read_row(number, entry)
            except InputError as error:
                report.leave_out(number, entry.name, error, on_error)
                bar.update()
                continue
            metadata = row.metadata or NOTHING
            # Rows that wait, and that it does not suit, may be skipped themselves.
            waits = on_error == "raise" or kinds.suits(metadata)
            if chunk.rows and not (chunk.takes(row) and waits):
                _write(table, embedder, chunk, files, report, on_error)
                kinds.look()
                bar.update(chunk.size)
                chunk, chunks = Chunk(), chunks + 1
            try:
                kinds.take(metadata)
            except InputError as error:
                report.leave_out(number, entry.name, error, on_error)
                bar.update()
                continue
            chunk.take(row)
        _write(table, embedder, chunk, files, report, on_error)
        bar.update(chunk.size)
    outdated = files.outdated()
    _inherit(table, {old.now: old.metadata for old in outdated.values() if old.metadata != NOTHING})
    for first in range(0, len(outdated), IDS):
        some = list(outdated)[first : first + IDS]  # by their paths too: another process may have found one elsewhere
        table.remove(f"{among(some)} AND {at({outdated[name].path for name in some})}")
    # A file of another content was replaced, whether that is new to the index or stands in it already.
    for path in {old.path for old in outdated.values()}:
        report.count(files.counted(path), -1)
        report.count("replaced")
    if chunks or table.is_scattered:
        with suppress(CommitConflict):  # who comes last does it
            table.compact()
    report.skipped.sort(key=lambda skipped: skipped.row)
    return report


def _write(table: Table, embedder: Embedder, chunk: Chunk, files: Known, report: AddReport, on_error: OnError) -> None:
    """Embed what is new among a chunk and write it in one commit."""
    from ..embedder import Report

    if not chunk.rows:
        return
    columns = ["id", "content", "metadata", "path", "file_size", "file_time", "vector"]
    made: dict[str, NDArray[np.float32]] = {}
    reasons: dict[str, str] = {}
    while True:  # others write while we embed: until all that the table lacks by then has its vector
        known = {row["id"]: row for row in table.read(columns, among(chunk.rows), len(chunk.rows))}
        fresh = [row for row in chunk.rows.values() if not row.has_content_of(known.get(row.id))]
        lacking = [row for row in fresh if row.id not in made and row.id not in reasons]
        if not lacking:
            break
        told = Report()
        things: list[Thing] = [row.item for row in lacking]
        try:
            vectors = embedder.encode_document(things, truncate_dim=table.dimension, on_error=on_error, report=told)
        except InputError as error:
            error.item = error.item if error.item is None else lacking[error.item].number
            raise
        reasons |= {lacking[s.row].id: s.reason for s in told.skipped}
        report.truncated += [lacking[at].number for at in told.truncated]
        made |= {row.id: vector for row, vector in zip(lacking, vectors, strict=True) if row.id not in reasons}
    fresh = [row for row in fresh if row.id in made]
    held = [row for row in chunk.rows.values() if row.has_content_of(known.get(row.id))]  # its vector is there
    more = [row for row in held if row.says_more_than(known[row.id])]
    moved = [row for row in held if row not in more and not row.is_file_of(known[row.id])]
    written = [(row, made[row.id]) for row in fresh] + [(row, known[row.id]["vector"]) for row in (*more, *moved)]
    while written:
        stored = [row.as_stored(known.get(row.id)) for row, _ in written]
        try:
            table.merge(stored, np.stack([vector for _, vector in written]))
            break
        except InputError as error:  # of metadata: another writer made its columns meanwhile
            row, _ = written.pop(error.item or 0)
            error.item = row.number
            if on_error == "raise":
                raise
            reasons[row.id] = error.reason
    every = [*chunk.rows.values(), *chunk.again]
    report.skipped += [SkippedEntry(row.number, row.name, reasons[row.id]) for row in every if row.id in reasons]
    added = {row.number for row in fresh if row.id not in known}
    replaced = {row.number for row in (*fresh, *more)} - added
    for row in every:
        if row.id in reasons:
            continue
        counted: Outcome = "added" if row.number in added else "replaced" if row.number in replaced else "unchanged"
        report.count(counted)
        if row.id == row.content and row.look is not None:  # another one names the file and is not what it is
            files.settle(row.path, row.id, counted)


def _inherit(table: Table, metadata: Mapping[str, str]) -> None:
    """What metadata says of a file goes over to its new content, by id, where nothing else is said of that."""
    for part in among_each(metadata):
        where = f"{part} AND metadata = {quoted(NOTHING)}"
        rows = table.read([name for name in table.schema.names if name in OWN], where)
        for row in rows:
            row["metadata"] = metadata[row["id"]]
            row["terms"] = terms_of(row["metadata"], row["text"], row["path"])
        if rows:
            table.merge(rows, np.stack([row["vector"] for row in rows]))


class MetadataColumns:
    """The columns of metadata in a table, and those that rows which wait would add to it: by these rows are refused before they
    are embedded."""

    def __init__(self, table: Table):
        self._table, self._is_freed = table, False
        self.look()

    def look(self) -> None:
        """Take up what was written since; no row waits."""
        self._kinds, self._waiting = self._table.kinds, dict[str, Kind]()

    def suits(self, metadata: str) -> bool:
        """Whether metadata goes into them."""
        try:
            fit(metadata, {**self._kinds, **self._waiting}, OWN)
        except InputError:
            return False
        return True

    def take(self, metadata: str) -> None:
        """Note the columns of metadata. The first that does not go into them has those let go of that no row fills any more.

        Raises:
            InputError: it does not, see `fit`.
        """
        if not self._is_freed and not self.suits(metadata):
            self._is_freed = True
            with suppress(CommitConflict):  # another one writes: they stay for now
                self._table.free()
            self._kinds = self._table.kinds
        known = {**self._kinds, **self._waiting}
        fit(metadata, known, OWN)
        self._waiting = {name: kind for name, kind in known.items() if name not in self._kinds}


class Chunk:
    """Rows that are embedded and written together, one an id; what comes again in the same words is only counted."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self.again: list[Row] = []
        self.pixels, self.characters = 0, 0

    @property
    def size(self) -> int:
        return len(self.rows) + len(self.again)

    def takes(self, row: Row) -> bool:
        if row.id in self.rows:
            return self._repeats(row) and len(self.again) < AGAIN
        pixels, characters = self.pixels + row.pixels, self.characters + len(row.text or "")
        fits = len(self.rows) < CHUNK and pixels <= CHUNK_PIXELS and characters <= CHUNK_CHARACTERS
        return not self.rows or fits

    def take(self, row: Row) -> None:
        if row.id in self.rows:
            self.again.append(dataclasses.replace(row, item=(), text=None, thumbnail=None))  # lets go of what it holds
            return
        self.rows[row.id] = row
        self.pixels += row.pixels
        self.characters += len(row.text or "")

    def _repeats(self, row: Row) -> bool:
        first = self.rows[row.id]
        return row.content == first.content and row.metadata in (None, first.metadata)
