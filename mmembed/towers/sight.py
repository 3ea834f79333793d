"""Sight: what a vision tower makes of a picture; of equal pictures one is looked at, and none that is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..batch import Picture
from ..kept import Kept


class Sight(NamedTuple):
    """What stands for a picture in the row.

    Attributes:
        tokens: vectors in the places of its tokens. deep: what is added to them behind each of the first blocks (DeepStack,
            arXiv 2406.04334).
    """

    tokens: Float[Tensor, "n D"]
    deep: tuple[Float[Tensor, "n D"], ...] = ()

    @property
    def size(self) -> int:
        """Bytes it takes."""
        return sum(part.numel() * part.element_size() for part in (self.tokens, *self.deep))


SightKey = tuple[bytes, torch.dtype, torch.device]
"""The pixels of a picture by their digest, and where and in what precision it was looked at."""


def sights(
    pictures: Sequence[Picture],
    look: Callable[[Sequence[Picture]], Sequence[Sight]],
    kept: Kept[SightKey, Sight],
    dtype: torch.dtype,
    device: torch.device,
) -> list[Sight]:
    """What the tower makes of each picture, in order; equal ones are looked at once, all that are new together.

    Args:
        look: pictures -> what the tower makes of them. kept: what it made of earlier ones; never read or written where a
            gradient is wanted.
    """
    distinct = {(picture.digest, dtype, device): picture for picture in pictures}
    holds = kept.limit > 0 and not torch.is_grad_enabled()
    found = {key: old for key in distinct if (old := kept.get(key)) is not None} if holds else {}
    new = [key for key in distinct if key not in found]
    if new:
        for key, sight in zip(new, look([distinct[key] for key in new]), strict=True):
            found[key] = sight
            if holds:
                own = Sight(
                    sight.tokens.clone(), tuple(part.clone() for part in sight.deep)
                )  # not a view of all others
                kept.put(key, own, own.size)
    return [found[picture.digest, dtype, device] for picture in pictures]
