"""Metadata as columns: its texts, numbers and truth values stand in columns of their own, for SQL to ask for."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any, TypeAlias

from ..errors import InputError

LANGUAGE = "language"
"""The name under which metadata says of what language a thing is."""
MOST = 256
"""Columns that metadata may make."""
LONG = 128
"""Characters of a name that makes a column: a longer one is no name that anyone writes in SQL."""
DEEP = 64
"""So many lists and mappings may lie in each other; readers of JSON stop at some hundred."""

Kind: TypeAlias = str
TEXT, NUMBER, TRUTH = "text", "number", "truth value"


def columns_of(metadata: str) -> dict[str, str | float | bool]:
    """What of metadata (JSON) has a column: values that are a text, a number or a truth value, under keys that are names
    of at most `LONG` letters, digits and underscores, such as "year" or "语言", not begun with an underscore. All numbers are
    floats."""
    plain: dict[str, str | float | bool] = {}
    for key, value in json.loads(metadata).items():
        named = key.isidentifier() and not key.startswith("_") and len(key) <= LONG
        if named and isinstance(value, (str, bool, int, float)):
            plain[key] = float(value) if kind_of(value) == NUMBER else value
    return plain


def kind_of(value: str | float | bool) -> Kind:
    return TEXT if isinstance(value, str) else TRUTH if isinstance(value, bool) else NUMBER


def check(value: Any, depth: int = 0) -> None:
    """See that what metadata holds is held by JSON in other hands than Python's too: in a server's answer, in an exported file.

    Raises:
        InputError: half a surrogate pair, a whole number beyond 64 bits, or what lies too deep.
    """
    if depth > DEEP:
        raise InputError(f"metadata: more than {DEEP} lists and mappings lie in each other")
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            said = f"metadata: {value!r:.60} holds half a surrogate pair, which no Unicode text does"
            raise InputError(said) from None
    elif isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise InputError("metadata holds a whole number beyond 64 bits: write it as a text")
    elif isinstance(value, Mapping):
        for key, each in value.items():
            check(key, depth + 1)
            check(each, depth + 1)
    elif isinstance(value, (list, tuple)):
        for each in value:
            check(each, depth + 1)


def fit(metadata: str, known: dict[str, Kind], taken: Collection[str]) -> None:
    """See that metadata goes into columns of these kinds, and note the new ones in `known`. Names of `taken`, which are the
    index's own, make none: metadata keeps them, and SQL means the index's by them. SQL does not tell upper from lower case.

    Raises:
        InputError: a value of another kind, a name that differs in its case alone, or too many names.
    """
    plain = {key: kind_of(value) for key, value in columns_of(metadata).items() if key.lower() not in taken}
    spelled = {name.lower(): name for name in known}
    for key, kind in plain.items():
        if spelled.setdefault(key.lower(), key) != key:
            raise InputError(f"metadata: {key!r} and {spelled[key.lower()]!r} are one name to SQL: spell it one way")
        if known.get(key, kind) != kind:
            raise InputError(
                f"metadata: {key!r} is a {kind} here and a {known[key]} elsewhere in the index: name it otherwise, or remove the "
                f"items that have the {known[key]} first"
            )
    if len(known | plain) > MOST:
        raise InputError(
            f"metadata: {next(key for key in plain if key not in known)!r} would be one name more than {MOST}: what is not "
            'asked for by SQL goes under one name, {"more": {...}}'
        )
    known |= plain
