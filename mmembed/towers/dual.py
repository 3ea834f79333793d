"""Dual encoders: a text tower and an image tower of one model, each giving one vector an input, in one space."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..errors import check_known
from .vision import Preprocess, Seeing

LIBRARIES = ("transformers", "open_clip")


class DualTowers(Seeing):
    """Both towers of a model of some library.

    Attributes:
        model: the library's module. width: numbers in a vector. mask: what the text tower's tokens see of each other.
    """

    def __init__(self, model: nn.Module, width: int, mask: str, preprocess: Preprocess):
        super().__init__(preprocess)
        self.model = model
        self.width = width
        self.mask = mask

    def text(self, ids: Int[Tensor, "N L"], real: Bool[Tensor, "N L"]) -> Float[Tensor, "N D"]:
        """Features of texts, padded on the right where `real` is false; never of unit length."""
        raise NotImplementedError

    def image(self, x: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N D"]:
        """Features of normalised pixels of one size; never of unit length."""
        raise NotImplementedError


def build_dual(settings: Mapping[str, Any]) -> DualTowers:
    """The towers that a spec's `backbone` describes, with fresh weights.

    Args:
        settings: `dual` ("transformers" or "open_clip"), `config`, what the library builds them from, and `preprocess`.
    """
    library = settings["dual"]
    check_known("library of dual encoders", library, LIBRARIES)
    towers: DualTowers = import_module(f"{__package__}.dual_{library}").build(
        settings["config"], Preprocess.of(settings["preprocess"])
    )
    return towers
