"""The command line: demo, embed, index, search, serve, train, mine, overlap, models, doctor.

Exit codes: 0 done, 1 an item that cannot be embedded or another failure, 2 usage (arguments, names, models, indexes),
3 done, but some items failed. Results go to stdout, progress and errors to stderr.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice, tee
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import click

from . import __version__, cli_index
from .cli_shared import (
    SOME_FAILED,
    column_option,
    columns_said,
    device_option,
    entries_of,
    escape_unknown,
    json_option,
    lines_option,
    load_model,
    model_option,
    on_error_option,
    open_index,
    print_json,
    print_pairs,
    watched,
)
from .errors import InputError, LoadError, MmembedError, TrainingError, UnknownName, check_known

if TYPE_CHECKING:
    from .demo import Answer
    from .report import Report
    from .sources import Columns, Entry


class _Commands(click.Group):
    """The commands; a reader of what they print who has seen enough, as in `| head`, is no error, for which click takes it."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="mmembed")
def cli() -> None:
    """Texts in any language and images in one embedding space."""


cli.add_command(cli_index.index)
cli.add_command(cli_index.search)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line; an error that we know is one line on stderr, never a traceback."""
    escape_unknown()
    try:
        sys.exit(cli.main(args=arguments, prog_name="mmembed", standalone_mode=False) or 0)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (InputError, TrainingError) as error:
        _fail(str(error), 1)
    except (MmembedError, OverflowError) as error:
        _fail(str(error), 2)
    except (click.Abort, KeyboardInterrupt):
        _fail("interrupted", 130)
    except OSError as error:  # a file that cannot be written
        if error.filename is None:
            raise
        _fail(f"{error.filename}: {error.strerror}", 2)


def _fail(reason: str, code: int) -> NoReturn:
    click.echo(f"mmembed: {reason}", err=True)
    sys.exit(code)


# ---- demo ------------------------------------------------------------------------------------------------------------


@cli.command()
@model_option("pico")
@device_option
@click.option(
    "--output", type=click.Path(dir_okay=False, path_type=Path), default="mmembed-demo.png", show_default=True,
    help="The picture it writes.",
)  # fmt: skip
@json_option
def demo(model: str | None, device: str | None, output: Path, as_json: bool) -> None:
    """Embed a small bundled collection and ask it in many languages and by picture."""
    from .demo import draw_demo, run_demo

    _check_picture(output)
    embedder = load_model(model, device)

    def shown(answer: Answer) -> None:
        with suppress(BrokenPipeError):  # who has read enough of it still has the picture
            _print_answer(answer)

    ran = run_demo(embedder, answered=None if as_json else shown)
    draw_demo(ran, embedder.spec.name).save(output)
    if as_json:
        print_json(
            {
                "model": embedder.spec.name,
                "items": ran.items,
                "seconds": ran.seconds,
                "picture": str(output),
                "answers": [
                    {
                        "text": a.question.text,
                        "image": a.question.image,
                        "english": a.question.english,
                        "pictures": a.pictures.as_dicts(),
                        "texts": a.texts.as_dicts(),
                    }
                    for a in ran.answers
                ],
            }
        )
        return
    spent = ", ".join(f"{step} {seconds:.1f} s" for step, seconds in ran.seconds.items())
    click.echo(f"{ran.items} items, {len(ran.answers)} questions: {spent}")
    click.echo(f"picture: {output}")


def _check_picture(path: Path) -> None:
    """Before any work: Pillow goes by the ending."""
    from PIL import Image

    if path.suffix.lower() not in Image.registered_extensions():
        raise click.UsageError(f"{path}: a picture is written as .png, .jpg, .webp, ...")
    if not path.absolute().parent.is_dir():
        raise click.UsageError(f"{path.absolute().parent} is no folder")


def _print_answer(answer: Answer) -> None:
    from .search.hits import isolated

    question = answer.question
    asked = [f"[{question.image}]"] if question.image else []
    asked += [isolated(question.text, 60)] if question.text else []
    click.echo(click.style(" + ".join(asked), bold=True) + f"   {question.note}")
    click.echo("   " + "  ".join(f"{isolated(hit.label, 24)} {hit.score:.2f}" for hit in answer.pictures))
    for hit in answer.texts:
        click.echo(f"   {isolated(hit.label, 60)} {hit.score:.2f}   {hit.metadata['note']}")
    click.echo()


# ---- embed -----------------------------------------------------------------------------------------------------------


@cli.command()
@click.argument("files", nargs=-1)
@click.option("--text", "texts", multiple=True, help="A text; as often as you like.")
@click.option("--image", "images", multiple=True, help="Path of a picture; as often as you like.")
@lines_option
@column_option
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="NAME.npy, NAME.parquet, NAME.jsonl or NAME.lance; goes on where it was.",
)
@click.option("--prompt-name", help='A prompt of the model, such as "query" or "document".')
@click.option("--truncate-dim", type=click.IntRange(min=1), help="Keep the first so many numbers.")
@click.option("--batch-tokens", type=click.IntRange(min=1), help="Tokens of one batch.")
@on_error_option("raise")
@model_option("pico")
@device_option
@json_option
def embed(
    files: tuple[str, ...],
    texts: tuple[str, ...],
    images: tuple[str, ...],
    lines: bool,
    columns: tuple[str, ...],
    out: Path | None,
    prompt_name: str | None,
    truncate_dim: int | None,
    batch_tokens: int | None,
    on_error: Literal["raise", "skip"],
    model: str | None,
    device: str | None,
    as_json: bool,
) -> int:
    """Embed FILES, then texts, then images.

    A folder gives its pictures and .txt files, all the way down, but not hidden ones (.NAME). A .txt file is one text; a .jsonl
    file and - (stdin) hold an item a line: a text, or {"text": ..., "image": PATH, "id": NAME}; a .parquet file and a folder of
    datasets' save_to_disk an item a row, in columns of these names; a .tar of webdataset an item for all files of one name; any
    other file is a picture. "photos/**/*.jpg" is a pattern. Without --out, one line of JSON an item: its row, id and vector, or
    its error. With it, the same command after a kill goes on where it was.
    """
    if not files and not texts and not images:
        raise click.UsageError("nothing to embed: give files, - for stdin, --text or --image")
    from .files import SINKS

    if out is not None and out.suffix not in SINKS:
        raise click.UsageError(f"--out writes {', '.join(SINKS)}, not {out.suffix or 'a name without ending'}")
    from .embedder import EncodeOptions, Report

    report = Report()
    embedder = load_model(model, device)
    options: EncodeOptions = {
        "prompt_name": prompt_name,
        "truncate_dim": truncate_dim,
        "batch_tokens": batch_tokens,
        "on_error": on_error,
        "report": report,
        "show_progress_bar": watched(),
    }
    entries, again = tee(_entries(files, texts, images, lines, columns_said(columns)))
    names, things = (entry.id or entry.name for entry in entries), (entry.thing for entry in again)
    try:
        if out is not None:
            embedder.encode_to(out, things, ids=names, **options)
            failed = _print_written(out, report.resumed, as_json)
        else:
            failed = _print_vectors(embedder.stream(things, **options), names, report)
    except InputError as error:
        if error.item is None:
            raise
        raise InputError(f"{error.reason}; --on-error skip leaves it out and goes on", error.item) from None
    for skipped in report.skipped:
        click.echo(f"mmembed: item {skipped.row}: {skipped.reason}", err=True)
    if report.truncated:
        click.echo(f"mmembed: {len(report.truncated)} texts were cut at the model's limit", err=True)
    return SOME_FAILED if failed else 0


def _entries(
    files: Iterable[str], texts: Iterable[str], images: Iterable[str], lines: bool, columns: Columns | None
) -> Iterator[Entry]:
    from .images import Image
    from .sources import Entry

    yield from entries_of(files, lines, columns)
    yield from (Entry(text, text) for text in texts)
    yield from (Entry(path, Image(path)) for path in images)


def _print_written(out: Path, resumed: int, as_json: bool) -> int:
    """Say what `encode_to` wrote; returns how many items have no vector."""
    about = json.loads(out.with_name(f"{out.name}.json").read_text(encoding="utf-8"))
    items, width, failed = about["rows"], about["made"]["dimension"], about["failed"]
    done = {"out": str(out), "items": items, "dimension": width, "failed": failed, "resumed": resumed}
    said = f"{items - failed} of {items} items, {width} numbers each: {out}"
    print_json(done) if as_json else click.echo(said)
    return failed


def _print_vectors(stream: Iterable[Any], names: Iterator[str], report: Report) -> int:
    """Print vectors as lines of JSON; returns how many items have none."""
    from .files import Block, lines

    row = told = 0
    for vectors in stream:
        errors: list[str | None] = [None] * len(vectors)
        for skipped in report.skipped[told:]:
            errors[skipped.row - row] = skipped.reason
        told = len(report.skipped)
        for line in lines(Block(row, list(islice(names, len(vectors))), vectors, errors)):
            click.echo(line, nl=False)
        row += len(vectors)
    return told


# ---- serve -----------------------------------------------------------------------------------------------------------


@cli.command()
@click.option("--index", help="Index that /search looks through; it says which model is served.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one.")
@click.option(
    "--key-file", type=click.Path(exists=True, dir_okay=False, path_type=Path), envvar="MMEMBED_KEY_FILE",
    help="File with the key that requests must bear (Authorization: Bearer ...).  [env: MMEMBED_KEY_FILE]",
)  # fmt: skip
@click.option(
    "--allow-url", is_flag=True, help="Fetch pictures by URL, from the public internet only, up to 32 MiB a request."
)
@model_option("that of the index, else pico")
@device_option
def serve(
    index: str | None,
    host: str,
    port: int,
    key_file: Path | None,
    allow_url: bool,
    model: str | None,
    device: str | None,
) -> None:
    """Serve vectors over HTTP: OpenAI's and vLLM's /v1/embeddings, Cohere's /v2/embed, TEI's /embed, and /search."""
    from .serve.app import build_app
    from .serve.request import Limits
    from .serve.run import bound, server

    try:
        key = None if key_file is None else key_file.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError:
        raise click.UsageError(f"{key_file} is no text in UTF-8") from None
    if key == "":
        raise click.UsageError(f"{key_file} holds no key")
    if key is not None and not (key.isascii() and key.isprintable() and " " not in key):
        raise click.UsageError(f"{key_file}: a key is one line of printable ASCII without spaces, as headers bear it")
    opened = None if index is None else open_index(index, model, device)
    embedder = load_model(model, device) if opened is None else opened.embedder
    assert embedder is not None, "an index that is opened to be searched has one"
    local = ("127.0.0.1", "::1", "localhost")
    if key is None and host not in local:
        click.echo("mmembed: anyone who reaches this address may use the server: --key-file bars it", err=True)
    if embedder.spec.dual is None:
        embedder.cache(prefixes=2**28)  # queries come one by one, under the same instruction
    hosts = local if key is None and host in local else None  # a server for others has names that we do not know
    app = build_app(embedder, index=opened, key=key, limits=Limits(allow_url=allow_url), hosts=hosts)
    listening = bound(host, port)
    host = f"[{host}]" if ":" in host else host
    click.echo(f"{embedder!r}\nhttp://{host}:{listening.getsockname()[1]}", err=True)
    server(app, log_level="warning").run(sockets=[listening])


# ---- train -----------------------------------------------------------------------------------------------------------


@cli.command()
@click.argument("recipe", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--output", type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the embedder; log and checkpoints go to its folder run.  [default: the recipe's own]",
)  # fmt: skip
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint.")
@click.option(
    "--shard", is_flag=True,
    help="Each process that torchrun started holds a part of the backbone's weights and moments (FSDP).",
)  # fmt: skip
@click.option(
    "--workers", type=click.IntRange(min=0), default=0, show_default=True,
    help="Processes that make batches ahead; for a GPU some cores' worth.",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Say what would be trained, on what, and the memory it takes.")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="In place of the recipe: stage.0.steps=10.")
@device_option
@json_option
def train(
    recipe: Path,
    output: Path | None,
    resume: bool,
    shard: bool,
    workers: int,
    dry_run: bool,
    changes: tuple[str, ...],
    device: str | None,
    as_json: bool,
) -> int:
    """Train an embedder by RECIPE, a TOML file, and write a folder that --model takes.

    Started by torchrun, as many processes as it starts train together. Exit code 3 where rows were left out by on_error =
    "skip", of one process alone: to torchrun any but 0 is a failure.
    """
    from .train.loop import Run
    from .train.recipe import read_recipe
    from .train.watch import SKIPPED

    run = Run(
        read_recipe(recipe, changes),
        output or recipe.parent,
        device=device,
        resume=resume or dry_run,
        shard=shard,
        workers=workers,
        shown=watched(),
    )
    if dry_run:
        from .train.dry_run import look

        found = look(run)
        print_json(found.as_dict()) if as_json else click.echo(found.text())
        return 0
    if resume and run.world.leads:
        said = f"goes on behind step {run.begun}" if run.begun else "no checkpoint lies there: it begins"
        click.echo(f"mmembed: {said}", err=True)
    embedder = run.train()
    if not run.world.leads:
        return 0
    if as_json:
        print_json(
            {
                "output": str(run.output),
                "name": embedder.spec.name,
                "steps": sum(run.learnt.values()),
                "log": str(run.log),
                "skipped": run.skipped,
                "scores": run.scores,
            }
        )
    else:
        early = [
            f"{stage.name} ended after {done} of {stage.steps}"
            for stage in run.recipe.stage
            if (done := run.learnt.get(stage.name, 0)) < stage.steps
        ]
        click.echo(f"{'; '.join([f'{sum(run.learnt.values())} steps', *early])}: {embedder!r} in {run.output}")
        for name, own in run.scores.items():
            click.echo(f"{name}: " + ", ".join(f"{kind} {value:.3f}" for kind, value in own.items()))
    for name, count in run.skipped.items():
        click.echo(
            f"mmembed: {count} of {len(run.data[name])} rows of {name!r} were left out: {run.folder / SKIPPED}",
            err=True,
        )
    # Of several processes whoever started them would take it for a failure, and torchrun may start them again.
    return SOME_FAILED if run.skipped and run.world.size == 1 else 0


@cli.command()
@click.argument("recipe", type=click.Path(dir_okay=False, path_type=Path))
@click.argument("data")
@click.option(
    "--output", type=click.Path(dir_okay=False, path_type=Path), required=True,
    help="NAME.jsonl, which the data names as mined = 'NAME.jsonl'.",
)  # fmt: skip
@click.option("--count", type=click.IntRange(min=1), default=4, show_default=True, help="Negatives of a query at most.")
@click.option("--skip", type=click.IntRange(min=0), default=0, show_default=True, help="Nearest that are passed over.")
@click.option("--depth", type=click.IntRange(min=1), default=100, show_default=True, help="Nearest that are looked at.")
@click.option(
    "--margin", type=float, default=0.0, show_default=True, help="Nearer to the positive than this is left out."
)
@click.option("--relative", type=float, default=0.05, show_default=True, help="The same, in parts of its similarity.")
@model_option("pico")
@device_option
@json_option
def mine(
    recipe: Path,
    data: str,
    output: Path,
    count: int,
    skip: int,
    depth: int,
    margin: float,
    relative: float,
    model: str | None,
    device: str | None,
    as_json: bool,
) -> int:
    """Find hard negatives for DATA of RECIPE with a model: for each query the nearest that do not answer it."""
    from .train.mining import mine as find
    from .train.mining import write_mined
    from .train.recipe import read_recipe

    read = read_recipe(recipe)
    check_known("data of this recipe", data, read.data)
    source = dataclasses.replace(read.data[data], mined=None)  # that file may be the one that is about to be written
    examples = source.open(data, read.folder)
    found = find(
        load_model(model, device),
        examples,
        count=count,
        skip=skip,
        depth=depth,
        margin=margin,
        relative=relative,
        show_progress_bar=watched(),
    )
    write_mined(output, found, examples)
    mined = sum(len(each.negatives) for each in found)
    if as_json:
        print_json({"output": str(output), "rows": len(found), "negatives": mined, "skipped": len(examples.skipped)})
    else:
        click.echo(f"{mined} negatives of {len(found)} queries: {output}")
    for row, reason in examples.skipped.items():
        click.echo(f"mmembed: row {row} is left out: {reason}", err=True)
    return SOME_FAILED if examples.skipped else 0


@cli.command()
@click.argument("recipe", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--least",
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    help="Jaccard index from which on texts are alike.",
)
@click.option(
    "--width",
    type=click.IntRange(min=1),
    default=13,
    show_default=True,
    help="Characters of the runs that are compared.",
)
@json_option
def overlap(recipe: Path, least: float, width: int, as_json: bool) -> int:
    """Say which texts that RECIPE trains on are like some that it measures. Exit code 3 where there are any."""
    from .train.overlap import overlaps
    from .train.recipe import read_recipe

    read = read_recipe(recipe)
    held = {own.data for own in read.held_out.values()}
    if not held:
        raise click.UsageError(f"{recipe} measures nothing: [held_out.NAME] names data that is never trained on")
    trained = read.read_by(read.stage)
    opened = {name: read.data[name].open(name, read.folder) for name in sorted(trained | held)}
    found = overlaps(
        {name: opened[name] for name in sorted(trained)},
        {name: opened[name] for name in held},
        least=least,
        width=width,
    )
    if as_json:
        print_json([dataclasses.asdict(each) for each in found])
    else:
        for each in found:
            (data, row), (other, its) = each.trained, each.measured
            click.echo(f"{each.jaccard:.2f}  {data} {row}  {other} {its}  {each.text!r:.80}")
        click.echo(f"{len(found)} pairs of texts with an index of at least {least:g}")
    for name, examples in opened.items():
        for row, reason in [*examples.skipped.items()][:1]:
            said = f"{len(examples.skipped)} of {len(examples)} rows of {name!r} were left out, as row {row}: {reason}"
            click.echo(f"mmembed: {said}", err=True)
    return SOME_FAILED if found else 0


# ---- models and doctor -----------------------------------------------------------------------------------------------


@cli.command()
@json_option
def models(as_json: bool) -> None:
    """List the bundled models, and the released checkpoints whose ways are known."""
    from .hub import known

    rows = known()
    if as_json:
        print_json(rows)
        return
    for row in rows:
        click.echo(click.style(row["name"], bold=True) + f"  {row['summary']}")
        shorter = f" (or {', '.join(map(str, row['dimensions']))})" if row["dimensions"] else ""
        print_pairs(
            {
                "modalities": ", ".join(row["modalities"]),
                "dimension": f"{row['dimension']}{shorter}",
                "languages": row["languages"],
                "licence": row["licence"],
                "size": f"{row['bytes'] / 1e6:.1f} MB",
            }
        )
    if not rows:
        click.echo("none is bundled; --model takes a folder or a hub name")


@cli.command()
@model_option("pico")
@device_option
@json_option
def doctor(model: str | None, device: str | None, as_json: bool) -> int:
    """Say what this machine has, and whether the model gives the vectors here that it gave when it was made."""
    found = _machine()
    reason = None
    code = 0
    try:
        embedder = load_model(model, device)
        found["model"] = repr(embedder)
        test = embedder.self_test()
        passed = test.passed
        found["self_test"] = {
            "passed": passed,
            "inputs": test.count,
            "greatest_difference": test.greatest_difference,
            "tolerance": test.tolerance,
        }
        code = 0 if passed else 1
    except (LoadError, UnknownName) as error:
        reason, code = str(error), 2
        found["self_test"] = {"passed": False, "reason": reason}
    if as_json:
        print_json(found)
        return code
    versions, test_found = found.pop("versions"), found.pop("self_test")
    print_pairs({**found, **versions})
    said = (
        f"not run: {reason}"
        if reason
        else f"{'passed' if test_found['passed'] else 'FAILED'}: {test_found['inputs']} inputs, greatest difference "
        f"{test_found['greatest_difference']:.1e} of {test_found['tolerance']:.0e}"
    )
    print_pairs({"self-test": said})
    return code


PACKAGES = ("torch", "transformers", "timm", "open_clip_torch", "lancedb", "pyarrow", "pillow", "numpy")


def _machine() -> dict[str, Any]:
    import importlib.metadata
    import platform

    import torch
    from PIL import features

    def version(package: str) -> str:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return "not installed"

    try:
        memory: float | None = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        memory = None
    return {
        "mmembed": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpus": os.cpu_count(),
        "memory_gib": memory,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "raqm": features.check("raqm"),
        "versions": {package: version(package) for package in PACKAGES},
    }
