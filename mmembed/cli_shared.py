"""What commands share: options, exit codes, models and indexes by name, printing."""

from __future__ import annotations

import codecs
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .errors import UnknownName

if TYPE_CHECKING:
    from .embedder import Embedder
    from .search.index import Index
    from .sources import Columns, Entry

Command = TypeVar("Command", bound=Callable[..., Any])

SOME_FAILED = 3


def model_option(default: str) -> Callable[[Command], Command]:
    """--model; `default` says in words which one it is where none is named."""
    return click.option("--model", help=f"Folder, bundled name or hub name of the model.  [default: {default}]")


def on_error_option(default: str) -> Callable[[Command], Command]:
    return click.option(
        "--on-error", type=click.Choice(["raise", "skip"]), default=default, show_default=True,
        help="Stop at a bad item, or skip it.",
    )  # fmt: skip


device_option = click.option("--device", help="cpu, cuda, ...  [default: CUDA where there is one]")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
lines_option = click.option("--lines", is_flag=True, help="Each line of .txt files and of stdin is one text.")
modality_option = click.option("--modality", help='Only "text", "image" or "image+text".')
column_option = click.option(
    "--column", "columns", multiple=True, metavar="text|image|id=NAME",
    help="Which column of rows holds it.  [default: text, image and id, where they are there]",
)  # fmt: skip


def columns_said(said: Sequence[str]) -> Columns | None:
    from .sources import Columns

    return Columns.parse(said) if said else None


def entries_of(files: Iterable[str], lines: bool, columns: Columns | None) -> Iterator[Entry]:
    """What is in files and stdin; of one with nothing in it stderr is told: no result comes of it, and no error."""
    from .sources import printable, read

    for file in files:
        is_empty = True
        for entry in read([file], sys.stdin.buffer, lines=lines, columns=columns):
            is_empty = False
            yield entry
        if is_empty:
            name = "stdin" if file == "-" else printable(file)
            is_folder = Path(file).is_dir() and not (Path(file) / "state.json").exists()
            wanted = ": a folder gives its pictures and .txt files, but for hidden ones" if is_folder else ""
            click.echo(f"mmembed: nothing was found in {name}{wanted}", err=True)


def open_index(path: str, model: str | None, device: str | None) -> Index:
    """An index with its embedder: the one that is named, or the one it was made with."""
    from .search.index import Index

    made = Index.open(path).made
    try:
        embedder = load_model(model or made["model"], device, made["precision"])
    except UnknownName:
        if model is not None:
            raise
        raise click.UsageError(f"{path} was made with {made['model']!r}; --model FOLDER says where that lies") from None
    return Index.open(path, embedder)


def load_model(model: str | None, device: str | None, precision: str = "fp32") -> Embedder:
    from .loading import load

    return load(model, device=device, precision=precision)


def watched() -> bool:
    """Whether a person looks on, who wants to see progress."""
    return sys.stderr.isatty()


def escape_unknown() -> None:
    r"""From now on stdout writes what its encoding does not have as \uNNNN, in place of an error; unless whoever calls us has
    said what becomes of it (PYTHONIOENCODING=latin-1:replace)."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors in ("strict", "surrogateescape"):
        sys.stdout.reconfigure(errors="backslashreplace")


def print_json(value: Any) -> None:
    encoding = codecs.lookup(getattr(sys.stdout, "encoding", None) or "utf-8").name
    # In ASCII where stdout is not in UTF-8: it is JSON then, in whatever encoding it is read.
    click.echo(json.dumps(value, ensure_ascii=encoding != "utf-8", indent=1))


def print_pairs(pairs: dict[str, Any]) -> None:
    width = max(map(len, pairs))
    for key, value in pairs.items():
        click.echo(f"  {key:<{width}}  {value}")
