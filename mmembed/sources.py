"""Things from files, one by one, each with its place: folders, patterns, .txt, .jsonl, .parquet, tars, saved datasets, stdin."""

from __future__ import annotations

import datetime
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeAlias

from .errors import InputError, LoadError, MissingExtra, UnknownName, check_known
from .images import MAX_BYTES, Image, read_file
from .inputs import Thing
from .shards import PICTURES, Shard

ROWS = 64
"""Rows of a table that are read at once: they may hold pictures."""
MAX_LINE = 2 * MAX_BYTES
"""Bytes of a line, which may hold a picture in base64."""
UNREAD = {".csv": "CSV", ".tsv": "TSV"}
"""Tables that are not read, and would else be taken for pictures."""

Source: TypeAlias = "str | os.PathLike[str] | Any"
"""A path, a pattern, "-", or a dataset of Hugging Face."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A thing, or why there is none, and where it is from.

    Attributes:
        name: its place: a path, `file:line`, `table:row`, `archive/member`.
        given: the thing, or what gives it when it is asked for.
        id: what its source calls it. path: the file that is this thing. metadata: what else the source says of it.
    """

    name: str
    given: Thing | Callable[[], Thing]
    id: str | None = None
    path: Path | None = None
    metadata: Mapping[str, Any] | None = None

    @property
    def thing(self) -> Thing:
        """The thing; the text of a file is read now, and not held."""
        return self.given() if callable(self.given) else self.given


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns of rows hold what: the text, the picture, the id; None: none does. A row with a text and a picture is one
    thing of both. Other columns that hold a text, a number, a truth value or a time are its metadata."""

    text: str | None = "text"
    image: str | None = "image"
    id: str | None = "id"

    @classmethod
    def parse(cls, said: Iterable[str]) -> Columns:
        """Of words like "text=caption"; a text or an image that is not named is then not taken.

        Raises:
            LoadError: another form. UnknownName: not text, image or id.
        """
        named: dict[str, str | None] = {}
        for each in said:
            what, equals, column = each.partition("=")
            check_known("part of a thing", what, ("text", "image", "id"))
            if not equals or not column:
                raise LoadError(f"a column is said as {what}=NAME, not {each!r}")
            named[what] = column
        if "text" in named or "image" in named:
            named = {"text": None, "image": None, **named}
        return cls(**named)


def read(
    sources: Iterable[Source], stdin: IO[bytes] | None = None, *, lines: bool = False, columns: Columns | None = None
) -> Iterator[Entry]:
    """The things in sources, in their order, a few at a time; one that cannot be read is its error, which whoever embeds it
    raises or reports.

    Args:
        sources: a folder gives its pictures and .txt files, all the way down, by their paths; a .txt file is one text; a .jsonl
            file and "-" hold an item a line, a JSON string or an object; a .parquet file, a folder that `save_to_disk` of
            datasets wrote and a dataset itself an item a row; a .tar file an item for all files of one name (webdataset), see
            `Shard`; any other file is a picture. A path with * ? or [ that is no file is a pattern; ** goes all the way down.
            What is hidden, by a dot that its name begins with, is passed over below a folder and by * ? and [; it is read where
            its name is said.
        stdin: what "-" reads. lines: each line of a .txt file, and of "-", is one text.
        columns: of rows; None: text, image and id, those of them that are there. A path of a picture starts from the folder of
            the file that says it.

    Raises:
        LoadError: a file of many things, or any that a pattern fits, is not there; a table lacks a column that is named.
    """
    for source in sources:
        if not isinstance(source, (str, os.PathLike)):
            yield from _dataset(source, columns)
        elif os.fspath(source) == "-":
            assert stdin is not None, "there is no stdin to read"
            yield from _lines(stdin, "stdin", Path(), lines, columns)
        else:
            for path in files_of(source):
                yield from _file(path, lines, columns)


def files_of(path: str | os.PathLike[str]) -> list[Path]:
    """The one file or folder of that path, or all files that a pattern fits, in order; as in a shell, what is hidden is fitted by
    a part of the pattern that begins with a dot too, and by no other.

    Raises:
        LoadError: it fits none.
    """
    whole = Path(os.fsdecode(path))
    is_pattern = [any(c in part for c in "*?[") for part in whole.parts]
    if not any(is_pattern) or os.path.lexists(whole):
        return [whole]
    fixed = is_pattern.index(True)
    anchor, parts = Path(*whole.parts[:fixed]), whole.parts[fixed:]
    dotted = [part for part in parts if _is_hidden(part)]

    def said(path: Path) -> bool:
        hidden = filter(_is_hidden, path.parts[len(anchor.parts) :])
        return all(any(fnmatchcase(name, part) for part in dotted) for name in hidden)

    fitting = sorted(path for path in anchor.glob(str(Path(*parts))) if said(path))
    files = [path for path in fitting if not path.is_dir()]
    if not files:
        alone = f"; it fits folders alone, whose files are {printable(whole / '*')}" if fitting else ""
        raise LoadError(f"no such file or folder: {printable(whole)}{alone}")
    return files


def walk(folder: Path, endings: Sequence[str]) -> Iterator[Path | InputError]:
    """The files of a folder with one of these endings, all the way down, in the order of their paths; a folder that cannot be
    looked into is an error. Links to folders are not followed, and hidden files and folders (.git, .cache, ._x.jpg) are passed
    over; the folder itself may be hidden."""
    try:
        with os.scandir(folder) as inside:
            every = sorted((entry for entry in inside if not _is_hidden(entry.name)), key=lambda entry: entry.name)
    except OSError as error:
        yield InputError(f"{printable(folder)}: cannot be looked into: {error.strerror}")
        return
    for entry in every:
        path = Path(entry.path)
        if entry.is_dir(follow_symlinks=False):
            yield from walk(path, endings)
        elif path.suffix.lower() in endings and not _is_dir(entry):
            yield path


def _is_hidden(name: str) -> bool:
    """Whether a file or folder of that name is one that people do not see."""
    return name.startswith(".")


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads round in a circle
        return False


def printable(path: str | os.PathLike[str]) -> str:
    r"""A path as text: bytes of a file name that are no UTF-8 are written \xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


# ---- one file ----------------------------------------------------------------------------------------------------------------


def _file(path: Path, lines: bool, columns: Columns | None) -> Iterator[Entry]:
    endings = [ending.lower() for ending in path.suffixes[-2:]]
    ending = endings[-1] if endings else ""
    if path.is_dir():
        if (path / "dataset_dict.json").is_file():
            raise LoadError(f"{printable(path)} holds several splits: name one of its folders")
        is_dataset = (path / "state.json").is_file() and (path / "dataset_info.json").is_file()
        yield from _saved(path, columns) if is_dataset else _folder(path, lines)
    elif ending == ".jsonl" or (lines and ending == ".txt"):
        try:
            file = path.open("rb")
        except OSError as error:
            raise LoadError(f"{printable(path)}: {error.strerror}") from None
        with file:
            yield from _lines(file, printable(path), path.parent, ending != ".jsonl", columns)
    elif ending == ".parquet":
        yield from _parquet(path, columns)
    elif ending == ".tgz" or ".tar" in endings:
        yield from _shard(path, columns)
    elif ending in UNREAD and path.is_file():
        said = f"{UNREAD[ending]} is not read; .jsonl and .parquet are: an item a row, in columns text, image, id"
        yield _bad(printable(path), said)
    else:
        yield _single(path)


def _folder(folder: Path, lines: bool) -> Iterator[Entry]:
    for inside in walk(folder, (*PICTURES, ".txt")):
        if isinstance(inside, InputError):
            yield Entry(inside.reason.partition(":")[0], inside)
        else:
            try:
                yield from _file(inside, lines, None)
            except LoadError as error:  # in a folder it is one of many
                yield Entry(printable(inside), InputError(str(error)))


def _single(path: Path) -> Entry:
    given = partial(_text, path) if path.suffix.lower() == ".txt" else Image(path)
    return Entry(printable(path), given, path=path)


def _text(path: Path) -> str | InputError:
    try:
        return read_file(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return InputError(f"{printable(path)}: cannot be read as UTF-8 text: {error}")
    except InputError as error:
        return InputError(f"{printable(path)}: {error.reason}")


def _bad(name: str, reason: str) -> Entry:
    return Entry(name, InputError(f"{name}: {reason}"))


# ---- lines -------------------------------------------------------------------------------------------------------------------


def _lines(file: IO[bytes], name: str, folder: Path, plain: bool, columns: Columns | None) -> Iterator[Entry]:
    for number, line in enumerate(_bounded(file), 1):
        here = f"{name}:{number}"
        try:
            if line is None:
                raise InputError(f"the line is longer than {MAX_LINE // 2**20} MiB")
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            if plain:
                yield Entry(here, text.rstrip("\r\n"))
            elif text.strip():
                yield _of_line(json.loads(text), here, folder, columns)
        except UnicodeDecodeError as error:
            yield _bad(here, f"cannot be read as UTF-8 text: {error}")
        except InputError as error:
            yield _bad(here, error.reason)
        except (ValueError, RecursionError) as error:
            is_words = name == "stdin" and text.lstrip()[0] not in '{["'
            hint = "; with --lines each line is a text as it is" if is_words else ""
            yield _bad(here, f"no JSON: {error}{hint}")


def _bounded(file: IO[bytes]) -> Iterator[bytes | None]:
    """Lines; None in the place of one that is too long to be held."""
    while line := file.readline(MAX_LINE):
        if len(line) < MAX_LINE or line.endswith(b"\n"):
            yield line
            continue
        yield None
        while line and not line.endswith(b"\n"):
            line = file.readline(MAX_LINE)


def _of_line(value: Any, name: str, folder: Path, columns: Columns | None) -> Entry:
    if isinstance(value, str):
        return Entry(name, value)
    if not isinstance(value, dict):
        raise InputError('a line is a JSON string, or an object with "text" and / or "image", the path of a picture')
    return _of_row(value, name, folder, columns or Columns())


# ---- tables ------------------------------------------------------------------------------------------------------------------


def _parquet(path: Path, columns: Columns | None) -> Iterator[Entry]:
    pa = _pyarrow()
    import pyarrow.parquet as pq

    if not path.exists():
        raise LoadError(f"{printable(path)}: no such file")
    try:
        file = pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        yield _bad(printable(path), f"no parquet file that can be read: {error}")
        return
    with file:
        taken = _taken(file.schema_arrow, printable(path), columns or Columns(), asked=columns is not None)
        groups = range(file.num_row_groups)  # one after the other, else it reads all of them ahead
        batches = (b for group in groups for b in file.iter_batches(ROWS, row_groups=[group], columns=taken))
        yield from _of_batches(batches, printable(path), path.parent, columns or Columns())


def _saved(folder: Path, columns: Columns | None) -> Iterator[Entry]:
    """A folder that `save_to_disk` of datasets wrote: Arrow streams, whose names are in state.json."""
    pa = _pyarrow()
    number = 0
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        files = [folder / Path(file["filename"]).name for file in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LoadError(f"{printable(folder)}/state.json cannot be read: {error!r}") from None
    for file in files:
        try:
            with pa.memory_map(str(file)) as mapped, pa.ipc.open_stream(mapped) as stream:
                taken = _taken(stream.schema, printable(folder), columns or Columns(), asked=columns is not None)
                parts = (part.select(taken) for batch in stream for part in _sliced(batch))
                for entry in _of_batches(parts, printable(folder), folder, columns or Columns(), number):
                    number += 1
                    yield entry
        except (OSError, pa.ArrowException) as error:
            yield _bad(printable(file), f"no Arrow stream that can be read: {error}")


def _dataset(dataset: Any, columns: Columns | None) -> Iterator[Entry]:
    """A `Dataset` or `IterableDataset` of datasets, as Arrow, in which pictures are not decoded."""
    if not (hasattr(dataset, "with_format") and hasattr(dataset, "features")):
        raise LoadError(f"a {type(dataset).__name__} is neither a path nor a dataset of Hugging Face with one split")
    pa = _pyarrow()
    name = f"{type(dataset).__name__.lower()} {getattr(dataset, 'split', None) or ''}".strip()
    taken: list[str] | None = None
    number = 0
    for table in dataset.with_format("arrow").iter(batch_size=ROWS):
        whole = pa.table(table)
        if taken is None:
            taken = _taken(whole.schema, name, columns or Columns(), asked=columns is not None)
        for entry in _of_batches(whole.select(taken).to_batches(), name, Path(), columns or Columns(), number):
            number += 1
            yield entry


def _sliced(batch: Any) -> Iterator[Any]:
    for first in range(0, batch.num_rows, ROWS):
        yield batch.slice(first, ROWS)


def _taken(schema: Any, name: str, columns: Columns, *, asked: bool) -> list[str]:
    """The columns of a table that are read: those that are named, and those that can be metadata.

    Raises:
        LoadError: there is no text and no image, or one that is asked for is not there.
    """
    known = schema.names
    items = [column for column in (columns.text, columns.image) if column is not None]
    missing = [column for column in items if column not in known]
    if len(missing) == len(items) or (asked and missing):
        raise LoadError(f"{name}: {UnknownName('column', (missing or ['text'])[0], known)}")
    own = {columns.text, columns.image, columns.id}
    return [field.name for field in schema if field.name in own or _is_plain(field.type)]


def _is_plain(kind: Any) -> bool:
    """Whether values of an Arrow type can be metadata; those of a dictionary (pandas' categories) are what it holds."""
    import pyarrow.types as kinds

    if kinds.is_dictionary(kind):
        return _is_plain(kind.value_type)
    plain = (
        kinds.is_string, kinds.is_large_string, kinds.is_string_view, kinds.is_integer, kinds.is_floating, kinds.is_decimal,
        kinds.is_boolean, kinds.is_timestamp, kinds.is_date, kinds.is_time,
    )  # fmt: skip
    return any(is_kind(kind) for is_kind in plain)


def _of_batches(batches: Iterable[Any], name: str, folder: Path, columns: Columns, first: int = 0) -> Iterator[Entry]:
    """Rows of Arrow batches; where they cannot be read any further, an error in their place."""
    number = first
    try:
        for batch in batches:
            try:
                rows = batch.to_pylist()
            except (ValueError, OverflowError):  # of one cell: the other rows are as good as they were
                rows = None
            for place in range(batch.num_rows):
                try:
                    row = _row(batch, place) if rows is None else rows[place]
                    yield _of_row(row, f"{name}:{number}", folder, columns)
                except InputError as error:
                    yield _bad(f"{name}:{number}", error.reason)
                number += 1
    except (OSError, _pyarrow().ArrowException) as error:
        yield _bad(name, f"breaks off after {number} rows: {error}")


def _row(batch: Any, place: int) -> dict[str, Any]:
    """One row of an Arrow batch.

    Raises:
        InputError: a cell that Python cannot hold: a text that is no UTF-8, a time beyond the year 9999, one in nanoseconds.
    """
    row = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            row[name] = column[place].as_py()
        except (ValueError, OverflowError) as error:
            raise InputError(f"{name!r} cannot be read: {error}") from None
    return row


def _pyarrow() -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise MissingExtra("pyarrow", "search") from error
    return pyarrow


# ---- archives ----------------------------------------------------------------------------------------------------------------


def _shard(path: Path, columns: Columns | None) -> Iterator[Entry]:
    if not path.exists():
        raise LoadError(f"{printable(path)}: no such file")
    name, asked = printable(path), columns or Columns()
    try:
        shard = Shard(path)
    except LoadError as error:
        yield Entry(name, InputError(str(error)))
        return
    wanted = {column for column in (asked.text, asked.image, asked.id, "json.", "cls", "score") if column is not None}
    for number, inside in enumerate(shard.names):
        here = f"{name}/{printable(inside)}"
        try:
            row = shard.read(number, wanted)
            kept = {column: value for column, value in row.items() if column in wanted or column.startswith("json.")}
            yield _of_row(kept, here, path.parent, asked)
        except InputError as error:
            yield _bad(here, error.reason)
    if shard.broken:
        yield _bad(name, shard.broken)


# ---- rows --------------------------------------------------------------------------------------------------------------------


def _of_row(row: Mapping[str, Any], name: str, folder: Path, columns: Columns) -> Entry:
    """The thing of one row, by its columns.

    Raises:
        InputError: it has neither a text nor a picture, or one of another type.
    """
    parts: dict[str, Thing] = {}
    text = None if columns.text is None else row.get(columns.text)
    image = None if columns.image is None else row.get(columns.image)
    if text is not None:
        if not isinstance(text, str):
            raise InputError(f"{columns.text!r} holds {text!r:.60}, and a text is wanted")
        parts["text"] = text
    if isinstance(image, Mapping):  # as datasets writes a picture
        image = image.get("bytes") or image.get("path")
    if image is not None:
        parts["image"] = _picture(image, folder)
    if not parts:
        items = [column for column in (columns.text, columns.image) if column is not None]
        nulls = " and ".join(repr(column) for column in items if column in row)
        if nulls:
            raise InputError(f"{nulls} {'are' if ' and ' in nulls else 'is'} null: there is nothing to embed")
        wanted = " nor ".join(map(repr, items))
        raise InputError(f"it has neither {wanted}; it has {', '.join(map(repr, row)) or 'nothing'}")
    given = None if columns.id is None else row.get(columns.id)
    if isinstance(given, bool) or not isinstance(given, (str, int, type(None))):
        raise InputError(f"an id is a text or a whole number, not {given!r:.60}")
    own = {columns.text, columns.image, columns.id}
    rest = {key.removeprefix("json."): value for key, value in row.items() if key not in own and value is not None}
    metadata = {key: told for key, value in rest.items() if (told := _told(value)) is not None}
    thing = parts["text"] if parts.keys() == {"text"} else parts
    return Entry(name, thing, None if given is None else str(given), None, metadata or None)


def _picture(value: Any, folder: Path) -> Image:
    if value == "":
        raise InputError("a picture is a path, a data URI or bytes, and here the path is empty")
    if isinstance(value, str) and value[:5].lower() != "data:" and "://" not in value:
        return Image(folder / value)
    if not isinstance(value, (str, bytes)):
        raise InputError(f"a picture is a path, a data URI or bytes, not {value!r:.60}")
    return Image(value)


def _told(value: Any) -> Any:
    """A value as metadata, which JSON can hold; None: it is none."""
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, Decimal):
        value = float(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, (str, bool, int, list, dict)) else None
