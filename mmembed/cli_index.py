"""The commands of an index: add, list, rm, info, verify, compact, export, dups, diagnose; and search."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from .cli_shared import (
    SOME_FAILED,
    column_option,
    columns_said,
    device_option,
    entries_of,
    json_option,
    lines_option,
    load_model,
    modality_option,
    model_option,
    on_error_option,
    open_index,
    print_json,
    print_pairs,
    watched,
)
from .errors import InputError, StoreError

if TYPE_CHECKING:
    from .inputs import Thing
    from .search.adding import AddReport
    from .search.index import Mode
    from .sources import Entry


where_option = click.option("--where", help='Only items for which this is true, in SQL: "year >= 2020".')


@click.group()
def index() -> None:
    """Make an index and look after it."""


@contextmanager
def usage() -> Iterator[None]:
    """Inside, an `InputError` that is of no item is wrong usage: a condition that is none, parts of a query that cancel each
    other."""
    try:
        yield
    except InputError as error:
        if error.item is not None:
            raise
        raise click.UsageError(error.reason) from None


@index.command("add")
@click.argument("index", metavar="INDEX")
@click.argument("paths", nargs=-1, required=True)
@lines_option
@column_option
@click.option("--truncate-dim", type=click.IntRange(min=1), help="Numbers of a vector, for a new index.")
@click.option(
    "--store", type=click.Choice(["float32", "float16"]), help="How a new index keeps them.  [default: float32]"
)
@click.option("--reread", is_flag=True, help="Read also the files whose size and time are as they were.")
@click.option(
    "--remove-gone",
    is_flag=True,
    help="Take out the items of files that are in a folder of PATHS no more; name the folders of their copies in PATHS too.",
)
@on_error_option("skip")
@model_option("that of the index, else pico")
@device_option
@json_option
def index_add(
    index: str,
    paths: tuple[str, ...],
    lines: bool,
    columns: tuple[str, ...],
    truncate_dim: int | None,
    store: Literal["float32", "float16"] | None,
    reread: bool,
    remove_gone: bool,
    on_error: Literal["raise", "skip"],
    model: str | None,
    device: str | None,
    as_json: bool,
) -> int:
    """Add PATHS to INDEX, which is made if need be.

    They are those of `embed`: folders without what is hidden in them (.NAME), patterns, .txt, .jsonl, .parquet, folders of
    datasets' save_to_disk, .tar of webdataset, - (stdin), pictures. Rows keep their id, and their other columns as metadata. What
    is in the index already stays as it is; a file that has other content by now is replaced.
    """
    from .search.adding import AddReport, SkippedEntry
    from .search.index import Index
    from .search.table import exists

    named = columns_said(columns)
    folders = [path for path in paths if Path(path).is_dir()]
    if remove_gone and not folders:
        raise click.UsageError("--remove-gone looks for files of a folder, and PATHS names none")
    entries = entries_of(paths, lines, named)
    if exists(index):
        if truncate_dim is not None or store is not None:
            raise click.UsageError(f"{index} exists: --truncate-dim and --store are for a new index")
        opened = open_index(index, model, device)
    else:
        _check_free(index)
        found = list(_to_first(entries))
        bad = [
            SkippedEntry(row, e.name, e.thing.reason) for row, e in enumerate(found) if isinstance(e.thing, InputError)
        ]
        if len(bad) == len(found):  # what cannot be read at all, or is nothing, leaves no empty index behind
            if bad and on_error == "raise":
                raise InputError(bad[0].reason, 0)
            _print_added(AddReport(skipped=bad), [], 0, as_json)
            return SOME_FAILED if bad else 0
        entries = chain(found, entries)
        try:
            opened = Index.create(index, load_model(model, device), truncate_dim=truncate_dim, store=store or "float32")
        except StoreError:
            if not exists(index):
                raise
            opened = open_index(index, model, device)  # another began it meanwhile
    report = opened.add_entries(
        entries,
        reread=reread,
        on_error=on_error,
        show_progress_bar=watched(),
    )
    gone = [path for folder in folders for path in opened.remove_gone(folder)] if remove_gone else []
    _print_added(report, gone, len(opened), as_json)
    return SOME_FAILED if report.skipped else 0


def _to_first(entries: Iterator[Entry]) -> Iterator[Entry]:
    """Entries up to the first one that could be read."""
    for entry in entries:
        yield entry
        if not isinstance(entry.thing, InputError):
            return


def _check_free(index: str) -> None:
    """Before an index is made: where its name was forgotten, the first of the paths stands in its place.

    Raises:
        click.UsageError: a file, or a folder with anything in it but the beginnings of an index.
    """
    from .search.table import NAME, place

    at = place(index)
    if isinstance(at, str):
        return
    if at.is_dir():
        what = "a folder with other files in it" if any(each.name != f"{NAME}.lance" for each in at.iterdir()) else ""
    else:
        what = "a file" if at.exists() else ""
    if what:
        raise click.UsageError(
            f"{index} is {what} and no index: say first where the index is to be, as in `mmembed index add NAME.index {index}`"
        )


def _print_added(report: AddReport, gone: list[str], items: int, as_json: bool) -> None:
    if as_json:
        counts = {"added": report.added, "replaced": report.replaced, "unchanged": report.unchanged, "removed": gone}
        skipped = [{"name": s.name, "reason": s.reason} for s in report.skipped]
        print_json({**counts, "skipped": skipped, "truncated": len(report.truncated), "items": items})
        return
    from .search.hits import visible

    for one in report.skipped:
        name, reason = visible(one.name), visible(one.reason)
        click.echo(f"mmembed: skipped {reason if name in reason else f'{name}: {reason}'}", err=True)
    for path in gone:
        click.echo(f"mmembed: removed {visible(path)}", err=True)
    if report.truncated:
        click.echo(f"mmembed: {len(report.truncated)} texts were cut at the model's limit", err=True)
    click.echo(
        f"{report.added} added, {report.replaced} replaced, {report.unchanged} unchanged, "
        f"{len(report.skipped)} skipped, {len(gone)} removed; {items} items"
    )


@index.command("info")
@click.argument("index", metavar="INDEX")
@json_option
def index_info(index: str, as_json: bool) -> None:
    """Say what INDEX holds and what model it was made with."""
    from .search.index import Index

    found = Index.open(index).info()
    if as_json:
        print_json(found)
        return
    kinds = ", ".join(f"{count} {kind}" for kind, count in found.pop("modalities").items())
    found["items"] = f"{found['items']} ({kinds})"
    print_pairs(found)


@index.command("export")
@click.argument("index", metavar="INDEX")
@click.argument("out", type=click.Path(path_type=Path))
@modality_option
@json_option
def index_export(index: str, out: Path, modality: str | None, as_json: bool) -> None:
    """Write INDEX to OUT for other tools.

    NAME.parquet has every column; NAME.npy the vectors, with NAME.jsonl and NAME.json beside it; a name without ending is a
    folder in the layout of clip-retrieval.
    """
    from .search.index import Index

    items = Index.open(index).export(out, modality=modality)
    print_json({"out": str(out), "items": items}) if as_json else click.echo(f"{items} items: {out}")


@index.command("dups")
@click.argument("index", metavar="INDEX")
@click.option("--threshold", type=float, default=0.97, show_default=True, help="The least cosine of what is alike.")
@modality_option
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="NAME.jsonl: a group a line.")
@json_option
def index_dups(index: str, threshold: float, modality: str | None, out: Path | None, as_json: bool) -> None:
    """List groups of items in INDEX that are alike, those of the same content first. Nothing is taken out."""
    from .files import whole
    from .search.hits import isolated
    from .search.index import Index

    with usage():
        groups = Index.open(index).duplicates(threshold, modality=modality)
    told = [{"same": group.same, "items": group.hits.as_dicts()} for group in groups]
    if out is not None:
        with whole(out) as fresh:
            lines = (json.dumps(group, ensure_ascii=False) + "\n" for group in told)
            fresh.write_text("".join(lines), encoding="utf-8")
    if as_json:
        print_json(told)
        return
    for group in groups if out is None else ():
        click.echo("same content" if group.same else "alike")
        for hit in group.hits:
            click.echo(f"  {hit.score:6.3f}  {isolated(hit.id, 12)}  {isolated(hit.path or hit.label, 80, keep='end')}")
    click.echo(f"{len(groups)} groups of {sum(len(group.hits) for group in groups)} items")


@index.command("diagnose")
@click.argument("index", metavar="INDEX")
@json_option
def index_diagnose(index: str, as_json: bool) -> None:
    """Say how the vectors of INDEX lie, modality by modality, and what to do about it."""
    from .search.index import Index

    told = Index.open(index).diagnose()
    if as_json:
        print_json(told.as_dict())
        return
    click.echo(str(told))


@index.command("list")
@click.argument("index", metavar="INDEX")
@where_option
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="So many at most.")
@json_option
def index_list(index: str, where: str | None, limit: int, as_json: bool) -> None:
    """List items of INDEX in the order of their ids.

    \b
    mmembed index list pictures.index --where "language = 'de' AND year >= 2020"
    """
    from .search.hits import isolated
    from .search.index import Index

    with usage():
        opened = Index.open(index)
        hits = opened.items(where=where, limit=limit)
        total = opened.count(where) if len(hits) == limit else len(hits)
    if as_json:
        print_json([{"id": hit.id, "modality": hit.modality, "text": hit.text, "path": hit.path, "metadata": hit.metadata}
                    for hit in hits])  # fmt: skip
        return
    for hit in hits:
        click.echo(f"{isolated(hit.id)}  {hit.modality:10}  {isolated(hit.path or hit.label, 80, keep='end')}")
    click.echo(f"the first {len(hits)} of {total} items" if total > len(hits) else f"{total} items", err=True)


@index.command("rm")
@click.argument("index", metavar="INDEX")
@click.argument("ids", nargs=-1)
@where_option
@json_option
def index_rm(index: str, ids: tuple[str, ...], where: str | None, as_json: bool) -> int:
    """Take items out of INDEX by their ids, as `list --json` prints them, or by a condition."""
    from .search.index import Index

    if bool(ids) == (where is not None):
        raise click.UsageError("give ids, or --where")
    opened = Index.open(index)
    wanted = list(dict.fromkeys(ids))
    with usage():
        removed = opened.remove(wanted) if where is None else opened.remove(where=where)
    missing = max(0, len(wanted) - removed)
    if as_json:
        print_json({"removed": removed, "not_found": missing, "items": len(opened)})
    else:
        click.echo(f"{removed} removed, {missing} not found; {len(opened)} items")
    return SOME_FAILED if missing else 0


@index.command("verify")
@click.argument("index", metavar="INDEX")
@click.option("--sample", type=click.IntRange(min=0), default=0, help="So many items are embedded anew and compared.")
@model_option("that of the index")
@device_option
@json_option
def index_verify(index: str, sample: int, model: str | None, device: str | None, as_json: bool) -> int:
    """Read all of INDEX: ids, vectors, checksums; and whether files are as they were.

    Exit code 3: something is wrong with the index. Files that changed or are gone are listed, which `index add` and
    --remove-gone put right.
    """
    from dataclasses import asdict

    from .search.hits import visible
    from .search.index import Index

    if not sample and (model is not None or device is not None):
        raise click.UsageError("--model and --device are for --sample, which embeds; without it no model is opened")
    opened = open_index(index, model, device) if sample else Index.open(index)
    told = opened.verify(sample=sample)
    if as_json:
        print_json(asdict(told))
        return 0 if told.is_whole else SOME_FAILED
    for problem in told.problems:
        click.echo(f"mmembed: {visible(problem.id or index)}: {visible(problem.what)}", err=True)
    for what, paths in (("changed", told.changed), ("gone", told.missing)):
        for path in paths:
            click.echo(f"mmembed: {what}: {visible(path)}", err=True)
    again = f", {told.embedded} embedded anew, {told.difference:.1g} apart at most" if sample else ""
    click.echo(
        f"{told.items} items read{again}; {len(told.problems)} problems, {len(told.changed)} files changed, "
        f"{len(told.missing)} gone"
    )
    return 0 if told.is_whole else SOME_FAILED


@index.command("compact")
@click.argument("index", metavar="INDEX")
@click.option("--now", is_flag=True, help="Let go also of what was removed in the last minutes: none but you uses it.")
@json_option
def index_compact(index: str, now: bool, as_json: bool) -> None:
    """Make many small pieces of INDEX few, and let go of what was removed or replaced."""
    from datetime import timedelta

    from .search.index import Index
    from .search.table import HELD

    opened = Index.open(index)
    opened.compact(held=timedelta(0) if now else HELD)
    info = opened.info()
    said = {"items": info["items"], "bytes": info["bytes"]}
    print_json(said) if as_json else click.echo(f"{said['items']} items, {said['bytes']} bytes")


@click.command()
@click.argument("index", metavar="INDEX")
@click.argument("query", required=False)
@click.option("--image", help="Path of a picture to ask with, alone or with QUERY.")
@click.option("-k", type=click.IntRange(min=1), default=10, show_default=True, help="How many hits.")
@click.option(
    "--and", "more", type=(float, str), multiple=True, metavar="WEIGHT TEXT", help="More to ask; -1 is away from."
)
@modality_option
@where_option
@click.option("--mode", default="vector", show_default=True, help='"vector", "text" (its words) or "hybrid" (both).')
@click.option("--exact", is_flag=True, help="Scan all vectors, also where a large index has codes.")
@click.option("--diversity", type=click.FloatRange(0, 1), default=0, show_default=True, help="Hits unlike each other.")
@model_option("that of the index")
@device_option
@json_option
def search(
    index: str,
    query: str | None,
    image: str | None,
    more: tuple[tuple[float, str], ...],
    k: int,
    modality: str | None,
    where: str | None,
    mode: Mode,
    exact: bool,
    diversity: float,
    model: str | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Find what in INDEX is nearest to QUERY, a text in any language, to a picture, or to both.

    \b
    mmembed search pictures.index "a cat" --and 0.5 "at night" --and -1 "a drawing"
    """
    from .images import Image
    from .search.diversity import SPARE
    from .search.index import Index
    from .search.query import Query

    if query is None and image is None:
        raise click.UsageError("give a QUERY, --image, or both")
    parts: list[Thing] = []
    if query is not None:
        parts.append(query)
    if image is not None:
        parts.append(Image(image))
    if mode == "text" and (model is not None or device is not None):
        raise click.UsageError("--mode text opens no model: leave --model and --device out")
    with usage():
        asked = Query([(tuple(parts), 1.0), *((text, weight) for weight, text in more)])
    opened = Index.open(index) if mode == "text" else open_index(index, model, device)
    with usage():
        hits = opened.search(
            asked, k=SPARE * k if diversity else k, mode=mode, modality=modality, where=where, exact=exact
        )
    if diversity:
        hits = opened.diversify(hits, k=k, diversity=diversity)
    if as_json:
        print_json({"query": query, "image": image, "more": more, "mode": mode, "hits": hits.as_dicts()})
    else:
        click.echo(str(hits) if hits else "nothing found")
