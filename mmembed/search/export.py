"""An index written out for other tools: parquet, NumPy, or the layout of clip-retrieval."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import StoreError, UnknownName
from ..files import whole, write_header
from .table import Table, matrix

FORMS = (".parquet", ".npy", "")
ABOUT = ["id", "modality", "text", "path", "metadata"]
COLUMNS = (pa.string(), pa.bool_(), pa.int64(), pa.float64())
"""Types of a column of metadata, the first that holds all its values as they are; where none does, they are written as JSON."""


def export(table: Table, path: str | os.PathLike[str], modality: str | None = None) -> int:
    """Write the rows of a table to `path`, which is there once all of it is; returns how many.

    Args:
        path: NAME.parquet: every column, vectors as lists of float32 of one length, thumbnails as WebP, metadata as JSON.
            NAME.npy: float32 (N, D), with NAME.jsonl, a line of id, modality, text, path and metadata a row, and NAME.json, what
            the vectors are of. A name without ending is a folder in the layout of clip-retrieval: img_emb/img_emb_0.npy or
            text_emb/text_emb_0.npy, and metadata/metadata_0.parquet with image_path, caption, id and a column for each key of
            the metadata.
        modality: only rows of it.

    Raises:
        UnknownName: another ending, or no such modality.
        StoreError: there is something already; or rows with and without pictures for the layout of clip-retrieval, in which a row
            of the metadata has one vector of a kind.
    """
    out = Path(path)
    if out.suffix not in FORMS:
        raise UnknownName(
            "form of an export", out.suffix, (".parquet", ".npy", "a name without ending: clip-retrieval")
        )
    parts = [out, out.with_suffix(".jsonl"), out.with_suffix(".json")] if out.suffix == ".npy" else [out]
    for part in parts:
        if part.exists():
            raise StoreError(f"{part} exists already: write elsewhere, or remove it")
    out.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:  # which puts the last in its place first: what is named is there once all of it is
        fresh = [stack.enter_context(whole(part)) for part in parts]
        if out.suffix == ".parquet":
            return _parquet(table, fresh[0], modality)
        if out.suffix == ".npy":
            return _numpy(table, fresh[0], fresh[1], fresh[2], modality)
        return _clip_retrieval(table, fresh[0], modality)


def _parquet(table: Table, path: Path, modality: str | None) -> int:
    count = 0
    kept = table.schema
    place = kept.get_field_index("vector")
    schema = kept.set(place, pa.field("vector", pa.list_(pa.float32(), table.dimension), nullable=False))
    with pq.ParquetWriter(path, schema) as writer:
        for batch in table.batches(kept.names, kind=modality):
            writer.write_batch(batch.cast(schema))
            count += batch.num_rows
    return count


def _numpy(table: Table, vectors: Path, rows: Path, about: Path, modality: str | None) -> int:
    about.write_text(json.dumps(table.made, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    with rows.open("w", encoding="utf-8") as lines, _Growing(vectors, table.dimension) as out:
        for batch in table.batches([*ABOUT, "vector"], kind=modality):
            out.append(matrix(batch.column("vector")))
            for row in batch.select(ABOUT).to_pylist():
                said = {**row, "metadata": json.loads(row["metadata"])}
                lines.write(json.dumps(said, ensure_ascii=False) + "\n")
    return out.rows


def _clip_retrieval(table: Table, folder: Path, modality: str | None) -> int:
    """As its `clip inference` writes it: https://github.com/rom1504/clip-retrieval, clip_inference/writer.py."""
    kinds: dict[bool, int] = {}
    seen: dict[str, set[Any]] = {}
    for batch in table.batches(["id", "modality", "metadata"], kind=modality):
        for row in batch.to_pylist():
            pictured = row["modality"] != "text"
            kinds[pictured] = kinds.get(pictured, 0) + 1
            for key, value in json.loads(row["metadata"]).items():
                seen[key] = seen.get(key, set(COLUMNS)) & _holding(value)
    if len(kinds) > 1:
        raise StoreError(
            f"the layout of clip-retrieval holds things of one kind, and here are {kinds[True]} with a picture and "
            f"{kinds[False]} of text: export each by itself, with its modality"
        )
    kind = "img" if kinds.get(True) else "text"
    for name in (f"{kind}_emb", "metadata"):
        (folder / name).mkdir(parents=True)
    seen = {key: types for key, types in seen.items() if key not in ("image_path", "caption", "id")}
    fields = [("image_path", pa.string())] if kind == "img" else []
    fields += [("caption", pa.string()), ("id", pa.string())]
    fields += [(key, next((each for each in COLUMNS if each in types), pa.string())) for key, types in seen.items()]
    schema = pa.schema(fields)
    with (
        _Growing(folder / f"{kind}_emb" / f"{kind}_emb_0.npy", table.dimension) as out,
        pq.ParquetWriter(folder / "metadata" / "metadata_0.parquet", schema) as writer,
    ):
        for batch in table.batches(["id", "text", "path", "metadata", "vector"], kind=modality):
            out.append(matrix(batch.column("vector")))
            said = [_flat(row, schema) for row in batch.drop_columns(["vector"]).to_pylist()]
            writer.write_table(pa.Table.from_pylist(said, schema=schema))
    return out.rows


def _holding(value: object) -> set[Any]:
    """Which of `COLUMNS` hold a value as it is: of a whole number those that have all of its digits."""
    if value is None:
        return set(COLUMNS)
    if type(value) is int:
        return {kind for kind, most in ((pa.int64(), 2**63 - 1), (pa.float64(), 2**53)) if abs(value) <= most}
    return {kind for own, kind in ((str, pa.string()), (bool, pa.bool_()), (float, pa.float64())) if type(value) is own}


def _flat(row: dict[str, Any], schema: Any) -> dict[str, Any]:
    metadata = json.loads(row["metadata"])
    plain = {"image_path": row["path"], "caption": row["text"], "id": row["id"]}
    for field in schema:
        if field.name in metadata and field.name not in plain:
            value = metadata[field.name]
            as_json = field.type == pa.string() and not isinstance(value, (str, type(None)))
            plain[field.name] = json.dumps(value, ensure_ascii=False) if as_json else value
    return plain


class _Growing:
    """A .npy file of float32 (N, D) that is written row by row; its header is written last. A context."""

    def __init__(self, path: Path, dimension: int):
        self._file = path.open("wb")
        self._dimension = dimension
        self.rows = 0

    def __enter__(self) -> _Growing:
        write_header(self._file, 0, self._dimension)
        return self

    def append(self, vectors: np.ndarray) -> None:
        self._file.write(np.ascontiguousarray(vectors, dtype="<f4").data)
        self.rows += len(vectors)

    def __exit__(self, *error: object) -> None:
        write_header(self._file, self.rows, self._dimension)
        self._file.close()
