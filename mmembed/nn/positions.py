"""Positions: how the tokens of an item are numbered for a backbone that is to read more of them than it was made for."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..registry import Registry

positionings: Registry[Callable[..., Positioning]] = Registry("kind of positions")


@dataclass(frozen=True, kw_only=True)
class Positioning:
    """Numbers as they come: 0, 1, 2, ...

    Attributes:
        original: tokens that the backbone was made for. windows: whether layers that slide go on sliding; LongEmbed's
            authors let Mistral's see all, as theirs is the length it was made for.
        of_table: whether they are for a table of positions alone.
    """

    original: int
    windows: bool = False
    of_table: ClassVar[bool] = False

    def made_for(self, longest: int) -> int:
        """Tokens that a backbone was made for which says that it reads `longest`."""
        return longest

    def rows(self, length: int) -> int:
        """Rows of a table of positions that items of up to `length` tokens take."""
        return length

    def number(self, positions: Int[Tensor, " T"], length: Int[Tensor, " T"]) -> Tensor:
        """Numbers (T,), whole or not, for tokens at `positions` of items of `length` tokens."""
        return positions

    def theta(self, trained: float) -> float:
        """The base of rotary positions, where it was `trained`."""
        return trained

    def groups(self) -> Groups | None:
        """How distant tokens are numbered otherwise than near ones; None: they are not."""
        return None


@dataclass(frozen=True)
class Groups:
    """Tokens `near` or more apart count their distance in groups of `size`, near ones by one (SelfExtend, arXiv 2401.01325).

    Attributes:
        original: items up to it are read as always. log_base: queries at position p are scaled by max(1, log(p + 1) / log(this));
            None: not scaled.
    """

    size: int
    near: int
    original: int
    log_base: float | None

    def query(self, positions: Int[Tensor, " T"]) -> Int[Tensor, " T"]:
        """Numbers of queries that look far."""
        return positions // self.size + self.near - self.near // self.size

    def key(self, positions: Int[Tensor, " T"]) -> Int[Tensor, " T"]:
        """Numbers of keys that are looked at from far."""
        return positions // self.size

    def sharpened(self, positions: Int[Tensor, " T"]) -> Float[Tensor, " T"]:
        """What queries are scaled by."""
        if self.log_base is None:
            return torch.ones(len(positions), dtype=torch.float32, device=positions.device)
        return ((positions + 1).float().log() / math.log(self.log_base)).clamp(min=1)


def build_positioning(settings: Mapping[str, Any], *, longest: int) -> Positioning:
    """The positions that `settings["kind"]` names, for a backbone that says it reads `longest` tokens, and was made for as many
    unless they say otherwise."""
    made: Positioning = positionings.build({"original": longest, **settings})
    return made if "original" in settings else dataclasses.replace(made, original=made.made_for(longest))


@positionings.register("recurrent")
@dataclass(frozen=True, kw_only=True)
class Recurrent(Positioning):
    """p mod original: positions begin anew."""

    def rows(self, length: int) -> int:
        return min(length, self.original)

    def number(self, positions: Int[Tensor, " T"], length: Int[Tensor, " T"]) -> Tensor:
        return positions % self.original


@positionings.register("grouped")
@dataclass(frozen=True, kw_only=True)
class Grouped(Positioning):
    """p // s: s neighbours share a position; s as small as brings the item into `original`.

    The authors take s from the longest item of a batch; here each has its own, as if alone.
    """

    def rows(self, length: int) -> int:
        return min(length, self.original)

    def number(self, positions: Int[Tensor, " T"], length: Int[Tensor, " T"]) -> Tensor:
        return positions // (-(-length // self.original))


@positionings.register("stretched")
@dataclass(frozen=True, kw_only=True)
class Stretched(Positioning):
    """p * factor for items of at most `original` tokens: what E5-Base-4k, whose table of positions was stretched by 8, from 512
    to 4096, and trained in between, needs to read short texts as before."""

    factor: int = 8
    of_table: ClassVar[bool] = True

    def made_for(self, longest: int) -> int:
        return longest // self.factor

    def rows(self, length: int) -> int:
        return max(length, (min(length, self.original) - 1) * self.factor + 1)

    def number(self, positions: Int[Tensor, " T"], length: Int[Tensor, " T"]) -> Tensor:
        return torch.where(length <= self.original, positions * self.factor, positions)


@positionings.register("interpolated")
@dataclass(frozen=True, kw_only=True)
class Interpolated(Positioning):
    """p / factor, position interpolation (PI, arXiv 2306.15595); rotary positions need not be whole."""

    factor: float = 8.0

    def number(self, positions: Int[Tensor, " T"], length: Int[Tensor, " T"]) -> Tensor:
        return positions.float() / self.factor


@positionings.register("ntk")
@dataclass(frozen=True, kw_only=True)
class Ntk(Positioning):
    """A larger base of rotary positions than the trained one, `base`, or so many `times` it: LongEmbed raises 10,000 to 100,000
    for eight times the length, and jina-embeddings-v5 is trained with one and read with a larger one."""

    base: float | None = None
    times: float = 10.0

    def theta(self, trained: float) -> float:
        return trained * self.times if self.base is None else self.base


@positionings.register("self_extend")
@dataclass(frozen=True, kw_only=True)
class SelfExtend(Positioning):
    """`Groups` of `group` tokens beyond `near`, as LongEmbed runs Mistral: items up to `original` as always."""

    group: int = 9
    near: int = 512
    log_base: float | None = None

    def groups(self) -> Groups | None:
        return Groups(self.group, self.near, self.original, self.log_base)
