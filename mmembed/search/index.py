"""`Index`: things, their vectors and small pictures of them in one LanceDB table, searched exactly."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from itertools import chain, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..errors import FingerprintMismatch, InputError, MissingExtra, StoreError, UnknownName
from ..images import Image, open_image
from ..inputs import Item, Text, Thing, modality, to_item
from ..sources import PICTURES
from .background import SAMPLE, Background
from .hits import Hit, Hits
from .plane import plane

try:
    import lancedb
    import pyarrow as pa
except ImportError as error:
    raise MissingExtra("lancedb", "search") from error

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..embedder import Embedder

TABLE = "items"
FORMAT = 1
MODALITIES = ("text", "image", "image+text")
THUMBNAIL = 128
"""Longer side, in pixels, of the picture kept of a picture, so that hits show without their source."""
CHUNK = 256
CHUNK_PIXELS = 48 * 10**6
"""A chunk is embedded and written as one: at most so many items and, beyond the first, so many decoded pixels."""


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


class Index:
    """Things to search, in a folder of their own.

    Made by `Index.create` and `Index.open`. One LanceDB table holds everything: each row an id, the text, the path, a
    thumbnail, metadata and a unit vector in float32; what model the vectors belong to stands in the table's schema.
    Every search scans all vectors, so it is exact.

    Example:
        >>> index = Index.create("photos.index", mmembed.load())
        >>> index.add_folder("photos")
        >>> index.search("a red bicycle", modality="image")
    """

    def __init__(self, path: Path, table: lancedb.table.Table, embedder: Embedder | None):
        self.path = path
        self.embedder = embedder
        self._table = table
        self._background: tuple[int, Background] | None = None
        self._made = _made(table, path)
        if embedder is not None and embedder.fingerprint != self._made["fingerprint"]:
            raise FingerprintMismatch(
                f"{path} holds vectors of {self._made['model']!r} ({self._made['fingerprint'][:12]}), not of "
                f"{embedder.spec.name!r} ({embedder.fingerprint[:12]}): open it with the model it was made with, or "
                "make a new index"
            )

    @classmethod
    def create(cls, path: str | os.PathLike[str], embedder: Embedder, *, truncate_dim: int | None = None) -> Index:
        """Make an empty index in a folder that holds none.

        Args:
            path: the folder; it is made if need be.
            embedder: the model of all its vectors.
            truncate_dim: keep only the first so many numbers of a vector, one of `embedder.spec.dimensions`.

        Raises:
            StoreError: there is an index already.
            SpecError: the model was not trained for vectors of that many numbers.
        """
        width = embedder.encode([], truncate_dim=truncate_dim).shape[1]
        made = {
            "format": FORMAT,
            "model": embedder.spec.name,
            "fingerprint": embedder.fingerprint,
            "precision": embedder.precision,
            "dimension": width,
        }
        try:
            table = lancedb.connect(Path(path)).create_table(TABLE, schema=_schema(width, made))
        except ValueError as error:
            if "already exists" not in str(error):
                raise
            raise StoreError(f"{path} holds an index already: Index.open takes it up") from None
        return cls(Path(path), table, embedder)

    @classmethod
    def open(cls, path: str | os.PathLike[str], embedder: Embedder | None = None) -> Index:
        """Take up the index at `path`; without an embedder it can be listed, read and removed from, not searched.

        Raises:
            StoreError: there is none.
            FingerprintMismatch: its vectors belong to another model.
        """
        if not exists(path):
            raise StoreError(f"{path} holds no index")
        return cls(Path(path), lancedb.connect(Path(path)).open_table(TABLE), embedder)

    def __len__(self) -> int:
        return self._table.count_rows()

    def __repr__(self) -> str:
        made = self._made
        return (
            f"<mmembed.Index {str(self.path)!r}: {len(self)} items, {made['dimension']} numbers of {made['model']!r}>"
        )

    @property
    def dimension(self) -> int:
        """Numbers in a stored vector."""
        return self._made["dimension"]

    def info(self) -> dict[str, Any]:
        """What it holds: items by modality, bytes on disk, and the model of its vectors."""
        counts = {kind: self._table.count_rows(f"modality = {_quoted(kind)}") for kind in MODALITIES}
        size = sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())
        return {"path": str(self.path), "items": len(self), "modalities": counts, "bytes": size, **self._made}

    def add(
        self,
        things: Iterable[Thing],
        *,
        ids: Iterable[str] | None = None,
        metadata: Iterable[Mapping[str, Any]] | None = None,
        on_error: Literal["raise", "skip"] = "raise",
        show_progress_bar: bool = False,
    ) -> AddReport:
        """Embed things as documents and keep them.

        An id that is not given is the hash of the content, so adding the same again changes nothing. A given id that is
        known is replaced. Things go in by chunks, each written whole: after an error or a kill, what came before the
        chunk is in the index, and adding all of it again goes on from there.

        Args:
            things: an iterable of what `encode` takes: str, Image, PIL image, tuple, dict. Generators are not exhausted
                ahead.
            ids: one a thing.
            metadata: one mapping a thing, of what JSON can hold; None keeps that of known ids.
            on_error: "raise" at the first thing that cannot be embedded, or "skip" it and report it.

        Raises:
            InputError: a thing that cannot be embedded, or an id that is no text, by its row.
            StoreError: the index was opened without an embedder; `ids` or `metadata` are fewer than the things.
        """
        self._encoder()
        if isinstance(things, (str, Mapping)) or not isinstance(things, Iterable):
            raise InputError(f"add takes many things; one {type(things).__name__} goes in a list")
        total = len(things) if isinstance(things, Sized) else None
        given = ((*entry, None) for entry in _together(things, ids, metadata))
        return self._add(given, total, on_error, show_progress_bar)

    def add_folder(
        self,
        folder: str | os.PathLike[str],
        *,
        pattern: str = "**/*",
        on_error: Literal["raise", "skip"] = "skip",
        show_progress_bar: bool = False,
    ) -> AddReport:
        """Add the pictures of a folder and its .txt files, each one text, in the order of their paths.

        Other files are passed over. A file that cannot be read or embedded is reported by its path.

        Raises:
            StoreError: `folder` is no folder.
        """
        root = Path(folder)
        if not root.is_dir():
            raise StoreError(f"{folder} is no folder")
        files = [f for f in sorted(root.glob(pattern)) if f.suffix.lower() in (*PICTURES, ".txt") and not f.is_dir()]
        return self.add_files(files, on_error=on_error, show_progress_bar=show_progress_bar)

    def add_files(
        self,
        files: Sequence[str | os.PathLike[str]],
        *,
        on_error: Literal["raise", "skip"] = "skip",
        show_progress_bar: bool = False,
    ) -> AddReport:
        """Add files: a name that ends in .txt is one text in UTF-8, any other a picture."""
        self._encoder()
        rows = ((_File(Path(f)), None, None, Path(f)) for f in files)
        return self._add(rows, len(files), on_error, show_progress_bar)

    def remove(self, ids: Iterable[str]) -> int:
        """Take items out by id; an id that is not there is passed over. Returns how many were there."""
        wanted = list(ids)
        before = len(self)
        for first in range(0, len(wanted), CHUNK):
            self._table.delete(_among(wanted[first : first + CHUNK]))
        return before - len(self)

    def search(self, query: Thing, *, k: int = 10, modality: str | None = None, balanced: bool = True) -> Hits:
        """The `k` items nearest to a query.

        Args:
            query: a text in any language, a picture, or a tuple of both.
            k: how many; fewer come back from a smaller index.
            modality: only items of "text", "image" or "image+text".
            balanced: order items of several modalities by their relevance, see `Background`: texts lie nearer to texts than
                pictures do, and would bury them. False: by the cosine alone.

        Returns:
            `Hits`, best first; equal ones in the order of ids. Their scores are cosines in float32.

        Raises:
            InputError: the query cannot be embedded.
            UnknownName: no such modality.
            StoreError: the index was opened without an embedder.
        """
        asked = query if isinstance(query, str) else " + ".join(map(_said, to_item(query)))
        _check_asked(k, modality)
        vector = self._encoder().encode_query([query], truncate_dim=self.dimension)[0]
        return self.nearest(vector, k=k, modality=modality, balanced=balanced, query=asked)

    def nearest(
        self,
        vector: NDArray[np.float32],
        *,
        k: int = 10,
        modality: str | None = None,
        balanced: bool = True,
        query: str = "",
    ) -> Hits:
        """`search` by a vector (D,) that `embedder.encode_query` gave, or `vector` of an item for more that are like it;
        `query` says in the hits what was asked.

        Raises:
            InputError: the vector has another width, or is not finite. UnknownName: no such modality.
        """
        _check_asked(k, modality)
        if vector.shape != (self.dimension,) or not np.isfinite(vector).all():
            raise InputError(f"a query of this index is {self.dimension} finite numbers, not {vector.shape}")
        asked = _unit(vector[None])[0]
        if balanced and modality is None:
            found = [hit for kind in MODALITIES for hit in self._hits(asked, k, kind)]
            found.sort(key=lambda hit: hit.id)
            if all(hit.log_relevance is not None for hit in found):
                found.sort(key=lambda hit: (-(hit.log_relevance or 0.0), -hit.score))
            else:  # too few things of some modality to say what stands out
                found.sort(key=lambda hit: -hit.score)
        else:
            found = self._hits(asked, k, modality)
        return Hits([dataclasses.replace(hit, rank=rank) for rank, hit in enumerate(found[:k], 1)], query=query)

    def _hits(self, vector: NDArray[np.float32], k: int, kind: str | None) -> list[Hit]:
        rows = self._nearest(vector, k, kind)
        hits = []
        for rank, (score, row) in enumerate(rows, 1):
            known = self.background.log_relevance(vector, row["modality"], np.array([score], dtype=np.float32))
            hits.append(
                Hit(
                    rank=rank,
                    score=score,
                    id=row["id"],
                    modality=row["modality"],
                    log_relevance=None if known is None else float(known[0]),
                    text=row["text"],
                    path=row["path"],
                    thumbnail=row["thumbnail"],
                    metadata=json.loads(row["metadata"]),
                )
            )
        return hits

    @property
    def background(self) -> Background:
        """A sample of its vectors, against which scores are told; taken anew when the index has changed."""
        version = self._table.version
        if self._background is None or self._background[0] != version:
            samples, counts = {}, {}
            for kind in MODALITIES:
                where = f"modality = {_quoted(kind)}"
                counts[kind] = self._table.count_rows(where)
                if counts[kind] > SAMPLE:  # contents are hashes: those below a bound are a fair sample
                    where += f" AND content < '{int(SAMPLE / counts[kind] * 16**8):08x}'"
                found = self._table.search().where(where).select(["vector"]).limit(counts[kind] or 1).to_arrow()
                samples[kind] = _matrix(found.column("vector"), self.dimension)
            self._background = version, Background(samples, counts)
        return self._background[1]

    def vector(self, name: str) -> NDArray[np.float32]:
        """The vector (D,) of an item, by its id.

        Raises:
            InputError: no such item.
        """
        found = self._table.search().where(_among([name])).select(["vector"]).limit(1).to_arrow()
        if not len(found):
            raise InputError(f"the index holds no item with the id {name!r}")
        return _matrix(found.column("vector"), self.dimension)[0]

    def layout(self, most: int = 5000) -> list[dict[str, Any]]:
        """A map of what it holds: id, modality, label, x and y (-1..1) of each item, see `plane`; of more than `most` a fair
        sample."""
        count = len(self)
        where = f"content < '{int(most / count * 16**8):08x}'" if count > most else None
        columns = ["id", "modality", "text", "path", "metadata", "vector"]
        found = self._table.search().where(where).select(columns).limit(count or 1).to_arrow()
        rows = found.drop_columns(["vector"]).to_pylist()
        places = plane(_matrix(found.column("vector"), self.dimension), [row["modality"] for row in rows])
        return [
            {
                "id": row["id"],
                "modality": row["modality"],
                "label": Hit(0, 0.0, metadata=json.loads(row.pop("metadata")), **row).label,
                "x": float(x),
                "y": float(y),
            }
            for row, (x, y) in zip(rows, places, strict=True)
        ]

    def get(self, name: str) -> Hit | None:
        """An item by its id, as a hit of no search: rank 0 and score 0; None: there is no such item."""
        columns = ["id", "modality", "text", "path", "thumbnail", "metadata"]
        found = self._table.search().where(_among([name])).select(columns).limit(1).to_arrow().to_pylist()
        return Hit(0, 0.0, metadata=json.loads(found[0].pop("metadata")), **found[0]) if found else None

    def _nearest(self, vector: np.ndarray, k: int, kind: str | None) -> list[tuple[float, dict[str, Any]]]:
        """Exact: LanceDB scans for candidates; their scores are summed anew in float64, row by row, so that equal
        vectors get equal scores; and more candidates are fetched while a tie or a rounding could reach beyond them."""
        limit = k + 16
        while True:
            query = self._table.search(vector, vector_column_name="vector").distance_type("dot")
            if kind is not None:
                query = query.where(f"modality = {_quoted(kind)}", prefilter=True)
            found = query.bypass_vector_index().limit(limit).to_arrow()
            vectors = _matrix(found.column("vector"), self.dimension)
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

    def _encoder(self) -> Embedder:
        if self.embedder is None:
            raise StoreError(f"{self.path} was opened without an embedder: Index.open(path, mmembed.load())")
        return self.embedder

    def _add(
        self, things: Iterable[_Given], total: int | None, on_error: Literal["raise", "skip"], show_progress_bar: bool
    ) -> AddReport:
        from tqdm.auto import tqdm

        if on_error not in ("raise", "skip"):
            raise UnknownName("on_error", on_error, ("raise", "skip"))
        report = AddReport()
        chunk, chunks = _Chunk(), 0
        with tqdm(total=total, desc="adding", unit="item", disable=not show_progress_bar) as bar:
            for number, given in enumerate(things):
                try:
                    row = _row(number, *given)
                except InputError as error:
                    if on_error == "raise":
                        error.item = number
                        raise
                    report.skipped.append(Skipped(number, _name(given), error.reason))
                    bar.update()
                    continue
                if not chunk.takes(row):
                    self._write(chunk, report, on_error)
                    bar.update(chunk.size)
                    chunk, chunks = _Chunk(), chunks + 1
                chunk.take(row)
            self._write(chunk, report, on_error)
            bar.update(chunk.size)
        if chunks:
            self._table.optimize()  # many small fragments into few
        report.skipped.sort(key=lambda skipped: skipped.row)
        return report

    def _write(self, chunk: _Chunk, report: AddReport, on_error: Literal["raise", "skip"]) -> None:
        """Embed what is new among a chunk and write it in one commit."""
        from ..embedder import Report

        if not chunk.rows:
            return
        columns = ["id", "content", "metadata"]
        query = self._table.search().where(_among(chunk.rows)).select(columns).limit(len(chunk.rows))
        known = {row["id"]: row for row in query.to_arrow().to_pylist()}
        rows = [row for row in chunk.rows.values() if not row.stands_in(known)]
        told = Report()
        things: list[Thing] = [row.item for row in rows]
        try:
            vectors = self._encoder().encode_document(
                things, truncate_dim=self.dimension, on_error=on_error, report=told
            )
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
        stored = [rows[at].as_stored(known) for at in kept]
        table = pa.Table.from_pylist(stored, schema=pa.schema([f for f in self._table.schema if f.name != "vector"]))
        flat = pa.array(_unit(vectors[kept]).reshape(-1))
        table = table.append_column(
            self._table.schema.field("vector"), pa.FixedSizeListArray.from_arrays(flat, self.dimension)
        )
        merge = self._table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
        merge.execute(table)
        replaced = sum(rows[at].id in known for at in kept)
        report.replaced += replaced
        report.added += len(kept) - replaced


def exists(path: str | os.PathLike[str]) -> bool:
    """Whether a folder holds an index."""
    return (Path(path) / f"{TABLE}.lance").is_dir()


# ---- one thing, as a row ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _File:
    """A file that is read when its turn comes."""

    path: Path

    def read(self) -> Thing:
        if self.path.suffix.lower() != ".txt":
            return Image(self.path)
        try:
            return Text(self.path.read_text(encoding="utf-8-sig"))
        except (OSError, UnicodeDecodeError, ValueError) as error:
            raise InputError(f"{_printable(self.path)}: cannot be read as UTF-8 text: {error}") from error


_Given = tuple["Thing | _File", "str | None", "Mapping[str, Any] | None", "Path | None"]


@dataclass(frozen=True, slots=True)
class _Row:
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
        return {
            "id": self.id,
            "content": self.content,
            "modality": modality(self.item),
            "text": self.text,
            "path": self.path,
            "thumbnail": self.thumbnail,
            "metadata": before if self.metadata is None else self.metadata,
        }


class _Chunk:
    """Rows that are embedded and written together, one an id; what comes again in the same words is only counted."""

    def __init__(self) -> None:
        self.rows: dict[str, _Row] = {}
        self.again: list[_Row] = []
        self.pixels = 0

    @property
    def size(self) -> int:
        return len(self.rows) + len(self.again)

    def takes(self, row: _Row) -> bool:
        if row.id in self.rows:
            return self._repeats(row)
        return not self.rows or (len(self.rows) < CHUNK and self.pixels + row.pixels <= CHUNK_PIXELS)

    def take(self, row: _Row) -> None:
        if row.id in self.rows:
            self.again.append(dataclasses.replace(row, item=()))  # lets go of the pixels
            return
        self.rows[row.id] = row
        self.pixels += row.pixels

    def _repeats(self, row: _Row) -> bool:
        first = self.rows[row.id]
        return row.content == first.content and row.metadata in (None, first.metadata)


def _row(
    number: int, given: Thing | _File, name: str | None, metadata: Mapping[str, Any] | None, path: Path | None
) -> _Row:
    item = to_item(given.read() if isinstance(given, _File) else given)
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
        if path is None and not part.allow_url and (isinstance(source, os.PathLike) or _is_path(source)):
            path = Path(source)  # type: ignore[arg-type]
    content = digest.hexdigest()
    if name is not None and (not isinstance(name, str) or not name):
        raise InputError(f"an id is a text of at least one character, not {name!r}")
    if name is not None:
        _utf8(name)
    return _Row(
        number=number,
        name=_name((given, name, metadata, path)),
        item=tuple(parts),
        id=content if name is None else name,
        content=content,
        text="\n".join(texts) if texts else None,
        path=None if path is None else _printable(path.absolute()),
        thumbnail=thumbnail,
        metadata=None if metadata is None else _json(metadata),
        pixels=pixels,
    )


def _is_path(source: object) -> bool:
    return isinstance(source, str) and source[:5].lower() != "data:"


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


def _name(given: _Given) -> str:
    thing, name, _, path = given
    if name is not None:
        return str(name)
    if path is not None or isinstance(thing, _File):
        return _printable(path or thing.path)  # type: ignore[union-attr]
    try:
        return " + ".join(map(_said, to_item(thing)))
    except InputError:
        return type(thing).__name__


def _said(part: Text | Image) -> str:
    if isinstance(part, Image):
        return f"[{part.name}]"
    return part.text if len(part.text) <= 60 else part.text[:59] + "…"


def _printable(path: Path) -> str:
    """A path as text: bytes of a file name that are no UTF-8 are written \\xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


# ---- the table -------------------------------------------------------------------------------------------------------


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


def _together(
    things: Iterable[Thing], ids: Iterable[str] | None, metadata: Iterable[Mapping[str, Any]] | None
) -> Iterator[tuple[Thing, Any, Any]]:
    """Things with their ids and metadata, one each."""
    end = object()
    named = repeat(None) if ids is None else chain(_not_one_text(ids, "ids"), repeat(end))
    said = repeat(None) if metadata is None else chain(metadata, repeat(end))
    count = 0
    for thing, name, extra in zip(things, named, said, strict=False):
        if name is end or extra is end:
            raise StoreError(f"{count} {'ids' if name is end else 'metadata'} were given, and there are more things")
        count += 1
        yield thing, name, extra
    for rest, what in ((named, "ids"), (said, "metadata")):
        if isinstance(rest, chain) and next(rest) is not end:
            raise StoreError(f"more {what} were given than the {count} things")


def _not_one_text(ids: Iterable[str], what: str) -> Iterable[str]:
    if isinstance(ids, str):
        raise InputError(f"{what} are many; one goes in a list")
    return ids


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Rows (N, D) of unit length, in float32."""
    wide = vectors.astype(np.float64)
    return (wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-30)).astype(np.float32)


def _matrix(column: pa.ChunkedArray, dimension: int) -> np.ndarray:
    return column.combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(-1, dimension)


def _check_asked(k: int, kind: str | None) -> None:
    if kind is not None and kind not in MODALITIES:
        raise UnknownName("modality", kind, MODALITIES)
    if k < 1:
        raise InputError(f"k is the number of hits wanted, at least 1, not {k}")


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _among(ids: Iterable[str]) -> str:
    return f"id IN ({', '.join(map(_quoted, ids))})"
