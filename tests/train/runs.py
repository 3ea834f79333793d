"""What tests of training share: a tiny model and data in a folder, a recipe, and runs, also in several processes."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from PIL import Image as PillowImage

from mmembed.testing import tiny_embedder
from mmembed.train.drawn import TrainStep
from mmembed.train.learning import Learning
from mmembed.train.loop import Run
from mmembed.train.recipe import read_recipe
from mmembed.train.watch import read_log
from mmembed.train.workers import Workers

from ..processes import started

RECIPE = """
name = "small"
seed = 3
watch.plot = false

[model]
load = "tiny"

[data.pairs]
kind = "jsonl"
path = "pairs.jsonl"
columns = { query = { text = "q" }, positive = { text = "p" } }

[data.pictures]
kind = "jsonl"
path = "pictures.jsonl"
columns = { query = { text = "name" }, positive = { image = "file" } }

[[stage]]
name = "first"
steps = 6
train = ["backbone", "projector"]
lr = 1e-3
save_steps = 2
  [[stage.task]]
  data = ["pairs", "pictures"]
  batch = 8
  group = 4
  losses = [{ kind = "infonce", temperature = 0.05 }]
"""


def write_lines(path: Path, rows: Sequence[Any]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


@cache
def _laid() -> TemporaryDirectory[str]:
    """What `lay` copies: made once, and gone with this process."""
    made = TemporaryDirectory()
    folder = Path(made.name)
    tiny_embedder().save(folder / "tiny")
    write_lines(folder / "pairs.jsonl", [{"q": f"thing {k}", "p": f"the {k}th of all things"} for k in range(40)])
    for k in range(12):
        PillowImage.new("RGB", (32, 32), (20 * k, 250 - 20 * k, 128)).save(folder / f"{k}.png")
    write_lines(folder / "pictures.jsonl", [{"name": f"colour {k}", "file": f"{k}.png"} for k in range(12)])
    write_lines(folder / "others.jsonl", [{"name": f"shade {k}", "file": f"{k}.png"} for k in range(12)])
    return made


def lay(folder: Path, recipe: str = RECIPE) -> Path:
    """A folder with a tiny model, 40 pairs, 12 pictures with two names each and a recipe; the path of the recipe."""
    shutil.copytree(_laid().name, folder, dirs_exist_ok=True)
    path = folder / "recipe.toml"
    path.write_text(recipe, encoding="utf-8")
    return path


def trained(
    path: Path, output: Path, *changes: str, resume: bool = False, shard: bool = False, workers: int = 0
) -> Run:
    """A run of a recipe, done."""
    run = Run(read_recipe(path, changes), output, device="cpu", resume=resume, shard=shard, workers=workers)
    run.embedder = run.train()
    return run


def first(learning: Learning) -> TrainStep:
    """The first batch of a stage."""
    return next(learning.batches(Workers(learning.collator)))


def curve(output: Path) -> list[tuple[Any, ...]]:
    """The log of a run without its clock."""
    return [
        tuple(sorted((key, str(value)) for key, value in record.items() if key != "seconds"))
        for record in read_log(output / "run" / "log.jsonl")
    ]


def assert_it_goes_on(path: Path, folder: Path) -> None:
    """A run that is stopped after a step and resumed is the run that was not, to the bit."""
    whole = trained(path, folder / "whole")
    run = Run(read_recipe(path), folder / "cut", device="cpu")
    run.stopping.set()
    with pytest.raises(KeyboardInterrupt):
        run.train()
    again = trained(path, folder / "cut", resume=True)
    assert curve(folder / "whole") == curve(folder / "cut")
    for name, weight in whole.embedder.model.state_dict().items():
        assert torch.equal(weight, again.embedder.model.state_dict()[name]), name


def together(count: int, work: Callable[..., None], *arguments: Any) -> None:
    """`work` in so many processes that know of each other, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    known = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [started(work, *arguments, known=known | {"RANK": str(rank)}) for rank in range(count)]
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * count
