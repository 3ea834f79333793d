"""Verifying: whether an index holds what was put into it, and whether its files are still what it says of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError, StoreError
from ..images import Image
from ..inputs import Thing
from ..sources import Entry
from .known import FileStat
from .metadata import columns_of
from .rows import read_row
from .table import OWN, Table, checksum
from .vectors import unit

if TYPE_CHECKING:
    from ..embedder import Embedder

CLOSE = 1e-4
"""Two vectors of one item differ by less; in bf16 and the like, and on other machines, their cosine is above `ALIKE`."""
ALIKE = 0.998


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong: with which item, or with the whole (None)."""

    id: str | None
    what: str


@dataclass(slots=True)
class Verified:
    """What was looked at, and what is wrong.

    Attributes:
        items: rows that were read. problems: of the index itself. missing, changed: files whose items are older than they are.
        embedded: items that were embedded anew. difference: the greatest between an old vector and a new one.
    """

    items: int = 0
    problems: list[Problem] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    embedded: int = 0
    difference: float = 0.0

    @property
    def is_whole(self) -> bool:
        return not self.problems


def verify(table: Table, embedder: Embedder | None, *, sample: int = 0) -> Verified:
    """Read all of a table.

    Args:
        sample: so many items are embedded anew, those of them whose text is kept or whose file is as it was.

    Raises:
        StoreError: `sample` without an embedder.
    """
    if sample and embedder is None:
        raise StoreError(f"{table.path} was opened without an embedder, which is needed to embed a sample")
    told = Verified()
    ids: set[str] = set()
    some: list[dict[str, Any]] = []
    try:
        version, expected = table.version, table.count()
        for batch in table.batches(table.schema.names):
            for row in table.rows(batch):
                told.items += 1
                wrong = _wrong(row)
                if row["id"] in ids:
                    wrong.append("is there more than once")
                ids.add(row["id"])
                told.problems += [Problem(row["id"], what) for what in wrong]
                _look(row, told)
                if sample and not wrong and _is_at_hand(row):
                    some.append({name: row[name] for name in ("id", "content", "text", "path", "modality", "vector")})
                    some = sorted(some, key=lambda row: row["content"])[:sample]  # hashes: a fair sample
        if told.items != expected and table.version == version:  # else others wrote meanwhile
            told.problems.append(Problem(None, f"counts {expected} rows, and {told.items} were read"))
    except StoreError as error:
        told.problems.append(Problem(None, str(error)))
    if some and embedder is not None:
        _embed(some, table, embedder, told)
    return told


def _wrong(row: dict[str, Any]) -> list[str]:
    """What is wrong with a row by itself."""
    wrong = []
    vector = row["vector"].astype(np.float64)
    length = float(np.linalg.norm(vector))
    if not np.isfinite(vector).all():
        wrong.append("its vector is not finite")
    elif abs(length - 1) > 1e-3:
        wrong.append(f"its vector is {length:.6g} long, not 1")
    if checksum(row) != row["checksum"]:
        wrong.append("is not what was written: another checksum")
        return wrong
    said = {name: value for name, value in columns_of(row["metadata"]).items() if name.lower() not in OWN}
    held = {name: value for name, value in row.items() if name not in OWN and value is not None}
    if said != held:
        wrong.append(f"its metadata and their columns differ: {', '.join(sorted({*said} ^ {*held}) or sorted(said))}")
    return wrong


def _look(row: dict[str, Any], told: Verified) -> None:
    known = FileStat.of(row)
    if known is None:
        return
    now = FileStat.at(row["path"])
    if now is None:
        told.missing.append(row["path"])
    elif now.size != known.size or (known.time is not None and now.time != known.time):
        told.changed.append(row["path"])


def _is_at_hand(row: dict[str, Any]) -> bool:
    if row["modality"] == "text":  # of several texts only their sum is kept
        return read_row(0, Entry("", row["text"])).content == row["content"]
    known = FileStat.of(row)
    return row["modality"] == "image" and known is not None and known.is_same(FileStat.at(row["path"]))


def _embed(some: Sequence[dict[str, Any]], table: Table, embedder: Embedder, told: Verified) -> None:
    things: list[Thing] = [row["text"] if row["modality"] == "text" else Image(row["path"]) for row in some]
    try:
        fresh = embedder.encode_document(things, truncate_dim=table.dimension)
    except InputError as error:
        told.problems.append(Problem(None if error.item is None else some[error.item]["id"], error.reason))
        return
    told.embedded = len(some)
    for row, vector in zip(some, fresh, strict=True):
        direction = unit(vector)
        difference = float(np.abs(direction - row["vector"]).max())
        told.difference = max(told.difference, difference)
        if difference > CLOSE and float(direction @ row["vector"]) < ALIKE:
            told.problems.append(Problem(row["id"], f"embedded anew its vector differs by {difference:.2g}"))
