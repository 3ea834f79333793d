"""The walk of one call: things in windows -> samples -> batches by the plan -> what a model gives -> the caller's order."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, TypedDict, TypeVar

import numpy as np
import torch
from torch import Tensor

from . import prompts
from .batch import Batch, Sample, Sampler, distinct, pack, plan
from .dual import DualEncoder
from .errors import InputError, UnknownName
from .inputs import Text, Thing, to_item
from .model import EmbeddingModel
from .nn.transfer import fetched
from .report import Report, Skipped, progress, warn
from .wrapping import Wrapping

if TYPE_CHECKING:
    from numpy.typing import NDArray

Result = TypeVar("Result")
WINDOW = 1024
"""Items that are prepared and sorted by length together: enough for long runs of equal length."""
SEEN = 256
"""Of them at most so many with images, whose pixels wait for their batch: up to 11 MB each in a vision-language model."""
BUDGET = {"cpu": 4096, "cuda": 32768}
"""Tokens of one batch: on a CPU more falls out of cache, on a GPU less leaves it idle."""


class WalkOptions(TypedDict, total=False):
    """Keywords that every way to encode takes, as `Embedder.encode` tells them."""

    prompt_name: str | None
    prompt: str | Sequence[str] | None
    instruction: str | Sequence[str] | None
    language: str | None
    truncate: Literal["end", "error"]
    on_error: Literal["raise", "skip"]
    batch_tokens: int | None
    report: Report | None
    show_progress_bar: bool


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a caller says of one call, as `Embedder.encode` tells it, and what stands between two texts of an item.

    Raises:
        UnknownName: no such way to truncate or to treat errors.
    """

    prompt_name: str | None = None
    prompt: str | Sequence[str] | None = None
    instruction: str | Sequence[str] | None = None
    language: str | None = None
    truncate: Literal["end", "error"] = "end"
    on_error: Literal["raise", "skip"] = "raise"
    batch_tokens: int | None = None
    report: Report | None = None
    show_progress_bar: bool = False
    joint: str = " "

    def __post_init__(self) -> None:
        for kind, known in (("truncate", ("end", "error")), ("on_error", ("raise", "skip"))):
            if getattr(self, kind) not in known:
                raise UnknownName(kind, getattr(self, kind), known)


@dataclass(frozen=True)
class Output(Generic[Result]):
    """A kind of what a model gives of an item: vectors, token vectors, sparse weights.

    Attributes:
        sampler: makes the samples, which say what is read.
        forward: a batch and its samples -> tensors, on the device of the model.
        read: these tensors on the host, samples and their rows -> a result for every sample. It raises InputError for a row.
    """

    sampler: Sampler
    forward: Callable[[Batch, Sequence[Sample]], Sequence[Tensor]]
    read: Callable[[Sequence[NDArray[np.float32]], Sequence[Sample], Sequence[int]], Iterable[Result]]


@dataclass(frozen=True)
class Window(Generic[Result]):
    """What came of neighbouring things.

    Attributes:
        first: the row of the first. count: how many things. results: of every sample; a prompt may make several of a thing.
        places: whose each is, counted from `first`; a thing that was skipped has none.
    """

    first: int
    count: int
    results: list[Result]
    places: NDArray[np.int64]


def walk(
    model: EmbeddingModel | DualEncoder,
    inputs: Thing | Iterable[Thing],
    output: Output[Result],
    options: Options,
) -> Iterator[Window[Result]]:
    """What `output` gives of every thing, in their order, a window of things at a time.

    Raises:
        As `Embedder.encode`.
    """
    began = time.perf_counter()
    told = options.report if options.report is not None else Report()
    first_new = len(told.skipped), len(told.truncated)
    things = many(inputs)
    wrapping = _wrapping(model, options)
    if isinstance(things, Sized):
        wrapping.check_count(len(things))  # before any work; a generator is counted as it goes
    bar = progress(things, options.show_progress_bar)
    budget = options.batch_tokens or BUDGET.get(model.device.type, BUDGET["cpu"])
    native = model.native
    seen = 0
    for first, window in _windows(things):
        rows, samples = _samples(model, window, first, wrapping, options, told, output.sampler)
        firsts, which = distinct(samples)
        once = [samples[k] for k in firsts]
        found: list[Any] = [None] * len(firsts)
        apart = [len(s.images) for s in once] if native is not None and native.apart else ()
        for places in plan(once, budget, share=model.shares, apart=apart):
            own = [once[place] for place in places]
            for place, result in zip(
                places, compute(model, own, [rows[firsts[place]] for place in places], output), strict=True
            ):
                found[place] = result
            bar.update(len(places) * len(window) / len(firsts))
        told.items += len(set(rows))
        seen += len(window)
        yield Window(first, len(window), [found[place] for place in which], np.asarray(rows, dtype=np.int64) - first)
    bar.close()
    told.seconds += time.perf_counter() - began
    wrapping.check_count(seen)
    warn(told, first_new, options.report is not None, model.spec.max_length)


def compute(
    model: EmbeddingModel | DualEncoder, samples: Sequence[Sample], rows: Sequence[int], output: Output[Result]
) -> Iterable[Result]:
    """One batch: packed, moved to the device, through the model, and back to the host, which happens nowhere else."""
    with torch.inference_mode():
        batch = pack(samples, rows, model.spec.mask, share=model.shares).to(model.device)
        return output.read(fetched(output.forward(batch, samples))(), samples, rows)


@dataclass(frozen=True)
class Prepared:
    """Things as samples: what is left to do needs the model alone.

    Attributes:
        samples: in order; a prompt of several templates makes several of a thing. rows: whose each is. count: how many things.
    """

    samples: list[Sample]
    rows: list[int]
    count: int


def prepare(
    model: EmbeddingModel | DualEncoder, things: Sequence[Thing], sampler: Sampler, options: Options
) -> Prepared:
    """Samples of things, all at once.

    Raises:
        As `Embedder.encode`.
    """
    wrapping = _wrapping(model, options)
    wrapping.check_count(len(things))
    told = options.report if options.report is not None else Report()
    rows, samples = _samples(model, things, 0, wrapping, options, told, sampler)
    return Prepared(samples, rows, len(things))


def many(inputs: Thing | Iterable[Thing]) -> Iterable[Thing]:
    """A list, a generator, ... is many things; anything that is one item is one."""
    one = isinstance(inputs, (str, tuple, Mapping)) or not isinstance(inputs, Iterable)
    return [inputs] if one else inputs  # type: ignore[list-item, return-value]


def count_tokens(
    model: EmbeddingModel | DualEncoder, inputs: Thing | Iterable[Thing], sampler: Sampler, options: Options
) -> list[int]:
    """Tokens of the samples that `sampler` makes; of a prompt with several templates the longest counts."""
    things = list(many(inputs))
    wrapping = _wrapping(model, options)
    wrapping.check_count(len(things))
    counts = [0] * len(things)
    for first, window in _windows(things):
        rows, samples = _samples(model, window, first, wrapping, options, Report(), sampler)
        for row, sample in zip(rows, samples, strict=True):
            counts[row] = max(counts[row], len(sample))
    return counts


def _wrapping(model: EmbeddingModel | DualEncoder, options: Options) -> Wrapping:
    said = options
    return Wrapping(model.spec, said.prompt_name, said.prompt, said.instruction, said.language, said.joint)


def _windows(things: Iterable[Thing]) -> Iterator[tuple[int, list[Thing]]]:
    first, window, seen = 0, [], 0
    for thing in things:
        window.append(thing)
        seen += not isinstance(thing, (str, Text))
        if len(window) == WINDOW or seen == SEEN:
            yield first, window
            first, window, seen = first + len(window), [], 0
    if window:
        yield first, window


def _samples(
    model: EmbeddingModel | DualEncoder,
    window: Sequence[Thing],
    first: int,
    wrapping: Wrapping,
    options: Options,
    told: Report,
    sampler: Sampler,
) -> tuple[list[int], list[Sample]]:
    """Rows and samples of the things that can be embedded; the others are raised or reported."""
    wrapped: list[list[prompts.Run]] = []
    compared: list[list[prompts.Run]] = []  # the same items under the prompt of an intervention
    rows: list[int] = []
    bad: set[int] = set()

    def failed(row: int, error: InputError) -> None:
        if options.on_error == "raise":
            error.item = row
            raise error
        bad.add(row)
        told.skipped.append(Skipped(row, error.reason))

    for row, thing in enumerate(window, first):
        try:
            item = to_item(thing)
            ways = wrapping(item, row)
            if model.intervention is not None and model.intervention.against is not None:
                compared += [wrapping.under(model.intervention.against, item)] * len(ways)
            wrapped += ways
            rows += [row] * len(ways)
        except InputError as error:
            failed(row, error)
    made: list[Sample | None] = []
    samples = sampler.samples(wrapped, options.truncate)
    if compared:
        samples = map(_beside, samples, sampler.samples(compared, options.truncate))
    for row, sample in zip(rows, samples, strict=True):
        if isinstance(sample, InputError):
            made.append(None)
            if row not in bad:
                failed(row, sample)
        else:
            made.append(sample)
    kept = [(row, s) for row, s in zip(rows, made, strict=True) if s is not None and row not in bad]
    told.skipped.sort(key=lambda skipped: skipped.row)
    told.truncated += sorted({row for row, s in kept if s.truncated})
    told.tokens += sum(len(s) for _, s in kept)
    told.images += sum(len(s.images) for _, s in kept)
    return [row for row, _ in kept], [s for _, s in kept]


def _beside(sample: Sample | InputError, against: Sample | InputError) -> Sample | InputError:
    if isinstance(sample, InputError) or isinstance(against, InputError):
        return sample if isinstance(sample, InputError) else against
    return dataclasses.replace(sample, against=against)
