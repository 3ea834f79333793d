"""`Table`: rows and their vectors in one LanceDB table: its schema, reading, merging, removing, compacting, the exact scan."""

from __future__ import annotations

import json
import os
import re
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import numpy as np

from ..errors import FingerprintMismatch, InputError, MissingExtra, MmembedError, StoreError, UnknownName
from ..inputs import MODALITIES
from .metadata import NUMBER, TEXT, TRUTH, Kind, columns_of, fit
from .vectors import unit

try:
    import lancedb
    import pyarrow as pa
    from lancedb.index import FTS
    from lancedb.query import MatchQuery

    from . import codes
except ImportError as error:
    raise MissingExtra("lancedb", "search") from error

if TYPE_CHECKING:
    from numpy.typing import NDArray

NAME = "items"
FORMAT = 3
ROWS = 1024
"""Rows that are read at once when all are."""
STORES = {"float32": pa.float32(), "float16": pa.float16()}
"""How numbers of a vector may be kept. LanceDB searches no column of int8 by floats, and bits by their differences alone; both
are kinds of its codes beside the vectors, see `codes`."""
NEAR = {"float32": 1e-5, "float16": 1e-3}
"""So far LanceDB's own order may be from that of the scores: it rounds a query to the numbers of the column."""
SHOWN = ("id", "modality", "text", "path", "thumbnail", "metadata")
"""Columns that a hit tells of; each one that a search reads is a walk to the disk, and metadata may have hundreds."""
IDS = 256
"""A statement names at most so many ids."""
HELD = timedelta(minutes=10)
"""So long what was replaced or removed stays on disk, for who reads it, or writes beside it."""
SLACK = timedelta(minutes=1)
"""LanceDB looks at the clock later than we do."""
NEVER = timedelta(days=36_500)
CACHED = 32 * 2**20
"""Bytes of manifests and the like that LanceDB keeps in memory; left to itself, up to 1 GiB of those of every version it saw."""
SCATTERED = 48
"""Fragments from which it pays to compact."""
TRIES = 8
_PLAIN = {"lower_case": False, "stem": False, "remove_stop_words": False, "ascii_folding": False}
TERMS = FTS(base_tokenizer="whitespace", with_position=False, **_PLAIN)
KINDS = {TEXT: pa.string(), NUMBER: pa.float64(), TRUTH: pa.bool_()}
"""How metadata lies in its columns."""
QUOTED = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|`[^`]*`|--[^\n]*")
"""Words of SQL in which brackets are no brackets."""


class Table:
    """The table at a path or the URI of an object store. What its vectors are of, `made`, stands in its schema.

    Made by `Table.create` and `Table.open`. Every change is one commit, seen whole or not at all by whoever reads; a read
    sees the last one, of any process. The id is the table's key: of two writers who merge one id at once, LanceDB lets
    the second look again, so that it is never there twice.

    Where the whole index is made anew under an open table, LanceDB goes on with the new one. Of the same model with as many
    numbers that is as good; of another, whatever has to do with its vectors raises `FingerprintMismatch`, see `check`.
    """

    def __init__(self, path: Path | str, table: lancedb.table.Table):
        self.path = path
        self.made = _made(table.schema, path)
        self._table = table

    @classmethod
    def create(
        cls, path: str | os.PathLike[str], made: Mapping[str, Any], storage_options: Mapping[str, str] | None = None
    ) -> Table:
        """An empty table for vectors of `made["dimension"]` numbers, each kept as `made["store"]` says.

        Raises:
            StoreError: there is one already, or there can be none.
        """
        schema = _schema(made["dimension"], {"format": FORMAT, **made}, made["store"])
        with _told(path):
            try:
                table = _connect(path, storage_options).create_table(NAME, schema=schema)
            except ValueError as error:
                if "already exists" not in str(error):
                    raise
                raise StoreError(f"{path} holds an index already: Index.open takes it up") from None
        return cls(place(path), table)

    @classmethod
    def open(cls, path: str | os.PathLike[str], storage_options: Mapping[str, str] | None = None) -> Table:
        """The table that is there.

        Raises:
            StoreError: there is none, or one that is no index.
        """
        found = cls.find(path, storage_options)
        if found is None:
            raise StoreError(f"{path} holds no index")
        return found

    @classmethod
    def find(cls, path: str | os.PathLike[str], storage_options: Mapping[str, str] | None = None) -> Table | None:
        """`open`; None: there is none."""
        at = place(path)
        if isinstance(at, Path) and not (at / f"{NAME}.lance").is_dir():
            return None  # a look makes no folder
        with _told(path):
            try:
                return cls(at, _connect(path, storage_options).open_table(NAME))
            except ValueError as error:
                if "was not found" in str(error):
                    return None
                raise

    @property
    def dimension(self) -> int:
        """Numbers in a vector."""
        return self.made["dimension"]

    @property
    def version(self) -> int:
        """Grows with every change.

        Raises:
            FingerprintMismatch: as `check`.
        """
        self.check()
        with _told(self.path):
            return self._table.version

    def check(self, schema: pa.Schema | None = None) -> None:
        """See that it still holds the vectors that it was opened with, by its schema as it is now.

        Raises:
            FingerprintMismatch: another index stands in the place of the one that was opened.
        """
        now = _made(self.schema if schema is None else schema, self.path)
        if now != self.made:
            said = [
                f"{made['model']!r} ({made['fingerprint'][:12]}, {made['dimension']} numbers)"
                for made in (now, self.made)
            ]
            raise FingerprintMismatch(
                f"{self.path} was made anew meanwhile and holds vectors of {said[0]}, not of {said[1]}: open it again"
            )

    @property
    def columns(self) -> list[str]:
        """What SQL can ask for: own columns, and those of metadata."""
        return [name for name in self.schema.names if name != "vector"]

    @property
    def kinds(self) -> dict[str, Kind]:
        """The columns of metadata."""
        kinds = {type_: kind for kind, type_ in KINDS.items()}
        return {field.name: kinds[field.type] for field in self.schema if field.name not in OWN}

    @property
    def is_scattered(self) -> bool:
        """Whether it is time to compact."""
        with _told(self.path):
            return self._table.stats()["fragment_stats"]["num_small_fragments"] >= SCATTERED

    def count(self, where: str | None = None, kind: str | None = None) -> int:
        """How many rows, of a condition and a modality, see `_asked`."""
        with self._asked(where, kind) as condition:
            return self._table.count_rows(condition)

    def bytes(self) -> int:
        """Bytes of its rows."""
        with _told(self.path):
            return self._table.stats()["total_bytes"]

    def read(self, columns: Sequence[str], where: str | None = None, most: int | None = None) -> list[dict[str, Any]]:
        """Rows; a "vector" among the columns comes as (D,) in float32, of the model of whoever opened the table, see `check`."""
        if "vector" in columns:
            self.check()
        with self._asked(where) as condition:
            found = self._all(columns, condition) if most is None else self._first(columns, condition, most)
        return self.rows(found)

    def _first(self, columns: Sequence[str], condition: str | None, most: int) -> pa.Table:
        return self._table.search().where(condition).select(list(columns)).limit(most).to_arrow()

    def _all(self, columns: Sequence[str], condition: str | None) -> pa.Table:
        """All rows, as they are at one time: more may come between counting and reading them."""
        most = self._table.count_rows(condition) + 1
        while len(found := self._first(columns, condition, most)) == most:
            most *= 2
        return found

    def rows(self, found: pa.Table | pa.RecordBatch) -> list[dict[str, Any]]:
        """What was found, row by row."""
        names = [name for name in found.schema.names if name != "vector"]
        rows = found.select(names).to_pylist()
        if len(names) < len(found.schema.names):
            for row, vector in zip(rows, matrix(found.column("vector")), strict=True):
                row["vector"] = vector
        return rows

    @property
    def schema(self) -> pa.Schema:
        """Its columns, and what its vectors are of."""
        with _told(self.path):
            return self._table.schema

    def batches(self, columns: Sequence[str], kind: str | None = None) -> Iterator[pa.RecordBatch]:
        """All rows, some at a time, as they are when the first is asked for; see `check`."""
        self.check()
        with self._asked(None, kind) as condition:
            yield from self._table.search().where(condition).select(list(columns)).to_batches(batch_size=ROWS)

    def vectors(self, where: str | None = None, kind: str | None = None) -> NDArray[np.float32]:
        """Vectors (N, D) alone."""
        with self._asked(where, kind) as condition:
            found = self._all(["vector"], condition)
        return matrix(found.column("vector"))

    def nearest(
        self, vector: NDArray[np.float32], k: int, where: str | None, kind: str | None = None, *, exact: bool = False
    ) -> list[tuple[float, dict[str, Any]]]:
        """The `k` rows of the highest cosine, with it; equal ones in the order of ids.

        LanceDB finds candidates, through codes where there are (see `codes`) or by a scan, which is exact; their scores are
        summed anew in float64, row by row, so that equal vectors get equal scores; and more candidates are fetched while a
        tie or a rounding could reach beyond them."""
        limit = k + 16
        while True:
            with self._asked(where, kind) as condition:
                query = self._table.search(vector, vector_column_name="vector").distance_type("dot")
                if condition is not None:
                    query = query.where(condition, prefilter=True)
                query = query.bypass_vector_index() if exact else codes.through(query)
                found = query.select([*SHOWN, "vector", "_distance"]).limit(limit).to_arrow()
            vectors = matrix(found.column("vector"))
            scores = (vectors.astype(np.float64) * vector).sum(1).astype(np.float32)
            ids = found.column("id").to_pylist()
            order = sorted(range(len(ids)), key=lambda row: (-scores[row], ids[row]))[:k]
            if not order:
                return []
            if len(ids) < limit or scores.min() < scores[order[-1]] - NEAR[self.made["store"]]:
                break
            limit *= 4
        rows = found.drop_columns(["vector", "_distance"]).take(order).to_pylist()
        return [(float(scores[at]), row) for at, row in zip(order, rows, strict=True)]

    def matching(
        self, words: str, k: int, where: str | None, kind: str | None = None
    ) -> list[tuple[float, dict[str, Any]]]:
        """The `k` rows whose terms match `words` (terms, see `mmembed.search.words`) best, with their BM25; equal ones in the
        order of ids. Rows that hold none of the terms do not come.

        LanceDB's full-text index knows what `compact` saw; rows of later chunks are read one by one, with the same result."""
        limit = k + 16
        while True:
            with self._asked(where, kind) as condition:
                query = self._table.search(MatchQuery(words, "terms"), query_type="fts")
                if condition is not None:
                    query = query.where(condition, prefilter=True)
                found = query.select([*SHOWN, "terms", "vector", "_score"]).limit(limit).to_arrow()
            scores, ids = found.column("_score").to_pylist(), found.column("id").to_pylist()
            order = sorted(range(len(ids)), key=lambda row: (-scores[row], ids[row]))[:k]
            if not order:
                return []
            if len(ids) < limit or min(scores) < scores[order[-1]]:
                break
            limit *= 4
        rows = found.drop_columns(["vector", "_score"]).take(order).to_pylist()
        for row, vector in zip(rows, matrix(found.column("vector").take(order)), strict=True):
            row["vector"] = vector
        return [(scores[at], row) for at, row in zip(order, rows, strict=True)]

    def merge(self, rows: Sequence[Mapping[str, Any]], vectors: NDArray[np.float32]) -> None:
        """Rows and their vectors (N, D), in one commit; a row whose id is known takes the place of the known one.

        Raises:
            InputError: metadata that does not fit into the columns of other writers, by its place among the rows.
            FingerprintMismatch: the index was made anew meanwhile, for other vectors.
        """
        kept = unit(vectors).astype(self.made["store"]).astype(np.float32)  # as they will be read
        whole = [{**row, "vector": vector} for row, vector in zip(rows, kept, strict=True)]
        for row in whole:
            row["checksum"] = checksum(row)
            row |= {name: value for name, value in columns_of(row["metadata"]).items() if name.lower() not in OWN}
        self.check()  # before another index gets our columns
        with _told(self.path):
            self._widen(whole)
            schema = self._table.schema
            self.check(schema)
            columns = {name: [row.get(name) for row in whole] for name in schema.names if name != "vector"}
            flat = pa.array(kept.astype(self.made["store"]).reshape(-1))
            table = pa.table(
                {**columns, "vector": pa.FixedSizeListArray.from_arrays(flat, self.dimension)}, schema=schema
            )
            merge = self._table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
            merge.execute(table)

    def _widen(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Columns for metadata that has none yet. Another writer may have made them meanwhile, of another kind or in another
        spelling, which its rows then have by right."""
        for _ in range(TRIES):
            before = self.kinds
            kinds = dict(before)
            for place, row in enumerate(rows):
                try:
                    fit(row["metadata"], kinds, OWN)
                except InputError as error:
                    raise InputError(error.reason, place) from None
            fresh = [pa.field(name, KINDS[kind]) for name, kind in kinds.items() if name not in before]
            if not fresh:
                return
            try:
                self._table.add_columns(pa.schema(fresh))
            except (RuntimeError, ValueError) as error:
                if not _is_conflict(str(error)) and "already exists" not in str(error):
                    raise
        raise StoreError(_BUSY.format(self.path))

    def free(self) -> None:
        """Drop the columns of metadata that no row fills any more, whose names may then be of another kind. A row that another
        writer fills one of them with at this very moment keeps its metadata, and SQL does not see it by that name."""
        with _told(self.path):
            empty = [name for name in self.kinds if not self._table.count_rows(f"`{name}` IS NOT NULL")]
            if empty:
                self._table.drop_columns(empty)

    def remove(self, where: str) -> int:
        """Take rows out; returns how many there were."""
        with self._asked(where) as condition:
            return self._table.delete(condition).num_deleted_rows

    def compact(self, held: timedelta = HELD) -> None:
        """Many small fragments into few, their terms into the full-text index, and codes for the vectors of a large table;
        what was replaced or removed longer than `held` ago goes from the disk. It gives way to writers, and tries again.

        Raises:
            StoreError: others write all the time, or the disk is full.
        """
        for left in reversed(range(TRIES)):
            try:
                with _told(self.path), warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of held=0, which our docstring says
                    if not any(index.columns == ["terms"] for index in self._table.list_indices()):
                        self._table.create_index("terms", config=TERMS)
                    codes.make(self._table)
                    self._table.optimize(cleanup_older_than=NEVER)
                    self._let_go(held)
                return
            except CommitConflict:
                if not left:
                    raise

    def _let_go(self, held: timedelta) -> None:
        """Delete the versions that others took the place of longer than `held` ago. LanceDB goes by when one was written, and the
        one that all were reading until a moment ago may be of last year."""
        now = datetime.now()  # as LanceDB has it, without a zone
        if (now - timedelta(hours=3)).astimezone().utcoffset() != now.astimezone().utcoffset():
            return  # in the hours around a change of the clock ages cannot be told by it
        written = [version["timestamp"] for version in self._table.list_versions()]
        last = max((time for time in written if time <= now - held), default=None)  # what was read so long ago
        if last is not None:
            self._table.optimize(cleanup_older_than=held and now - last + SLACK)

    @contextmanager
    def _asked(self, where: str | None, kind: str | None = None) -> Iterator[str | None]:
        """Rows of which `where` is true and which are of the modality `kind`, in SQL; None: all. What is wrong with `where` is
        told in our words, of the condition as it was given.

        Raises:
            InputError: `where` is no condition. UnknownName: it names a column that is not there, or there is no such modality.
        """
        if kind is not None and kind not in MODALITIES:
            raise UnknownName("modality", kind, MODALITIES)
        if where is not None:
            check_condition(where)
        # Each in brackets, and a line ends before they close: LanceDB passes over what stands behind a semicolon or `--`.
        parts = ([] if where is None else [f"({where}\n)"]) + ([] if kind is None else [f"(modality = {quoted(kind)})"])
        try:
            with _told(self.path):
                yield " AND ".join(parts) or None
        except StoreError as error:
            said = str(error.__cause__)
            ours = isinstance(error.__cause__, ValueError) or _UNPLANNED in said or _UNEVALUATED.search(said)
            if where is None or not ours:
                raise
            if missing := re.search(r"No field named [\"`']?(.+?)[\"`']?\. ", said + " "):
                raise UnknownName("column", missing[1], self.columns) from None
            raise InputError(
                f"{where!r} is no condition in SQL on {', '.join(self.columns)}: {_short(_of_condition(said))}"
            ) from None

    def searched(self) -> str:
        """How `nearest` goes about it, in words."""
        with _told(self.path):
            return codes.said(self._table)


class CommitConflict(StoreError):
    """Another writer came first, more often than we tried again."""


_BUSY = "{} is being changed by another writer, more often than we tried again: nothing is lost, run this again"
_FULL = (
    "no room is left to write {}: what was written before is whole; with more room, the same again goes on from there"
)
_BARRED = "{} cannot be written: {}"
_BROKEN = "{} is damaged: {}"
_GONE = "{} holds no index any more: it was moved or removed"


def place(path: str | os.PathLike[str]) -> Path | str:
    """A folder, or a URI, which is LanceDB's to read.

    Raises:
        StoreError: an empty path, which would be the current folder.
    """
    if not os.fspath(path):
        raise StoreError("an index has a folder of its own, and its path is empty")
    return path if isinstance(path, str) and "://" in path else Path(path)


def exists(path: str | os.PathLike[str]) -> bool:
    """Whether there is an index."""
    return Table.find(path, None) is not None


def _connect(path: str | os.PathLike[str], storage_options: Mapping[str, str] | None) -> lancedb.db.DBConnection:
    options = None if storage_options is None else dict(storage_options)
    return lancedb.connect(
        place(path),
        read_consistency_interval=timedelta(0),
        storage_options=options,
        session=lancedb.Session(metadata_cache_size_bytes=CACHED),
    )


@contextmanager
def _told(path: str | os.PathLike[str]) -> Iterator[None]:
    """Errors of LanceDB in our words."""
    try:
        yield
    except MmembedError:
        raise
    except (OSError, RuntimeError, ValueError, TypeError, pa.ArrowException) as error:
        said, short = _without(path, str(error)), _short(str(error))
        if _is_conflict(said):
            raise CommitConflict(_BUSY.format(path)) from error
        if any(words in said for words in _NO_ROOM):
            raise StoreError(_FULL.format(path)) from error
        if any(words in said for words in ("Permission denied", "Read-only", "os error 13", "os error 30")):
            raise StoreError(_BARRED.format(path, short)) from error
        if re.search(rf"Not found: \S*{NAME}\.lance/_versions\b", said):
            raise StoreError(_GONE.format(path)) from error
        if any(words in said for words in ("Not found", "Invalid range", "LanceError(IO)", "decod", "corrupt")):
            raise StoreError(_BROKEN.format(path, short)) from error
        raise StoreError(f"{path}: {short}") from error


_NO_ROOM = ("No space left", "os error 28", "File too large", "os error 27", "quota exceeded", "os error 122")


def _without(path: str | os.PathLike[str], said: str) -> str:
    """Words of LanceDB without the path of the index, whose own ("quotations", "conflicts") say nothing of what happened. They
    hold it percent-encoded or not, and of a URI the key alone."""
    if isinstance(place(path), str):
        whole = str(path).partition("://")[2]
    else:
        whole = os.path.abspath(path)  # noqa: PTH100 - without `..`, and links as they are: so LanceDB has it
    said = unquote(said)
    for name in (whole.strip("/"), whole.partition("/")[2].strip("/")):
        said = said.replace(f"{name}/{NAME}.lance", f"{NAME}.lance")
    return said


def _is_conflict(said: str) -> bool:
    return any(words in said for words in ("ommit conflict", "Too many concurrent writers", "preempted by"))


def _short(said: str) -> str:
    """Words of LanceDB without the lines of its source."""
    said = re.sub(r",? ?/(root|rustc)/\S+?:\d+:\d+", "", said)
    layers = r"(lance|External) error: |LanceError\(\w+\): |Invalid input, |Wrapped error: |Generic [\w/]+( error)?: "
    return re.sub(f"^({layers})+", "", said).strip()


_UNPLANNED = "does not support logical expression"
_UNEVALUATED = re.compile("Query Execution error: (Error applying filter expression to batch|Execution error): ")
"""It can be read, and not be told of some row: a division by zero, a text that is no number."""
_BLANK = re.compile(r"[?$]|(?<!:):(?!:)")
"""A place for a value, which LanceDB fills with none and panics at."""


def _of_condition(said: str) -> str:
    """Words of LanceDB on a condition without the SQL and the plan that it made of it."""
    if _UNPLANNED in said:
        return "it is about many rows, and a condition is about each row by itself"
    said = _UNEVALUATED.sub("", said)
    said = re.sub(
        r"Error resolving filter expression .*?\n\)( AND \(modality = '[^']*'\))?: ", "", said, flags=re.DOTALL
    )
    return re.sub(r"Error parsing statement: .*\(sql parser error: (.*)\)", r"\1", said, flags=re.DOTALL)


def check_condition(condition: str) -> None:
    """Raise `InputError` for a condition whose brackets, outside of its quoted words and comments, are not closed in their order:
    in brackets, or joined with another one, it would say something else. And for what is no text, or has places for values."""
    if not isinstance(condition, str):
        raise InputError(f"where={condition!r}: a text is wanted, a condition of SQL")
    depth, bare = 0, QUOTED.sub("", condition)
    for sign in bare:
        depth += (sign == "(") - (sign == ")")
        if depth < 0:
            break
    if depth or "/*" in bare or "'" in bare or '"' in bare or not condition.strip():
        raise InputError(f"where={condition!r} is no whole condition of SQL")
    if blank := _BLANK.search(bare):
        raise InputError(
            f"where={condition!r} has a place for a value at {blank[0]!r}: write the value itself, a text in quotes"
        )


def checksum(row: Mapping[str, Any]) -> int:
    """CRC-32 of what a row holds, for `verify`: a byte that the disk changed makes another."""
    said = json.dumps([row[name] for name in ("id", "content", "modality", "text", "path", "metadata")])
    return zlib.crc32(b"".join((said.encode(), row["thumbnail"] or b"", row["vector"].tobytes())))


def quoted(text: str) -> str:
    """A text in SQL."""
    return "'" + text.replace("'", "''") + "'"


def among(ids: Iterable[str]) -> str:
    """Rows of these ids, in SQL.

    Raises:
        InputError: an id that is no text.
    """
    ids = list(ids)
    for name in ids:
        if not isinstance(name, str):
            raise InputError(f"an id is a text, not {name!r}")
    return f"id IN ({', '.join(map(quoted, ids))})"


def among_each(ids: Iterable[str]) -> Iterator[str]:
    """`among`, as many statements as it takes."""
    ids = list(ids)
    for first in range(0, len(ids), IDS):
        yield among(ids[first : first + IDS])


_KEY = "lance-schema:unenforced-primary-key"
"""LanceDB then sees that two writers add one id at once."""


def _schema(dimension: int, made: Mapping[str, Any], store: str = "float32") -> pa.Schema:
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False, metadata={_KEY: "true"}),
            pa.field("content", pa.string(), nullable=False),
            pa.field("modality", pa.string(), nullable=False),
            pa.field("text", pa.string()),
            pa.field("path", pa.string()),
            pa.field("file_size", pa.int64()),
            pa.field("file_time", pa.int64()),
            pa.field("thumbnail", pa.binary()),
            pa.field("metadata", pa.string(), nullable=False),
            pa.field("terms", pa.string(), nullable=False),
            pa.field("checksum", pa.uint32(), nullable=False),
            pa.field("vector", pa.list_(STORES[store], dimension), nullable=False),
        ],
        metadata={"mmembed": json.dumps(made)},
    )


OWN = frozenset(_schema(1, {}).names)
"""The columns that are not metadata."""


def _made(schema: pa.Schema, path: Path | str) -> dict[str, Any]:
    try:
        made = json.loads((schema.metadata or {})[b"mmembed"])
    except (KeyError, ValueError):
        raise StoreError(f"{path} holds a LanceDB table that is no mmembed index") from None
    if made["format"] != FORMAT:
        raise StoreError(f"{path} is an index of format {made['format']}; this version reads {FORMAT}")
    return made


def matrix(column: pa.ChunkedArray | pa.Array) -> NDArray[np.float32]:
    """A column of vectors as float32 (N, D)."""
    whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    flat = whole.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(-1, column.type.list_size).astype(np.float32, copy=False)
