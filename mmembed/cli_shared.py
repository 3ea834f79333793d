"""What commands share: options, exit codes, models and indexes by name, printing."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from .errors import UnknownName

if TYPE_CHECKING:
    from .embedder import Embedder
    from .search.index import Index
    from .sources import Columns

SOME_FAILED = 3

model_option = click.option(
    "--model", help="Folder, bundled name or hub name of the model.  [default: that of the index, else pico]"
)
device_option = click.option("--device", help="cpu, cuda, ...  [default: CUDA where there is one]")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
on_error_option = click.option(
    "--on-error", type=click.Choice(["raise", "skip"]), help="Stop at a bad item, or skip it."
)
modality_option = click.option("--modality", help='Only "text", "image" or "image+text".')
column_option = click.option(
    "--column", "columns", multiple=True, metavar="text|image|id=NAME",
    help="Which column of rows holds it.  [default: text, image and id, where they are there]",
)  # fmt: skip


def columns_said(said: Sequence[str]) -> Columns | None:
    from .sources import Columns

    return Columns.parse(said) if said else None


def open_index(path: str, model: str | None, device: str | None) -> Index:
    """An index with its embedder: the one that is named, or the one it was made with."""
    from .search.index import Index

    made = Index.open(path).info()
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


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, ensure_ascii=False, indent=1))


def print_pairs(pairs: dict[str, Any]) -> None:
    width = max(map(len, pairs))
    for key, value in pairs.items():
        click.echo(f"  {key:<{width}}  {value}")
