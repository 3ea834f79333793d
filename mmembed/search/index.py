"""`Index`: things, their vectors and small pictures of them in one LanceDB table."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence, Sized
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..errors import FingerprintMismatch, InputError, StoreError, check_known
from ..inputs import MODALITIES, Thing, ordered
from ..sources import Columns, Entry, Source, read
from .adding import AddReport, OnError, add
from .background import SAMPLE, Background
from .diagnosis import Diagnosis, diagnosed
from .diversity import diversified, grouped
from .duplicates import DuplicateGroup, duplicates
from .export import export
from .hits import Hit, Hits, shortened
from .known import below, gone
from .languages import LanguageReport
from .metadata import LANGUAGE
from .plane import plane
from .query import Query
from .ranking import by_text, by_vector, fused
from .rerank import reranked
from .rows import together
from .table import HELD, SHOWN, STORES, Table, among, among_each
from .vectors import unit
from .verify import Verified, verify
from .words import terms

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..embedder import Embedder

Mode = Literal["vector", "text", "hybrid"]
MODES = ("vector", "text", "hybrid")


class Index:
    """Things to search, in a folder of their own.

    Made by `Index.create` and `Index.open`. One LanceDB table holds everything: each row an id, the text, the path, a
    thumbnail, metadata and a unit vector in float32; what model the vectors belong to stands in the table's schema.
    Up to 20,000 rows a search scans all vectors and is exact; beyond, it looks through codes of two bits a number and compares
    the vectors of the best, unless `exact=True`.

    Example:
        >>> index = Index.create("photos.index", mmembed.load())
        >>> index.add_folder("photos")
        >>> index.search("a red bicycle", modality="image")
    """

    def __init__(self, table: Table, embedder: Embedder | None):
        self.embedder = embedder
        self._table = table
        self._background: tuple[int, Background] | None = None
        if embedder is not None:
            self._check(embedder)

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        embedder: Embedder,
        *,
        truncate_dim: int | None = None,
        store: Literal["float32", "float16"] = "float32",
        storage_options: Mapping[str, str] | None = None,
    ) -> Index:
        """Make an empty index in a folder that holds none.

        Args:
            path: the folder; it is made if need be. Or a URI of an object store that LanceDB knows: s3://, gs://, az://.
            embedder: the model of all its vectors.
            truncate_dim: keep only the first so many numbers of a vector, one of `embedder.spec.dimensions`.
            store: how numbers are kept; float16 takes half the room, and a cosine is then right to 3 digits. Scores are summed
                in float64 of what is kept.
            storage_options: of an object store, as LanceDB has them.

        Raises:
            StoreError: there is an index already, or nothing can be written there.
            SpecError: the model was not trained for vectors of that many numbers.
            UnknownName: another way to keep them. InputError: no embedder.
        """
        check_known("store", store, STORES)
        if not hasattr(embedder, "fingerprint"):
            raise InputError(f"an index is made for an embedder, as mmembed.load gives it, not for {embedder!r}")
        width = embedder.encode([], truncate_dim=truncate_dim).shape[1]
        made = {
            "model": embedder.spec.name,
            "spec": json.loads(embedder.spec.to_json()),
            "fingerprint": embedder.fingerprint,
            "precision": embedder.precision,
            "dimension": width,
            "store": store,
        }
        return cls(Table.create(path, made, storage_options), embedder)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        embedder: Embedder | None = None,
        *,
        storage_options: Mapping[str, str] | None = None,
    ) -> Index:
        """Take up the index at `path`; without an embedder it can be listed, read and removed from, not searched.

        Raises:
            StoreError: there is none.
            FingerprintMismatch: its vectors belong to another model.
        """
        return cls(Table.open(path, storage_options), embedder)

    def __len__(self) -> int:
        return self.count()

    def count(self, where: str | None = None) -> int:
        """How many items there are, or of how many a condition in SQL is true, see `search`.

        Raises:
            InputError: `where` is no condition. UnknownName: it names a column that is not there.
        """
        return self._table.count(where)

    @property
    def made(self) -> Mapping[str, Any]:
        """What its vectors are of: "model", "spec", "fingerprint", "precision", "dimension" and "store"."""
        return self._table.made

    def __repr__(self) -> str:
        made = self._table.made
        return (
            f"<mmembed.Index {str(self.path)!r}: {len(self)} items, {made['dimension']} numbers of {made['model']!r}>"
        )

    @property
    def path(self) -> Path | str:
        """The folder that it is in, or its URI."""
        return self._table.path

    @property
    def dimension(self) -> int:
        """Numbers in a stored vector."""
        return self._table.dimension

    def info(self) -> dict[str, Any]:
        """What it holds: items by modality, names of metadata, bytes; how it is searched, and the model of its vectors.

        Raises:
            FingerprintMismatch: another index was made in the place of this one.
        """
        self._table.check()
        counts = {kind: self._table.count(kind=kind) for kind in MODALITIES}
        held = {
            "items": len(self),
            "modalities": counts,
            "metadata": self._table.kinds,
            "bytes": self._table.bytes(),
            "search": self._table.searched(),
        }
        made = {key: value for key, value in self._table.made.items() if key != "spec"}
        return {"path": str(self.path), **held, **made}

    def add(
        self,
        things: Iterable[Thing],
        *,
        ids: Iterable[str] | None = None,
        metadata: Iterable[Mapping[str, Any]] | None = None,
        on_error: OnError = "raise",
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
            metadata: one mapping a thing, of what JSON can hold: texts, whole numbers of 64 bits, ...; None keeps that of known
                ids. Names that are columns of the index's own, such as "text" or "id", are kept too, and `where` does not see
                them: by these names it means the index's.
            on_error: "raise" at the first thing that cannot be embedded, or "skip" it and report it.

        Raises:
            InputError: a thing that cannot be embedded, an id that is no text, or metadata that JSON cannot hold or that has
                another kind of value under a name than items of the index have, by its row.
            FingerprintMismatch: the model was trained since the index was opened, or another index was made in its place.
            StoreError: the index was opened without an embedder; `ids` or `metadata` are fewer than the things.
        """
        things = ordered(things, "things", Mapping)
        total = len(things) if isinstance(things, Sized) else None
        return self._add(together(things, ids, metadata), total, on_error, show_progress_bar)

    def add_folder(
        self,
        folder: str | os.PathLike[str],
        *,
        reread: bool = False,
        on_error: OnError = "skip",
        show_progress_bar: bool = False,
    ) -> AddReport:
        """Add the pictures of a folder and its .txt files, each one text, all the way down, in the order of their paths; or bring
        the index up to date with it, see `add_files`, and `remove_gone` for files that are there no more.

        Other files are passed over. A file that cannot be read or embedded is reported by its path.

        Raises:
            StoreError: `folder` is no folder.
        """
        if not Path(folder).is_dir():
            raise StoreError(f"{folder} is no folder")
        return self.add_files([folder], reread=reread, on_error=on_error, show_progress_bar=show_progress_bar)

    def add_files(
        self,
        sources: Iterable[Source],
        *,
        columns: Columns | None = None,
        reread: bool = False,
        on_error: OnError = "skip",
        show_progress_bar: bool = False,
    ) -> AddReport:
        """Add what is in files: folders, patterns, .txt, .jsonl, .parquet, webdataset tars, datasets of Hugging Face; any other
        file is a picture. See `mmembed.sources.read`. Rows keep their id, and their other columns as metadata.

        A picture or .txt file that has other content than when it was added is replaced, and keeps its metadata. One whose
        content is there, under whatever name, is not embedded again; one whose size and time of writing are as they were is not
        even read. Before the last step, a kill may leave both contents of a file; the same call again puts that right.

        Args:
            columns: of rows, which column holds what: `Columns(text="caption")`.
            reread: read and hash also the files whose size and time are as they were.

        Raises:
            LoadError: a file of many things that is not there, or a column that is in none of its rows.
            InputError: one source, where many are taken.
        """
        if isinstance(sources, (str, os.PathLike)):
            raise InputError(f"add_files takes many sources; one goes in a list: [{str(sources)!r}]")
        entries = read(sources, columns=columns)
        return self.add_entries(entries, reread=reread, on_error=on_error, show_progress_bar=show_progress_bar)

    def add_entries(
        self,
        entries: Iterable[Entry],
        *,
        reread: bool = False,
        on_error: OnError = "skip",
        show_progress_bar: bool = False,
    ) -> AddReport:
        """Add what `mmembed.sources.read` gives, or what a caller makes like it: things with their places, ids and metadata."""
        return self._add(entries, None, on_error, show_progress_bar, reread=reread)

    def remove_gone(self, folder: str | os.PathLike[str]) -> list[str]:
        """Take out the items of files that were below a folder and are there no more; returns their paths.

        Files of one content are one item, which knows the path of one of them: when that file is gone, so is the item, though a
        copy lies in another folder. Adding that folder first keeps it, and adding it afterwards brings it back.

        Raises:
            StoreError: `folder` is no folder, or an empty one, as a disk that is not mounted looks.
        """
        try:
            is_filled = Path(folder).is_dir() and any(Path(folder).iterdir())
        except OSError as error:
            raise StoreError(f"{folder} cannot be looked into: {error.strerror}") from None
        if not is_filled:
            raise StoreError(f"{folder} is no folder with files in it: nothing is taken out")
        found = gone(self._table, folder)
        for part in among_each(found):  # another process may have found one elsewhere
            self._table.remove(f"{part} AND {below(folder)}")
        return sorted(found.values())

    def export(self, path: str | os.PathLike[str], *, modality: str | None = None) -> int:
        """Write it out for other tools: NAME.parquet, NAME.npy (with NAME.jsonl), or a folder in the layout of clip-retrieval,
        see `mmembed.search.export.export`. Returns how many items.

        Args:
            modality: only items of it.

        Raises:
            UnknownName: another ending, or no such modality. StoreError: there is something already.
        """
        return export(self._table, path, modality)

    def duplicates(self, threshold: float = 0.97, *, modality: str | None = None) -> list[DuplicateGroup]:
        """Groups of items that are alike, see `mmembed.search.duplicates.duplicates`; nothing is taken out.

        Args:
            threshold: the least cosine, above 0 and at most 1. modality: only items of it.

        Raises:
            InputError: the threshold is no such. UnknownName: no such modality.
        """
        _check_threshold(threshold)
        return duplicates(self._table, threshold, modality)

    def remove(self, ids: Iterable[str] | None = None, *, where: str | None = None) -> int:
        """Take items out, by id or by a condition in SQL, see `search`. Returns how many there were; an id that is not there is
        passed over. They are found no more from then on, and leave the disk when the index is compacted.

        Raises:
            InputError: neither ids nor where, or both; an id that is no text; where is no condition.
            UnknownName: where names a column that is not there.
        """
        if (ids is None) == (where is None):
            raise InputError("remove takes ids, or where=, a condition in SQL")
        if where is not None:
            return self._table.remove(where)
        if isinstance(ids, str) or ids is None:
            raise InputError("ids are many; one goes in a list")
        return sum(self._table.remove(part) for part in list(among_each(ids)))  # before any is taken out

    def items(self, *, where: str | None = None, limit: int = 100) -> Hits:
        """Items in the order of their ids, as hits of no search, of which `where` is true, see `search`; the first `limit`.

        Raises:
            InputError: no such limit, or `where` is no condition.
        """
        _check_count("limit", limit)
        ids = sorted(row["id"] for row in self._table.read(["id"], where))[:limit]
        rows = [row for part in among_each(ids) for row in self._table.read(SHOWN, part)]
        return Hits([Hit.of(row) for row in sorted(rows, key=lambda row: row["id"])], query=where or "")

    def verify(self, *, sample: int = 0) -> Verified:
        """Read all of it: vectors finite and of unit length, no id twice, every row as it was written, by its checksum, and
        whether files are as they were. See `Verified`.

        Args:
            sample: so many items are embedded anew and compared.

        Raises:
            StoreError: `sample` of an index that was opened without an embedder.
        """
        return verify(self._table, self.embedder, sample=sample)

    def compact(self, *, held: timedelta = HELD) -> None:
        """Many small pieces on disk into few, and let go of what was removed or replaced. Adding does it too, when it pays.

        Every call of `add` leaves up to 90 KB of what the index was before on disk for so long as `held`: what comes one by one
        within a short time goes in with fewer calls.

        Args:
            held: so long what was removed or replaced stays on disk, for who is reading or writing. `timedelta(0)`: it is gone at
                once; what another process has under way may then fail.

        Raises:
            StoreError: others write all the time, or the disk is full.
        """
        self._table.compact(held)

    def search(
        self,
        query: Thing | Query,
        *,
        k: int = 10,
        mode: Mode = "vector",
        modality: str | None = None,
        where: str | None = None,
        balanced: bool = True,
        exact: bool = False,
    ) -> Hits:
        """The `k` items that answer a query best.

        Args:
            query: a text in any language, a picture, a tuple of both, or a `Query` of several with weights.
            k: how many; fewer come back from a smaller index.
            mode: "vector": the nearest. "text": those that hold its words, by BM25 of character n-grams, which need no spaces
                between words; an item's words are its text, its "name" in the metadata and the name of its file. Weights and
                pictures say nothing there. "hybrid": both, by reciprocal rank fusion; parts with a weight below zero turn away
                hits on the side of vectors alone.
            modality: only items of "text", "image" or "image+text".
            where: only items for which this is true, in SQL: "year >= 2020 AND language IN ('de', 'fr')". Its names are the
                columns id, modality, text, path and content (the hash), and those of the metadata that hold texts, numbers or
                truth values, see `info`.
            balanced: order items of several modalities by their relevance, see `Background`: texts lie nearer to texts than
                pictures do, and would bury them. False: by the cosine alone.
            exact: scan all vectors, also where there are codes to search through, see `info`.

        Returns:
            `Hits`, best first; equal ones in the order of ids. Their scores are what the mode orders by: cosines in float32,
            BM25, or sums of 1 / (60 + rank).

        Raises:
            InputError: the query is empty or cannot be embedded, or holds no words for full text, or a weight below zero, which
                full text cannot heed; `where` is no condition.
            UnknownName: no such modality or mode, or column in `where`.
            StoreError: the index was opened without an embedder, which "text" alone does without.
            FingerprintMismatch: another index was made in the place of this one.
        """
        _check_count("k", k)
        check_known("mode", mode, MODES)
        asked = Query.of(query)
        words = terms(asked.words)
        if mode == "text":
            if any(weight < 0 for _, weight in asked.parts):
                raise InputError(
                    f"{str(asked)!r}: full text cannot turn hits away from a thing: leave the weight below zero out, or search "
                    'in mode "vector" or "hybrid"'
                )
            if not words:
                raise InputError(f"{str(asked)!r} holds no words for full-text search")
            self._table.check()
            return Hits(by_text(self._table, None, words, min(k, len(self)), where, modality), str(asked))
        vector = asked.vector(self._encoder(), self.dimension)
        both_ways = asked.words if mode == "hybrid" else None
        options: dict[str, Any] = {"modality": modality, "where": where, "balanced": balanced, "exact": exact}
        return self.nearest(vector, k=k, **options, words=both_ways, query=str(asked))

    def nearest(
        self,
        vector: NDArray[np.float32],
        *,
        k: int = 10,
        modality: str | None = None,
        where: str | None = None,
        balanced: bool = True,
        exact: bool = False,
        words: str | None = None,
        query: str = "",
    ) -> Hits:
        """`search` by a vector (D,) that `embedder.encode_query` gave, or `vector` of an item for more that are like it; with
        `words` the ranking is fused with that of full-text search for them (hybrid). `query` says in the hits what was asked.

        Raises:
            InputError: the vector has another width, is not finite, or is 0; `where` is no condition.
            UnknownName: no such modality, or column in `where`.
            FingerprintMismatch: another index was made in the place of this one.
        """
        _check_count("k", k)
        try:
            vector = np.asarray(vector, dtype=np.float32)
        except (TypeError, ValueError):
            raise InputError(f"a query of this index is {self.dimension} numbers, not {vector!r:.60}") from None
        if vector.shape != (self.dimension,):
            raise InputError(f"a query of this index is {self.dimension} numbers, not {vector.shape}")
        if not np.isfinite(vector).all() or not vector.any():
            raise InputError("a query is of finite numbers, not all of them 0: this one points nowhere")
        asked, known = unit(vector), self.background
        k = min(k, known.items)
        if words is None:
            return Hits(by_vector(self._table, known, asked, k, where, modality, balanced, exact), query)
        return Hits(fused(self._table, known, asked, terms(words), k, where, modality, balanced, exact), query)

    def rerank(self, query: Thing | Query, hits: Hits, *, embedder: Embedder | None = None) -> Hits:
        """Hits in the order of late interaction: the tokens of the query against those of each item (MaxSim).

        For the best hundred or so of a search: every item is read and embedded anew, its text from the index, its picture from
        the file at its path (from the small copy where it came without a file).

        Args:
            embedder: a model with token vectors; None is that of the index.

        Raises:
            SpecError: the model has no token vectors. InputError: a picture is not there any more.
        """
        return Hits(reranked(embedder or self._encoder(), Query.of(query), hits), hits.query)

    def diversify(self, hits: Hits, *, k: int = 10, diversity: float = 0.3) -> Hits:
        """`k` of the hits that differ from each other, by maximal marginal relevance, see `mmembed.search.diversity`: search
        for more than are wanted, and then for those that are worth showing.

        Args:
            diversity: 0 keeps the order; 1 asks for nothing but difference.
        """
        _check_count("k", k)
        return Hits(diversified(hits, self._vectors_of(hits), k, diversity), hits.query)

    def group(self, hits: Hits, *, threshold: float = 0.97) -> Hits:
        """Hits without near-duplicates: those whose cosine with a better one is at least `threshold` go behind it, into its
        `duplicates`.

        Raises:
            InputError: the threshold is no cosine above 0.
        """
        _check_threshold(threshold)
        return Hits(grouped(hits, self._vectors_of(hits), threshold), hits.query)

    def compare_languages(
        self, queries: Mapping[str, Thing | Query], *, reference: str | None = None, **options: Any
    ) -> LanguageReport:
        """One question in many languages: what of the same is found, and which language drops.

        Args:
            queries: {language: the question in it}, two or more.
            reference: the language that others are held to; None is the first.
            options: those of `search`.

        Example:
            >>> index.compare_languages({"en": "a red apple", "de": "ein roter Apfel", "ja": "赤いりんご"}, k=10)
        """
        if not isinstance(queries, Mapping) or len(queries) < 2:
            raise InputError(
                'languages are compared with each other: {"en": "a cat", "de": "eine Katze"}, two at least'
            )
        found = {language: self.search(query, **options) for language, query in queries.items()}
        return LanguageReport(found, next(iter(queries)) if reference is None else reference)

    def diagnose(self, most: int = 2000) -> Diagnosis:
        """How the vectors lie: modality gap, anisotropy, hubs, and languages where the metadata has a "language"; of more than
        `most` items a fair sample. Print it.
        """
        rows = self._sample(["id", "modality", "metadata", "vector"], most)
        said = [json.loads(row["metadata"]).get(LANGUAGE) for row in rows]
        return diagnosed(
            [row["id"] for row in rows],
            np.array([row["vector"] for row in rows], dtype=np.float32).reshape(-1, self.dimension),
            [row["modality"] for row in rows],
            [lang if isinstance(lang, str) else None for lang in said],
        )

    @property
    def background(self) -> Background:
        """A sample of its vectors, against which scores are told; taken anew when the index has changed.

        Raises:
            FingerprintMismatch: another index was made in the place of this one.
        """
        version = self._table.version
        if self._background is None or self._background[0] != version:
            samples, counts = {}, {}
            for kind in MODALITIES:
                counts[kind] = self._table.count(kind=kind)
                samples[kind] = self._table.vectors(_fair(counts[kind], SAMPLE), kind)
            self._background = version, Background(samples, counts)
        return self._background[1]

    def vector(self, name: str) -> NDArray[np.float32]:
        """The vector (D,) of an item, by its id.

        Raises:
            InputError: no such item, or an id that is no text.
        """
        found = self._table.vectors(among([name]))
        if not len(found):
            raise InputError(f"the index holds no item with the id {name!r}")
        return found[0]

    def layout(self, most: int = 5000) -> list[dict[str, Any]]:
        """A map of what it holds: id, modality, label (of at most 100 columns), x and y (-1..1) of each item, see `plane`; of
        more than `most` a fair sample."""
        rows = self._sample(["id", "modality", "text", "path", "metadata", "vector"], most)
        vectors = np.array([row.pop("vector") for row in rows]).reshape(-1, self.dimension)
        places = plane(vectors, [row["modality"] for row in rows])
        return [
            {
                "id": row["id"],
                "modality": row["modality"],
                "label": shortened(Hit.of(row).label, 100),
                "x": float(x),
                "y": float(y),
            }
            for row, (x, y) in zip(rows, places, strict=True)
        ]

    def get(self, name: str) -> Hit | None:
        """An item by its id, as a hit of no search: rank 0 and score 0; None: there is no such item.

        Raises:
            InputError: an id that is no text.
        """
        found = self._table.read(SHOWN, among([name]))
        return Hit.of(found[0]) if found else None

    def _sample(self, columns: Sequence[str], most: int) -> list[dict[str, Any]]:
        """Rows; of more than `most` a fair sample of about so many."""
        return self._table.read(columns, _fair(len(self), most))

    def _vectors_of(self, hits: Hits) -> NDArray[np.float32]:
        """Vectors (N, D) of hits.

        Raises:
            InputError: a hit that is not of this index, or was removed since.
        """
        ids = [hit.id for hit in hits]
        parts = (self._table.read(["id", "vector"], part) for part in among_each(ids))
        found = {row["id"]: row["vector"] for rows in parts for row in rows}
        for row, name in enumerate(ids):
            if name not in found:
                raise InputError(f"the index holds no item with the id {name!r}", row)
        return np.array([found[name] for name in ids], dtype=np.float32).reshape(-1, self.dimension)

    def _add(
        self,
        entries: Iterable[Entry],
        total: int | None,
        on_error: OnError,
        show_progress_bar: bool,
        *,
        reread: bool = False,
    ) -> AddReport:
        embedder = self._encoder()
        self._check(embedder)  # it may have been trained since the index was opened
        self._table.check()  # before anything is embedded
        return add(
            self._table,
            embedder,
            entries,
            total=total,
            reread=reread,
            on_error=on_error,
            show_progress_bar=show_progress_bar,
        )

    def _encoder(self) -> Embedder:
        if self.embedder is None:
            raise StoreError(f"{self.path} was opened without an embedder: Index.open(path, mmembed.load())")
        return self.embedder

    def _check(self, embedder: Embedder) -> None:
        made = self._table.made
        if embedder.fingerprint != made["fingerprint"]:
            raise FingerprintMismatch(
                f"{self.path} holds vectors of {made['model']!r} ({made['fingerprint'][:12]}), not of "
                f"{embedder.spec.name!r} ({embedder.fingerprint[:12]}), which has other {_other(made, embedder)}: open it "
                "with the model it was made with, or make a new index"
            )


def _fair(count: int, most: int) -> str | None:
    """A fair sample of about `most` of so many rows, in SQL: contents are hashes, and it is those below a bound. None: all."""
    return f"content < '{int(most / count * 16**8):08x}'" if count > most else None


def _check_count(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise InputError(f"{name} is the number of hits wanted, at least 1, not {value!r}")


def _check_threshold(threshold: float) -> None:
    if not 0 < threshold <= 1:
        raise InputError(f"a threshold is a cosine above 0 and of at most 1, not {threshold!r}")


def _other(made: Mapping[str, Any], embedder: Embedder) -> str:
    """In what an embedder differs from that of an index."""
    before, now = made["spec"], json.loads(embedder.spec.to_json())
    told = ("name", "languages", "licence", "summary", "weights")
    keys = [key for key in now if key not in told and before.get(key) != now[key]]
    return ", ".join(keys) or ("precision" if made["precision"] != embedder.precision else "weights")
