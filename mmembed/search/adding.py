"""Adding: things go into a table by chunks, each embedded and written as one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from ..errors import InputError, UnknownName
from ..inputs import Thing
from ..sources import Entry
from .rows import Row, read_row
from .table import Table, among

if TYPE_CHECKING:
    from ..embedder import Embedder

CHUNK = 256
CHUNK_PIXELS = 48 * 10**6
"""A chunk is embedded and written as one: at most so many items and, beyond the first, so many decoded pixels."""

OnError = Literal["raise", "skip"]


@dataclass(frozen=True, slots=True)
class Skipped:
    """A thing that was not added: its row among the things given, what it is, and why."""

    row: int
    name: str
    reason: str


@dataclass(slots=True)
class AddReport:
    """What an `add` did.

    Attributes:
        added: new ids. replaced: known ids whose content or metadata was another. unchanged: left as they were.
        skipped: things that could not be embedded. truncated: rows of texts that were cut at the model's limit.
    """

    added: int = 0
    replaced: int = 0
    unchanged: int = 0
    skipped: list[Skipped] = field(default_factory=list)
    truncated: list[int] = field(default_factory=list)


def add(
    table: Table,
    embedder: Embedder,
    entries: Iterable[Entry],
    *,
    total: int | None,
    on_error: OnError,
    show_progress_bar: bool,
) -> AddReport:
    """Embed what is new among entries and keep it. An error or a kill loses no chunk that was written."""
    from tqdm.auto import tqdm

    if on_error not in ("raise", "skip"):
        raise UnknownName("on_error", on_error, ("raise", "skip"))
    report = AddReport()
    chunk, chunks = Chunk(), 0
    with tqdm(total=total, desc="adding", unit="item", disable=not show_progress_bar) as bar:
        for number, entry in enumerate(entries):
            try:
                row = read_row(number, entry)
            except InputError as error:
                if on_error == "raise":
                    error.item = number
                    raise
                report.skipped.append(Skipped(number, entry.name, error.reason))
                bar.update()
                continue
            if not chunk.takes(row):
                _write(table, embedder, chunk, report, on_error)
                bar.update(chunk.size)
                chunk, chunks = Chunk(), chunks + 1
            chunk.take(row)
        _write(table, embedder, chunk, report, on_error)
        bar.update(chunk.size)
    if chunks:
        table.compact()
    report.skipped.sort(key=lambda skipped: skipped.row)
    return report


def _write(table: Table, embedder: Embedder, chunk: Chunk, report: AddReport, on_error: OnError) -> None:
    """Embed what is new among a chunk and write it in one commit."""
    from ..embedder import Report

    if not chunk.rows:
        return
    found = table.read(["id", "content", "metadata"], among(chunk.rows), len(chunk.rows))
    known = {row["id"]: row for row in found}
    rows = [row for row in chunk.rows.values() if not row.stands_in(known)]
    told = Report()
    things: list[Thing] = [row.item for row in rows]
    try:
        vectors = embedder.encode_document(things, truncate_dim=table.dimension, on_error=on_error, report=told)
    except InputError as error:
        error.item = error.item if error.item is None else rows[error.item].number
        raise
    reasons = {rows[s.row].id: s.reason for s in told.skipped}
    every = [*chunk.rows.values(), *chunk.again]
    report.skipped += [Skipped(row.number, row.name, reasons[row.id]) for row in every if row.id in reasons]
    report.truncated += [rows[at].number for at in told.truncated]
    report.unchanged += sum(row.id not in reasons for row in every) - (len(rows) - len(reasons))
    kept = [at for at, row in enumerate(rows) if row.id not in reasons]
    if not kept:
        return
    table.merge([rows[at].as_stored(known) for at in kept], vectors[kept])
    replaced = sum(rows[at].id in known for at in kept)
    report.replaced += replaced
    report.added += len(kept) - replaced


class Chunk:
    """Rows that are embedded and written together, one an id; what comes again in the same words is only counted."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self.again: list[Row] = []
        self.pixels = 0

    @property
    def size(self) -> int:
        return len(self.rows) + len(self.again)

    def takes(self, row: Row) -> bool:
        if row.id in self.rows:
            return self._repeats(row)
        return not self.rows or (len(self.rows) < CHUNK and self.pixels + row.pixels <= CHUNK_PIXELS)

    def take(self, row: Row) -> None:
        if row.id in self.rows:
            self.again.append(dataclasses.replace(row, item=()))  # lets go of the pixels
            return
        self.rows[row.id] = row
        self.pixels += row.pixels

    def _repeats(self, row: Row) -> bool:
        first = self.rows[row.id]
        return row.content == first.content and row.metadata in (None, first.metadata)
