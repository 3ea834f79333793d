"""A run looked at before it begins: what there is to learn from, the first batch as people read it, weights and memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..inputs import Item, Text
from . import parts
from .data import Example
from .drawn import TrainStep
from .learning import Learning
from .loop import Run
from .workers import Workers

SHOWN = 6
"""Examples of the first batch that are shown of each task."""
OF_ADAM = 16
"""Bytes of a trained number: itself, its gradient and two moments, in fp32."""


@dataclass(frozen=True)
class StageDryRun:
    """What a dry run says of one stage.

    Attributes:
        steps, examples: how many steps, and examples in each. epochs: how often each data would be seen.
        trained, frozen: numbers of weights. tokens, images, distinct: of the first batch; rows: packed rows that it goes in.
        weights, activations: bytes; activations are those that the first packed row keeps for its gradient.
        first: examples of the first batch.
    """

    name: str
    steps: int
    examples: int
    epochs: dict[str, float]
    trained: int
    frozen: int
    tokens: int
    images: int
    distinct: int
    rows: int
    weights: int
    activations: int
    first: list[dict[str, Any]]


@dataclass(frozen=True)
class DryRun:
    """What a dry run says.

    Attributes:
        data: rows of each source. held_out: what is measured, on how many rows. processes: that train together.
    """

    name: str
    model: str
    device: str
    processes: int
    data: dict[str, int]
    held_out: dict[str, str]
    stages: list[StageDryRun]

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def text(self) -> str:
        said = [f"{self.name}: {self.model}", ""]
        said += [f"data {name}: {count:,} rows" for name, count in self.data.items()]
        said += [f"held out {name}: {what}" for name, what in self.held_out.items()]
        for stage in self.stages:
            seen = ", ".join(f"{name} {times:.2f} times" for name, times in stage.epochs.items())
            said += [
                "",
                f"stage {stage.name}: {stage.steps:,} steps of {stage.examples:,} examples ({seen})",
                f"  weights: {stage.trained:,} trained, {stage.frozen:,} frozen",
                f"  first batch: {stage.tokens:,} tokens, {stage.images:,} pictures, {stage.distinct:,} distinct items in "
                f"{stage.rows} packed rows" + (" of this process" if self.processes > 1 else ""),
                f"  memory: {_bytes(stage.weights)} for weights, gradients and AdamW, "
                f"{_bytes(stage.activations)} for the states of a packed row",
            ]
            for row in stage.first:
                said.append(f"  - {row['data']} {row['row']}" + (f" [{row['language']}]" if row["language"] else ""))
                said.append(f"      query     {row['query']}")
                said += [f"      positive  {each}" for each in row["positives"]]
                said += [f"      negative  {each}" for each in row["negatives"]]
                if row["scores"]:
                    said.append(f"      scores    {', '.join(f'{score:g}' for score in row['scores'])}")
        return "\n".join(said)


def look(run: Run) -> DryRun:
    """Draw the first batch of every stage and send one packed row of it through the model. Nothing is learnt or written.

    Raises:
        As a run would at once: a part that the model lacks, a row that gives no example, a batch that cannot be filled.
    """
    stages = []
    for number in range(len(run.recipe.stage)):
        learning = Learning(run, number, 0)
        learning.choose(begun=True)
        step = next(learning.batches(Workers(learning.collator)))
        stages.append(_stage(run, learning, step))
    held = {
        name: f"{own.measure} of {min(own.most, len(run.data[own.data])):,} rows of {own.data}"
        for name, own in run.recipe.held_out.items()
    }
    counts = {name: len(examples) for name, examples in run.data.items()}
    return DryRun(run.recipe.name, repr(run.embedder), str(run.device), run.world.size, counts, held, stages)


def _stage(run: Run, learning: Learning, step: TrainStep) -> StageDryRun:
    stage = learning.stage
    parts.set_modes(run.model, stage, learning.weights)
    kept: dict[int, int] = {}
    with _kept_bytes(kept):
        if step.rows:
            learning.embedded(max(step.rows, key=lambda row: len(row.batch.ids)))
        elif step.spoken:
            learning.predicted(max(step.spoken, key=lambda row: len(row.batch.ids)))
    weights = {id(w): w for w in run.model.parameters()}.values()
    trained = parts.count([*learning.every.values()])
    held = sum(w.numel() * w.element_size() for w in weights if not w.requires_grad)
    inside = sum(kept.values())
    counts: dict[str, float] = {}
    for task in stage.task:
        for name, share in zip(task.data, learning.mixtures[stage.task.index(task)].chances, strict=True):
            turns = stage.steps if stage.together else stage.steps * task.share / sum(each.share for each in stage.task)
            often = share * task.batch * turns / len(run.data[name])
            counts[name] = counts.get(name, 0.0) + float(often)
    return StageDryRun(
        name=stage.name,
        steps=stage.steps,
        examples=sum(task.batch for task in stage.task) if stage.together else max(t.batch for t in stage.task),
        epochs=counts,
        trained=trained,
        frozen=parts.count([w for w in weights if not w.requires_grad]),
        tokens=step.tokens,
        images=step.images,
        distinct=len(step.order) + sum(len(row.batch.rows) for row in step.spoken),
        rows=len(step.rows) + len(step.spoken),
        weights=held + trained * (OF_ADAM + (4 if stage.ema_decay is not None else 0) + (4 if stage.soup else 0)),
        activations=inside,
        first=[_shown(example) for examples in step.examples.values() for example in examples[:SHOWN]],
    )


@contextmanager
def _kept_bytes(kept: dict[int, int]) -> Iterator[None]:
    """Count what a forward keeps for its gradient, each tensor's memory once, by the id of its storage or parameter."""

    def keep(tensor: Tensor) -> Tensor:
        base = tensor if tensor._base is None else tensor._base
        if not isinstance(base, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield


def _shown(example: Example) -> dict[str, Any]:
    return {
        "data": example.source,
        "row": example.row,
        "language": example.language,
        "query": written(example.query),
        "positives": [written(item) for item in example.positives],
        "negatives": [written(item) for item in example.negatives],
        "scores": list(example.scores),
    }


def written(item: Item, width: int = 100) -> str:
    """An item in one line."""
    said = " + ".join(repr(part.text) if isinstance(part, Text) else f"[{part.name}]" for part in item)
    return said if len(said) <= width else said[: width - 1] + "…"


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
