"""Items become numbers here, once: Sample (one item), Batch (one packed row of many), and the plan by token budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from .errors import InputError, TruncationError
from .nn.spans import Counted, Spans
from .prompts import ImageRun, Run, TextRun
from .tokenizer import Tokenizer, Tokens

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .images import Image

Pixels = "NDArray[np.uint8]"


@dataclass(frozen=True, slots=True)
class Slots:
    """Where the tokens of one image lie in a sample, and its pixels as the tower takes them: uint8 (3, H, W)."""

    first: int
    count: int
    pixels: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Sample:
    """One item as numbers.

    Attributes:
        ids: (T,) int64; what stands at image slots is never read.
        counted: (T,) bool, what pooling reads; at least one is true.
        images: its images in order.
        truncated: tokens that were cut off.
    """

    ids: NDArray[np.int64]
    counted: NDArray[np.bool_]
    images: tuple[Slots, ...]
    truncated: int

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def cost(self) -> int:
        """What it takes of a batch's budget: a token each, and one for every 14 x 14 pixels, a patch of its tower."""
        return len(self.ids) + sum(image.pixels.size // (3 * 14 * 14) for image in self.images)


@dataclass(frozen=True)
class Batch:
    """Many samples as one packed row of T tokens.

    Attributes:
        ids: (T,) token numbers. spans: what attends to what, and positions. counted: what is pooled.
        pixels: one uint8 (3, H, W) an image, in the order of their slots. slots: (S,) where their tokens lie in the row.
        rows: the caller's row of each of the B items.
    """

    ids: Int[Tensor, " T"]
    spans: Spans
    counted: Counted
    pixels: tuple[NDArray[np.uint8], ...]
    slots: Int[Tensor, " S"]
    rows: tuple[int, ...]

    def to(self, device: torch.device | str) -> Batch:
        return Batch(
            self.ids.to(device, non_blocking=True),
            self.spans.to(device),
            self.counted.to(device),
            self.pixels,
            self.slots.to(device, non_blocking=True),
            self.rows,
        )


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """Runs of text and images -> Sample, as one model wants them.

    Args:
        tokenizer: ids and special tokens.
        max_length: tokens of a sample at most.
        close: whether closing tokens end a sample. counted, span: which tokens pooling reads, see `ModelSpec`.
        prepare: RGB (H, W, 3) -> pixels of the tower; image_tokens: pixels -> number of tokens. None: text only.
    """

    tokenizer: Tokenizer
    max_length: int
    close: bool = True
    counted: str = "all"
    span: tuple[int, int] | None = None
    prepare: Callable[[NDArray[np.uint8]], NDArray[np.uint8]] | None = None
    image_tokens: Callable[[NDArray[np.uint8]], int] | None = None

    def samples(self, items: Sequence[Sequence[Run]], truncate: str = "end") -> Iterator[Sample | InputError]:
        """One sample, or what is wrong with it, for each item; all texts are tokenised in one call."""
        texts = [run.text for runs in items for run in runs if isinstance(run, TextRun)]
        tokens = iter(self.tokenizer.encode(texts))
        for runs in items:
            own = [(run, next(tokens)) if isinstance(run, TextRun) else run for run in runs]
            try:
                yield self._sample(own, truncate)
            except InputError as error:
                yield error

    @property
    def _suffix(self) -> list[int]:
        return self.tokenizer.suffix if self.close else []

    def _sample(self, runs: Sequence[tuple[TextRun, Tokens] | ImageRun], truncate: str) -> Sample:
        ids: list[int] = list(self.tokenizer.prefix)
        copies: list[int] = [0] * len(ids)
        images: list[Slots] = []
        for run in runs:
            if isinstance(run, ImageRun):
                slots = self._slots(run.image, len(ids))
                images.append(slots)
                ids += [0] * slots.count
                copies += [run.copy] * slots.count
            else:
                text, tokens = run
                ids += tokens.ids
                copies += [_copy_of(span, text.content) for span in tokens.spans]
        ids += self._suffix
        copies += [0] * len(self._suffix)
        if not ids:
            raise InputError("the item is empty: it has no token at all")
        excess = len(ids) - self.max_length
        if excess > 0:
            ids, copies, images = self._cut(ids, copies, images, excess, truncate)
        row = np.asarray(ids, dtype=np.int64)
        return Sample(row, self._count(row, copies), tuple(images), max(excess, 0))

    def _slots(self, image: Image, first: int) -> Slots:
        if self.prepare is None or self.image_tokens is None:
            raise InputError("this model reads text only, and the item holds an image")
        pixels = self.prepare(image.load())
        return Slots(first, self.image_tokens(pixels), pixels)

    def _cut(
        self, ids: list[int], copies: list[int], images: list[Slots], excess: int, truncate: str
    ) -> tuple[list[int], list[int], list[Slots]]:
        """The last tokens of the item's own text go, of every copy alike; its images, prompt and special tokens stay."""
        if truncate == "error":
            raise TruncationError(f"{len(ids)} tokens are more than the {self.max_length} that the model reads")
        pictured = {k for slots in images for k in range(slots.first, slots.first + slots.count)}
        own = [[k for k, mine in enumerate(copies) if mine == copy and k not in pictured] for copy in _present(copies)]
        each = -(-excess // len(own)) if own else 0
        if not own or any(len(places) < each for places in own):
            text = sum(map(len, own))
            raise InputError(
                f"prompt and images alone take {len(ids) - text} of the {self.max_length} tokens that the model reads"
            )
        gone = {k for places in own for k in places[-each:]}
        kept = [k for k in range(len(ids)) if k not in gone]
        moved = [Slots(s.first - sum(k < s.first for k in gone), s.count, s.pixels) for s in images]
        return [ids[k] for k in kept], [copies[k] for k in kept], moved

    def _count(self, ids: NDArray[np.int64], copies: list[int]) -> NDArray[np.bool_]:
        every = np.ones(len(ids), dtype=bool)
        if self.counted == "content" and any(copies):
            every[: next(k for k, copy in enumerate(copies) if copy)] = False
        elif self.counted == "repeat" and any(copies):
            every[: copies.index(max(copies))] = False
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


def _copy_of(span: tuple[int, int], content: list[tuple[int, int, int]]) -> int:
    """Which copy of the item a token holds a character of, 0 for none; one that straddles the border does."""
    begin, end = span
    return next((copy for a, b, copy in content if begin < end and a < end and begin < b), 0)


def _present(copies: list[int]) -> list[int]:
    return sorted({copy for copy in copies if copy})


def plan(costs: Sequence[int], budget: int) -> list[list[int]]:
    """Rows grouped into batches that cost at most `budget` (or one row), dearest first, so that equals stand side by side."""
    order = sorted(range(len(costs)), key=lambda row: (-costs[row], row))
    batches: list[list[int]] = []
    used = 0
    for row in order:
        if not batches or used + costs[row] > budget:
            batches.append([])
            used = 0
        batches[-1].append(row)
        used += costs[row]
    return batches


def pack(samples: Sequence[Sample], rows: Sequence[int], mask: str | None) -> Batch:
    """Samples laid one after the other as one row, under the mask of a model's own spec."""
    assert mask is not None, "a model resolves its mask when it is built"
    lengths = [len(sample) for sample in samples]
    firsts = np.cumsum([0, *lengths[:-1]])
    block = np.full(sum(lengths), -1, dtype=np.int64)
    slots: list[NDArray[np.int64]] = []
    pixels: list[NDArray[np.uint8]] = []
    for sample, first in zip(samples, firsts, strict=True):
        for image in sample.images:
            where = np.arange(image.count) + image.first + first
            block[where] = len(pixels)
            slots.append(where)
            pixels.append(image.pixels)
    counted = np.concatenate([sample.counted for sample in samples])
    owner = np.repeat(np.arange(len(samples)), lengths)
    return Batch(
        ids=torch.from_numpy(np.concatenate([sample.ids for sample in samples])),
        spans=Spans.of(lengths, mask, torch.from_numpy(block)),  # type: ignore[arg-type]
        counted=Counted(
            torch.from_numpy(np.flatnonzero(counted)), torch.from_numpy(owner[counted].astype(np.int64)), len(samples)
        ),
        pixels=tuple(pixels),
        slots=torch.from_numpy(np.concatenate(slots)) if slots else torch.empty(0, dtype=torch.long),
        rows=tuple(rows),
    )
