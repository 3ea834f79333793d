"""Vectors in a file, .npy, .parquet, .jsonl or .lance, block by block: a kill loses no block, and the next run goes on."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

import numpy as np

from .errors import FingerprintMismatch, InputError, MissingExtra, StoreError, UnknownName
from .inputs import Image, Text, Thing

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

FORMAT = 2


@dataclass(frozen=True)
class Block:
    """Neighbouring rows: the number of the first, an id each, vectors (n, D), NaN where there is none, and then why."""

    first: int
    ids: Sequence[str]
    vectors: NDArray[np.float32]
    errors: Sequence[str | None]


class VectorFile:
    """A file of vectors that grows by blocks. A context, which is one writer's at a time.

    Beside `NAME` stands `NAME.json`, which says of what model and settings the vectors are, how many rows there are, and a
    digest of what they are of. It is replaced, whole, after each block has been written and flushed to the disk; what a kill
    left beyond it is cut off when the file is next opened. Until all is there the rows lie in `NAME.part`.

    Args:
        path: ends in .npy, .parquet, .jsonl or .lance. dimension: numbers of a vector.
        made: what the vectors are of, as JSON values; a file of other words is refused.

    Raises:
        UnknownName: another ending.
        FingerprintMismatch: the file holds vectors of another model or of other settings.
        StoreError: it is not ours, another process is writing it, or LanceDB has no tables of its name.
    """

    def __init__(self, path: str | os.PathLike[str], made: Mapping[str, Any], dimension: int):
        self.path = Path(path).expanduser()
        if self.path.suffix not in SINKS:
            raise UnknownName("format of a file of vectors", self.path.suffix or self.path.name, SINKS)
        self.made = {**made, "dimension": dimension}
        self.rows = self.failed = 0
        self.digest = b""
        self.complete = False
        self._about = self.path.with_name(f"{self.path.name}.json")
        self._part = self.path.with_name(f"{self.path.name}.part")
        self._sink = SINKS[self.path.suffix](self._part, dimension, self.made)
        self._lock: int | None = None

    def __enter__(self) -> VectorFile:
        found = self._found()
        if found is not None:
            self.rows, self.failed, self.complete = found["rows"], found["failed"], found["complete"]
            self.digest = bytes.fromhex(found["digest"])
        elif self.path.exists():
            raise StoreError(f"{self.path} exists, and no {self._about.name} says what is in it: write elsewhere")
        if not self.complete and self.path.exists():  # killed between the last two steps of `finish`
            self._sink.clear()
            self.complete = True
            self._tell()
        if self.complete and not self.path.exists():
            raise StoreError(f"{self.path} is gone, and {self._about.name} says it is whole: remove that too")
        if not self.complete:
            try:
                self._begin()
            except BaseException:
                self.__exit__()
                raise
        return self

    def _begin(self) -> None:
        self._sink.open()
        self._lock = _lock(self._part)
        if not self._sink.roll_back(self.rows):
            raise StoreError(f"{self._part} holds less than the {self.rows} rows of {self._about.name}: remove both")
        self._tell()

    def __exit__(self, kind: type[BaseException] | None = None, *error: object) -> None:
        try:
            self._sink.close()
        except OSError:  # what a full disk has no room for is written once more, and that was told
            if kind is None:
                raise
        finally:
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None

    def append(self, block: Block, digest: bytes) -> None:
        """Write rows that follow those there are; when this returns they are on the disk. `digest` is of all so far.

        Raises:
            StoreError: the disk is full, or fails.
        """
        assert block.first == self.rows, "blocks follow each other"
        with self._written():
            self._sink.append(block)
            self.rows += len(block.ids)
            self.failed += sum(error is not None for error in block.errors)
            self.digest = digest
            self._tell()

    def finish(self) -> None:
        """Put the file where it belongs: no row comes any more.

        Raises:
            StoreError: the disk is full, or fails.
        """
        with self._written():
            self._sink.finish(self.rows, self.path)
            self._sink.clear()
            self.complete = True
            self._tell()

    @contextmanager
    def _written(self) -> Iterator[None]:
        """What the disk cannot do inside is told by the file and by what is left of it."""
        rows = self.rows
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"{self.path} cannot be written: {error.strerror or error}; its first {rows} rows are whole, and the "
                "same call goes on from there"
            ) from error

    def _found(self) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = json.loads(self._about.read_text(encoding="utf-8"))
            before = dict(found["made"])
            if found["format"] != FORMAT:
                raise StoreError(f"{self._about} is of format {found['format']}; this version reads {FORMAT}")
            if not found["rows"] and not found["complete"] and not self.path.exists():  # it holds nothing to go on from
                return None
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            raise StoreError(f"{self._about} is not what stands beside a file of vectors: write elsewhere") from None
        other = sorted(key for key in self.made.keys() | before.keys() if self.made.get(key) != before.get(key))
        if other:
            said = "; ".join(f"{key} {_short(before.get(key))}, not {_short(self.made.get(key))}" for key in other)
            raise FingerprintMismatch(
                f"{self.path} holds vectors of {said}: write elsewhere, or remove it and {self._about.name}"
            )
        return found

    def _tell(self) -> None:
        about = {"format": FORMAT, "made": self.made, "rows": self.rows, "failed": self.failed}
        about |= {"digest": self.digest.hex(), "complete": self.complete}
        with whole(self._about) as fresh:
            fresh.write_text(json.dumps(about, ensure_ascii=False, indent=1), encoding="utf-8")


def chained(digest: bytes, name: str, thing: Thing | InputError) -> bytes:
    """The digest of rows one longer. Texts and bytes are told by all that they are, a picture in a file by its path, its size and
    the time at which it was last written, one at a URL by that alone, pixels that are in memory by their shape: whoever goes on
    with other pixels of equal shapes is not found out."""
    told = hashlib.blake2b(digest, digest_size=16)
    told.update(name.encode("utf-8", "surrogatepass") + b"\0" + _told(thing))
    return told.digest()


def _told(thing: Any) -> bytes:
    if isinstance(thing, (str, Text)):
        text = thing if isinstance(thing, str) else thing.text
        return b"text " + text.encode("utf-8", "surrogatepass")
    if isinstance(thing, Image):
        return _told_source(thing.source) + (b"" if thing.draft is None else f" draft {thing.draft}".encode())
    if isinstance(thing, (tuple, list)):
        return b"(" + b"".join(_measured(_told(part)) for part in thing)
    if isinstance(thing, Mapping):
        return b"{" + b"".join(
            _measured(str(key).encode() + b" " + _told_part(key, part)) for key, part in thing.items()
        )
    if isinstance(thing, InputError):
        return b"error " + thing.reason.encode("utf-8", "surrogatepass")
    return _told_source(thing)


def _told_part(key: str, part: Any) -> bytes:
    """A part of a mapping; under "image" a text is the path or URL of a picture."""
    if key != "image" or isinstance(part, Image):
        return _told(part)
    many = part if isinstance(part, list) else [part]
    return b"".join(_measured(_told(each) if isinstance(each, Image) else _told_source(each)) for each in many)


def _measured(told: bytes) -> bytes:
    """With its length before it, so that no two rows of parts read alike."""
    return len(told).to_bytes(8, "little") + told


def _told_source(source: Any) -> bytes:
    if isinstance(source, (str, os.PathLike)):
        path = os.fspath(source)
        told = path if isinstance(path, bytes) else path.encode("utf-8", "surrogatepass")
        return b"path " + told + _told_file(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return b"bytes " + hashlib.blake2b(bytes(source), digest_size=16).digest()
    if isinstance(source, np.ndarray):
        return f"array {source.dtype} {source.shape}".encode()
    return f"{type(source).__name__} {getattr(source, 'mode', '')} {getattr(source, 'size', '')}".encode()


def _told_file(path: str | os.PathLike[str]) -> bytes:
    """What tells a file from what it was before; nothing of a URL, or of what is not there."""
    try:
        found = os.stat(path)  # noqa: PTH116 - a str will do
    except (OSError, ValueError):
        return b""
    return f" {found.st_size} {found.st_mtime_ns}".encode()


# ---- formats ---------------------------------------------------------------------------------------------------------


class Sink(Protocol):
    """One format. Rows go to `part`, which exists from `open` on, until `finish` makes the file of it."""

    def __init__(self, part: Path, dimension: int, made: Mapping[str, Any]): ...

    def open(self) -> None: ...

    def roll_back(self, rows: int) -> bool:
        """Leave so many rows and no more; false if there are fewer."""
        ...

    def append(self, block: Block) -> None:
        """Write rows and flush them to the disk."""
        ...

    def finish(self, rows: int, path: Path) -> None:
        """Make the file, in one step, of what lies in `part`."""
        ...

    def clear(self) -> None:
        """Remove what is left after `finish`, whatever of it was done already."""
        ...

    def close(self) -> None: ...


class NpySink:
    """float32 (N, D) for `np.load(path, mmap_mode="r")`; rows without a vector are NaN, and NAME.errors.jsonl says why."""

    def __init__(self, part: Path, dimension: int, made: Mapping[str, Any]):
        self.part, self.dimension = part, dimension
        self.errors = part.with_name(f"{part.name.removesuffix('.part')}.errors.jsonl")
        self._file: IO[bytes] | None = None
        self._told: IO[bytes] | None = None

    def open(self) -> None:
        self._file, self._told = _open(self.part), _open(self.errors)

    def roll_back(self, rows: int) -> bool:
        assert self._file is not None
        assert self._told is not None
        write_header(self._file, 0, self.dimension)
        end = self._file.tell() + 4 * rows * self.dimension
        if self._file.seek(0, os.SEEK_END) < end:
            return False
        self._file.truncate(end)
        self._file.seek(end)
        kept = 0
        for line in self._told:
            if not line.endswith(b"\n") or json.loads(line)["row"] >= rows:
                break
            kept += len(line)
        self._told.truncate(kept)
        self._told.seek(kept)
        return True

    def append(self, block: Block) -> None:
        assert self._file is not None
        assert self._told is not None
        for row, (name, error) in enumerate(zip(block.ids, block.errors, strict=True), block.first):
            if error is not None:
                self._told.write(_line({"row": row, "id": name, "error": error}))
        _flush(self._told)
        self._file.write(np.ascontiguousarray(block.vectors, dtype="<f4").data)
        _flush(self._file)

    def finish(self, rows: int, path: Path) -> None:
        assert self._file is not None
        write_header(self._file, rows, self.dimension)
        _flush(self._file)
        self.close()
        self.part.replace(path)

    def clear(self) -> None:
        if self.errors.exists() and not self.errors.stat().st_size:
            self.errors.unlink()

    def close(self) -> None:
        with ExitStack() as closing:
            for file in (self._file, self._told):
                if file is not None:
                    closing.callback(file.close)


class JsonlSink:
    """A JSON object a line: row, id, and vector or error."""

    def __init__(self, part: Path, dimension: int, made: Mapping[str, Any]):
        self.part = part
        self._file: IO[bytes] | None = None

    def open(self) -> None:
        self._file = _open(self.part)

    def roll_back(self, rows: int) -> bool:
        assert self._file is not None
        end = 0
        for _ in range(rows):
            line = self._file.readline()
            if not line.endswith(b"\n"):
                return False
            end += len(line)
        self._file.seek(end)
        self._file.truncate()
        return True

    def append(self, block: Block) -> None:
        assert self._file is not None
        self._file.writelines(lines(block))
        _flush(self._file)

    def finish(self, rows: int, path: Path) -> None:
        self.close()
        self.part.replace(path)

    def clear(self) -> None:
        """Nothing is left."""

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class ParquetSink:
    """Columns row, id, vector and error, one of the last two null. Each block is first a file of its own in NAME.part."""

    def __init__(self, part: Path, dimension: int, made: Mapping[str, Any]):
        self.part = part
        self.schema = _schema(dimension, made)

    def open(self) -> None:
        self.part.mkdir(parents=True, exist_ok=True)

    def roll_back(self, rows: int) -> bool:
        import pyarrow.parquet as pq

        end = 0
        for file in sorted(self.part.iterdir()):
            if file.suffix != ".parquet" or int(file.stem) >= rows:
                file.unlink()
            else:
                end += pq.read_metadata(file).num_rows
        return end == rows

    def append(self, block: Block) -> None:
        import pyarrow.parquet as pq

        with whole(self.part / f"{block.first:012}.parquet") as fresh:
            pq.write_table(_table(block, self.schema), fresh)

    def finish(self, rows: int, path: Path) -> None:
        import pyarrow.parquet as pq

        fresh = self.part / "whole.writing"  # in there, where `clear` finds what a kill leaves of it
        with fresh.open("wb") as file:
            with pq.ParquetWriter(file, self.schema) as writer:
                for block in sorted(self.part.glob("*.parquet")):
                    writer.write_table(pq.read_table(block))
            _flush(file)
        fresh.replace(path)

    def clear(self) -> None:
        shutil.rmtree(self.part, ignore_errors=True)

    def close(self) -> None:
        """No file is open between blocks."""


class LanceSink:
    """The same columns as a LanceDB table, which `lancedb.connect(folder).open_table(name)` opens. Each block is a commit."""

    def __init__(self, part: Path, dimension: int, made: Mapping[str, Any]):
        try:
            import lancedb
        except ImportError as error:
            raise MissingExtra("lancedb", "search") from error
        self.part, self.name = part, part.name.removesuffix(".lance.part")
        if not re.fullmatch(r"\.*[\w-][\w.-]*", self.name, re.ASCII):
            raise StoreError(
                f"{self.name!r} is no name of a table to LanceDB: letters from a to z, digits, '_', '-' and '.' make one"
            )
        self.schema = _schema(dimension, made)
        self._connect = lancedb.connect
        self._table: Any = None

    def open(self) -> None:
        self.part.mkdir(parents=True, exist_ok=True)

    def roll_back(self, rows: int) -> bool:
        how: dict[str, Any] = {"exist_ok": True} if rows else {"mode": "overwrite"}  # of none the columns may be others
        self._table = self._connect(self.part).create_table(self.name, schema=self.schema, **how)
        if self._table.count_rows() > rows:
            self._table.delete(f"row >= {rows}")
        return bool(self._table.count_rows() == rows)

    def append(self, block: Block) -> None:
        self._table.add(_table(block, self.schema))

    def finish(self, rows: int, path: Path) -> None:
        self._table.optimize()  # many small fragments into few
        self._table = None
        (self.part / f"{self.name}.lance").replace(path)

    def clear(self) -> None:
        shutil.rmtree(self.part, ignore_errors=True)

    def close(self) -> None:
        self._table = None


SINKS: dict[str, type[Sink]] = {".npy": NpySink, ".parquet": ParquetSink, ".jsonl": JsonlSink, ".lance": LanceSink}
"""Formats, by the ending of a file; put your own here."""


def write_header(file: IO[bytes], rows: int, dimension: int) -> None:
    """The header of a .npy file of float32 (rows, dimension), at its beginning: numpy makes it as long whatever the number of
    rows, so that a file can grow under it."""
    file.seek(0)
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (rows, dimension)})


def lines(block: Block) -> Iterator[bytes]:
    """Rows as lines of JSON, numbers as short as float32 has them."""
    for row, (name, vector, error) in enumerate(zip(block.ids, block.vectors, block.errors, strict=True), block.first):
        found: dict[str, Any] = {"vector": [float(str(x)) for x in vector]} if error is None else {"error": error}
        yield _line({"row": row, "id": name, **found})


def _line(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def _schema(dimension: int, made: Mapping[str, Any]) -> pa.Schema:
    try:
        import pyarrow as pa
    except ImportError as error:
        raise MissingExtra("pyarrow", "search") from error
    columns = [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("vector", pa.list_(pa.float32(), dimension)),
        pa.field("error", pa.string()),
    ]
    return pa.schema(columns, metadata={"mmembed": json.dumps(made)})


def _table(block: Block, schema: pa.Schema) -> pa.Table:
    import pyarrow as pa

    count = len(block.ids)
    flat = pa.array(np.ascontiguousarray(block.vectors, dtype=np.float32).reshape(-1))
    bad = pa.array([error is not None for error in block.errors])
    vectors = pa.FixedSizeListArray.from_arrays(flat, schema.field("vector").type.list_size, mask=bad)
    names = [name.encode("utf-8", "backslashreplace").decode() for name in block.ids]
    rows = pa.array(range(block.first, block.first + count), pa.int64())
    return pa.table([rows, pa.array(names, pa.string()), vectors, pa.array(block.errors, pa.string())], schema=schema)


# ---- the disk --------------------------------------------------------------------------------------------------------


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path to write a file or a folder to, beside `path`. It takes the place of that once all is written and on the disk, and
    is removed where that fails: whoever reads finds all of it, or what was there before. A kill leaves NAME.PID.part."""
    fresh = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        yield fresh
        _settle(fresh)
        fresh.replace(path)
        _flush_folder(path.parent)
    finally:
        shutil.rmtree(fresh, ignore_errors=True) if fresh.is_dir() else fresh.unlink(missing_ok=True)


def _settle(path: Path) -> None:
    """Flush what is written there to the disk, all that lies in a folder before the folder."""
    if not path.is_dir():
        with path.open("r+b") as file:
            os.fsync(file.fileno())
        return
    for each in path.iterdir():
        _settle(each)
    _flush_folder(path)


def _open(path: Path) -> IO[bytes]:
    """A file to read and write, as it is or new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666), "r+b")


def _flush(file: IO[Any]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    if os.name == "nt":  # a folder cannot be opened there
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _lock(path: Path) -> int | None:
    """Keeps other processes out as long as this one lives; the system lets go after a kill. None: here it locks nothing."""
    if os.name == "nt":
        return None
    import fcntl

    opened = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)  # NFS locks only what may be written to
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(opened)
        raise StoreError(f"another process is writing {path}") from None
    except OSError:  # a file system without locks, or without those of folders
        os.close(opened)
        return None
    return opened


def _short(value: object) -> str:
    said = repr(value)
    return said if len(said) <= 40 else f"{said[:39]}…"
