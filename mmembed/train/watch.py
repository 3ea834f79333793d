"""What is seen of a run: a line of JSON a step, a progress bar, TensorBoard or W&B where asked for, and a plot at the end."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

from ..errors import MissingExtra, TrainingError
from ..files import whole
from .data import Examples
from .recipe import Watch

LOG = "log.jsonl"
SKIPPED = "skipped.jsonl"
PLOT = "plot.png"
WANDB = "wandb.id"
"""The run of W&B that a run which goes on is told to."""


@dataclass(frozen=True)
class Board:
    """Who else is told: the step and numbers by name; closed, it has them all."""

    tell: Callable[[int, Mapping[str, float]], None]
    close: Callable[[], None]


class Log:
    """The log of a run, in its folder. What was written behind the step that a run goes on from is taken back.

    Rows that are left out are in a file of their own.

    Args:
        folder: where it lies; None: nothing is kept (a process that does not lead).
        watch: what else is told. steps: of the whole run. step: where it goes on from. shown: whether there is a progress bar.
    """

    def __init__(self, folder: Path | None, watch: Watch, *, name: str, steps: int, step: int = 0, shown: bool = False):
        from tqdm.auto import tqdm

        self._folder = folder
        self.records: list[dict[str, Any]] = []
        self._file: IO[str] | None = None
        self._left_out: IO[str] | None = None
        self._told: dict[str, int] = {}  # how many rows of each data are in that file
        self._boards: list[Board] = []
        self._bar = tqdm(total=steps, initial=step, desc=name, unit="step", disable=not shown or folder is None)
        self._began, self._tokens, self._images = time.perf_counter(), 0, 0
        if folder is None:
            return
        path = folder / LOG
        if step and path.exists():  # what was seen behind that step is looked at again
            self.records = [r for r in read_log(path) if r["step"] < step or (r["step"] == step and "scores" not in r)]
        try:
            with whole(path) as fresh:
                fresh.write_bytes("".join(map(_line, self.records)).encode())
            (folder / SKIPPED).unlink(missing_ok=True)
        except OSError as error:
            raise _unwritten(path, error) from None
        self._file = _opened(path)
        if watch.tensorboard:
            self._boards.append(_tensorboard(folder, step))
        if watch.wandb is not None:
            self._boards.append(_wandb(watch.wandb, name, folder, step))

    def step(self, record: dict[str, Any]) -> None:
        """Tell of one step: its number, losses, rate, tokens and images."""
        self._tokens += record["tokens"]
        self._images += record["images"]
        seconds = time.perf_counter() - self._began
        record["seconds"] = round(seconds, 3)
        self._tell(record)
        self._bar.update(1)
        rates = {"tok/s": f"{self._tokens / seconds:.0f}", "img/s": f"{self._images / seconds:.1f}"}
        said = {"loss": f"{record['loss']:.4f}"} if "loss" in record else {}
        self._bar.set_postfix({**said, **rates}, refresh=False)

    def scores(self, step: int, stage: str, scores: Mapping[str, Mapping[str, float]]) -> None:
        """Tell how good the model is on held-out data."""
        self._tell({"step": step, "stage": stage, "scores": scores})
        said = "; ".join(
            f"{name}: " + ", ".join(f"{kind} {value:.3f}" for kind, value in own.items())
            for name, own in scores.items()
        )
        self._bar.write(f"step {step}: {said}") if not self._bar.disable else None

    def skipped(self, data: Mapping[str, Examples]) -> None:
        """Write down the rows that were left out since this was asked last, and why."""
        if self._folder is None:
            return
        for name, examples in data.items():
            rows = [*examples.skipped.items()]  # at once: a thread that draws may find another one
            for row, reason in rows[self._told.get(name, 0) :]:
                if self._left_out is None:
                    self._left_out = _opened(self._folder / SKIPPED)
                self._write(self._left_out, {"data": name, "row": row, "reason": reason})
            self._told[name] = len(rows)

    def _tell(self, record: dict[str, Any]) -> None:
        self.records.append(record)
        if self._file is not None:
            self._write(self._file, record)
        for board in self._boards:
            board.tell(record["step"], _flat(record))

    @staticmethod
    def _write(file: IO[str], record: Mapping[str, Any]) -> None:
        try:
            file.write(_line(record))
            file.flush()
        except OSError as error:
            raise _unwritten(file.name, error) from None

    def close(self) -> None:
        self._bar.close()
        for board in self._boards:
            board.close()
        for file in (self._file, self._left_out):
            if file is not None:
                with suppress(OSError):  # said when it was written to
                    file.close()


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def _opened(path: Path) -> IO[str]:
    try:
        return path.open("a", encoding="utf-8")
    except OSError as error:
        raise _unwritten(path, error) from None


def _unwritten(path: Path | str, error: OSError) -> TrainingError:
    return TrainingError(
        f"the log {path} cannot be written: {error.strerror or error}; make room and go on with --resume"
    )


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a log; a last line that was cut off is no record."""
    found = []
    for line in path.read_text(encoding="utf-8").split(
        "\n"
    ):  # what str.splitlines takes for an end may stand in a text
        try:
            found.append(json.loads(line))
        except ValueError:  # nothing behind the last one's end either
            break
    return found


def _flat(record: Mapping[str, Any]) -> dict[str, float]:
    found: dict[str, float] = {}
    for key, value in record.items():
        if isinstance(value, Mapping):
            found |= {f"{key}/{inner}": each for inner, each in _flat(value).items()}
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            found[key] = float(value)
    return found


def _tensorboard(folder: Path, begun: int) -> Board:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtra("tensorboard", "tensorboard") from error
    writer = SummaryWriter(str(folder / "tensorboard"), purge_step=begun + 1 if begun else None)

    def tell(step: int, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            writer.add_scalar(key, value, step)

    return Board(tell, writer.close)


def _wandb(project: str, name: str, folder: Path, begun: int) -> Board:
    try:
        import wandb
    except ImportError as error:
        raise MissingExtra("wandb", "wandb") from error
    known = folder / WANDB
    if not begun or not known.exists():
        with whole(known) as fresh:
            fresh.write_text(uuid4().hex)
    run = wandb.init(project=project, name=name, id=known.read_text(), resume="allow")
    return Board(lambda step, values: run.log(dict(values), step=step), run.finish)


def learnt(records: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """How many steps of each stage a log tells of."""
    return dict(Counter(record["stage"] for record in records if "scores" not in record))


def plot(records: list[dict[str, Any]], path: Path) -> None:
    """Draw loss, rate and scores of a run by step.

    Raises:
        MissingExtra: without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("matplotlib", "train") from error
    steps = [r for r in records if "loss" in r]  # not those whose examples were all left out
    looks = [r for r in records if "scores" in r]
    figure = Figure(figsize=(9, 3.2 * (1 + bool(looks))), layout="constrained")
    axes = figure.subplots(1 + bool(looks), 1, squeeze=False)[:, 0]
    numbers = [r["step"] for r in steps]
    for name in dict.fromkeys(key for r in steps for key in r["losses"]):
        own = [(r["step"], r["losses"][name]) for r in steps if name in r["losses"]]
        axes[0].plot(*zip(*own, strict=True), lw=0.7, label=name)
    axes[0].plot(numbers, [r["loss"] for r in steps], color="black", lw=1.2, label="loss")
    rate = axes[0].twinx()
    rate.plot(numbers, [r["lr"] for r in steps], color="grey", ls=":", lw=1)
    rate.set_ylabel("learning rate (dotted)")
    axes[0].set_ylabel("loss")
    axes[0].legend(fontsize=8)
    for before, after in pairwise(steps):
        if before["stage"] != after["stage"]:
            axes[0].axvline(after["step"], color="grey", lw=0.5)
    if looks:
        for name, kind in dict.fromkeys((n, k) for r in looks for n, own in r["scores"].items() for k in own):
            seen = [(r["step"], r["scores"][name][kind]) for r in looks if kind in r["scores"].get(name, {})]
            axes[1].plot(*zip(*seen, strict=True), marker="o", ms=3, label=f"{name} {kind}")
        axes[1].set_ylabel("held out")
        axes[1].legend(fontsize=8)
    axes[-1].set_xlabel("step")
    figure.savefig(path, dpi=120)
