"""`Table`: rows and their vectors in one LanceDB table: its schema, reading, merging, removing, and the exact scan."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import MissingExtra, StoreError

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
FORMAT = 2
ROWS = 1024
"""Rows that are read at once when all are."""
IDS = 256
"""A statement names at most so many ids."""


class Table:
    """The table in a folder. What its vectors are of, `made`, stands in its schema.

    Made by `Table.create` and `Table.open`.
    """

    def __init__(self, path: Path, table: lancedb.table.Table):
        self.path = path
        self.made = _made(table, path)
        self._table = table

    @classmethod
    def create(cls, path: str | os.PathLike[str], made: Mapping[str, Any]) -> Table:
        """An empty table for vectors of `made["dimension"]` numbers.

        Raises:
            StoreError: there is one already.
        """
        schema = _schema(made["dimension"], {"format": FORMAT, **made})
        try:
            table = lancedb.connect(Path(path)).create_table(NAME, schema=schema)
        except ValueError as error:
            if "already exists" not in str(error):
                raise
            raise StoreError(f"{path} holds an index already: Index.open takes it up") from None
        return cls(Path(path), table)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Table:
        """The table that is there.

        Raises:
            StoreError: there is none, or one that is no index.
        """
        if not exists(path):
            raise StoreError(f"{path} holds no index")
        return cls(Path(path), lancedb.connect(Path(path)).open_table(NAME))

    @property
    def dimension(self) -> int:
        """Numbers in a vector."""
        return self.made["dimension"]

    @property
    def version(self) -> int:
        """Grows with every change."""
        return self._table.version

    def count(self, where: str | None = None) -> int:
        return self._table.count_rows(where)

    def bytes(self) -> int:
        """Bytes on disk."""
        return sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())

    def read(self, columns: Sequence[str], where: str | None = None, most: int | None = None) -> list[dict[str, Any]]:
        """Rows; a "vector" among the columns comes as (D,) in float32."""
        found = self._table.search().where(where).select(list(columns)).limit(most or self.count(where) or 1).to_arrow()
        rows = found.drop_columns(["vector"] if "vector" in columns else []).to_pylist()
        if "vector" in columns:
            for row, vector in zip(rows, matrix(found.column("vector"), self.dimension), strict=True):
                row["vector"] = vector
        return rows

    @property
    def schema(self) -> pa.Schema:
        """Its columns, and what its vectors are of."""
        return self._table.schema

    def batches(self, columns: Sequence[str], where: str | None = None) -> Iterator[pa.RecordBatch]:
        """All rows, some at a time, as they are when the first is asked for."""
        yield from self._table.search().where(where).select(list(columns)).to_batches(batch_size=ROWS)

    def vectors(self, where: str | None = None) -> NDArray[np.float32]:
        """Vectors (N, D) alone."""
        found = self._table.search().where(where).select(["vector"]).limit(self.count(where) or 1).to_arrow()
        return matrix(found.column("vector"), self.dimension)

    def nearest(
        self, vector: NDArray[np.float32], k: int, where: str | None, *, exact: bool = False
    ) -> list[tuple[float, dict[str, Any]]]:
        """The `k` rows of the highest cosine, with it; equal ones in the order of ids.

        LanceDB finds candidates, through codes where there are (see `codes`) or by a scan, which is exact; their scores are
        summed anew in float64, row by row, so that equal vectors get equal scores; and more candidates are fetched while a
        tie or a rounding could reach beyond them."""
        limit = k + 16
        while True:
            query = self._table.search(vector, vector_column_name="vector").distance_type("dot")
            if where is not None:
                query = query.where(where, prefilter=True)
            query = query.bypass_vector_index() if exact else codes.through(query)
            found = query.limit(limit).to_arrow()
            vectors = matrix(found.column("vector"), self.dimension)
            scores = (vectors.astype(np.float64) * vector).sum(1).astype(np.float32)
            ids = found.column("id").to_pylist()
            order = sorted(range(len(ids)), key=lambda row: (-scores[row], ids[row]))[:k]
            if not order:
                return []
            if len(ids) < limit or scores.min() < scores[order[-1]] - 1e-5:
                break
            limit *= 4
        rows = found.drop_columns(["vector", "_distance"]).take(order).to_pylist()
        return [(float(scores[at]), row) for at, row in zip(order, rows, strict=True)]

    def matching(self, words: str, k: int, where: str | None) -> list[tuple[float, dict[str, Any]]]:
        """The `k` rows whose terms match `words` (terms, see `mmembed.search.words`) best, with their BM25; equal ones in the
        order of ids. Rows that hold none of the terms do not come.

        LanceDB's full-text index knows what `compact` saw; rows of later chunks are read one by one, with the same result."""
        limit = k + 16
        while True:
            query = self._table.search(MatchQuery(words, "terms"), query_type="fts")
            if where is not None:
                query = query.where(where, prefilter=True)
            found = query.limit(limit).to_arrow()
            scores, ids = found.column("_score").to_pylist(), found.column("id").to_pylist()
            order = sorted(range(len(ids)), key=lambda row: (-scores[row], ids[row]))[:k]
            if not order:
                return []
            if len(ids) < limit or min(scores) < scores[order[-1]]:
                break
            limit *= 4
        rows = found.drop_columns(["vector", "_score"]).take(order).to_pylist()
        for row, vector in zip(rows, matrix(found.column("vector").take(order), self.dimension), strict=True):
            row["vector"] = vector
        return [(scores[at], row) for at, row in zip(order, rows, strict=True)]

    def merge(self, rows: Sequence[Mapping[str, Any]], vectors: NDArray[np.float32]) -> None:
        """Rows and their vectors (N, D), in one commit; a row whose id is known takes the place of the known one."""
        schema = pa.schema([f for f in self._table.schema if f.name != "vector"])
        flat = pa.array(unit(vectors).reshape(-1))
        table = pa.Table.from_pylist(list(rows), schema=schema).append_column(
            self._table.schema.field("vector"), pa.FixedSizeListArray.from_arrays(flat, self.dimension)
        )
        merge = self._table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
        merge.execute(table)

    def remove(self, ids: Sequence[str]) -> int:
        """Take rows out; returns how many were there."""
        before = self.count()
        for first in range(0, len(ids), IDS):
            self._table.delete(among(ids[first : first + IDS]))
        return before - self.count()

    def compact(self) -> None:
        """Many small fragments into few, their terms into the full-text index, and codes for the vectors of a large table."""
        if not any(index.columns == ["terms"] for index in self._table.list_indices()):
            plain = {"lower_case": False, "stem": False, "remove_stop_words": False, "ascii_folding": False}
            self._table.create_index("terms", config=FTS(base_tokenizer="whitespace", with_position=False, **plain))
        codes.make(self._table)
        self._table.optimize()

    def searched(self) -> str:
        """How `nearest` goes about it, in words."""
        return codes.said(self._table)


def exists(path: str | os.PathLike[str]) -> bool:
    """Whether a folder holds an index."""
    return (Path(path) / f"{NAME}.lance").is_dir()


def quoted(text: str) -> str:
    """A text in SQL."""
    return "'" + text.replace("'", "''") + "'"


def among(ids: Iterable[str]) -> str:
    """Rows of these ids, in SQL."""
    return f"id IN ({', '.join(map(quoted, ids))})"


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows (N, D) of unit length, in float32."""
    wide = vectors.astype(np.float64)
    return (wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-30)).astype(np.float32)


def _schema(dimension: int, made: Mapping[str, Any]) -> pa.Schema:
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("content", pa.string(), nullable=False),
            pa.field("modality", pa.string(), nullable=False),
            pa.field("text", pa.string()),
            pa.field("path", pa.string()),
            pa.field("thumbnail", pa.binary()),
            pa.field("metadata", pa.string(), nullable=False),
            pa.field("terms", pa.string(), nullable=False),
            pa.field("vector", pa.list_(pa.float32(), dimension), nullable=False),
        ],
        metadata={"mmembed": json.dumps(made)},
    )


def _made(table: lancedb.table.Table, path: Path) -> dict[str, Any]:
    try:
        made = json.loads((table.schema.metadata or {})[b"mmembed"])
    except (KeyError, ValueError):
        raise StoreError(f"{path} holds a LanceDB table that is no mmembed index") from None
    if made["format"] != FORMAT:
        raise StoreError(f"{path} is an index of format {made['format']}; this version reads {FORMAT}")
    return made


def matrix(column: pa.ChunkedArray | pa.Array, dimension: int) -> np.ndarray:
    """A column of vectors as (N, D)."""
    column = column if isinstance(column, pa.Array) else column.combine_chunks()
    return column.flatten().to_numpy(zero_copy_only=False).reshape(-1, dimension)
