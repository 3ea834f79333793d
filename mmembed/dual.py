"""DualEncoder: a Batch goes in, texts to one tower and pictures to another, and one vector an item comes out."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from . import folders, hub
from .batch import Batch, Picture
from .errors import SpecError
from .nn.interventions import Intervention
from .spec import ModelSpec, copied
from .towers.dual import DualTowers, build_dual
from .towers.vision import by_size
from .weights import Model

if TYPE_CHECKING:
    from numpy.typing import NDArray

FREE = (
    *("name", "prompts", "default_prompt_name", "instructions", "cleaning", "instruction_cleaning", "fuse"),
    *("normalize", "dimensions", "weights", "languages", "licence", "summary"),
)
"""Fields of a spec that may change while the weights stay; masks, layers, pooling and lengths are inside the towers."""
OWN = ("backbone", "tokenizer", "dimension", "max_length", "fill", "mask", "heads")
"""Fields that say what the towers are; all others are said of a shared backbone only."""


class DualEncoder(Model):
    """A model of two towers, with the face of an `EmbeddingModel`. A picture is one slot in the row, for its tower's vector;
    the vector of an item is the sum of what the towers give for its text and its pictures.

    Args:
        spec: what it is. towers: with weights; None builds them fresh from the spec.

    Raises:
        SpecError: the towers do not fit the spec, or it says of them what only a shared backbone has.
    """

    def __init__(self, spec: ModelSpec, *, towers: DualTowers | None = None):
        towers = build_dual(copied(spec.backbone)) if towers is None else towers
        if spec.mask not in (None, towers.mask):
            raise SpecError(f"the text tower is {towers.mask} by make; the spec says mask={spec.mask!r}")
        for f in dataclasses.fields(ModelSpec):
            plain = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
            if f.name not in (*FREE, *OWN) and getattr(spec, f.name) != plain:
                raise SpecError(f"a dual encoder pools inside its towers: {f.name} cannot be said of it")
        super().__init__(dataclasses.replace(spec, mask=towers.mask))
        self.towers = towers
        self.add_heads(towers.width)
        self.eval()

    def respecified(self, spec: ModelSpec) -> DualEncoder:
        """The same towers under another spec.

        Raises:
            SpecError: the change is one of weights, or of what happens inside the towers.
        """
        for f in dataclasses.fields(ModelSpec):
            if f.name not in FREE and getattr(spec, f.name) != getattr(self.spec, f.name):
                raise SpecError(f"a dual encoder has its {f.name} inside its towers; free are {', '.join(FREE)}")
        model = copy.copy(self)
        model.spec = spec
        return model

    @property
    def sees(self) -> bool:
        return True

    @property
    def padded(self) -> bool:
        return True

    @property
    def native(self) -> None:
        """No vision-language model of transformers."""

    def prepare(self, rgb: NDArray[np.uint8]) -> Picture:
        """(H, W, 3) uint8 -> what the image tower takes."""
        return Picture(self.towers.prepare(rgb))

    def image_ids(self, picture: Picture) -> list[int]:
        """A picture takes one slot in the row, for its tower's vector."""
        return [-1]

    def forward(self, batch: Batch) -> Float[Tensor, "B D"]:
        """Vectors in fp32, before shortening and unit length."""
        owner = torch.repeat_interleave(torch.tensor(batch.spans.lengths, device=batch.ids.device))
        word = torch.ones_like(owner, dtype=torch.bool).index_fill(0, batch.slots, False)
        out = torch.zeros(len(batch.spans.lengths), self.towers.width, dtype=torch.float32, device=self.device)
        if bool(word.any()):
            items, ids, real = _rows(batch.ids[word], owner[word])
            out = out.index_add(0, items, self.towers.text(ids, real).float())
        if batch.pictures:
            out = out.index_add(0, owner[batch.slots], self._pictures(batch))
        return self.through_heads(out)

    def _pictures(self, batch: Batch) -> Float[Tensor, "S D"]:
        """Features of all pictures in order; pictures of one size go through the tower together."""
        towers = self.towers
        pixels = [picture.pixels for picture in batch.pictures]
        found = by_size(lambda stacked: towers.image(towers.normalised(stacked)).float(), pixels, self.device)
        return torch.stack(found)

    @property
    def intervention(self) -> Intervention | None:
        """Nothing is done to states inside the towers."""
        return None

    @property
    def sparse(self) -> nn.Module | None:
        """No sparse head."""
        return None

    @property
    def tokens(self) -> nn.Module:
        """No head for tokens.

        Raises:
            SpecError: always; so do the two that would read their states.
        """
        raise SpecError(
            "a dual encoder gives one vector an item: its towers keep the states of their tokens to themselves"
        )

    def token_vectors(self, batch: Batch) -> tuple[Tensor, ...]:
        return (self.tokens(batch),)

    def sparse_weights(self, batch: Batch) -> Iterator[Tensor]:
        yield self.tokens(batch)


def load_open_clip(name: str, revision: str | None = None) -> tuple[DualEncoder, Path]:
    """A model by open_clip's own way of naming it, and the folder where its tokenizer lies.

    Args:
        name: "local-dir:<folder>"; "hf-hub:organisation/name"; or "<architecture>:<weights>" with a file of weights, or a
            tag of open_clip's, which it downloads. revision: of a hub repository.

    Raises:
        UnknownName, LoadError, SpecError: no such model, no weights, or one that is not supported.
    """
    schema, _, rest = name.partition(":")
    with torch.random.fork_rng(devices=[]):
        if schema in ("local-dir", "hf-hub"):
            folder = hub.find(rest, revision=revision) if schema == "hf-hub" else Path(rest).expanduser()
            found = folders.read_open_clip(folder)
        else:
            found = folders.named_open_clip(schema, rest, revision)
        return DualEncoder(found.spec, towers=found.towers), found.tokenizer


def _rows(
    ids: Int[Tensor, " T"], owner: Int[Tensor, " T"]
) -> tuple[Int[Tensor, " N"], Int[Tensor, "N L"], Bool[Tensor, "N L"]]:
    """The items that have text, and their tokens as rows, padded on the right where the last is false."""
    items, lengths = torch.unique_consecutive(owner, return_counts=True)
    real = torch.arange(int(lengths.max()), device=ids.device) < lengths[:, None]
    return items, torch.zeros_like(real, dtype=ids.dtype).masked_scatter(real, ids), real
