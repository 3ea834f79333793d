"""ImageFeatures: what a vision tower makes of a picture; of equal pictures one is looked at, and none that is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..batch import Picture
from ..cache import LRUCache


class ImageFeatures(NamedTuple):
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


FeatureScope = tuple[tuple[int | None, ...], torch.dtype, torch.device]
"""What looked at a picture: weights by their generation, in what precision and where."""
FeatureKey = tuple[bytes, FeatureScope]
"""The pixels of a picture by their digest, and what looked at it."""


def image_features(
    pictures: Sequence[Picture],
    look: Callable[[Sequence[Picture]], Sequence[ImageFeatures]],
    kept: LRUCache[FeatureKey, ImageFeatures],
    looks: Callable[[], FeatureScope | None],
) -> list[ImageFeatures]:
    """What the tower makes of each picture, in order; equal ones are looked at once, all that are new together.

    Args:
        look: pictures -> what the tower makes of them. kept: what it made of earlier ones. looks: what looks now; None: nothing
            is taken from there and put there.
    """
    scope = looks() if kept.limit > 0 else None
    distinct = {picture.digest: picture for picture in pictures}
    found: dict[bytes, ImageFeatures] = {}
    if scope is not None:
        found = {digest: old for digest in distinct if (old := kept.get((digest, scope))) is not None}
    new = [digest for digest in distinct if digest not in found]
    if new:
        for digest, features in zip(new, look([distinct[digest] for digest in new]), strict=True):
            found[digest] = features
            if scope is not None:  # not a view of all others
                own = ImageFeatures(features.tokens.clone(), tuple(part.clone() for part in features.deep))
                kept.put((digest, scope), own, own.size)
    return [found[picture.digest] for picture in pictures]
