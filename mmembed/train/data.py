"""Training data: tables of rows with typed columns, read by row number, and the examples that rows become."""

from __future__ import annotations

import codecs
import csv
import hashlib
import json
import os
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import cached_property
from itertools import accumulate, pairwise
from numbers import Real
from pathlib import Path
from typing import IO, Any, ClassVar, Literal, Protocol, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from ..cache import LRUCache
from ..errors import ImageError, InputError, LoadError, MissingExtra, SpecError, UnknownName
from ..images import Image, is_pil
from ..inputs import Item, Text
from ..prompts import check_text
from ..registry import Registry
from ..shards import PICTURES, Shard
from ..sources import files_of, walk
from ..spec import ModelSpec
from .stamp import of_files, of_rows, of_settings

sources: Registry[Callable[..., Any]] = Registry("kind of data")
TOGETHER = 65536
"""Rows of a blocked file that are shuffled together; fewer, where half of `HELD` is full before: each row group is read once."""
HELD = 2**29
"""Bytes of row groups that are held at once: a table of some hundred megabytes is read once, whatever the order of its rows."""
OF = "mined_of"
"""What the first line of mined negatives has the stamp of their data under."""
OBJECT = 64
"""Bytes of a cell of a list beyond what it says: Python's own of it, and where it lies."""

Numbers: TypeAlias = "range | NDArray[np.int64]"
"""Row numbers, each once."""


class Rows(Protocol):
    """Rows by number. `runs` are of rows that lie together: how many, and the bytes that are held once one of them is read;
    `names` are the columns, where all rows have the same; `places` gives the files in the order of the rows, of each the numbers
    there of those it gives."""

    @property
    def runs(self) -> Sequence[tuple[int, float]]: ...

    @property
    def names(self) -> Sequence[str]: ...

    def places(self) -> Iterable[tuple[Path, Numbers]]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> Mapping[str, Any]: ...


@dataclass(frozen=True, kw_only=True)
class Column:
    """Where an item of a row is: the column of its text, that of its picture, or both. A picture is a path, which starts from the
    folder of pictures, or whatever else `mmembed.Image` takes, or such an `Image`, which stays as it is."""

    text: str | None = None
    image: str | None = None

    def __post_init__(self) -> None:
        if self.text is None and self.image is None:
            raise SpecError("a column says text = '...', image = '...', or both")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name in (self.text, self.image) if name is not None)


@dataclass(frozen=True, kw_only=True)
class Columns:
    """What the columns of a table are.

    Attributes:
        query, positive: the two sides of a pair. A list in the column of a positive holds several that are all right; one is
            drawn each time, and none of the others is taken for wrong.
        negatives: hard negatives; a list in such a column holds several. One that is a positive of its row is left out.
        score: how well the positive answers the query, by people or by a teacher; a list says it of the positive and then of
            each negative.
        query_source, positive_source: what a teacher reads in place of the query and the positive: the English of a text in
            another language, the caption of a picture.
        language: the language of a row, for balanced batches; an empty text is none, as no value is.
        group: rows with equal values here are positives of each other; rows without one are of none.
    """

    query: Column
    positive: Column | None = None
    negatives: tuple[Column, ...] = ()
    score: str | None = None
    query_source: Column | None = None
    positive_source: Column | None = None
    language: str | None = None
    group: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        maybe = (self.positive, self.query_source, self.positive_source)
        items = [self.query, *(column for column in maybe if column is not None), *self.negatives]
        plain = (self.score, self.language, self.group)
        return tuple(dict.fromkeys([*(n for c in items for n in c.names), *(n for n in plain if n is not None)]))


@dataclass(frozen=True, slots=True)
class Example:
    """One row as typed items; pictures in files are not read yet.

    Attributes:
        source, row: where it is from. sources: what a teacher reads in place of the query and of each positive.
        keys: what it shares with examples that would be its positives too. group: what it says in the column of groups.
        answered: of each negative what it shares with queries that it answers; empty where none was mined from another row.
    """

    source: str
    row: int
    query: Item
    positives: tuple[Item, ...]
    negatives: tuple[Item, ...]
    scores: tuple[float, ...]
    sources: tuple[Item, tuple[Item, ...]]
    language: str | None
    keys: frozenset[bytes]
    group: str | None = None
    answered: tuple[frozenset[bytes], ...] = ()

    def documents(self, chosen: int) -> tuple[Item, ...]:
        """One of its positives, and then its negatives."""
        return (self.positives[chosen], *self.negatives)


@dataclass(frozen=True, kw_only=True)
class Source:
    """Data of one kind.

    Attributes:
        path: a file, a folder, or a pattern with * that files fit; from the recipe's folder on.
        columns: what its columns are.
        images: the folder that paths of pictures start from; by default that of the file they stand in.
        query_prompt, positive_prompt: prompts of the model for the two sides; by default "query" and "document", where the
            model has them, and for graded pairs its default prompt on both sides.
        instruction: what {instruction} says in the prompt of the query.
        on_error: what to do about a row that gives no example, such as one with a broken picture: stop, or leave it out.
        limit: take only the first so many rows.
        mined: hard negatives of each row, a file that `mmembed mine` wrote for this data; they come behind those of its columns.
    """

    registry: ClassVar[Registry[Callable[..., Any]]] = sources

    path: str
    columns: Columns
    images: str | None = None
    query_prompt: str | None = None
    positive_prompt: str | None = None
    instruction: str | None = None
    on_error: Literal["raise", "skip"] = "raise"
    limit: int | None = None
    mined: str | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise SpecError(f"limit={self.limit}: at least one row is taken")

    @property
    def graded(self) -> bool:
        """Pairs whose score says how alike they are: that one equals another does no harm."""
        return self.columns.score is not None and not self.columns.negatives

    def rows(self, files: Sequence[Path]) -> Rows:
        raise NotImplementedError

    def _at(self, folder: Path) -> Source:
        """With the paths of all further files from the recipe's folder on."""
        return self

    def read(self, files: Sequence[Path]) -> tuple[Path, ...]:
        """What its rows hang on: its files, and all further ones."""
        return tuple(files)

    def without_rows(self) -> Source:
        """Its settings alone, where it holds its rows itself."""
        return self

    def prompts(self, spec: ModelSpec) -> tuple[str | None, str | None]:
        """The prompts of the two sides; None is the default of the model.

        Raises:
            UnknownName: the model has none of that name.
        """
        sides = []
        for said, side in ((self.query_prompt, "query"), (self.positive_prompt, "document")):
            if said is not None and said not in spec.prompts:
                raise UnknownName("prompt", said, spec.prompts)
            own = None if self.graded else spec.prompt_of(side)
            sides.append(said or own)
        return sides[0], sides[1]

    def open(self, name: str, folder: Path) -> Examples:
        """Its examples.

        Args:
            name: what the recipe calls it. folder: where relative paths start.

        Raises:
            SpecError: no such file, no row, or columns that are not there.
        """
        try:
            files = files_of(_from(folder, self.path))
            if not files[0].exists():
                raise LoadError(f"{files[0]}: no such file or folder")
            own = self._at(folder)
            rows = own.rows(files)
        except LoadError as error:
            raise SpecError(str(error)) from None
        if not len(rows):
            raise SpecError(f"{folder / self.path} holds no rows")
        for column in self.columns.names:
            if rows.names and column not in rows.names:
                raise SpecError(str(UnknownName(f"column of {folder / self.path}", column, rows.names)))
        starts = [file if file.is_dir() else file.parent for file in files]
        starts = starts if self.images is None else [_from(folder, self.images)]
        examples = Examples(name, self, rows, starts)
        examples.files = own.read(files)
        if self.mined is not None:
            mined = _from(folder, self.mined)
            examples.mined = _mined(mined, examples)
            examples.files += (mined,)
        return examples


class Examples:
    """The examples of one source, by row number.

    Args:
        name, source: what it is. rows: its table. images: where paths of pictures start, of each of its files or of all.

    Attributes:
        files: that the rows are read from. skipped: rows that were left out, by number, and why.
    """

    def __init__(self, name: str, source: Source, rows: Rows, images: Sequence[Path]):
        self.name, self.source, self._rows, self._images = name, source, rows, images
        several = len(set(images)) > 1
        self._ends = [*accumulate(len(numbers) for _, numbers in rows.places())] if several else []
        self.mined: Mapping[int, Sequence[int]] = {}
        self.files: tuple[Path, ...] = ()
        self.skipped: dict[int, str] = {}
        self._known: dict[str, dict[str | None, NDArray[np.int64]]] = {}  # by column, what `_by` found

    def __len__(self) -> int:
        return len(self._rows) if self.source.limit is None else min(self.source.limit, len(self._rows))

    @property
    def stamp(self) -> str:
        """Another where rows are of other files, or there are more or less of them; of rows in memory, where they say something
        else."""
        held = f", {self._rows.stamp}" if isinstance(self._rows, _List) else ""
        return f"{len(self)} rows, {of_files(self.files)}{held}"

    @property
    def size(self) -> int:
        """Bytes of its files, which are not read for it."""
        return sum(path.stat().st_size for path in self.files if path.is_file())

    @property
    def numbered(self) -> str:
        """Another where the number of a row, or its query or positive, may be of something else; wherever the files lie."""
        columns = self.source.columns
        own = replace(
            self.source.without_rows(),
            columns=Columns(query=columns.query, positive=columns.positive, group=columns.group),
            path="",
            images=None if self.source.images is None else os.path.normpath(self.source.images),
            query_prompt=None,
            positive_prompt=None,
            instruction=None,
            on_error="raise",
            mined=None,
        )
        return f"{self.stamp}, settings {of_settings(own)[:16]}"

    def places(self) -> dict[Path, Numbers]:
        """The files that its rows are of, resolved, and of each the numbers there of those it takes; none for rows in memory."""
        found: dict[Path, Numbers] = {}
        left = len(self)
        for path, numbers in self._rows.places():
            found[path] = numbers[:left]
            left -= len(found[path])
        return found

    def blocks(self, at_once: int = 1) -> list[NDArray[np.int64]]:
        """Row numbers in runs that are shuffled together, so small that `at_once` of them are held while they last."""
        ends = [min(end, len(self)) for end in accumulate(_together(self._rows.runs, HELD / 2 / at_once))]
        return [np.arange(first, end) for first, end in pairwise([0, *ends]) if first < end]

    def languages(self) -> dict[str, NDArray[np.int64]]:
        """Row numbers of each language.

        Raises:
            SpecError: the data has no column of languages.
        """
        column = self.source.columns.language
        if column is None:
            raise SpecError(f"data {self.name!r} is balanced by language and names no column for it: columns.language")
        return {value or "": rows for value, rows in self._by(column).items()}

    def groups(self, *, all_of_one: bool = False) -> dict[str, NDArray[np.int64]]:
        """Row numbers of each group; a row whose cell is empty is of none.

        Args:
            all_of_one: whether that is an error.

        Raises:
            SpecError: the data has no column of groups, or a row without one.
        """
        column = self.source.columns.group
        if column is None:
            raise SpecError(f"data {self.name!r} is told apart by groups and names no column for them: columns.group")
        found = dict(self._by(column))
        bare = found.pop(None, None)
        if bare is not None and all_of_one:
            raise SpecError(
                f"data {self.name!r} is told apart by groups, and {len(bare)} rows have none, as row {bare[0]}"
            )
        return cast(dict[str, NDArray[np.int64]], found)

    def _by(self, column: str) -> dict[str | None, NDArray[np.int64]]:
        """Raises: InputError, a row that cannot be read, unless the source says to skip it."""
        if column in self._known:
            return self._known[column]
        found: dict[str | None, list[int]] = {}
        rows = self._rows.only(column) if isinstance(self._rows, (_Parquet, _Joined, _Tar, _Table)) else self._rows
        for row in range(len(self)):
            try:
                value = _said(rows[row], column)
            except InputError as error:
                if self.source.on_error == "raise":
                    raise InputError(self._at(row) + error.reason) from None
                self.skip(row, error.reason)
                continue
            found.setdefault(value, []).append(row)
        self._known[column] = {
            value: np.asarray(found[value]) for value in sorted(found, key=lambda value: (value is not None, value))
        }
        return self._known[column]

    def __getitem__(self, row: int) -> Example:
        """Raises: InputError, with what is wrong with the row and where it is."""
        columns = self.source.columns
        try:
            values, at = self._rows[row], self._start(row)
            query, positives, group, keys = self._sides(values, at)
            negatives = tuple(item for column in columns.negatives for item in _many(values, column, at))
            mined = [self._sides(self._rows[other], self._start(other)) for other in self.mined.get(row, ())]
            answered = (*[frozenset[bytes]()] * len(negatives), *(keys for *_, keys in mined))
            negatives += tuple(told[0] for _, told, _, _ in mined)
            right = {digest(item) for item in positives} if negatives else set()
            wrong = [k for k, item in enumerate(negatives) if digest(item) not in right]
            _check_said([query], "the query is")
            _check_said(positives, "a positive is")
            _check_said(negatives, "a negative is")
            scores = () if columns.score is None else _numbers(values, columns.score)
            if scores and len(scores) != 1 + len(negatives):
                raise InputError(f"it has {len(scores)} scores, of a positive and {len(negatives)} negatives")
            if len(wrong) < len(negatives):
                negatives, answered = tuple(negatives[k] for k in wrong), tuple(answered[k] for k in wrong)
                scores = (*scores[:1], *(scores[1 + k] for k in wrong)) if scores else ()
            asked = (query,) if columns.query_source is None else _many(values, columns.query_source, at)
            told = positives if columns.positive_source is None else _many(values, columns.positive_source, at)
            if len(asked) != 1 or len(told) != len(positives):
                raise InputError("a teacher reads one source for the query and one for each positive")
            language = None if columns.language is None else _said(values, columns.language)
        except InputError as error:
            raise InputError(self._at(row) + error.reason) from None
        sources = asked[0], told
        return Example(
            self.name,
            row,
            query,
            positives,
            negatives,
            scores,
            sources,
            language,
            keys,
            group,
            answered if mined else (),
        )

    def _start(self, row: int) -> Path:
        """Where paths of pictures in a row start."""
        return self._images[_place(self._ends, row)[0]]

    def _sides(
        self, values: Mapping[str, Any], at: Path
    ) -> tuple[Item, tuple[Item, ...], str | None, frozenset[bytes]]:
        """The query, its positives, its group, and what it shares with rows that would be positives of it too."""
        columns = self.source.columns
        query = _many(values, columns.query, at)
        if len(query) != 1:
            raise InputError(f"the query holds {len(query)} items, and one is wanted")
        positives = query if columns.positive is None else _many(values, columns.positive, at)
        if not positives:
            raise InputError("it has no positive")
        group = None if columns.group is None else _said(values, columns.group)
        keys = {digest(item) for item in (query if positives is query else (*query, *positives))}
        return query[0], positives, group, frozenset(keys if group is None else {*keys, f"group {group}".encode()})

    def skip(self, row: int, reason: str) -> None:
        """Keep in mind that a row is left out.

        Raises:
            InputError: it was the last one.
        """
        self.skipped.setdefault(row, reason.removeprefix(self._at(row)))
        if len(self.skipped) == len(self):
            raise InputError(f"none of the {len(self)} rows of data {self.name!r} gives an example; the last: {reason}")

    def _at(self, row: int) -> str:
        return f"data {self.name!r}, row {row}: "


def _many(values: Mapping[str, Any], column: Column, at: Path) -> tuple[Item, ...]:
    """The items of a column: one, or as many as the list there holds.

    Args:
        at: where paths of pictures start.
    """
    if column.image is None and isinstance(text := values.get(str(column.text)), str):
        return ((Text(text),),)
    texts = None if column.text is None else _listed(values, column.text, str, "a text")
    pictured = None if column.image is None else _pictures(values, column.image, at)
    if texts is None or pictured is None:
        return tuple((part,) for part in (pictured if texts is None else [Text(text) for text in texts]) or ())
    if len(texts) != len(pictured):
        raise InputError(f"{len(texts)} texts in {column.text!r} and {len(pictured)} pictures in {column.image!r}")
    return tuple((picture, Text(text)) for picture, text in zip(pictured, texts, strict=True))


def _pictures(values: Mapping[str, Any], name: str, at: Path) -> list[Image]:
    value = _cell(values, name)
    try:
        return [_image(each, at) for each in ([value] if held_picture(value) else _each(value))]
    except ImageError as error:
        raise InputError(f"column {name!r}: {error.reason}") from None


def _image(value: Any, at: Path) -> Image:
    """What is held in memory as it is now: a row is read again, and by other processes."""
    if isinstance(value, Mapping):  # as the `datasets` library writes them
        value = value.get("bytes") or value.get("path")
    if isinstance(value, os.PathLike) or (isinstance(value, str) and value[:5].lower() != "data:"):
        return Image(at / value)
    return (value if isinstance(value, Image) else Image(value)).as_now()


def held_picture(value: Any) -> bool:
    """Whether a cell is one picture by itself: an `Image`, a PIL image, or an array of numbers; other arrays are lists."""
    return isinstance(value, Image) or is_pil(value) or (isinstance(value, np.ndarray) and value.dtype.kind in "buif")


def digest(item: Item) -> bytes:
    """Equal where items say the same: texts by their characters, pictures by path or bytes, or by the pixels that are held."""
    told = hashlib.blake2b(digest_size=12)
    for part in item:
        if isinstance(part, Text):
            told.update(b"text " + part.text.encode("utf-8", "surrogatepass"))
            continue
        source: Any = part.source
        if is_pil(source) or isinstance(source, np.ndarray):
            pixels = part.load()
            told.update(f"pixels {pixels.shape} ".encode())
            told.update(pixels.tobytes())
        else:
            told.update(b"image ")
            told.update(os.fsencode(source) if isinstance(source, (str, os.PathLike)) else source)
    return told.digest()


def _check_said(items: Sequence[Item], which: str) -> None:
    """Raise `InputError` where one of them is no Unicode, or white space alone, of which nothing can be learnt."""
    for item in items:
        for part in item:
            if isinstance(part, Text):
                check_text(part.text)
        if not any(isinstance(part, Image) or part.text.strip() for part in item):
            raise InputError(f"{which} empty")


def _from(folder: Path, path: str) -> Path:
    """A path of a recipe, from its folder on."""
    return folder / Path(path).expanduser()


def _cell(values: Mapping[str, Any], name: str) -> Any:
    if name not in values:
        raise InputError(str(UnknownName("column", name, values)))
    return values[name]


def _each(value: Any) -> list[Any]:
    """What a cell holds: the items of a list, or the one that it is."""
    return list(value) if isinstance(value, (list, tuple, np.ndarray)) else [value]


def _said(values: Mapping[str, Any], name: str) -> str | None:
    """What a plain column says; None: nothing, which an empty text is too, and a NaN, as pandas has it."""
    value = _cell(values, name)
    bare = value is None or (isinstance(value, Real) and value != value)
    return None if bare else str(value) or None


def _listed(values: Mapping[str, Any], name: str, kind: Any, wanted: str) -> list[Any]:
    many = _each(_cell(values, name))
    for each in many:
        if not isinstance(each, kind):
            raise InputError(f"column {name!r} holds {each!r:.60}, and {wanted} is wanted")
    return many


def _numbers(values: Mapping[str, Any], name: str) -> tuple[float, ...]:
    found = _listed(values, name, (Real, Decimal), "a number")
    if not all(not isinstance(x, (bool, np.bool_)) and np.isfinite(float(x)) for x in found):
        raise InputError(f"column {name!r} holds {values[name]!r:.60}, and a number is wanted")
    return tuple(map(float, found))


def _mined(path: Path, examples: Examples) -> dict[int, list[int]]:
    """What `mmembed.train.mining.write_mined` wrote: rows whose positives are negatives of a row.

    Raises:
        SpecError: it is no such file, or of other data: rows are told by number.
    """
    found: dict[int, list[int]] = {}
    stamp = None
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                try:
                    told = json.loads(line)
                    if stamp is None:
                        stamp = str(told[OF])
                        continue
                    found[int(told["row"])] = [int(row) for row in told["negatives"]]
                except (ValueError, TypeError, KeyError):
                    raise SpecError(f"{path}, line {number}: no line of mined negatives") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if stamp != examples.numbered:
        raise SpecError(
            f"{path} was mined of other data or other settings of it ({stamp}) than data {examples.name!r} is now "
            f"({examples.numbered}): mine it again"
        )
    count = len(examples)
    strange = next((row for own, others in found.items() for row in (own, *others) if not 0 <= row < count), None)
    if strange is not None:
        raise SpecError(f"{path} names row {strange}, and its data has {count}")
    return found


# ---- kinds -----------------------------------------------------------------------------------------------------------


@sources.register("jsonl")
@dataclass(frozen=True, kw_only=True)
class Jsonl(Source):
    """One JSON object a line. Only where lines begin is held in memory."""

    def rows(self, files: Sequence[Path]) -> Rows:
        return _Jsonl(files)


class _Begun:
    """Files of which is known where each row begins."""

    def __init__(self, files: Sequence[Path], starts: Sequence[NDArray[np.int64]]):
        self._files, self._starts = files, starts
        self._ends = [*accumulate(map(len, starts))]
        self.runs = [(len(self), 0.0)]

    def places(self) -> Iterable[tuple[Path, Numbers]]:
        return [(file.resolve(), range(len(own))) for file, own in zip(self._files, self._starts, strict=True)]

    def __len__(self) -> int:
        return self._ends[-1]


class _Jsonl(_Begun):
    names: Sequence[str] = ()

    def __init__(self, files: Sequence[Path]):
        super().__init__(files, [_line_starts(file) for file in files])

    def __getitem__(self, row: int) -> Mapping[str, Any]:
        which, place = _place(self._ends, row)
        with self._files[which].open("rb") as file:
            file.seek(self._starts[which][place])
            line = file.readline()
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"no JSON: {error}") from None
        if not isinstance(values, dict):
            raise InputError("no JSON object")
        return values


def _line_starts(file: Path) -> NDArray[np.int64]:
    """Where the lines begin that hold more than white space."""
    starts, place = [], 0
    try:
        with file.open("rb") as lines:
            for line in lines:
                if line.strip():
                    starts.append(place)
                place += len(line)
    except OSError as error:
        raise LoadError(f"{file} cannot be read: {error.strerror}") from None
    return np.asarray(starts, dtype=np.int64)


def _together(runs: Iterable[tuple[int, float]], room: float) -> list[int]:
    """The lengths of blocks made of runs of rows, see `Rows`: each of some of them, until they take so many bytes."""
    found: list[int] = []
    full = True
    size = 0.0
    for count, own in runs:
        if full:
            found.append(0)
            size = 0.0
        found[-1] += count
        size += own
        full = found[-1] >= TOGETHER or size >= room
    return found


def _place(ends: Sequence[int], row: int) -> tuple[int, int]:
    """Which of several parts that end there a row is in, and where."""
    which = bisect_right(ends, row)
    return which, row - (ends[which - 1] if which else 0)


@sources.register("csv")
@dataclass(frozen=True, kw_only=True)
class Csv(Source):
    """Rows of cells, which may stand in quotes and then hold line breaks (RFC 4180), in UTF-8; the first row names the columns.

    A cell is a text, an empty one an empty text; that of a score is a number.
    At most 131072 characters are in it, as Python's `csv` has it. Only where rows begin is held in memory.

    Attributes:
        delimiter: what stands between cells, a character of ASCII: "\\t" in most .tsv files.
    """

    delimiter: str = ","

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.delimiter) != 1 or not self.delimiter.isascii() or self.delimiter in '"\r\n':
            raise SpecError(f"delimiter={self.delimiter!r}: it is one character of ASCII, and no quote")

    def rows(self, files: Sequence[Path]) -> Rows:
        return _Csv(files, self.delimiter, self.columns)


class _Csv(_Begun):
    def __init__(self, files: Sequence[Path], delimiter: str, columns: Columns):
        self._delimiter, self._columns = delimiter, columns
        opened = [self._opened(file) for file in files]
        super().__init__(files, [starts for _, starts in opened])
        self._headers = [header for header, _ in opened]
        self.names = self._headers[0]
        for file, header in zip(files, self._headers, strict=True):
            if len(set(header)) < len(header) or set(header) != set(self.names):
                raise LoadError(f"{file}: its columns are {header}, which are not each once those of {files[0]}")

    def __getitem__(self, row: int) -> Mapping[str, Any]:
        which, place = _place(self._ends, row)
        header, (start, line) = self._headers[which], self._starts[which][place].tolist()
        try:
            cells = self._cells(self._files[which], start)
            if len(cells) != len(header):
                raise ValueError(f"it has {len(cells)} cells, and there are {len(header)} columns")
        except (csv.Error, ValueError) as error:
            raise InputError(f"line {line} of {self._files[which].name}: {error}") from None
        values: dict[str, Any] = dict(zip(header, cells, strict=True))
        if self._columns.score in values:
            with suppress(ValueError):  # whoever wants a number says that it is none
                values[self._columns.score] = float(values[self._columns.score])
        return values

    def _opened(self, file: Path) -> tuple[list[str], NDArray[np.int64]]:
        """The columns of a file, and (n, 2): where its rows begin, and in which lines."""
        try:
            with file.open("rb") as lines:
                starts = [*_row_starts(lines, self._delimiter)]
            header = self._cells(file, starts[0][0]) if starts else []
        except OSError as error:
            raise LoadError(f"{file} cannot be read: {error.strerror}") from None
        except (csv.Error, UnicodeDecodeError) as error:
            raise LoadError(f"{file}: {error}") from None
        return header, np.asarray(starts[1:], dtype=np.int64).reshape(-1, 2)

    def _cells(self, file: Path, start: int) -> list[str]:
        with file.open("rb") as lines:
            lines.seek(start)
            return next(csv.reader((line.decode() for line in lines), delimiter=self._delimiter, strict=True))


def _row_starts(lines: IO[bytes], delimiter: str) -> Iterator[tuple[int, int]]:
    """Where the rows of a table begin that hold more than a line break, and in which lines.

    Raises:
        csv.Error: quotes that are not closed in their line, so that nobody knows where the next row begins.
    """
    place = len(codecs.BOM_UTF8) if lines.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8 else 0
    lines.seek(place)
    read = 0

    def texts() -> Iterator[str]:
        nonlocal place, read
        for line in lines:
            place, read = place + len(line), read + 1
            yield line.decode(errors="surrogateescape")  # what is no UTF-8 is told when the row is read

    rows = csv.reader(texts(), delimiter=delimiter, strict=True)
    while True:
        start, line = place, read + 1
        try:
            row = next(rows, None)
        except csv.Error as error:
            if read > line:
                raise csv.Error(f"the row of line {line} does not end: {error}") from None
            row = [str(error)]  # as is this
        if row is None:
            return
        if row:
            yield start, line


@dataclass(frozen=True, kw_only=True)
class Join:
    """Another table of Parquet, whose columns a row has too: a list of what they hold in all its rows that are equal in `on`.

    Attributes:
        path: as that of a source. on: a column of both tables. where: rows to take of it.
    """

    path: str
    on: str
    where: Mapping[str, Any] = field(default_factory=dict)


@sources.register("parquet")
@dataclass(frozen=True, kw_only=True)
class Parquet(Source):
    """Parquet files; row groups are read as they are needed.

    Attributes:
        where: `{column: value or list of values}`, rows to take. join: where columns come from that these files lack.
    """

    where: Mapping[str, Any] = field(default_factory=dict)
    join: Join | None = None

    def rows(self, files: Sequence[Path]) -> Rows:
        if self.join is None:
            return _Parquet(files, self.columns.names, self.where)
        own = _Parquet(files, (*self.columns.names, self.join.on), self.where)
        return _Joined(own, self.join, [name for name in self.columns.names if name not in own.names])

    def _at(self, folder: Path) -> Parquet:
        if self.join is None:
            return self
        return replace(self, join=replace(self.join, path=str(_from(folder, self.join.path))))

    def read(self, files: Sequence[Path]) -> tuple[Path, ...]:
        return (*files, *([] if self.join is None else files_of(Path(self.join.path))))


class _Joined:
    """Rows of a table with columns of another, which is held in memory."""

    def __init__(self, own: _Parquet, join: Join, columns: Sequence[str]):
        files = files_of(Path(join.path))
        if not files[0].exists():
            raise LoadError(f"{files[0]}: no such file or folder")
        other = _Parquet(files, (*columns, join.on), join.where)
        for names, path in ((own.names, "the data"), (other.names, join.path)):
            if join.on not in names:
                raise SpecError(str(UnknownName(f"column of {path}", join.on, names)))
        self._own, self._on, self._columns = own, join.on, [name for name in columns if name in other.names]
        self.names, self.runs = [*own.names, *self._columns], own.runs
        self._found: dict[Any, dict[str, list[Any]]] = {}
        for row in range(len(other)):
            values = other[row]
            found = self._found.setdefault(values[join.on], {name: [] for name in self._columns})
            for name in self._columns:
                if values[name] is not None:
                    found[name].append(values[name])

    def places(self) -> Iterable[tuple[Path, Numbers]]:
        return self._own.places()

    def __len__(self) -> int:
        return len(self._own)

    def __getitem__(self, row: int) -> Mapping[str, Any]:
        values = self._own[row]
        return {**values, **self._found.get(values[self._on], {name: [] for name in self._columns})}

    def only(self, column: str) -> Rows:
        return self._own.only(column) if column in self._own.names else self


class _Cells:
    """A column that is read a cell at a time."""

    def __init__(self, column: Any):
        self._column = column

    def __getitem__(self, row: int) -> Any:
        return self._column[row].as_py()


class _Parquet:
    def __init__(self, files: Sequence[Path], columns: Sequence[str], where: Mapping[str, Any]):
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError as error:
            raise MissingExtra("pyarrow", "train") from error
        self._paths, self._files = files, []
        for file in files:
            try:
                self._files.append(pq.ParquetFile(file))
            except (pa.ArrowInvalid, OSError) as error:
                raise SpecError(f"{file}: no parquet file: {error}") from None
        self.names = list(self._files[0].schema_arrow.names)
        for file, opened in zip(files, self._files, strict=True):
            own = opened.schema_arrow.names
            for column in (*where, *(column for column in columns if column in self.names)):
                if column not in own:
                    raise SpecError(str(UnknownName(f"column of {file}", column, own)))
        self._columns = [column for column in columns if column in self.names]
        self._where = {key: value if isinstance(value, list) else [value] for key, value in where.items()}
        groups = [(f, g) for f, file in enumerate(self._files) for g in range(file.num_row_groups)]
        self._kept = {group: self._rows_kept(*group) for group in groups} if where else {}
        counts = [len(self._kept[f, g]) if where else self._files[f].metadata.row_group(g).num_rows for f, g in groups]
        self._groups = [group for group, count in zip(groups, counts, strict=True) if count]
        lengths = [count for count in counts if count]
        self.runs = [
            (count, count * self._bytes_a_row(*group)) for group, count in zip(self._groups, lengths, strict=True)
        ]
        self._ends = [*accumulate(lengths)]
        self._held: LRUCache[int, Mapping[str, Any]] = LRUCache(HELD)

    def places(self) -> Iterable[tuple[Path, Numbers]]:
        for f, path in enumerate(self._paths):
            whole = self._files[f].metadata
            first = [0, *accumulate(whole.row_group(g).num_rows for g in range(whole.num_row_groups))]
            kept = [first[g] + self._kept[f, g] for g in range(whole.num_row_groups)] if self._where else []
            yield path.resolve(), np.concatenate(kept) if kept else range(whole.num_rows if not self._where else 0)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, row: int) -> Mapping[str, Any]:
        which, place = _place(self._ends, row)
        table = self._held.get(which) or self._read(which)
        return {name: column[place] for name, column in table.items()}

    def only(self, column: str) -> Rows:
        """The same rows with one column, beside which nothing is read."""
        own = copy(self)
        own._columns, own._held = [column], LRUCache(HELD)
        return own

    def _read(self, which: int) -> Mapping[str, Any]:
        """The columns of a row group by name: lists, which are read a hundred times as fast, but for bytes, which are large.

        Two are held at least, however large they are."""
        group = self._groups[which]
        table = self._files[group[0]].read_row_group(group[1], columns=self._columns)
        table = (table.take(self._kept[group]) if self._where else table).combine_chunks()
        found = {
            name: _Cells(table[name]) if "binary" in str(table.schema.field(name).type) else table[name].to_pylist()
            for name in self._columns
        }
        size = table.nbytes + OBJECT * sum(len(column) for column in found.values() if isinstance(column, list))
        self._held.limit = max(self._held.limit, 2 * size)
        self._held.put(which, found, size)
        return found

    def _bytes_a_row(self, file: int, group: int) -> float:
        """Of the columns that are read."""
        whole = self._files[file].metadata.row_group(group)
        columns = [whole.column(k) for k in range(whole.num_columns)]
        begins = tuple(f"{name}." for name in self._columns)
        own = [column for column in columns if f"{column.path_in_schema}.".startswith(begins)]
        return sum(column.total_uncompressed_size for column in own) / whole.num_rows

    def _rows_kept(self, file: int, group: int) -> NDArray[np.int64]:
        import pyarrow as pa
        import pyarrow.compute as pc

        table = self._files[file].read_row_group(group, columns=list(self._where))
        kept = np.ones(len(table), dtype=bool)
        for name, values in self._where.items():
            column = table[name]
            if pa.types.is_dictionary(column.type):
                column = column.cast(column.type.value_type)
            try:
                wanted = pa.array(values, column.type)
            except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
                raise SpecError(
                    f"where: column {name!r} holds {column.type}, and {values!r:.60} are none: {error}"
                ) from None
            kept &= pc.is_in(column, wanted).to_numpy(zero_copy_only=False)
        return np.flatnonzero(kept)


@sources.register("images")
@dataclass(frozen=True, kw_only=True)
class ImageFolder(Source):
    """The pictures of a folder, all the way down, or those that a pattern fits. Columns: `image`; `folder`, the name of the
    folder it lies in; `stem`, its own name without ending; `text`, what the .txt file of that name beside it says."""

    def rows(self, files: Sequence[Path]) -> Rows:
        return _Pictures(files)

    def read(self, files: Sequence[Path]) -> tuple[Path, ...]:
        texts = [file.with_suffix(".txt") for file in files if not file.is_dir()]
        return (*files, *(text for text in texts if text.is_file()))


class _Pictures:
    names: Sequence[str] = ("image", "folder", "stem", "text")

    def __init__(self, files: Sequence[Path]):
        self._paths: list[Path] = []
        for file in files:
            for path in walk(file, PICTURES) if file.is_dir() else [file] * (file.suffix.lower() in PICTURES):
                if isinstance(path, InputError):
                    raise SpecError(path.reason)
                self._paths.append(path)
        self.runs = [(len(self._paths), 0.0)]

    def places(self) -> Iterable[tuple[Path, Numbers]]:
        """Each picture is a file of one row."""
        folders = {folder: folder.resolve() for folder in {path.parent for path in self._paths}}
        return [(folders[path.parent] / path.name, range(1)) for path in self._paths]

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, row: int) -> Mapping[str, Any]:
        path = self._paths[row].absolute()
        found = {"image": path, "folder": path.parent.name, "stem": path.stem}
        beside = path.with_suffix(".txt")
        if beside.exists():
            try:
                found["text"] = beside.read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise InputError(f"{beside}: cannot be read as UTF-8 text: {error}") from None
        return found


@sources.register("tar")
@dataclass(frozen=True, kw_only=True)
class Tar(Source):
    """Tar files in the layout of webdataset: files of one name and several endings are a row. Columns are the endings (`jpg`,
    `txt`, `cls`), `image` and `text` for the ending of any picture and any text, and `json.KEY` for what the JSON file says.

    Headers are read once when it is opened; then a row is read where it lies."""

    def rows(self, files: Sequence[Path]) -> Rows:
        return _Tar(files, self.columns.names)


class _Tar:
    names: Sequence[str] = ()

    def __init__(self, files: Sequence[Path], columns: Sequence[str]):
        self._shards = [Shard(file) for file in files]
        for shard in self._shards:
            if shard.broken:
                raise SpecError(f"{shard.path}: {shard.broken}")
        self._columns = columns
        self._ends = [*accumulate(map(len, self._shards))]
        self.runs = [(len(shard), 0.0) for shard in self._shards]

    def places(self) -> Iterable[tuple[Path, Numbers]]:
        return [(shard.path.resolve(), range(len(shard))) for shard in self._shards]

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, row: int) -> Mapping[str, Any]:
        which, place = _place(self._ends, row)
        return self._shards[which].read(place, self._columns)

    def only(self, column: str) -> Rows:
        """The same rows with one column, beside which nothing is read."""
        own = copy(self)
        own._columns = [column]
        return own


@sources.register("datasets")
@dataclass(frozen=True, kw_only=True)
class HuggingFace(Source):
    """A folder that the `datasets` library wrote with `save_to_disk`; nothing is downloaded.

    Attributes:
        split: which of its splits, where it has several.
    """

    split: str | None = None

    def rows(self, files: Sequence[Path]) -> Rows:
        try:
            import datasets
        except ImportError as error:
            raise MissingExtra("datasets", "datasets") from error
        folder = files[0]
        try:
            found = datasets.load_from_disk(str(folder))
        except (OSError, ValueError) as error:
            raise SpecError(f"{folder}: no folder that save_to_disk of datasets wrote: {error}") from None
        if isinstance(found, datasets.DatasetDict):
            if self.split not in found:
                raise SpecError(str(UnknownName(f"split of {folder}", self.split, found)))
            found, folder = found[self.split], folder / str(self.split)
        elif self.split is not None:
            raise SpecError(f"{folder} is one dataset without splits: leave split = {self.split!r} out")
        found = found.with_format(None)  # else cells are tensors, where they were saved so
        for column, kind in found.features.items():
            if isinstance(kind, datasets.Image):
                found = found.cast_column(column, datasets.Image(decode=False))
        return _Table(found, folder)


class _Table:
    def __init__(self, table: Any, folder: Path):
        self._table, self._folder = table, folder
        self.names = list(table.column_names)
        self.runs = [(len(table), 0.0)]

    def places(self) -> Iterable[tuple[Path, Numbers]]:
        return [(self._folder.resolve(), range(len(self)))]

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, row: int) -> Mapping[str, Any]:
        values: Mapping[str, Any] = self._table[row]
        return values

    def only(self, column: str) -> Rows:
        """The same rows with one column, beside which nothing is read."""
        return _Table(self._table.select_columns([column]), self._folder)


@dataclass(frozen=True, kw_only=True)
class InMemory(Source):
    """Rows that a program already holds, for `mmembed.train.train` from Python; a recipe of TOML cannot name it.

    Attributes:
        table: the rows.
    """

    path: str = "."
    table: Sequence[Mapping[str, Any]] = ()

    def rows(self, files: Sequence[Path]) -> Rows:
        return _List(self.table, self.columns.names)

    def without_rows(self) -> InMemory:
        return replace(self, table=())

    def read(self, files: Sequence[Path]) -> tuple[Path, ...]:
        return ()


class _List:
    names: Sequence[str] = ()

    def __init__(self, table: Sequence[Mapping[str, Any]], columns: Sequence[str]):
        self._table, self._columns = table, columns
        self.runs = [(len(table), 0.0)]

    @cached_property
    def stamp(self) -> str:
        """Made once: of pictures it takes a while, and a run asks for it at each of its stages."""
        every = (self[k] for k in range(len(self)))
        return of_rows({name: row[name] for name in self._columns if name in row} for row in every)

    def places(self) -> Iterable[tuple[Path, Numbers]]:
        return ()

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, row: int) -> Mapping[str, Any]:
        return self._table[row]
