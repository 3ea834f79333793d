"""A table of TOML becomes a call: the signature of a class or function is the schema, and what is wrong names its line."""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
import tomllib
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ..errors import MmembedError, SpecError, UnknownName
from ..registry import Registry

T = TypeVar("T")
WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", Path: "a path"}
Key = tuple["str | int", ...]

TOKEN = re.compile(
    r'"""(?:\\.|[^\\])*?"""(?!")|\'\'\'.*?\'\'\'(?!\')|"(?:\\.|[^"\\])*"|\'[^\']*\'|\#[^\n]*|\n|[\[\]{},=.]|[^\s\[\]{},=#"\'.]+',
    re.DOTALL,
)


@dataclass(frozen=True)
class Place:
    """Where in a file a value stands: its key from the top, and the lines of all keys of the file; "": it is in no file."""

    file: str
    lines: Mapping[Key, int] = field(default_factory=dict)
    key: Key = ()

    def at(self, *further: str | int) -> Place:
        return Place(self.file, self.lines, self.key + further)

    @property
    def line(self) -> int | None:
        """Its line, or that of the nearest table around it; None where nothing is known of lines."""
        for stop in range(len(self.key), 0, -1):
            if self.key[:stop] in self.lines:
                return self.lines[self.key[:stop]]
        return None

    @property
    def name(self) -> str:
        """Its key as a person writes it: stage[0].steps."""
        said = "".join(f"[{k}]" if isinstance(k, int) else f".{k}" for k in self.key)
        return said.removeprefix(".") or "the recipe"

    def error(self, reason: object) -> MmembedError:
        """An error that says where it stands; in no file, an error as it is."""
        if not self.file:
            return reason if isinstance(reason, MmembedError) else SpecError(reason)
        where = self.file if self.line is None else f"{self.file}, line {self.line}"
        return _Placed(f"{where}: {reason}")


class _Placed(SpecError):
    """An error that says where it stands."""


@dataclass(frozen=True)
class Range:
    """The finite numbers that a setting may be: `Annotated[float, Range(above=0)]`.

    What stands beside an annotation is called with the value and its `Place`, and raises what is wrong; or it gives another value
    for it.

    Attributes:
        above: all of them are more. least, most: the ends, which are among them.
    """

    above: float | None = None
    least: float | None = None
    most: float | None = None

    def __call__(self, value: float, place: Place) -> None:
        low = self.above is None or value > self.above
        if not (low and (self.least is None or value >= self.least) and (self.most is None or value <= self.most)):
            raise place.error(f"{place.name}={value!r} is no number {self}")

    def __str__(self) -> str:
        ends = {"above": self.above, "of at least": self.least, "of at most": self.most}
        return " and ".join(f"{word} {end:g}" for word, end in ends.items() if end is not None)


def filled(values: Sequence[Any], place: Place) -> None:
    """For a list that holds something: `Annotated[Sequence[str], filled]`."""
    if not values:
        raise place.error(f"{place.name} must not be empty")


def read_toml(text: str, file: str) -> tuple[dict[str, Any], Place]:
    """What a TOML text says, and where it stands.

    Raises:
        SpecError: no TOML, with the line that the parser names.
    """
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"{file}: no TOML: {error}") from None
    return values, Place(file, lines_of(text))


def lines_of(text: str) -> dict[Key, int]:
    """The line of every key and array element of a valid TOML text, by its path."""
    lines: dict[Key, int] = {}
    counts: dict[Key, int] = {}
    tokens = _Tokens(text)

    def key() -> list[str]:
        parts = [_plain(tokens.take())]
        while tokens.next == ".":
            tokens.take()
            parts.append(_plain(tokens.take()))
        return parts

    def resolved(parts: Sequence[str]) -> Key:
        path: Key = ()
        for part in parts:
            path += (part,)
            if path in counts:
                path += (counts[path],)
        return path

    def note(path: Key, line: int) -> None:
        lines.setdefault(path, line)

    def value(path: Key) -> None:
        if tokens.next == "[":
            tokens.take()
            number = 0
            while tokens.skip_lines() != "]":
                note((*path, number), tokens.line)
                value((*path, number))
                number += 1
                if tokens.skip_lines() == ",":
                    tokens.take()
            tokens.take()
        elif tokens.next == "{":
            tokens.take()
            while tokens.skip_lines() != "}":
                pair(path)
                if tokens.skip_lines() == ",":
                    tokens.take()
            tokens.take()
        else:
            while tokens.next not in ("", "\n", ",", "]", "}"):
                tokens.take()

    def pair(table: Key) -> None:
        line = tokens.line
        path = table
        for part in key():
            path += (part,)
            note(path, line)
        tokens.take()  # =
        value(path)

    table: Key = ()
    while tokens.skip_lines():
        if tokens.next != "[":
            pair(table)
            continue
        line = tokens.line
        tokens.take()
        many = tokens.next == "["
        if many:
            tokens.take()
        parts = key()
        tokens.take()
        if many:
            tokens.take()
            above = (*resolved(parts[:-1]), parts[-1])
            counts[above] = counts.get(above, -1) + 1
            note(above, line)
            table = (*above, counts[above])
        else:
            table = resolved(parts)
        for stop in range(1, len(table) + 1):
            note(table[:stop], line)
    return lines


class _Tokens:
    """The tokens of a TOML text, comments left out, one looked ahead."""

    def __init__(self, text: str):
        self._found = self._each(text)
        self.next, self.line = next(self._found)

    @staticmethod
    def _each(text: str) -> Iterator[tuple[str, int]]:
        line, seen = 1, 0
        for match in TOKEN.finditer(text):
            line += text.count("\n", seen, match.start())
            seen = match.start()
            if not match[0].startswith("#"):
                yield match[0], line
        while True:
            yield "", line

    def take(self) -> str:
        taken = self.next
        self.next, self.line = next(self._found)
        return taken

    def skip_lines(self) -> str:
        while self.next == "\n":
            self.take()
        return self.next


def _plain(key: str) -> str:
    return str(tomllib.loads(f"x = {key}")["x"]) if key[:1] in "\"'" else key


def call(part: Callable[..., T], table: Mapping[str, Any], place: Place, **given: Any) -> T:
    """`part` called with a table of settings, each brought to what its annotation says, and with `given`.

    Raises:
        SpecError: a setting that it does not have, that is lacking or of another type, or what `part` itself finds wrong; with
            file and line.
    """
    settings, named = schema(part)
    made = dict(given)
    for key, value in table.items():
        if key not in settings or key in given:
            known = [name for name in settings if name not in given]
            raise place.at(key).error(UnknownName(f"setting of {place.name}", key, known))
        made[key] = fitted(value, named.get(key, Any), place.at(key))
    lacking = [name for name, p in settings.items() if p.default is p.empty and name not in made]
    if lacking:
        raise place.error(f"{place.name} lacks {', '.join(lacking)}")
    try:
        return part(**made)
    except MmembedError as error:
        raise (error if isinstance(error, _Placed) else place.error(error)) from None


def schema(part: Callable[..., Any]) -> tuple[dict[str, inspect.Parameter], dict[str, Any]]:
    """The keyword-only settings of a class or function, and their annotations."""
    settings = {
        name: p for name, p in inspect.signature(part).parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY
    }
    bare = inspect.isclass(part) and not dataclasses.is_dataclass(part)
    return settings, typing.get_type_hints(part.__init__ if bare else inspect.unwrap(part), include_extras=True)


def fitted(value: Any, wanted: Any, place: Place) -> Any:
    """A value of TOML as an annotation wants it: tuples of arrays, dataclasses and registered parts of tables.

    Raises:
        SpecError: it is something else, or a number that is none; the message names the key, the line, what was wanted and what
            was found.
        UnknownName: a name that is none, of what stands in no file.
    """
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if wanted is Any:
        return value
    if origin is typing.Annotated:
        made = fitted(value, arguments[0], place)
        for check in arguments[1:]:
            told = check(made, place)
            made = made if told is None else told
        return made
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        kinds = [kind for kind in arguments if kind is not type(None)]
        for kind in kinds:
            if len(kinds) == 1 or _is(value, kind):
                return fitted(value, kind, place)
    elif origin is typing.Literal:
        if value in arguments:
            return value
        raise place.error(UnknownName(f"value of {place.name}", value, map(str, arguments)))
    elif _is(value, wanted):
        if _many(origin):
            return tuple(fitted(each, arguments[0], place.at(k)) for k, each in enumerate(value))
        if origin is not None and issubclass(origin, Mapping):
            return {key: fitted(each, arguments[1], place.at(key)) for key, each in value.items()}
        registry = getattr(wanted, "registry", None)
        if isinstance(registry, Registry):
            return called(registry, value, place)
        if dataclasses.is_dataclass(wanted):
            return call(typing.cast("type[Any]", wanted), value, place)
        if wanted is float and not math.isfinite(value):
            raise place.error(f"{place.name} must be a finite number, not {value!r}")
        return float(value) if wanted is float else Path(value) if wanted is Path else value
    raise place.error(f"{place.name} must be {_said(wanted)}, not {_found(value)}")


def called(registry: Registry[Any], table: Mapping[str, Any], place: Place, **given: Any) -> Any:
    """The part that the `kind` of a table names, called with its other settings and with `given`."""
    settings = dict(table)
    kind = settings.pop("kind", None)
    if not isinstance(kind, str):
        raise place.error(f"{place.name} needs a kind; known: {', '.join(registry)}")
    try:
        part = registry[kind]
    except UnknownName as error:
        raise place.at("kind").error(error) from None
    return call(part, settings, place, **given)


def _is(value: Any, wanted: Any) -> bool:
    """Whether a value of TOML can become what is wanted, by its own type alone."""
    origin = typing.get_origin(wanted)
    if wanted is Any:
        return True
    if origin is typing.Annotated:
        return _is(value, typing.get_args(wanted)[0])
    if origin is typing.Literal:
        return value in typing.get_args(wanted)
    if _many(origin):
        return isinstance(value, (list, tuple))
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, Mapping)
    if wanted is bool or isinstance(value, bool):
        return wanted is bool and isinstance(value, bool)
    if wanted is float:
        return isinstance(value, (int, float))
    if wanted is Path:
        return isinstance(value, str)
    if dataclasses.is_dataclass(wanted) or isinstance(getattr(wanted, "registry", None), Registry):
        return isinstance(value, dict)
    return isinstance(wanted, type) and isinstance(value, wanted)


def _many(origin: Any) -> bool:
    return isinstance(origin, type) and issubclass(origin, Sequence)


def _said(wanted: Any) -> str:
    """An annotation in words."""
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if origin is typing.Annotated:
        return _said(arguments[0])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_said(kind) for kind in arguments if _writable(kind))
    if _many(origin):
        return f"a list of {_said(arguments[0]).removeprefix('a ').removeprefix('an ')}s"
    if origin is typing.Literal:
        return " or ".join(map(repr, arguments))
    return WORDS.get(wanted, "a table")


def _writable(wanted: Any) -> bool:
    """Whether a file can say it, and no tensor or nothing that only Python has."""
    table = dataclasses.is_dataclass(wanted) or hasattr(wanted, "registry")
    return table or wanted in WORDS or typing.get_origin(wanted) is not None


def _found(value: Any) -> str:
    if isinstance(value, dict):
        return "a table"
    return "a list" if isinstance(value, list) else repr(value)
