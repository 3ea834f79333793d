"""A step's batch: packed rows of this process' share of its examples, and the vectors of all as what losses compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..batch import Batch
from ..inputs import MODALITIES, Item, modality
from ..model import EmbeddingModel
from ..nn.spans import Counted
from .compared import Compared, Embedded
from .data import Example, digest
from .predicted import Spoken
from .world import World

OutputKind = Literal["vectors", "layers", "tokens", "sparse"]
"""What a model gives of an item and losses read; "layers" have vectors with them."""
OUTPUTS: tuple[OutputKind, ...] = get_args(OutputKind)


@dataclass(frozen=True)
class Drawn:
    """What one task has in a batch.

    Attributes:
        task: its number. chosen: which positive of each example was drawn.
        own: the numbers of the examples of this process. queries, documents: places of their things among the distinct samples of
            this process; the documents of an example are its positive and then its negatives.
        dropped: why examples of this process are left out, by their number.
        teacher: what the teacher says of its queries and documents, (n, W) and (m, W).
    """

    task: int
    chosen: Sequence[int]
    own: range
    queries: Sequence[int]
    documents: Sequence[int]
    dropped: Mapping[int, str]
    teacher: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None


@dataclass(frozen=True)
class PackedRow:
    """A packed row, and which of its tokens each output reads; `idle`: it is run for the sake of other processes."""

    batch: Batch
    read: Mapping[OutputKind, Counted]
    idle: bool = False

    def to(self, device: torch.device) -> PackedRow:
        return PackedRow(
            self.batch.to(device), {output: own.to(device) for output, own in self.read.items()}, self.idle
        )


@dataclass(frozen=True)
class TrainStep:
    """A batch as one process embeds it.

    Attributes:
        number: of the step in its stage. drawn: of each task that compares. rows: packed rows. order: the distinct sample of each
            vector that they give, one row behind the other. spoken: rows of tasks whose losses read a language head.
        tokens, images: in the items of this process, before equal ones are put together.
        truncated: how many of these items were cut at the length that the model reads.
        examples: of every task, those of all processes. state: of the data after this draw.
    """

    number: int
    drawn: Sequence[Drawn]
    rows: Sequence[PackedRow]
    order: Sequence[int]
    spoken: Sequence[Spoken]
    tokens: int
    images: int
    truncated: int
    examples: Mapping[int, Sequence[Example]] = field(default_factory=dict)
    state: Mapping[str, Any] = field(default_factory=dict)

    def to(self, device: torch.device) -> TrainStep:
        return replace(self, rows=[row.to(device) for row in self.rows], spoken=[row.to(device) for row in self.spoken])


def embedded(model: EmbeddingModel, row: PackedRow) -> Embedded:
    """What a model gives of the items of a packed row, with a gradient; of an idle one it is a gradient of nothing."""
    found = _embedded(model, row)
    return found.take(torch.empty(0, dtype=torch.long, device=found.device)) if row.idle else found


def _embedded(model: EmbeddingModel, row: PackedRow) -> Embedded:
    if "layers" in row.read:
        layers = model.layer_vectors(row.batch)
        return Embedded(vectors=layers[-1], layers=layers)
    if [*row.read] == ["vectors"]:
        return Embedded(vectors=model(row.batch))
    found = model.of_kinds(row.batch, {str(output): own for output, own in row.read.items()})
    tokens = whose = None
    if found.tokens is not None:
        sizes = torch.tensor([len(own) for own in found.tokens], device=row.batch.ids.device)
        tokens, whose = torch.cat(found.tokens), torch.arange(len(sizes), device=sizes.device).repeat_interleave(sizes)
    count = next(iter(row.read.values())).items
    return Embedded(vectors=found.vectors, sparse=found.sparse, tokens=tokens, token_of=whose, count=count)


def nothing(model: EmbeddingModel, outputs: Sequence[OutputKind]) -> Embedded:
    """What a model gives of no items."""
    vectors = sparse = tokens = whose = layers = None
    if {"vectors", "layers"} & set(outputs):
        vectors = torch.zeros(0, model.spec.dimension, device=model.device)
        layers = vectors.expand(model.depth, 0, -1) if "layers" in outputs else None
    if "sparse" in outputs:
        assert model.sparse is not None
        sparse = torch.zeros(0, int(model.sparse.out), device=model.device)  # type: ignore[arg-type]
    if "tokens" in outputs:
        tokens = torch.zeros(0, int(model.tokens.out), device=model.device)  # type: ignore[arg-type]
        whose = torch.zeros(0, dtype=torch.long, device=model.device)
    return Embedded(vectors=vectors, layers=layers, sparse=sparse, tokens=tokens, token_of=whose, count=0)


def compared(
    drawn: Drawn,
    examples: Sequence[Example],
    things: Embedded,
    world: World,
    step: int,
    classes: Mapping[str, int] | None = None,
) -> tuple[Compared | None, Mapping[int, str]]:
    """What the losses of a task compare, of all processes; and which examples were left out, and why.

    Args:
        examples: those of all processes. things: the distinct samples of this process.
        classes: the number of each group, where losses read it.

    Returns:
        None where every example was left out.
    """
    gone = {k: why for dropped in world.told(dict(drawn.dropped)) for k, why in dropped.items()}
    kept = [k for k in range(len(examples)) if k not in gone]
    device = things.device
    sides = []
    for places, said in zip((drawn.queries, drawn.documents), drawn.teacher or (None, None), strict=True):
        own = things.take(torch.tensor(places, dtype=torch.long, device=device))
        teacher = None if said is None else torch.from_numpy(said).to(device)
        sides.append(gathered(replace(own, teacher=teacher), world))
    if not kept:
        return None, gone
    asked = [examples[k].query for k in kept]
    told = [examples[k].documents(drawn.chosen[k]) for k in kept]
    scores = [score for k in kept for score in examples[k].scores]
    flat = [item for items in told for item in items]
    first = [place == 0 for items in told for place in range(len(items))]
    owner = [row for row, items in enumerate(told) for _ in items]
    asking, telling = (
        replace(side, key=_keys(items, device), modality=_modalities(items, device))
        for side, items in zip(sides, (asked, flat), strict=True)
    )
    also = [*_also([examples[k].positives for k in kept], flat), *_mined([examples[k] for k in kept])]
    return (
        Compared(
            queries=asking,
            documents=telling,
            owner=torch.tensor(owner, device=device),
            positive=torch.tensor(first, device=device),
            score=torch.tensor(scores, device=device) if len(scores) == len(flat) else None,
            also=torch.tensor(also, device=device) if also else None,
            classes=None
            if classes is None
            else torch.tensor([classes[str(examples[k].group)] for k in kept], device=device),
            step=step,
        ),
        gone,
    )


def gathered(own: Embedded, world: World) -> Embedded:
    """The things of all processes, by rank; those of this one with their gradient."""
    if world.size == 1:
        return own
    counts = world.told(len(own))
    told = {
        name: world.gathered(value)
        for name in ("vectors", "sparse", "tokens", "teacher")
        if (value := getattr(own, name)) is not None
    }
    if own.layers is not None:
        told["layers"] = world.gathered(own.layers.transpose(0, 1)).transpose(0, 1)
    if own.token_of is not None:
        told["token_of"] = world.gathered(own.token_of + sum(counts[: world.rank]))
    return Embedded(**told, count=sum(counts))


def _keys(items: Sequence[Item], device: torch.device) -> Tensor:
    """A number each, equal for equal items."""
    known: dict[bytes, int] = {}
    return torch.tensor([known.setdefault(digest(item), len(known)) for item in items], device=device)


def _also(positives: Sequence[Sequence[Item]], documents: Sequence[Item]) -> list[tuple[int, int]]:
    """Queries of several positives, and documents that are one of these, whoever brought them."""
    answered: dict[bytes, list[int]] = {}
    for row, own in enumerate(positives):
        for item in own if len(own) > 1 else ():
            answered.setdefault(digest(item), []).append(row)
    if not answered:
        return []
    return [(row, place) for place, item in enumerate(documents) for row in answered.get(digest(item), ())]


def _mined(examples: Sequence[Example]) -> list[tuple[int, int]]:
    """Queries, and negatives that were mined from rows which share a query, a positive or a group with them."""
    if not any(example.answered for example in examples):
        return []
    asked: dict[bytes, list[int]] = {}
    for row, example in enumerate(examples):
        for key in example.keys:
            asked.setdefault(key, []).append(row)
    found, place = set(), 0
    for example in examples:
        for number, keys in enumerate(example.answered, 1):
            found |= {(row, place + number) for key in keys for row in asked.get(key, ())}
        place += 1 + len(example.negatives)
    return sorted(found)


def _modalities(items: Sequence[Item], device: torch.device) -> Tensor:
    return torch.tensor([MODALITIES.index(modality(item)) for item in items], device=device)
