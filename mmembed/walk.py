"""The walk of one call: things in windows -> samples -> batches by the plan -> what a model gives -> the caller's order."""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeAlias, TypedDict, TypeVar

import numpy as np
import torch
from torch import Tensor

from . import memory, prompts
from .batch import Batch, Sample, distinct, pack, plan
from .dual import DualEncoder
from .errors import InputError, SpecError, check_known
from .images import Image
from .inputs import Text, Thing, as_now, ordered, to_item
from .model import EmbeddingModel
from .nn.transfer import fetched
from .prefetch import Crew, Prefetcher, cores
from .report import Progress, Report, Skipped, warn
from .sampler import Sampler
from .wrapping import Wrapping

if TYPE_CHECKING:
    from numpy.typing import NDArray

Result = TypeVar("Result")
Arrays: TypeAlias = "Callable[[], Sequence[NDArray[Any]]]"
"""Waits for the tensors of a batch, and gives them."""
WINDOWS = {"cpu": (1024, 1024), "cuda": (1024, 4096)}
"""Items that are prepared and sorted by length together, the first time and later: enough for long runs of equal length, and
few at first, so that a device need not wait for many. On a CPU no more come later: 4,096 cost short texts 7 to 10 % there."""
SEEN = 128
"""Fewer where they hold so many pictures, whose pixels wait for their batch, and as many of the next window: up to 11 MB each in
a vision-language model."""
HELD = 2**28
"""And so many bytes of pictures that no list of the caller's holds: 256 MiB."""


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
        SpecError: batches of no tokens, or words that are neither a text nor several.
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
            check_known(kind, getattr(self, kind), known)
        for what in ("prompt", "instruction"):
            said = getattr(self, what)
            several = (
                isinstance(said, Sized) and hasattr(said, "__getitem__") and not isinstance(said, (bytes, Mapping))
            )
            if said is not None and not several:
                raise SpecError(f"{what}={said!r}: a text is wanted, or a list of one an item")
            if said is not None and not isinstance(said, str):  # a column of a table is asked for row 3 by another name
                object.__setattr__(self, what, list(ordered(said, f"{what}s")))
        if self.language is not None and not isinstance(self.language, str):
            raise SpecError(f"language={self.language!r}: a text is wanted, as 'en'")
        if self.batch_tokens is not None and not (
            isinstance(self.batch_tokens, (int, np.integer)) and self.batch_tokens >= 1
        ):
            raise SpecError(f"batch_tokens={self.batch_tokens!r}: an int is wanted, of one token at least")


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
        places: whose each is, counted from `first`; a thing that was skipped has none. skipped: these things.
    """

    first: int
    count: int
    results: list[Result]
    places: NDArray[np.int64]
    skipped: list[Skipped] = field(default_factory=list)


@dataclass(frozen=True)
class Prepared:
    """Things as samples: what is left to do needs the model alone.

    Attributes:
        samples: in order; a prompt of several templates makes several of a thing. rows: whose each is. count: how many things.
        first: the row of the first. skipped: things that make no sample.
    """

    samples: list[Sample]
    rows: list[int]
    count: int
    first: int = 0
    skipped: list[Skipped] = field(default_factory=list)


Begin = Callable[[Sequence[Sample], Sequence[int], Output[Any]], Arrays]
"""begin(samples, rows, output) -> what waits for the tensors of a batch that is on its way."""


def walk(
    model: EmbeddingModel | DualEncoder,
    inputs: Thing | Iterable[Thing],
    output: Output[Result],
    options: Options,
    begin: Begin,
    *,
    ahead_of: int = 1,
    first: int = 0,
    total: int | None = None,
) -> Generator[Window[Result], None, None]:
    """What `output` gives of every thing, in their order, a window of things at a time. The next window is prepared in
    threads meanwhile.

    Args:
        begin: what computes a batch, `compute` or another. ahead_of: how many are on their way beside the one waited for.
        first: the row of the first thing, where those before it were done another time. total: how many things there are
            to do, for those that do not say so themselves.

    Raises:
        As `Embedder.encode`: a wrong option at once.
    """
    things = many(inputs)
    wrapping = _wrapping(model, options)
    total = len(things) if isinstance(things, Sized) else total
    if total is not None:
        wrapping.check_count(first + total)  # a generator is counted as it goes
    return _walked(model, things, output, options, begin, wrapping, ahead_of, first, total)


def _walked(
    model: EmbeddingModel | DualEncoder,
    things: Iterable[Thing],
    output: Output[Result],
    options: Options,
    begin: Begin,
    wrapping: Wrapping,
    ahead_of: int,
    first: int,
    total: int | None,
) -> Generator[Window[Result], None, None]:
    began = time.perf_counter()
    told = options.report if options.report is not None else Report()
    already = len(told.skipped), len(told.truncated)
    told.batch_tokens = options.batch_tokens or budget(model)
    seen = first
    sizes = WINDOWS["cpu" if model.device.type == "cpu" else "cuda"]
    with Progress(total, options.show_progress_bar) as bar, Crew(cores()) as crew:

        def planned(window: tuple[int, list[Thing]]) -> _Computing[Result]:
            ready = _prepared(model, window[1], window[0], wrapping, options, output.sampler, crew.map)
            return _Computing(model, ready, output, options.on_error, told, bar, begin)

        with Prefetcher(_windows(things, first, *sizes), planned) as windows:
            computing = (own.opened() for own in windows)
            at_hand = isinstance(things, Sequence)  # any other source may be slow, and what is whole would wait for it
            for done in memory.uncollected_steps(_in_order(computing, ahead_of, lambda: at_hand and windows.awaited())):
                window = done.window()
                told.add(done.ready.samples, done.ready.rows, window.skipped)
                seen += window.count
                told.seconds, began = told.seconds + time.perf_counter() - began, time.perf_counter()
                yield window
                began = time.perf_counter()  # what the caller does with it is his
    wrapping.check_count(seen)
    warn(told, already, options.report is not None, model.spec.max_length)


def _in_order(
    windows: Iterator[_Computing[Result]], ahead_of: int, awaited: Callable[[], bool]
) -> Iterator[_Computing[Result]]:
    """Windows whose batches have all come back, in their order.

    Batches of the next window set out while the last ones of this are on their way: a device has something to do all the time.

    Args:
        awaited: waits for the next window; whether there is one that is worth to be waited for.
    """
    opened: deque[_Computing[Result]] = deque()
    flying: deque[tuple[_Computing[Result], list[int], Arrays]] = deque()
    for window in windows:
        opened.append(window)
        while True:
            while opened and opened[0].done:
                yield opened.popleft()
            due = next((own for own in opened if own.waiting), None)
            if due is not None and len(flying) <= ahead_of:
                places = due.waiting.popleft()
                if (arrays := due.begun(places)) is not None:
                    flying.append((due, places, arrays))
            elif flying and (due is not None or len(flying) > ahead_of or not awaited()):
                own, places, arrays = flying.popleft()
                own.land(places, arrays)
            else:
                break


def compute(
    model: EmbeddingModel | DualEncoder, samples: Sequence[Sample], rows: Sequence[int], output: Output[Any]
) -> Arrays:
    """One batch: packed, moved to the device, through the model, and on its way back to the host, which happens nowhere else.

    Raises:
        SpecError: the model is in training mode. It is not put into another here: threads share it, and who trains it may go on.
    """
    body = model.towers if isinstance(model, DualEncoder) else model.backbone
    if model.training or body.training:
        raise SpecError("the model is in training mode, where dropout makes vectors random: call model.eval() first")
    device = model.device
    if device.type == "cpu":
        memory.keep_freed()
    memory.trim()
    autocast = model.autocasts and torch.is_autocast_enabled(
        device.type
    )  # else what it computes in is said, not sensed
    with torch.inference_mode(), torch.autocast(device.type, enabled=autocast):
        with memory.uncollected():
            batch = pack(samples, rows, model.spec.mask, share=model.shares, price=model.price)
        batch = batch.to(device)
        return fetched(output.forward(batch, samples))


def budget(model: EmbeddingModel | DualEncoder) -> int:
    """Tokens of a batch, where the caller does not say how many."""
    return memory.budget(model.device, *model.token_sizes)


@memory.uncollected()
def batches_of(model: EmbeddingModel | DualEncoder, samples: Sequence[Sample], most: int) -> list[list[int]]:
    """Batches of samples, by their places, of `most` tokens, patches and padding at most (or of one sample)."""
    apart = [len(s.images) for s in samples] if model.native is not None and model.native.apart else ()
    return plan(samples, most, share=model.shares, price=model.price, apart=apart, padded=model.padded)


def prepare(
    model: EmbeddingModel | DualEncoder, things: Iterable[Thing], sampler: Sampler, options: Options
) -> Prepared:
    """Samples of things, all at once.

    Raises:
        As `Embedder.encode`.
    """
    things = things if isinstance(things, Sequence) else [as_now(thing) for thing in things]
    wrapping = _wrapping(model, options)
    wrapping.check_count(len(things))
    found = _prepared(model, things, 0, wrapping, options, sampler, map)
    if options.report is not None:
        options.report.add(found.samples, found.rows, found.skipped)
    return found


def many(inputs: Thing | Iterable[Thing]) -> Iterable[Thing]:
    """A list, a generator, ... is many things; anything that is one item is one.

    Raises:
        InputError: a set, or a table, see `ordered`.
    """
    one = isinstance(inputs, (str, bytes, bytearray, memoryview, tuple, Mapping)) or not isinstance(inputs, Iterable)
    if one or getattr(inputs, "ndim", 1) == 0:
        return [inputs]  # type: ignore[list-item]
    return ordered(inputs, "things")  # type: ignore[arg-type]


def count_tokens(
    model: EmbeddingModel | DualEncoder, inputs: Thing | Iterable[Thing], sampler: Sampler, options: Options
) -> list[int]:
    """Tokens of the samples that `sampler` makes; of a prompt with several templates the longest counts."""
    things = many(inputs)
    wrapping = _wrapping(model, options)
    if isinstance(things, Sized):
        wrapping.check_count(len(things))
    counts: list[int] = []
    for first, window in _windows(things, 0, *WINDOWS["cpu"]):
        found = _prepared(model, window, first, wrapping, options, sampler, map)
        counts += [0] * len(window)
        for row, sample in zip(found.rows, found.samples, strict=True):
            counts[row] = max(counts[row], len(sample))
    wrapping.check_count(len(counts))
    return counts


def _wrapping(model: EmbeddingModel | DualEncoder, options: Options) -> Wrapping:
    said = options
    return Wrapping(model.spec, said.prompt_name, said.prompt, said.instruction, said.language, said.joint)


def _windows(things: Iterable[Thing], first: int, size: int, later: int) -> Iterator[tuple[int, list[Thing]]]:
    window: list[Thing] = []
    seen = held = 0
    passing = not isinstance(things, Sequence)
    for thing in things:
        if passing:
            thing = as_now(thing)
            held += _bytes_held(thing)
        window.append(thing)
        seen += _pictures_in(thing)
        if len(window) == size or seen >= SEEN or held >= HELD:
            yield first, window
            first, window, seen, held, size = first + len(window), [], 0, 0, later
    if window:
        yield first, window


def _pictures_in(thing: Thing) -> int:
    """Pictures of an item; what is no item may be one."""
    if isinstance(thing, (str, Text)):
        return 0
    if isinstance(thing, tuple):
        return sum(map(_pictures_in, thing))
    if isinstance(thing, Mapping):
        shown: object = thing.get("image", [])
        return len(shown) if isinstance(shown, list) else 1
    return 1


def _bytes_held(thing: Thing) -> int:
    """Bytes of the pictures that an item holds in memory."""
    sources = [part.source for part in thing if isinstance(part, Image)] if isinstance(thing, tuple) else []
    return sum(len(source) if isinstance(source, bytes) else getattr(source, "nbytes", 0) for source in sources)


@memory.uncollected()
def _prepared(
    model: EmbeddingModel | DualEncoder,
    window: Sequence[Thing],
    first: int,
    wrapping: Wrapping,
    options: Options,
    sampler: Sampler,
    mapped: Callable[..., Iterable[Any]],
) -> Prepared:
    """The things that can be embedded, as samples; of the others the first is raised, or all are told."""
    against = None if model.intervention is None else model.intervention.against
    wrapped: list[list[prompts.Run]] = []
    compared: list[list[prompts.Run]] = []  # the same items under the prompt of an intervention
    rows: list[int] = []
    bad: dict[int, InputError] = {}
    for row, thing in enumerate(window, first):
        try:
            item = to_item(thing)
            ways = wrapping(item, row)
            if against is not None:
                compared += [wrapping.under(against, item)] * len(ways)
        except InputError as error:
            bad[row] = error
            if options.on_error == "raise":
                break  # after those before it, of which one may be bad too
            error.__traceback__ = None  # it holds this frame, which holds the error: only a search would free them
            continue
        wrapped += ways
        rows += [row] * len(ways)
    samples = sampler.samples(wrapped, options.truncate, mapped)
    if compared:
        samples = map(_beside, samples, sampler.samples(compared, options.truncate, mapped))
    made: list[tuple[int, Sample]] = []
    for row, sample in zip(rows, samples, strict=True):
        if isinstance(sample, InputError):
            bad.setdefault(row, sample)
            if options.on_error == "raise":
                break
        else:
            made.append((row, sample))
    if bad and options.on_error == "raise":
        row = min(bad)
        bad[row].item = row
        raise bad[row]
    made = [(row, sample) for row, sample in made if row not in bad] if bad else made
    skipped = [Skipped(row, error.reason) for row, error in sorted(bad.items())]
    return Prepared([sample for _, sample in made], [row for row, _ in made], len(window), first, skipped)


def _beside(sample: Sample | InputError, against: Sample | InputError) -> Sample | InputError:
    if isinstance(sample, InputError) or isinstance(against, InputError):
        return sample if isinstance(sample, InputError) else against
    return dataclasses.replace(sample, against=against)


class _Computing(Generic[Result]):
    """What the model gives of prepared things, equal ones computed once, in batches of `told.batch_tokens`, which is halved where
    memory runs out.

    Attributes:
        waiting: batches that are to begin, by the places of their samples.
    """

    def __init__(
        self,
        model: EmbeddingModel | DualEncoder,
        ready: Prepared,
        output: Output[Result],
        on_error: str,
        told: Report,
        bar: Progress,
        begin: Begin,
    ):
        self.ready = ready
        self._model, self._output, self._begin, self._told, self._bar = model, output, begin, told, bar
        self._raises = on_error == "raise"
        firsts, self._which = distinct(ready.samples)
        self._once = [ready.samples[k] for k in firsts]
        self._rows = [ready.rows[k] for k in firsts]
        self._found: list[Any] = [None] * len(firsts)
        self._failed: dict[int, InputError] = {}
        self._error: InputError | None = None
        self._left = len(firsts)
        self._plan(range(len(firsts)))

    def opened(self) -> _Computing[Result]:
        """Itself, when its turn has come: batches may have been halved since it was planned."""
        self._bar.expect(self.ready.count, sum(sample.cost for sample in self._once))
        if self._told.batch_tokens != self._planned_for:
            self._plan(range(len(self._once)))
        return self

    def _plan(self, places: Sequence[int]) -> None:
        self._planned_for = self._told.batch_tokens
        batches = batches_of(self._model, [self._once[k] for k in places], self._planned_for)
        self.waiting = deque([places[k] for k in batch] for batch in batches)

    @property
    def done(self) -> bool:
        return not self._left or self._error is not None

    def begun(self, places: list[int]) -> Arrays | None:
        """What waits for a batch that is on its way now; None where it could not set out."""
        arrays: list[Arrays] = []
        self._tried(places, lambda own, rows: arrays.append(self._begin(own, rows, self._output)))
        return arrays[0] if arrays else None

    def land(self, places: list[int], arrays: Arrays) -> None:
        """Take what a batch gives."""

        def read(own: list[Sample], rows: list[int]) -> None:
            for place, result in zip(places, self._output.read(arrays(), own, rows), strict=True):
                self._found[place] = result

        if self._tried(places, read):
            self._bar.done(sum(self._once[k].cost for k in places))
            self._left -= len(places)

    def _tried(self, places: list[int], act: Callable[[list[Sample], list[int]], object]) -> bool:
        """Whether it went well; what of the batch did not is smaller batches again, or has failed."""
        own, rows = [self._once[k] for k in places], [self._rows[k] for k in places]
        exhausted = ""
        bad: InputError | None = None
        try:
            act(own, rows)
        except InputError as error:
            bad = error
        except (MemoryError, RuntimeError) as error:  # torch's OutOfMemoryError is one
            if not memory.is_out_of_memory(error):
                raise
            exhausted = " ".join(str(error).split())[:200] or type(error).__name__
        # Outside the handlers: inside, the traceback would keep every tensor of the batch alive.
        if exhausted:
            memory.let_go(self._model.device)
            if len(places) > 1:
                self._told.halve(min(self._told.batch_tokens, sum(sample.cost for sample in own)))
                self._plan([*places, *(place for batch in self.waiting for place in batch)])
                return False
            what = f"its {own[0].cost} tokens and patches of images"
            bad = InputError(f"{what} do not fit into the memory of {self._model.device}: {exhausted}", rows[0])
        if bad is None:
            return True
        if not self._raises:
            bad.__traceback__ = None  # as in `_prepared`
        if bad.item is None:  # whose it is shows alone
            if len(places) > 1:
                self.waiting.extendleft([place] for place in reversed(places))
                return False
            bad.item = rows[0]
        if self._raises or bad.item not in rows:
            self._error = self._error or bad  # raised when those before it are given
            self.waiting.clear()
            return False
        place = places[rows.index(bad.item)]
        self._failed[place] = bad
        self._bar.done(self._once[place].cost)
        self._left -= 1
        if len(places) > 1:
            self.waiting.appendleft([k for k in places if k != place])
        return False

    def window(self) -> Window[Result]:
        """Its results.

        Raises:
            InputError: an item that the model cannot take, where the caller asked for that.
        """
        if self._error is not None:
            raise self._error
        ready, found, which = self.ready, self._found, self._which
        if not self._failed:
            places = _from(ready.rows, ready.first)
            return Window(ready.first, ready.count, [found[k] for k in which], places, ready.skipped)
        reasons = {row: self._failed[k].reason for row, k in zip(ready.rows, which, strict=True) if k in self._failed}
        kept = [k for k, row in enumerate(ready.rows) if row not in reasons]
        skipped = sorted(
            [*ready.skipped, *(Skipped(row, reason) for row, reason in reasons.items())], key=lambda each: each.row
        )
        rows_kept = _from([ready.rows[k] for k in kept], ready.first)
        return Window(ready.first, ready.count, [found[which[k]] for k in kept], rows_kept, skipped)


def _from(rows: Sequence[int], first: int) -> NDArray[np.int64]:
    return np.asarray(rows, dtype=np.int64) - first
