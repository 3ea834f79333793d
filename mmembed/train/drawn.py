"""A step's batch: this process' share of its examples as packed rows, and the vectors of all as what losses compare."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..batch import Batch, Sample, distinct, pack, plan
from ..embedder import Embedder
from ..errors import InputError
from ..inputs import Item, Text, modality
from ..kept import Kept
from ..model import EmbeddingModel
from ..nn.spans import Counted
from .augment import augmented
from .compared import Compared, Embedded
from .data import Example, Examples, digest
from .predicted import Spoken, spoken, texts_of
from .recipe import Stage, Task
from .teacher import Teacher
from .world import World

Output = Literal["vectors", "layers", "tokens", "sparse"]
"""What a model gives of an item and losses read; "layers" have vectors with them."""
OUTPUTS: tuple[Output, ...] = get_args(Output)
MODALITIES = ("text", "image", "image+text")
ROOM = 2**28
"""Bytes of samples of texts that are kept: a quarter of a million names."""
ROOM_OF_ONE = 1000
"""Bytes of such a sample besides its ids, and of the text it is found by."""


@dataclass(frozen=True)
class Drawn:
    """What one task has in a batch.

    Attributes:
        task: its number. examples: those of all processes. chosen: which positive of each was drawn.
        own: the numbers of the examples of this process. queries, documents: places of their things among the distinct samples of
            this process; the documents of an example are its positive and then its negatives.
        dropped: why examples of this process are left out, by their number.
        teacher: what the teacher says of its queries and documents, (n, W) and (m, W).
    """

    task: int
    examples: Sequence[Example]
    chosen: Sequence[int]
    own: range
    queries: Sequence[int]
    documents: Sequence[int]
    dropped: Mapping[int, str]
    teacher: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None

    def items(self, number: int) -> list[Item]:
        """The documents of an example."""
        return [*_documents(self.examples[number], self.chosen[number])]


@dataclass(frozen=True)
class Row:
    """A packed row, and which of its tokens each output reads; `idle`: it is run for the sake of other processes."""

    batch: Batch
    read: Mapping[Output, Counted]
    idle: bool = False


@dataclass(frozen=True)
class Step:
    """A batch as one process embeds it.

    Attributes:
        number: of the step in its stage. drawn: of each task that compares. rows: packed rows. order: the distinct sample of each
            vector that they give, one row behind the other. spoken: rows of tasks whose losses read a language head.
        examples: of every task, those of all processes. state: of the data after this draw.
        tokens, images: in the items of this process, before equal ones are put together.
    """

    number: int
    drawn: Sequence[Drawn]
    rows: Sequence[Row]
    order: Sequence[int]
    spoken: Sequence[Spoken]
    examples: Mapping[int, Sequence[Example]]
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
    outputs: Sequence[Output],
    speaking: Collection[int],
    teachers: Mapping[str, Teacher],
    kept: Kept[Hashable, Sample],
    number: int,
    seed: Sequence[int],
    state: Mapping[str, Any],
) -> Step:
    """Tokenise and pack the share of this process, and ask the teachers.

    Args:
        outputs: what the losses read. speaking: tasks whose losses read a language head. kept: samples of texts that were read
            before, by the same embedder.

    Raises:
        InputError: an item that cannot be embedded, where its source says so.
    """
    samples: dict[Output, list[Sample]] = {output: [] for output in outputs}
    count = 0
    drawn: list[Drawn] = []
    told: list[Spoken] = []
    for task, examples in tasks.items():
        rng = np.random.default_rng([*seed, task, number])
        chosen = [int(rng.integers(len(example.positives))) for example in examples]
        own = range(*world.share(examples))
        if task in speaking:
            told += spoken(
                embedder,
                task,
                [texts_of(examples[k], chosen[k], data[examples[k].source].source.columns) for k in own],
                stage.task[task].masking,
                budget=stage.batch_tokens,
                seeds=[[*seed, task, number, k] for k in own],
            )
            continue
        dropped: dict[int, str] = {}
        made: dict[int, Mapping[Output, list[Sample]]] = {}
        for source in dict.fromkeys(examples[k].source for k in own):
            mine = [k for k in own if examples[k].source == source]
            shown = [
                _shown(examples[k], chosen[k], stage.task[task], np.random.default_rng([*seed, task, number, k]))
                if stage.task[task].augment
                else (examples[k].query, *_documents(examples[k], chosen[k]))
                for k in mine
            ]
            found = _samples(embedder, data[source], shown, outputs, kept)
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
                more = len(made[k][outputs[0]])
                queries.append(count)
                documents += range(count + 1, count + more)
                count += more
                for output, of_row in made[k].items():
                    samples[output] += of_row
        left = [k for k in own if k in made]
        teacher = stage.task[task].teacher
        said = (
            None
            if teacher is None
            else _said(teachers[teacher], [examples[k] for k in left], [chosen[k] for k in left])
        )
        drawn.append(Drawn(task, examples, chosen, own, queries, documents, dropped, said))
    assert isinstance(embedder.model, EmbeddingModel)
    rows, order, which = _rows(embedder.model, samples, stage)
    at = [
        replace(own, queries=[which[k] for k in own.queries], documents=[which[k] for k in own.documents])
        for own in drawn
    ]
    every = samples[outputs[0]] if outputs else []
    tokens = sum(map(len, every)) + sum(len(own.batch.ids) for own in told)
    return Step(number, at, rows, order, told, tasks, state, tokens, sum(len(s.images) for s in every))


def _rows(
    model: EmbeddingModel, samples: Mapping[Output, Sequence[Sample]], stage: Stage
) -> tuple[list[Row], list[int], list[int]]:
    """Packed rows of the distinct samples, which of these each row has, and of every sample the place among them.

    Under dropout equal things are not the same: each is computed by itself, and shares nothing.
    """
    if not any(samples.values()):
        return [], [], []
    every = next(iter(samples.values()))
    alike = [range(len(every))] if stage.dropout else [distinct(own)[1] for own in samples.values()]
    firsts: dict[tuple[int, ...], int] = {}  # what is distinct in any output, and its first sample
    for k, key in enumerate(zip(*alike, strict=True)):
        firsts.setdefault(key, k)
    number = {key: place for place, key in enumerate(firsts)}
    which = [number[key] for key in zip(*alike, strict=True)]
    once = {output: [own[k] for k in firsts.values()] for output, own in samples.items()}
    share = model.shares and not stage.dropout
    first = next(iter(once.values()))
    native = model.native
    apart = [len(s.images) for s in first] if native is not None and native.apart else ()
    planned = plan(first, stage.batch_tokens, share=share, apart=apart)
    rows = []
    for places in planned:
        packed = {
            output: pack([own[k] for k in places], places, model.spec.mask, share=share).to(model.device)
            for output, own in once.items()
        }
        batch = next(iter(packed.values()))
        rows.append(Row(batch, {output: own.counted for output, own in packed.items()}))
    return rows, [k for places in planned for k in places], which


def _shown(example: Example, chosen: int, task: Task, rng: np.random.Generator) -> tuple[Item, ...]:
    """Query, positive and negatives as augmentation shows them; what is one thing stays one thing."""
    items = [example.query, *_documents(example, chosen)]
    changed: dict[bytes, Item] = {}
    for item in items:
        if digest(item) not in changed:
            changed[digest(item)] = augmented(item, task.augment, rng, ease=task.ease)
    return tuple(changed[digest(item)] for item in items)


def _documents(example: Example, chosen: int) -> tuple[Item, ...]:
    return (example.positives[chosen], *example.negatives)


def _samples(
    embedder: Embedder,
    examples: Examples,
    rows: Sequence[Sequence[Item]],
    outputs: Sequence[Output],
    kept: Kept[Hashable, Sample],
) -> list[Mapping[Output, list[Sample]] | InputError]:
    """For each output the samples of each row of query, positive and negatives; or what is wrong with one of them."""
    asked, told = examples.source.prompts(embedder.spec)
    instruction = examples.source.instruction
    items = [query for query, *_ in rows]
    things = [own for _, *own in rows]
    flat = [thing for own in things for thing in own]
    found: list[Mapping[Output, list[Sample]] | InputError] = [{} for _ in rows]
    for output in outputs:
        queries = _read(embedder, items, kept, asked, instruction, output, "query")
        documents = iter(_read(embedder, flat, kept, told, None, output, "document"))
        for k, (query, own) in enumerate(zip(queries, things, strict=True)):
            every = [query, *(next(documents) for _ in own)]
            bad = next((each for each in every if isinstance(each, InputError)), None)
            before = found[k]
            if bad is not None or isinstance(before, InputError):
                found[k] = bad or before
            else:
                found[k] = {**before, output: [each for each in every if isinstance(each, Sample)]}
    return found


def _read(
    embedder: Embedder,
    items: Sequence[Item],
    kept: Kept[Hashable, Sample],
    prompt_name: str | None,
    instruction: str | None,
    output: Output,
    side: Literal["query", "document"],
) -> list[Sample | InputError]:
    """The samples of one side. Texts come again and again, and are tokenised once as long as there is room for them."""
    name = embedder.spec.default_prompt_name if prompt_name is None else prompt_name
    read: Literal["vectors", "tokens", "sparse"] = "vectors" if output == "layers" else output
    asked = embedder.spec.instructions.get(str(name)) if instruction is None else instruction
    # Vectors hang on what a prompt says, not on what it is called or whose it is.
    way = (repr(embedder.spec.prompts.get(str(name))), asked, read, None if read == "vectors" else side)
    keys: list[Hashable] = [
        (way, item) if all(isinstance(part, Text) for part in item) else place for place, item in enumerate(items)
    ]
    found: dict[Hashable, Sample | InputError] = {}
    fresh: dict[Hashable, Item] = {}
    for place, (key, item) in enumerate(zip(keys, items, strict=True)):
        sample = None if key == place else kept.get(key)
        if sample is None:
            fresh[key] = item
        else:
            found[key] = sample
    made = embedder.samples([*fresh.values()], prompt_name=prompt_name, instruction=instruction, output=read, side=side)
    for key, one in zip(fresh, made, strict=True):
        found[key] = one
        if isinstance(one, Sample) and not isinstance(key, int):
            kept.put(key, one, ROOM_OF_ONE + one.ids.nbytes + one.counted.nbytes)
    return [found[key] for key in keys]


def _said(
    teacher: Teacher, rows: Sequence[Example], chosen: Sequence[int]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What a teacher says of the queries and documents of examples, under its own prompts."""
    documents = [[row.sources[1][k], *row.negatives] for row, k in zip(rows, chosen, strict=True)]
    return (
        teacher.said([row.sources[0] for row in rows], "query"),
        teacher.said([item for own in documents for item in own], "document"),
    )


def idle(embedder: Embedder, outputs: Sequence[Output], stage: Stage) -> Row:
    """A row of which nothing is read: where weights lie in parts, a process with fewer rows than another runs with it."""
    assert isinstance(embedder.model, EmbeddingModel)
    samples: dict[Output, list[Sample]] = {}
    for output in outputs:
        read: Literal["vectors", "tokens", "sparse"] = "vectors" if output == "layers" else output
        (sample,) = embedder.samples(["a"], output=read)
        assert isinstance(sample, Sample)
        samples[output] = [sample]
    rows, _, _ = _rows(embedder.model, samples, stage)
    return replace(rows[0], idle=True)


def embedded(model: EmbeddingModel, row: Row) -> Embedded:
    """What a model gives of the items of a packed row, with a gradient; of an idle one it is a gradient of nothing."""
    found = _embedded(model, row)
    return found.take(torch.empty(0, dtype=torch.long, device=found.device)) if row.idle else found


def _embedded(model: EmbeddingModel, row: Row) -> Embedded:
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


def nothing(model: EmbeddingModel, outputs: Sequence[Output]) -> Embedded:
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
    drawn: Drawn, things: Embedded, world: World, step: int, classes: Mapping[str, int] | None = None
) -> tuple[Compared | None, int]:
    """What the losses of a task compare, of all processes, and how many examples were left out.

    Args:
        things: the distinct samples of this process. classes: the number of each group, where losses read it.

    Returns:
        None where every example was left out.
    """
    gone = {k for dropped in world.told(sorted(drawn.dropped)) for k in dropped}
    kept = [k for k in range(len(drawn.examples)) if k not in gone]
    device = things.device
    sides = []
    for places, said in zip((drawn.queries, drawn.documents), drawn.teacher or (None, None), strict=True):
        own = things.take(torch.tensor(places, dtype=torch.long, device=device))
        teacher = None if said is None else torch.from_numpy(said).to(device)
        sides.append(gathered(replace(own, teacher=teacher), world))
    if not kept:
        return None, len(gone)
    asked = [drawn.examples[k].query for k in kept]
    told = [drawn.items(k) for k in kept]
    scores = [score for k in kept for score in drawn.examples[k].scores]
    flat = [item for items in told for item in items]
    first = [place == 0 for items in told for place in range(len(items))]
    owner = [row for row, items in enumerate(told) for _ in items]
    queries, documents = (
        replace(side, key=_keys(items, device), modality=_modalities(items, device))
        for side, items in zip(sides, (asked, flat), strict=True)
    )
    also = _also([drawn.examples[k].positives for k in kept], flat)
    return (
        Compared(
            queries=queries,
            documents=documents,
            owner=torch.tensor(owner, device=device),
            positive=torch.tensor(first, device=device),
            score=torch.tensor(scores, device=device) if len(scores) == len(flat) else None,
            also=torch.tensor(also, device=device) if also else None,
            classes=None
            if classes is None
            else torch.tensor([classes[str(drawn.examples[k].group)] for k in kept], device=device),
            step=step,
        ),
        len(gone),
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


def _modalities(items: Sequence[Item], device: torch.device) -> Tensor:
    return torch.tensor([MODALITIES.index(modality(item)) for item in items], device=device)
