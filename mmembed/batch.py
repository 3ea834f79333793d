"""Samples become batches: Sample (one item as numbers), Batch (one packed row of many), and the plan by token budget."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from .nn.spans import Counted, Spans, Stretch, numbered
from .nn.transfer import to_device
from .prefix_tree import Segment, tree

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Picture:
    """An image as a vision tower takes it.

    Attributes:
        pixels: uint8, (3, H, W) for a composed tower; the tower inside a vision-language model has shapes of its own.
        also: what else such a model is told of it (grids, sizes, tiles), by the names that its forward has for them.
        numbers: (A, n) how far its tokens stand from where it begins, along A axes of which the model is told (M-RoPE of
            Qwen-VL: time, row and column); what follows goes on behind the greatest. None: one after another.
    """

    pixels: NDArray[np.uint8]
    also: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    numbers: NDArray[np.int64] | None = None

    @cached_property
    def digest(self) -> bytes:
        """Equal exactly where pictures are."""
        told = hashlib.sha256()  # by instructions of the processor twice as fast as blake2b
        arrays: dict[str, NDArray[Any]] = {"": self.pixels, **self.also}
        for name, value in sorted(arrays.items()):
            told.update(f"{name} {value.dtype} {value.shape} ".encode())
            told.update(np.ascontiguousarray(value).data)
        return told.digest()


@dataclass(frozen=True, slots=True)
class Slots:
    """Where the tokens of one image lie in a sample."""

    first: int
    count: int
    picture: Picture

    @property
    def cost(self) -> int:
        """What its tower takes of a batch's budget: one for every 14 x 14 pixels, a patch."""
        return self.picture.pixels.size // (3 * 14 * 14)


@dataclass(frozen=True, slots=True)
class Sample:
    """One item as numbers.

    Attributes:
        ids: (T,) int64; at image slots what the tower says, of a composed model -1, which is no token.
        counted: (T,) bool, what pooling reads; at least one is true.
        images: its images in order.
        truncated: tokens that were cut off.
        windows: lengths of the runs of `ids` that do not see each other; None: all of it is one.
        chunks: where parts of the item lie in `ids`, each pooled by itself; None: `counted` is pooled as one.
        terms: ids of the item's own words, where they bound its sparse weights.
        placeholder: the token that an intervention writes to, None for none; its id is never read.
        against: the same item under the prompt that an intervention compares with.
    """

    ids: NDArray[np.int64]
    counted: NDArray[np.bool_]
    images: tuple[Slots, ...]
    truncated: int
    windows: tuple[int, ...] | None = None
    chunks: tuple[NDArray[np.int64], ...] | None = None
    terms: NDArray[np.int64] | None = None
    placeholder: int | None = None
    against: Sample | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def cost(self) -> int:
        """What it takes of a batch's budget: a token each, and the patches of its images."""
        return len(self.ids) + sum(image.cost for image in self.images) + (self.against.cost if self.against else 0)


@dataclass(frozen=True)
class Batch:
    """Many samples as one packed row of T tokens.

    Attributes:
        ids: (T,) token numbers. spans: what attends to what, and positions. counted: what is pooled.
        pictures: the images in the order of their slots. slots: (S,) where their tokens lie in the row.
        rows: the caller's row of each of the B items.
        placeholders: (B,) the token of each item that an intervention writes to; None where there is none.
        against: the same items under the prompt that an intervention compares with.
    """

    ids: Int[Tensor, " T"]
    spans: Spans
    counted: Counted
    pictures: tuple[Picture, ...]
    slots: Int[Tensor, " S"]
    rows: tuple[int, ...]
    placeholders: Int[Tensor, " B"] | None = None
    against: Batch | None = None

    @cached_property
    def host(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """`ids`, and the tokens that are counted, where numpy reads them."""
        return self.ids.cpu().numpy(), self.counted.read[0].cpu().numpy()

    def to(self, device: torch.device | str) -> Batch:
        moved = Batch(
            to_device(self.ids, device),
            self.spans.to(device),
            self.counted.to(device),
            self.pictures,
            to_device(self.slots, device),
            self.rows,
            None if self.placeholders is None else to_device(self.placeholders, device),
            None if self.against is None else self.against.to(device),
        )
        moved.__dict__["host"] = self.host  # looked up in without waiting for the device
        return moved


def key_of(sample: Sample, pictures: dict[bytes, int]) -> NDArray[np.int64]:
    """A sample by numbers: its tokens, and at image slots a number below zero that is the picture's own."""
    if not sample.images:
        return sample.ids
    key = sample.ids.copy()
    for image in sample.images:
        number = pictures.setdefault(image.picture.digest, len(pictures))
        key[image.first : image.first + image.count] = -1 - number
    return key


def distinct(samples: Sequence[Sample]) -> tuple[list[int], list[int]]:
    """The samples that equal none before them, and of every sample the place of its own among those: equal ones are computed
    once."""
    known: dict[bytes, int] = {}
    places: dict[tuple[object, ...], int] = {}
    firsts: list[int] = []
    which: list[int] = []
    for k, sample in enumerate(samples):
        arrays = [key_of(sample, known), sample.counted, *(sample.chunks or ())]
        arrays += [] if sample.terms is None else [sample.terms]
        arrays += [] if sample.against is None else [sample.against.ids]
        key = (sample.windows, sample.placeholder, *(array.tobytes() for array in arrays))
        if key not in places:
            places[key] = len(firsts)
            firsts.append(k)
        which.append(places[key])
    return firsts, which


def plan(
    samples: Sequence[Sample],
    budget: int,
    *,
    share: bool = False,
    price: float = 0.0,
    apart: Sequence[int] = (),
    padded: bool = False,
) -> list[list[int]]:
    """Samples grouped into batches that cost at most `budget` (or one sample): by length, so that equals stand side by
    side; with `share` those that begin alike together, what they share paid once a batch; samples whose numbers in `apart`
    differ share no batch; `padded`: what fills rows up to the longest of a batch costs as tokens do. `share`, `price`: as
    `pack`."""
    if share and not any(sample.windows for sample in samples):  # by which `pack` lays nothing once
        known: dict[bytes, int] = {}
        segments = tree([key_of(sample, known) for sample in samples], price)
    else:
        order = sorted(range(len(samples)), key=lambda item: (apart[item] if apart else 0, -samples[item].cost))
        segments = [Segment(-1, 0, len(samples[item]), (item,)) for item in order]
    costs = [_cost(segment, samples) for segment in segments]
    batches: list[list[int]] = []
    laid: set[int] = set()
    used = 0
    grid = 0, 0, 0
    for cost, segment in zip(costs, segments, strict=True):
        if len(segment.items) > 1:
            continue
        above = []
        k = segment.parent
        while k >= 0 and k not in laid:  # what lies above a segment that is laid is laid
            above.append(k)
            k = segments[k].parent
        due = cost + sum(costs[k] for k in above)
        (own,) = segment.items
        strange = bool(apart and batches) and apart[batches[-1][0]] != apart[own]
        filling = _filling(_with(grid, samples[own])) if padded else 0
        if not batches or strange or used + due + filling > budget:
            batches.append([])
            above += _above(k, segments)
            laid.clear()
            used, due, grid = 0, cost + sum(costs[k] for k in above), (0, 0, 0)
        batches[-1].append(own)
        laid.update(above)
        used += due
        grid = _with(grid, samples[own]) if padded else grid
    return batches


def _with(grid: tuple[int, int, int], sample: Sample) -> tuple[int, int, int]:
    """The rows of a padded batch, the length of its longest and the tokens in all of them, with a sample more."""
    rows, longest, tokens = grid
    lengths = sample.windows or (len(sample),)
    return rows + len(lengths), max(longest, *lengths), tokens + len(sample)


def _filling(grid: tuple[int, int, int]) -> int:
    """What is no token in a padded batch."""
    rows, longest, tokens = grid
    return rows * longest - tokens


def _above(k: int, segments: Sequence[Segment]) -> Iterator[int]:
    """Segment `k` and those that it goes on from; -1 is none."""
    while k >= 0:
        yield k
        k = segments[k].parent


def _cost(segment: Segment, samples: Sequence[Sample]) -> int:
    """What a segment takes of a batch's budget: its tokens, the patches of the images in it, and what an item runs against."""
    speaker = samples[segment.items[0]]
    if not speaker.images and speaker.against is None:
        return segment.length
    inside = range(segment.depth, segment.depth + segment.length)
    patches = sum(image.cost for image in speaker.images if image.first in inside)
    return segment.length + patches + (speaker.against.cost if speaker.against else 0)


def _numbers(
    spans: Spans, pictures: Sequence[Picture], slots: Sequence[NDArray[np.int64]]
) -> Int[Tensor, "A T"] | None:
    """What a model is told in place of positions, where pictures have numbers along axes of their own: what comes behind a
    picture, its own item's and that of all items that share it, moves back by what the picture takes less than its tokens."""
    axes = next((picture.numbers.shape[0] for picture in pictures if picture.numbers is not None), None)
    if axes is None:
        return None
    numbers = np.repeat(spans.positions.numpy()[None], axes, axis=0)
    for picture, place in zip(pictures, slots, strict=True):
        if picture.numbers is not None:
            last = int(place[-1])
            numbers[:, place] = numbers[0, place[0]] + picture.numbers
            numbers[:, last + 1 : int(spans.end[last])] -= len(place) - 1 - int(picture.numbers.max())
    return torch.from_numpy(numbers)


def pack(
    samples: Sequence[Sample], rows: Sequence[int], mask: str | None, *, share: bool = False, price: float = 0.0
) -> Batch:
    """Samples as one row, under the mask of a model's own spec.

    Parts of which nothing is left are passed over.

    Args:
        share: lay the tokens with which several samples begin once, for a causal mask; else samples lie one after another.
        price: see `mmembed.prefix_tree.tree`.
    """
    assert mask is not None, "a model resolves its mask when it is built"
    if share and mask != "bidirectional" and not any(sample.windows for sample in samples):
        known: dict[bytes, int] = {}
        segments = tree([key_of(sample, known) for sample in samples], price)
    else:
        segments = [
            Segment(-1, last - length, length, (item,))
            for item, sample in enumerate(samples)
            for own in [sample.windows or (len(sample),)]
            for length, last in zip(own, accumulate(own), strict=True)
        ]
    kept = [k for k, segment in enumerate(segments) if segment.length]
    number = {k: place for place, k in enumerate(kept)}
    lengths = [segments[k].length for k in kept]
    row: list[NDArray[np.int64]] = []
    pieces: list[list[Stretch]] = [[] for _ in samples]  # of the row, of which each sample is made
    block = np.full(sum(lengths), -1, dtype=np.int64)
    slots: list[NDArray[np.int64]] = []
    pictures: list[Picture] = []
    first = 0
    for k in kept:
        segment = segments[k]
        speaker = samples[segment.items[0]]
        row.append(speaker.ids[segment.depth : segment.depth + segment.length])
        for item in segment.items:
            pieces[item].append((first, first + segment.length))
        for image in speaker.images:
            if segment.depth <= image.first < segment.depth + segment.length:
                place = np.arange(image.count) + image.first - segment.depth + first
                block[place] = len(pictures)
                slots.append(place)
                pictures.append(image.picture)
        first += segment.length
    where = numbered([piece for own in pieces for piece in own])
    against = [sample.against for sample in samples if sample.against is not None]
    spans = Spans.of(
        lengths,
        mask,  # type: ignore[arg-type]
        torch.from_numpy(block),
        [number.get(segments[k].parent, -1) for k in kept],
    )
    return Batch(
        ids=torch.from_numpy(np.concatenate(row)),
        spans=replace(spans, numbers=_numbers(spans, pictures, slots)),
        counted=_counted(samples, where),
        pictures=tuple(pictures),
        slots=torch.from_numpy(np.concatenate(slots)) if slots else torch.empty(0, dtype=torch.long, device="cpu"),
        rows=tuple(rows),
        placeholders=_held(samples, where),
        against=pack(against, rows, mask) if against else None,
    )


def _counted(samples: Sequence[Sample], where: NDArray[np.int64]) -> Counted:
    """What is pooled, in a row in which the tokens of all samples, one after the other, lie at `where`."""
    ends = np.cumsum([len(sample) for sample in samples])
    if all(sample.chunks is None for sample in samples):
        every = np.concatenate([sample.counted for sample in samples])
        owner = np.arange(len(samples)).repeat([len(sample) for sample in samples])
        return Counted(torch.from_numpy(where[every]), torch.from_numpy(owner[every]), len(samples))
    parts = [
        read + (end - len(sample))
        for sample, end in zip(samples, ends, strict=True)
        for read in (sample.chunks if sample.chunks is not None else (np.flatnonzero(sample.counted),))
        if len(read)
    ]
    owner = np.arange(len(parts)).repeat([len(part) for part in parts])
    return Counted(torch.from_numpy(where[np.concatenate(parts)]), torch.from_numpy(owner), len(parts))


def _held(samples: Sequence[Sample], where: NDArray[np.int64]) -> Tensor | None:
    """Where the placeholders of samples lie."""
    ends = np.cumsum([len(sample) for sample in samples])
    held = [
        end - len(sample) + sample.placeholder
        for sample, end in zip(samples, ends, strict=True)
        if sample.placeholder is not None
    ]
    return torch.from_numpy(where[held]) if held else None
