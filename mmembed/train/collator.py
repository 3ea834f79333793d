"""Examples become what the model reads: chosen, augmented, tokenised, packed. No weight takes part, so any process may do it."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from ..batch import Sample, distinct, pack, plan
from ..cache import LRUCache
from ..embedder import Embedder
from ..errors import InputError
from ..inputs import Item, Text
from ..model import EmbeddingModel
from .augment import augmented
from .data import Example, Source, digest
from .drawn import Drawn, OutputKind, PackedRow, TrainStep
from .predicted import Spoken, spoken, texts_of
from .recipe import Stage, Task
from .world import World

ROOM = 2**28
"""Bytes of samples of texts that are kept: a quarter of a million names."""
ROOM_OF_ONE = 1000
"""Bytes of such a sample besides its ids, and of the text it is found by."""


@dataclass(frozen=True)
class Collator:
    """Makes the batches of a stage of their examples.

    Args:
        embedder: whose tokenizer, prompts and preprocessing they go through. sources: of the data, by name.
        outputs: what the losses read. speaking: tasks whose losses read a language head.
        seed: what is chosen by chance hangs on it, on the task, the step and the example, and on nothing else.
        kept: samples of texts that were read before, by the same embedder.
    """

    embedder: Embedder
    sources: Mapping[str, Source]
    stage: Stage
    world: World
    outputs: Sequence[OutputKind]
    speaking: Collection[int]
    seed: Sequence[int]
    kept: LRUCache[Hashable, Sample] = field(default_factory=lambda: LRUCache(ROOM))

    def __call__(self, tasks: Mapping[int, Sequence[Example]], number: int) -> TrainStep:
        """Tokenise and pack the share of this process.

        Args:
            tasks: of every task the examples of all processes. number: of the step.

        Returns:
            the batch on the CPU, without its examples, and without what teachers say.

        Raises:
            InputError: an item that cannot be embedded, where its source says so.
        """
        samples: dict[OutputKind, list[Sample]] = {output: [] for output in self.outputs}
        drawn: list[Drawn] = []
        told: list[Spoken] = []
        for task, examples in tasks.items():
            rng = np.random.default_rng([*self.seed, task, number])
            chosen = [int(rng.integers(len(example.positives))) for example in examples]
            own = range(*self.world.share(examples))
            if task in self.speaking:
                told += self._spoken(task, examples, chosen, own, number)
            else:
                drawn.append(self._drawn(task, examples, chosen, own, number, samples))
        assert isinstance(self.embedder.model, EmbeddingModel)
        rows, order, which = _rows(self.embedder.model, samples, self.stage)
        at = [
            replace(own, queries=[which[k] for k in own.queries], documents=[which[k] for k in own.documents])
            for own in drawn
        ]
        every = samples[self.outputs[0]] if self.outputs else []
        tokens = sum(map(len, every)) + sum(len(own.batch.ids) for own in told)
        cut = sum(any(own.truncated for own in of_item) for of_item in zip(*samples.values(), strict=True))
        cut += sum(own.truncated for own in told)
        return TrainStep(number, at, rows, order, told, tokens, sum(len(s.images) for s in every), cut)

    def _spoken(
        self, task: int, examples: Sequence[Example], chosen: Sequence[int], own: range, number: int
    ) -> list[Spoken]:
        """The texts of a task whose losses read a language head."""
        return spoken(
            self.embedder,
            task,
            [texts_of(examples[k], chosen[k], self.sources[examples[k].source].columns) for k in own],
            self.stage.task[task].masking,
            budget=self.stage.batch_tokens,
            seeds=[[*self.seed, task, number, k] for k in own],
        )

    def _drawn(
        self,
        task: int,
        examples: Sequence[Example],
        chosen: Sequence[int],
        own: range,
        number: int,
        samples: dict[OutputKind, list[Sample]],
    ) -> Drawn:
        """A task that compares; its things come behind those that `samples` has, which say how many there are before them."""
        dropped: dict[int, str] = {}
        made: dict[int, Mapping[OutputKind, list[Sample]]] = {}
        for source in dict.fromkeys(examples[k].source for k in own):
            mine = [k for k in own if examples[k].source == source]
            shown = [_shown(examples[k], chosen[k], self.stage.task[task], [*self.seed, task, number, k]) for k in mine]
            found = _samples(self.embedder, self.sources[source], shown, self.outputs, self.kept)
            for k, each in zip(mine, found, strict=True):
                if isinstance(each, InputError):
                    reason = f"data {source!r}, row {examples[k].row}: {each.reason}"
                    if self.sources[source].on_error == "raise":
                        raise InputError(reason)
                    dropped[k] = reason
                else:
                    made[k] = each
        queries: list[int] = []
        documents: list[int] = []
        for of_row in (made[k] for k in own if k in made):  # in the order of the examples, whose sources are mixed
            first = len(samples[self.outputs[0]])
            for output, things in of_row.items():
                samples[output] += things
            queries.append(first)
            documents += range(first + 1, len(samples[self.outputs[0]]))
        return Drawn(task, chosen, own, queries, documents, dropped)


def _rows(
    model: EmbeddingModel, samples: Mapping[OutputKind, Sequence[Sample]], stage: Stage
) -> tuple[list[PackedRow], list[int], list[int]]:
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
    planned = plan(first, stage.batch_tokens, share=share, apart=apart, padded=model.padded)
    rows = []
    for places in planned:
        packed = {
            output: pack([own[k] for k in places], places, model.spec.mask, share=share) for output, own in once.items()
        }
        batch = next(iter(packed.values()))
        rows.append(PackedRow(batch, {output: own.counted for output, own in packed.items()}))
    return rows, [k for places in planned for k in places], which


def _shown(example: Example, chosen: int, task: Task, seed: Sequence[int]) -> tuple[Item, ...]:
    """Query, positive and negatives as augmentation shows them; what is one thing stays one thing."""
    items = (example.query, *example.documents(chosen))
    if not task.augment:
        return items
    rng = np.random.default_rng(seed)
    changed: dict[bytes, Item] = {}
    for item in items:
        if digest(item) not in changed:
            changed[digest(item)] = augmented(item, task.augment, rng, ease=task.ease)
    return tuple(changed[digest(item)] for item in items)


def _samples(
    embedder: Embedder,
    source: Source,
    rows: Sequence[Sequence[Item]],
    outputs: Sequence[OutputKind],
    kept: LRUCache[Hashable, Sample],
) -> list[Mapping[OutputKind, list[Sample]] | InputError]:
    """For each output the samples of each row of query, positive and negatives; or what is wrong with one of them."""
    asked, told = source.prompts(embedder.spec)
    items = [query for query, *_ in rows]
    things = [own for _, *own in rows]
    flat = [thing for own in things for thing in own]
    found: list[Mapping[OutputKind, list[Sample]] | InputError] = [{} for _ in rows]
    once: dict[Hashable, Sample | InputError] = {}
    for output in outputs:
        queries = _read(embedder, items, kept, once, asked, source.instruction, output, "query")
        documents = iter(_read(embedder, flat, kept, once, told, None, output, "document"))
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
    kept: LRUCache[Hashable, Sample],
    once: dict[Hashable, Sample | InputError],
    prompt_name: str | None,
    instruction: str | None,
    output: OutputKind,
    side: Literal["query", "document"],
) -> list[Sample | InputError]:
    """The samples of one side.

    Args:
        kept: of texts, which come again and again, and are tokenised once as long as there is room for them.
        once: of this batch, in which a picture may stand on both sides; its items live as long as this does.
    """
    name = embedder.spec.default_prompt_name if prompt_name is None else prompt_name
    read: Literal["vectors", "tokens", "sparse"] = "vectors" if output == "layers" else output
    asked = embedder.spec.instructions.get(str(name)) if instruction is None else instruction
    # Vectors hang on what a prompt says, not on what it is called or whose it is.
    way = (repr(embedder.spec.prompts.get(str(name))), asked, read, None if read == "vectors" else side)
    plain = [all(isinstance(part, Text) for part in item) for item in items]
    keys: list[Hashable] = [(way, item if text else id(item)) for item, text in zip(items, plain, strict=True)]
    fresh: dict[Hashable, tuple[Item, bool]] = {}
    for key, item, text in zip(keys, items, plain, strict=True):
        if key in once or key in fresh:
            continue
        sample = kept.get(key) if text else None
        if sample is None:
            fresh[key] = item, text
        else:
            once[key] = sample
    things = [item for item, _ in fresh.values()]
    made = embedder.samples(things, prompt_name=prompt_name, instruction=instruction, output=read, side=side)
    for (key, (_, text)), one in zip(fresh.items(), made, strict=True):
        once[key] = one
        if isinstance(one, Sample) and text:
            kept.put(key, one, ROOM_OF_ONE + one.ids.nbytes + one.counted.nbytes)
    return [once[key] for key in keys]


def idle(embedder: Embedder, outputs: Sequence[OutputKind], stage: Stage) -> PackedRow:
    """A row of which nothing is read: where weights lie in parts, a process with fewer rows than another runs with it."""
    assert isinstance(embedder.model, EmbeddingModel)
    samples: dict[OutputKind, list[Sample]] = {}
    for output in outputs:
        read: Literal["vectors", "tokens", "sparse"] = "vectors" if output == "layers" else output
        (sample,) = embedder.samples(["a"], output=read)
        assert isinstance(sample, Sample)
        samples[output] = [sample]
    rows, _, _ = _rows(embedder.model, samples, stage)
    return replace(rows[0], idle=True)
