"""A step's batch: this process' share of its examples as packed rows, and the vectors of all as what losses compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..batch import Batch, Sample, distinct, pack, plan
from ..embedder import Embedder
from ..errors import InputError
from ..inputs import Item, modality
from .compared import Compared, Embedded
from .data import Example, Examples, digest
from .recipe import Stage
from .world import World

MODALITIES = ("text", "image", "image+text")


@dataclass(frozen=True)
class Drawn:
    """What one task has in a batch.

    Attributes:
        task: its number. examples: those of all processes. chosen: which positive of each was drawn.
        own: the numbers of the examples of this process. queries, documents: places of their things among the distinct samples of
            this process; the documents of an example are its positive and then its negatives.
        dropped: why examples of this process are left out, by their number.
    """

    task: int
    examples: Sequence[Example]
    chosen: Sequence[int]
    own: range
    queries: Sequence[int]
    documents: Sequence[int]
    dropped: Mapping[int, str]

    def items(self, number: int) -> list[Item]:
        """The documents of an example."""
        example = self.examples[number]
        return [example.positives[self.chosen[number]], *example.negatives]


@dataclass(frozen=True)
class Step:
    """A batch as one process embeds it.

    Attributes:
        number: of the step in its stage. drawn: of each task. batches: packed rows. order: the distinct sample of each
            vector that they give, one batch behind the other. state: of the data after this draw.
        tokens, images: in the items of this process, before equal ones are put together.
    """

    number: int
    drawn: Sequence[Drawn]
    batches: Sequence[Batch]
    order: Sequence[int]
    state: Mapping[str, Any]
    tokens: int
    images: int


def prepare(
    embedder: Embedder,
    data: Mapping[str, Examples],
    stage: Stage,
    tasks: Mapping[int, Sequence[Example]],
    world: World,
    *,
    number: int,
    seed: Sequence[int],
    state: Mapping[str, Any],
) -> Step:
    """Tokenise and pack the share of this process.

    Raises:
        InputError: an item that cannot be embedded, where its source says so.
    """
    samples: list[Sample] = []
    drawn: list[Drawn] = []
    for task, examples in tasks.items():
        rng = np.random.default_rng([*seed, task, number])
        chosen = [int(rng.integers(len(example.positives))) for example in examples]
        own = range(*world.share(examples))
        dropped: dict[int, str] = {}
        made: dict[int, list[Sample]] = {}
        for source in dict.fromkeys(examples[k].source for k in own):
            mine = [k for k in own if examples[k].source == source]
            found = _samples(embedder, data[source], [examples[k] for k in mine], [chosen[k] for k in mine])
            for k, each in zip(mine, found, strict=True):
                if isinstance(each, InputError):
                    reason = f"data {source!r}, row {examples[k].row}: {each.reason}"
                    if data[source].source.on_error == "raise":
                        raise InputError(reason)
                    dropped[k] = reason
                else:
                    made[k] = each
        queries: list[int] = []
        documents: list[int] = []
        for k in own:
            if k in made:
                queries.append(len(samples))
                documents += range(len(samples) + 1, len(samples) + len(made[k]))
                samples += made[k]
        drawn.append(Drawn(task, examples, chosen, own, queries, documents, dropped))
    firsts, which = distinct(samples)
    once = [samples[k] for k in firsts]
    model = embedder.model
    native = model.native
    apart = [len(s.images) for s in once] if native is not None and native.apart else ()
    budget = stage.batch_tokens
    planned = plan(once, budget, share=model.shares, apart=apart)
    batches = [
        pack([once[k] for k in places], places, model.spec.mask, share=model.shares).to(model.device)
        for places in planned
    ]
    at = [
        Drawn(
            d.task,
            d.examples,
            d.chosen,
            d.own,
            [which[k] for k in d.queries],
            [which[k] for k in d.documents],
            d.dropped,
        )
        for d in drawn
    ]
    order = [k for places in planned for k in places]
    tokens, images = sum(map(len, samples)), sum(len(s.images) for s in samples)
    return Step(number, at, batches, order, state, tokens, images)


def _samples(
    embedder: Embedder, examples: Examples, rows: Sequence[Example], chosen: Sequence[int]
) -> list[list[Sample] | InputError]:
    """The samples of each example, query, positive, negatives; or what is wrong with one of them."""
    asked, told = examples.source.prompts(embedder.spec)
    queries = embedder.samples([row.query for row in rows], prompt_name=asked, instruction=examples.source.instruction)
    things = [[row.positives[k], *row.negatives] for row, k in zip(rows, chosen, strict=True)]
    documents = iter(embedder.samples([thing for own in things for thing in own], prompt_name=told))
    found: list[list[Sample] | InputError] = []
    for query, own in zip(queries, things, strict=True):
        every = [query, *(next(documents) for _ in own)]
        bad = next((each for each in every if isinstance(each, InputError)), None)
        found.append(bad if bad is not None else [each for each in every if isinstance(each, Sample)])
    return found


def compared(drawn: Drawn, things: Embedded, world: World, step: int) -> tuple[Compared | None, int]:
    """What the losses of a task compare, of all processes, and how many examples were left out.

    Args:
        things: the distinct samples of this process, as the model embedded them.

    Returns:
        None where every example was left out.
    """
    gone = {k for dropped in world.told(sorted(drawn.dropped)) for k in dropped}
    kept = [k for k in range(len(drawn.examples)) if k not in gone]
    device = things.device
    queries, documents = (
        gathered(things.take(torch.tensor(places, dtype=torch.long, device=device)), world)
        for places in (drawn.queries, drawn.documents)
    )
    if not kept:
        return None, len(gone)
    asked = [drawn.examples[k].query for k in kept]
    told = [drawn.items(k) for k in kept]
    scores = [score for k in kept for score in drawn.examples[k].scores]
    flat = [item for items in told for item in items]
    first = [place == 0 for items in told for place in range(len(items))]
    owner = [row for row, items in enumerate(told) for _ in items]
    return (
        Compared(
            queries=replace(queries, key=_keys(asked, device), modality=_modalities(asked, device)),
            documents=replace(documents, key=_keys(flat, device), modality=_modalities(flat, device)),
            owner=torch.tensor(owner, device=device),
            positive=torch.tensor(first, device=device),
            score=torch.tensor(scores, device=device) if len(scores) == len(flat) else None,
            step=step,
        ),
        len(gone),
    )


def gathered(own: Embedded, world: World) -> Embedded:
    """What all processes embedded, by rank; only its own part has a gradient."""
    if world.size == 1:
        return own
    return Embedded(
        vectors=None if own.vectors is None else world.gathered(own.vectors),
        layers=None if own.layers is None else world.gathered(own.layers.transpose(0, 1)).transpose(0, 1),
        count=sum(world.told(own.count)),
    )


def _keys(items: Sequence[Item], device: torch.device) -> Tensor:
    """A number each, equal for equal items."""
    known: dict[bytes, int] = {}
    return torch.tensor([known.setdefault(digest(item), len(known)) for item in items], device=device)


def _modalities(items: Sequence[Item], device: torch.device) -> Tensor:
    return torch.tensor([MODALITIES.index(modality(item)) for item in items], device=device)
