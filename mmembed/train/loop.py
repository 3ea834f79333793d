"""The loop: stages of steps that are drawn, embedded, measured and learnt from, and that go on where they stopped."""

from __future__ import annotations

import os
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import loading
from ..embedder import Embedder
from ..errors import LoadError, MissingExtra, SpecError
from ..weights import tied
from . import checkpoints, parts
from .building import build
from .export import export
from .fsdp import Shards, unsharded
from .held_out import check, check_apart
from .learning import Learning
from .recipe import Recipe
from .stamp import of_model
from .teacher import Teacher
from .watch import LOG, PLOT, SKIPPED, Log, learnt, plot, read_log
from .world import World

RUN = "run"
"""The folder of a run inside the one that the embedder is written to."""


class Run:
    """One run of a recipe.

    Args:
        recipe: what is done. output: the folder that the embedder is written to; its folder `run` keeps log and checkpoints.
        device: "cpu", "cuda", ...; None takes CUDA where there is one.
        resume: go on from the last checkpoint, or begin where there is none; stages that have not begun may be others by then.
        shard: each of several processes holds a part of the backbone's weights, gradients and moments (FSDP2, see `Shards`).
        workers: processes that make batches, beside each process that learns; 0: it makes them itself, in a thread.
        shown: whether there is a progress bar.

    Attributes:
        begun: the step that it goes on from; 0: it begins. stamp: of the model that it begins with, see `stamp.of_model`.
        changed: weights and statistics that are not those of that model any more. adapted: whether LoRA is in.
        scores: at its end, of the folder on held-out data. learnt: how many steps of each stage were learnt from by then; one
            that stopped early has fewer than its recipe says.

    Raises:
        SpecError: a recipe that does not fit its data or its model, or an output that is the model that it begins with or a
            teacher; or processes that differ in what they see. LoadError: a run lies there and `resume` was not asked for.
    """

    def __init__(
        self,
        recipe: Recipe,
        output: Path,
        *,
        device: str | torch.device | None = None,
        resume: bool = False,
        shard: bool = False,
        workers: int = 0,
        shown: bool = False,
    ):
        self.recipe, self.output, self.shard, self.workers, self.shown = recipe, output, shard, workers, shown
        self.folder = output / RUN
        self.device = _device(device)
        self.world = World.joined(self.device)
        recipe.check_digests()
        for place in recipe.loaded:
            if Path(place).is_dir() and Path(place).resolve() == output.resolve():
                raise SpecError(f"{output} is read by the recipe, and would be written over: give another --output")
        self.data = {name: source.open(name, recipe.folder) for name, source in recipe.data.items()}
        self.embedder, self.head = build(recipe, self.device)
        self.embedder.model.autocasts = recipe.model.precision != "fp32"
        self.stamp = of_model(self.embedder.model, self.embedder.spec)
        if shard and self.head is not None:
            raise SpecError("a loss of a language head reads embeddings outside of the backbone: leave shard out")
        if shard and (twins := tied(self.embedder.model)):
            raise SpecError(
                f"{min(twins)} is one tensor with another weight, which parts would make two of: leave shard out"
            )
        for examples in self.data.values():
            examples.source.prompts(self.embedder.spec)
        recipe.check_views(self.embedder.spec)
        trained = recipe.read_by(recipe.stage)
        for held in recipe.held_out.values():
            check(self.embedder, self.data[held.data], held)
            for name in sorted(trained):
                check_apart(self.data[held.data], self.data[name])
        self.teachers: dict[str, Teacher] = {}
        self.changed: dict[str, Tensor] = {}
        self.adapted = False
        self.scores: dict[str, dict[str, float]] = {}
        self.learnt: dict[str, int] = {}
        self.shards: Shards | None = None
        self.stopping = threading.Event()
        found = checkpoints.found(self.folder)
        if found and not resume:
            raise LoadError(
                f"{self.folder} holds a run: resume=True (--resume) goes on with it, or remove the folder to begin again"
            )
        self._last = checkpoints.load(found[-1]) if found else None
        self.begun = 0 if self._last is None else int(self._last[1]["step"])
        if self._last is not None and self._last[1]["recipe"] != recipe.digest(self._last[1]["stage"]):
            raise SpecError(
                f"{self.folder} holds a run of another recipe (model, data, seed or a stage that has begun have changed): "
                "remove it to begin again, or put the recipe back"
            )
        self._agree()

    def _agree(self) -> None:
        """Raise `SpecError` where processes would not learn the same: on several machines each may see files of its own."""
        if self.world.size == 1:
            return
        own = {
            "the step that it goes on from": self.begun,
            "the recipe": self.recipe.digest(),
            "the model that it begins with": self.stamp,
            **{f"data {name!r}": f"{len(data)} rows, {data.size} bytes" for name, data in self.data.items()},
        }
        first, *others = self.world.told(own)
        for rank, other in enumerate(others, 1):
            for what, due in first.items():
                if other[what] != due:
                    raise SpecError(
                        f"processes 0 and {rank} differ in {what} ({due} and {other[what]}): recipe, model, data and --output "
                        "must lie on a disk that all machines see"
                    )

    @property
    def model(self) -> nn.Module:
        return self.embedder.model

    def whole(self) -> AbstractContextManager[None]:
        """Inside, this process may run the model by itself."""
        return nullcontext() if self.shards is None else self.shards.whole()

    def autocast(self, precision: str) -> AbstractContextManager[None]:
        """Inside, products are made in this precision; weights may be in fp32 and bf16 beside each other."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bf16")

    def teacher(self, name: str) -> Teacher:
        """The teacher of that name, loaded once."""
        if name not in self.teachers:
            self.teachers[name] = Teacher(loading.load(self.recipe.located(name), device=self.device))
        return self.teachers[name]

    @property
    def skipped(self) -> dict[str, int]:
        """How many rows of each data were left out, where there are some."""
        return {name: len(examples.skipped) for name, examples in self.data.items() if examples.skipped}

    @property
    def log(self) -> Path:
        return self.folder / LOG

    @property
    def steps(self) -> int:
        """Of all stages."""
        return sum(stage.steps for stage in self.recipe.stage)

    def train(self) -> Embedder:
        """Run all stages and write the embedder.

        Returns:
            what `mmembed.load` gives of the folder.

        Raises:
            TrainingError: a loss or gradient that is no number, with the batch named; the last checkpoint stays.
            KeyboardInterrupt: after Ctrl-C, when a checkpoint of the step is written.
            InputError: a row of data that gives no example.
        """
        if self.world.leads:
            self.folder.mkdir(parents=True, exist_ok=True)
        self.world.wait()
        state = None if self._last is None else self._last[1]
        if state is not None and (self.folder / SKIPPED).exists():
            for told in read_log(self.folder / SKIPPED):
                if told["data"] in self.data:
                    self.data[told["data"]].skipped.setdefault(told["row"], told["reason"])  # they may be mended by now
        log = Log(
            self.folder if self.world.leads else None,
            self.recipe.watch,
            name=self.recipe.name,
            steps=self.steps,
            step=self.begun,
            shown=self.shown,
        )
        log.skipped(self.data)
        before = 0
        try:
            with self._stoppable():
                for number, stage in enumerate(self.recipe.stage):
                    learning = Learning(self, number, before)
                    if state is not None and number <= state["stage"]:
                        learning.choose(begun=True)
                        if number == state["stage"]:
                            assert self._last is not None
                            learning.restore(*self._last)
                            self._last = None
                            learning.run(log)
                    else:
                        learning.choose()
                        learning.run(log)
                    before += stage.steps
            log.skipped(self.data)
        finally:
            log.close()
        changed = {name: unsharded(own) for name, own in self.changed.items() if not name.startswith(parts.HEAD)}
        if self.shards is not None:
            self.shards.join()
        if self.world.leads:
            if self.recipe.watch.plot:
                try:
                    plot(log.records, self.folder / PLOT)
                except MissingExtra as missing:  # the model matters more
                    warnings.warn(f"the run is not drawn: {missing}", stacklevel=2)
            self.learnt = learnt(log.records)
            self.scores = export(self.recipe, self.embedder, self.data, self.output, log.records, changed)
        self.world.wait()
        return loading.load(self.output, device=self.device)

    @contextmanager
    def _stoppable(self) -> Iterator[None]:
        """The first Ctrl-C or SIGTERM is kept until a step is whole; a second one is not."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}

        def asked(number: int, frame: Any) -> None:
            self.stopping.set()
            for each, handler in before.items():
                signal.signal(each, handler)

        for number in before:
            signal.signal(number, asked)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _device(device: str | torch.device | None) -> torch.device:
    """The device of this process: of CUDA its own, which torch is told, for what is gathered from others lands there."""
    found = loading.device_of(device)
    if found.type != "cuda":
        return found
    if found.index is None:
        found = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(found)
    return found


def train(
    recipe: Recipe,
    output: str | os.PathLike[str],
    *,
    device: str | torch.device | None = None,
    resume: bool = False,
    shard: bool = False,
    workers: int = 0,
    show_progress_bar: bool = False,
) -> Embedder:
    """Train by a recipe, and write a folder that `mmembed.load` opens.

    Args:
        recipe: `read_recipe(path)`, or one made in Python. output: the folder.
        device: "cpu", "cuda", ...; None takes CUDA where there is one. Started by torchrun, all processes train together.
        resume: go on from the last checkpoint in the folder, exactly as if nothing had happened; with a teacher to rounding, for
            it is asked about things in other company then.
        shard: each of several processes holds a part of the backbone's weights, gradients and moments (FSDP2).
        workers: processes that make batches ahead; see `Workers`. What is learnt is the same.

    Raises:
        As `Run` and `Run.train`.
    """
    run = Run(
        recipe,
        Path(output),
        device=device,
        resume=resume,
        shard=shard,
        workers=workers,
        shown=show_progress_bar,
    )
    return run.train()
