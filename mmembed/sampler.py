"""Items become numbers here, once: runs of text and images -> Sample, as one model wants them."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .batch import Picture, Sample, Slots
from .errors import InputError, SpecError, TruncationError
from .prompts import MARKED, PLACED, ImageRun, Placeholder, Run, TextRun
from .tokenizer import Tokenizer, Tokens

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .images import Image


CHARACTERS = 2
"""Characters of a token: a text of more will likely be cut. One of fewer is read once more then, by itself."""
Laid = tuple[TextRun, Tokens] | ImageRun | Placeholder
"""A run of an item with the tokens of its text."""
Pictured = tuple[Picture, list[int]]
"""A picture, and the tokens it takes in the row."""
Seen = Mapping[tuple[object, bool, int | None], "Pictured | InputError"]
"""Images by their source: one under several prompts is decoded once."""


@dataclass(frozen=True, slots=True)
class Mark:
    """How a vision-language model writes an image: `text`, in which the token `token`, number `number`, stands once;
    the image's own tokens take its place."""

    text: str
    token: str
    number: int


@dataclass(frozen=True, slots=True)
class Narrowing:
    """Which of the counted tokens of a sample are read: by an output of another kind, see `mmembed.outputs.Read`, maybe none,
    or by a pooling of one token.

    Attributes:
        skip: ids that are not read. only: ids beside which nothing is, None: any. ends: so many at the front and the end.
        pictured: whether the places of pictures are read; not where a token is read as the term that it is.
        edge: "first" or "last": of what is left, no other token is read.
    """

    skip: frozenset[int] = frozenset()
    only: frozenset[int] | None = None
    ends: tuple[int, int] = (0, 0)
    pictured: bool = True
    edge: str | None = None

    def __call__(self, sample: Sample) -> Sample:
        if self._plain:
            return sample if self.edge is None else _marked(sample, _edge(sample.counted, self.edge))
        counted = sample.counted.copy()
        places = np.flatnonzero(counted)
        counted[places[: self.ends[0]]] = False
        counted[places[max(len(places) - self.ends[1], 0) :]] = False
        for image in () if self.pictured else sample.images:
            counted[image.first : image.first + image.count] = False
        if self.skip:
            counted &= ~np.isin(sample.ids, list(self.skip))
        if self.only is not None:
            counted &= np.isin(sample.ids, list(self.only))
        return _marked(sample, counted if self.edge is None else _edge(counted, self.edge))

    @property
    def _plain(self) -> bool:
        """Whether nothing but an edge is asked for."""
        return not self.skip and self.only is None and self.ends == (0, 0) and self.pictured


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """Runs of text and images -> Sample, as one model wants them.

    Args:
        tokenizer: ids and special tokens.
        max_length: tokens of a sample at most.
        open, close: whether opening and closing tokens go around a sample.
        counted, span: which tokens pooling reads, see `ModelSpec`.
        narrow: which of them are read at all. words: own text -> words whose ids are the sample's `terms`.
        placed: whether every sample must hold a placeholder; if not, none may.
        prepare: RGB (H, W, 3) -> what the tower takes; image_ids: that -> the tokens it takes in the row, as numbers.
            None: text only.
        mark: how images stand in the text, where the model's own tokenizer has a token for them: an item is then one
            text, tokenised at once, as the processors of transformers do. None: the texts around them are tokenised
            each on its own.
        apart: text and pictures go to towers of their own: a picture takes no token of the text, and alone none stands
            around it. fused: whether an item may then have both, or several pictures.
        most: pictures of an item at most.
        fill: the id behind a text up to `max_length`, where the model reads its padding.
    """

    tokenizer: Tokenizer
    max_length: int
    open: bool = True
    close: bool = True
    counted: str = "all"
    span: tuple[int, int] | None = None
    narrow: Narrowing | None = None
    words: Callable[[str], Sequence[str]] | None = None
    placed: bool = False
    prepare: Callable[[NDArray[np.uint8]], Picture] | None = None
    image_ids: Callable[[Picture], list[int]] | None = None
    mark: Mark | None = None
    apart: bool = False
    fused: bool = True
    most: int | None = None
    fill: int | None = None

    def samples(
        self,
        items: Sequence[Sequence[Run]],
        truncate: str = "end",
        mapped: Callable[..., Iterable[Any]] = map,
    ) -> Iterator[Sample | InputError]:
        """One sample, or what is wrong with it, for each item; all texts are tokenised in one call.

        Args:
            mapped: as `map`, over the images: threads may share them.
        """
        written = items if self.mark is None else [[_joined(runs, self.mark)] for runs in items]
        texts = [run.text for runs in written for run in runs if isinstance(run, TextRun)]
        # Where a text is cut, spans say what of it is its own.
        located = self._locates or any(len(text) > CHARACTERS * self.max_length for text in texts)
        tokens = iter(self.tokenizer.encode(texts, located=located))
        by_part = self._by_part
        alone = (
            self.tokenizer.encode([_alone(self.counted, runs) for runs in items]) if by_part else [None] * len(items)
        )
        images = {_source(run.image): run.image for runs in items for run in runs if isinstance(run, ImageRun)}
        seen: Seen = dict(zip(images, mapped(self._pictured, list(images.values())), strict=True))
        for runs, texted, part in zip(items, written, alone, strict=True):
            own = [(run, next(tokens)) if isinstance(run, TextRun) else run for run in texted]
            try:
                sample = self._sample(own if self.mark is None else _split(own, runs, self.mark), truncate, seen)
                yield self._read(sample if part is None else self._less(sample, len(part.ids)), runs)
            except InputError as error:
                # Its traceback holds this frame, and `seen` the error: all pictures of a window.
                yield error.with_traceback(None)

    @property
    def _by_part(self) -> bool:
        """Whether it counts by how many tokens a part of the text makes by itself."""
        return self.counted in BY_PART

    def _less(self, sample: Sample, alone: int) -> Sample:
        """The sample, less the tokens that do not count by the number of those that a part of it makes by itself."""
        kept = sample.counted.copy()
        if self.counted == "tail":
            kept[: len(sample) + sample.truncated - alone] = False
        elif self.counted == "rest":
            kept[:alone] = False
        elif alone:
            kept[: len(self._prefix) + alone] = False
        if not kept.any():
            raise InputError("the item is empty: it has no token of its own")
        return replace(sample, counted=kept)

    def _read(self, sample: Sample, runs: Sequence[Run]) -> Sample:
        if self.narrow is not None:
            sample = self.narrow(sample)
        if self.words is None:
            return sample
        own = " ".join(text for run in runs if isinstance(run, TextRun) for text in run.own())
        ids = {number for tokens in self.tokenizer.encode(self.words(own)) for number in tokens.ids}
        return replace(sample, terms=np.asarray(sorted(ids), dtype=np.int64))

    @property
    def _locates(self) -> bool:
        """Whether it asks of every token which characters it stands for."""
        return self.placed or self.counted in BY_COPY

    @property
    def _prefix(self) -> list[int]:
        return self.tokenizer.prefix if self.open else []

    @property
    def _suffix(self) -> list[int]:
        return self.tokenizer.suffix if self.close else []

    def _sample(self, runs: Sequence[Laid], truncate: str, seen: Seen) -> Sample:
        ids, images = self._laid(runs, seen)
        pictures = len(images) if self.apart else 0
        excess = len(ids) - pictures - self.max_length
        copies = self._copies(runs, images, len(ids)) if excess > 0 or self.placed or self.counted in BY_COPY else []
        cut = 0
        if excess > 0:
            kept = self._kept(len(ids), copies, images, excess, truncate)
            cut = len(ids) - len(kept)
            ids, copies, images = [ids[k] for k in kept], [copies[k] for k in kept], _moved(images, kept)
        if self.fill is not None and len(ids) > pictures:
            filling = self.max_length + pictures - len(ids)
            ids, copies = ids + [self.fill] * filling, copies + [0] * filling
        row = np.array(ids, dtype=np.int64)
        placeholder = copies.index(PLACED) if self.placed else None
        return Sample(row, self._count(row, copies), tuple(images), cut, placeholder=placeholder)

    def _laid(self, runs: Sequence[Laid], seen: Seen) -> tuple[list[int], list[Slots]]:
        """The ids of a sample before it is cut, and the images among them."""
        worded = not self.apart or any(not isinstance(run, ImageRun) for run in runs)
        ids: list[int] = list(self._prefix) if worded else []
        images: list[Slots] = []
        placed = False
        for run in runs:
            if isinstance(run, ImageRun):
                pictured = seen[_source(run.image)]
                if isinstance(pictured, InputError):
                    raise pictured
                picture, own = pictured
                images.append(Slots(len(ids), len(own), picture))
                ids += own
            elif isinstance(run, Placeholder):
                ids.append(0)
                placed = True
            else:
                ids += run[1].ids
        if worded:
            ids += self._suffix
        if self.most is not None and len(images) > self.most:
            raise InputError(f"the item holds {len(images)} images, and here this model takes {self.most} at most")
        pictures = len(images) if self.apart else 0
        if len(ids) == pictures and worded:
            raise InputError("the item is empty: it has no token at all")
        if self.placed != placed:
            need = (
                "needs a prompt with {placeholder}" if self.placed else "has no use for the {placeholder} of its prompt"
            )
            raise InputError(f"the model {need}")
        if pictures + worded > 1 and not self.fused:
            raise InputError("this model has towers for a text and for a picture, and no vector for several together")
        return ids, images

    def _copies(self, runs: Sequence[Laid], images: Sequence[Slots], count: int) -> list[int]:
        """Which copy of the item each of the `count` tokens that `_laid` gives belongs to; 0 for none."""
        pictures = iter(images)
        copies: list[int] = []
        for run in runs:
            if isinstance(run, ImageRun):
                copies += [run.copy] * next(pictures).count
            elif isinstance(run, Placeholder):
                copies.append(PLACED)
            else:
                copies += _copies_of(run[1].spans, run[0].content)
        # What is left are the tokens around them; where there is nothing but pictures, of towers of their own, there are none.
        opening = len(self._prefix) if count > len(copies) else 0
        return [0] * opening + copies + [0] * (count - opening - len(copies))

    def _pictured(self, image: Image) -> Pictured | InputError:
        """What the tower takes of an image, or what is wrong with it."""
        if self.prepare is None or self.image_ids is None:
            return InputError("this model reads text only, and the item holds an image")
        try:
            picture = self.prepare(image.load())
            _ = picture.digest  # here, where threads share the work
            return picture, self.image_ids(picture)
        except InputError as error:
            return error

    def _kept(self, count: int, copies: list[int], images: list[Slots], excess: int, truncate: str) -> list[int]:
        """Which of `count` tokens stay: the last ones of the item's own text go, of every copy alike; its images, prompt and
        special tokens stay."""
        if truncate == "error":
            raise TruncationError(
                f"{self.max_length + excess} tokens are more than the {self.max_length} that the model reads"
            )
        pictured = {k for slots in images for k in range(slots.first, slots.first + slots.count)}
        own = [[k for k, mine in enumerate(copies) if mine == copy and k not in pictured] for copy in _present(copies)]
        each = -(-excess // len(own)) if own else 0
        least = each if pictured else each + 1  # of an item without pictures some word stays, or there is nothing of it
        if not own or any(len(places) < least for places in own):
            text = sum(map(len, own))
            raise InputError(
                f"prompt and images alone take {count - text} of the {self.max_length} tokens that the model reads"
            )
        gone = {k for places in own for k in places[-each:]}
        return [k for k in range(count) if k not in gone]

    def _count(self, ids: NDArray[np.int64], copies: list[int]) -> NDArray[np.bool_]:
        if self.counted == "all":
            return _every(len(ids))
        every = np.ones(len(ids), dtype=bool)
        if self.counted == "content" and _present(copies):
            every[: next(k for k, copy in enumerate(copies) if copy > 0)] = False
        elif self.counted == "repeat" and _present(copies):
            every[: copies.index(max(copies))] = False
        elif self.counted == "marked":
            if MARKED not in copies:
                raise InputError("counted='marked', and the prompt has no words after {counted}")
            every[: copies.index(MARKED)] = False
        elif self.counted == "eos":
            if not self._suffix:
                raise InputError("counted='eos', and no token closes an item")
            every[:-1] = False
        elif self.counted == "span" and self.span is not None:
            opening, closing = np.flatnonzero(ids == self.span[0]), np.flatnonzero(ids == self.span[1])
            if len(opening) and len(closing) and opening[0] <= closing[-1]:
                every[: opening[0]] = False
                every[closing[-1] + 1 :] = False
        return every


@dataclass(frozen=True, kw_only=True)
class ChunkSampler(Sampler):
    """Samples whose parts are pooled one by one, every token having read the others: late chunking (arXiv 2409.04701).

    The tokens that are counted fall to the parts: those before the first, prompt and opening tokens, to the first; those after
    the last, closing tokens, to the last; and a token across a border to the part that has its last character.

    Args:
        window: a longer item is read so many tokens at a time (long late chunking); None: max_length is its limit.
        overlap: tokens at the front of a later window that the one before has read too, and whose states there are kept.
    """

    window: int | None = None
    overlap: int = 0

    @property
    def _locates(self) -> bool:
        return True

    @property
    def _by_part(self) -> bool:
        return False  # whose words a token holds is known here

    def _count(self, ids: NDArray[np.int64], copies: list[int]) -> NDArray[np.bool_]:
        counted = super()._count(ids, copies)
        if self.counted == "unprompted" and _present(copies):
            first = next(k for k, copy in enumerate(copies) if copy > 0)
            if first > len(self._prefix):
                counted = np.arange(len(ids)) >= first
        return counted

    def _sample(self, runs: Sequence[Laid], truncate: str, seen: Seen) -> Sample:
        ids, images = self._laid(runs, seen)
        copies = self._copies(runs, images, len(ids))
        if self.placed:
            raise InputError("the parts of an item are not pooled one by one under an intervention with a placeholder")
        owners, parts = self._owners(runs, images, len(ids))
        excess = len(ids) - self.max_length if self.window is None else 0
        cut = 0
        if excess > 0:
            kept = self._kept(len(ids), copies, images, excess, truncate)
            cut = len(ids) - len(kept)
            # A last part that is cut does not reach the closing tokens, as the authors have it.
            owners[max(k for k, copy in enumerate(copies) if copy > 0) + 1 :] = -1
            ids, copies, images = [ids[k] for k in kept], [copies[k] for k in kept], _moved(images, kept)
            owners = owners[kept]
        row = np.asarray(ids, dtype=np.int64)
        counted = self._count(row, copies) & (owners >= 0)
        chunks = [np.flatnonzero(counted & (owners == part)) for part in range(parts)]
        if excess <= 0 and not all(len(chunk) for chunk in chunks):
            lacking = next(part for part, chunk in enumerate(chunks) if not len(chunk))
            raise InputError(f"its part {lacking} has no token of its own; leave it out, or join it to another")
        sample = Sample(row, counted, tuple(images), cut, None, tuple(chunks))
        return sample if self.window is None or len(row) <= self.window else self._in_windows(sample, self.window)

    def _owners(self, runs: Sequence[Laid], images: Sequence[Slots], count: int) -> tuple[NDArray[np.int64], int]:
        """The part that each token falls to, and how many parts there are."""
        owners: list[int | None] = [None] * len(self._prefix)
        numbers: set[int] = set()
        pictures = iter(images)
        current: int | None = None
        for run in runs:
            if isinstance(run, ImageRun):
                current = run.part
                owners += [current] * next(pictures).count
                numbers.add(current)
            elif isinstance(run, Placeholder):
                owners.append(current)
            else:
                text, tokens = run
                firsts = [first for first, _ in text.parts]
                for begin, end in tokens.spans:
                    before = bisect(firsts, max(begin, end - 1))
                    current = text.parts[before - 1][1] if before else current
                    owners.append(current)
                numbers |= {part for _, part in text.parts}
        owners += [current] * (count - len(owners))
        first = next((owner for owner in owners if owner is not None), 0)
        return np.array([first if owner is None else owner for owner in owners]), max(numbers, default=0) + 1

    def _in_windows(self, sample: Sample, window: int) -> Sample:
        if sample.images:
            raise InputError(
                f"it takes {len(sample)} tokens, and an item with pictures is not read in windows of {window}"
            )
        step = window - self.overlap
        # A window that would hold nothing but what the one before has read has no state to give.
        firsts = [k for k in range(0, len(sample), step) if k == 0 or len(sample) - k > self.overlap]
        rows = [np.arange(first, min(first + window, len(sample))) for first in firsts]
        laid = np.concatenate(rows)
        new = np.concatenate([np.arange(len(row)) >= (self.overlap if k else 0) for k, row in enumerate(rows)])
        where = np.empty(len(sample), dtype=np.int64)
        where[laid[new]] = np.flatnonzero(new)
        counted = np.zeros(len(laid), dtype=bool)
        counted[where[sample.counted]] = True
        chunks = tuple(where[chunk] for chunk in sample.chunks or ())
        return Sample(sample.ids[laid], counted, (), sample.truncated, tuple(map(len, rows)), chunks)


def _source(image: Image) -> tuple[object, bool, int | None]:
    """Equal for images of one path, and for those of one object in memory, that are read in one way."""
    return (image.source if isinstance(image.source, str) else id(image.source), image.allow_url, image.draft)


def _moved(images: Sequence[Slots], kept: Sequence[int]) -> list[Slots]:
    """Images where they lie among the tokens that stay, to which all of theirs belong."""
    return [Slots(bisect(kept, slots.first) - 1, slots.count, slots.picture) for slots in images]


def _joined(runs: Sequence[Run], mark: Mark) -> TextRun:
    """An item as one text, its images by their mark."""
    whole = TextRun()
    for run in runs:
        if isinstance(run, TextRun):
            first = len(whole.text)
            whole.content += [(first + begin, first + end, copy) for begin, end, copy in run.content]
            whole.parts += [(first + begin, part) for begin, part in run.parts]
            whole.text += run.text
        elif isinstance(run, ImageRun):
            whole.add(mark.text, 0, run.part)
        else:
            raise InputError(
                "a vision-language model of transformers takes no {placeholder}: it makes its states itself"
            )
    return whole


def _split(whole: Sequence[Laid], runs: Sequence[Run], mark: Mark) -> list[Laid]:
    """The tokens of `_joined` text, cut at its images.

    Raises:
        InputError: a text that itself holds the token of an image: it would be taken for one.
        SpecError: the tokenizer does not keep that token whole.
    """
    if any(mark.token in run.text for run in runs if isinstance(run, TextRun)):
        raise InputError(f"the text holds {mark.token!r}, which stands for a picture in this model; write it otherwise")
    images = [run for run in runs if isinstance(run, ImageRun)]
    ((text, tokens),) = (each for each in whole if isinstance(each, tuple))
    places = [k for k, number in enumerate(tokens.ids) if number == mark.number]
    if len(places) != len(images):
        raise SpecError(f"the tokenizer found {len(places)} tokens {mark.token!r} for {len(images)} images")
    parts: list[Laid] = []
    for first, place, image in zip([0, *(k + 1 for k in places)], places, images, strict=False):
        parts += [(text, tokens[first:place]), image]
    last = places[-1] + 1 if places else 0
    return [*parts, (text, tokens[last:])]


BY_COPY = ("content", "repeat", "marked")
"""Ways of counting that ask whose words a token holds."""
BY_PART = ("tail", "rest", "unprompted")
"""Ways of counting by how many tokens a part of the text makes by itself."""


def _alone(counted: str, runs: Sequence[Run]) -> str:
    """The part of a text whose tokens, made by themselves, say how many are counted: its own content to the end, or the
    words before it."""
    run = runs[-1 if counted == "tail" else 0] if runs else None
    if not isinstance(run, TextRun) or not run.content:
        return ""
    begin = run.content[0][0]
    return run.text[begin:] if counted == "tail" else run.text[:begin]


def _copies_of(spans: Sequence[tuple[int, int]], content: list[tuple[int, int, int]]) -> list[int]:
    """Which copy of the item each token of a text belongs to, 0 for none. Some stand for no character by their spans, all bytes
    of one but the last, and spaces that RoBERTa's tokenizer trims: between two tokens of a copy, and behind the last token of the
    text, they are of it."""
    copies = [_copy_of(span, content) for span in spans]
    empty = [begin >= end for begin, end in spans]
    after: list[int | None] = [None] * len(copies)
    for k in reversed(range(len(copies) - 1)):
        after[k] = after[k + 1] if empty[k + 1] else copies[k + 1]
    for k in range(1, len(copies)):
        if empty[k] and after[k] in (None, copies[k - 1]):
            copies[k] = copies[k - 1]
    return copies


def _copy_of(span: tuple[int, int], content: list[tuple[int, int, int]]) -> int:
    """Which copy of the item a token holds a character of, 0 for none; one that straddles the border does, but not that of
    marked words, which begin with the first token of their own."""
    begin, end = span
    own = ((a, copy) for a, b, copy in content if begin < end and a < end and begin < b)
    return next((copy for a, copy in own if copy != MARKED or begin >= a), 0)


def _every(count: int) -> NDArray[np.bool_]:
    """All of `count` tokens. One array serves all items; it is not to be written to, and cannot be."""
    if count > len(_EVERY):
        return np.ones(count, dtype=bool)
    return _EVERY[:count]


_EVERY = np.ones(1 << 15, dtype=bool)
_LAST = np.zeros(1 << 15, dtype=bool)
_LAST[-1] = True
_EVERY.flags.writeable = _LAST.flags.writeable = False


def _edge(counted: NDArray[np.bool_], edge: str) -> NDArray[np.bool_]:
    """The first or the last of what is counted, and no other; it is not to be written to."""
    if edge == "last" and 0 < len(counted) <= len(_LAST) and counted[-1]:  # most are, and one array serves them all
        return _LAST[-len(counted) :]
    read = np.flatnonzero(counted)[:1] if edge == "first" else np.flatnonzero(counted)[-1:]
    counted = np.zeros_like(counted)
    counted[read] = True
    return counted


def _marked(sample: Sample, counted: NDArray[np.bool_]) -> Sample:
    """The sample with other tokens counted; `replace` takes three times as long, and there are many samples."""
    own = sample
    return Sample(
        own.ids, counted, own.images, own.truncated, own.windows, own.chunks, own.terms, own.placeholder, own.against
    )


def _present(copies: list[int]) -> list[int]:
    return sorted({copy for copy in copies if copy > 0})
