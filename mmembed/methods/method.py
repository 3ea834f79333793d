"""What a method without training is: templates by modality, layers, what is counted, and how it is pooled."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method of the survey as data.

    Attributes:
        name: as it is called here. paper: where it is from.
        templates: `{modality or "any": template, or several whose vectors are averaged}`; None leaves the prompts alone, and what
            is done to the words in them: `instructions`, `cleaning`, `opened`, `closed` and `apart` go with templates.
        besides: prompts of other names that the method has, such as one that an intervention compares with.
        instructions: what {instruction} says in them unless the caller says otherwise.
        cleaning, layers, norm_layers, counted, pooling, mask, bidirectional_from, intervention: as in `ModelSpec`; a mask of
            None leaves the embedder's own.
        opened: whether the tokenizer's opening token (BOS) stands before the prompt; not where the prompt writes it.
        closed: whether the tokenizer's closing token (EOS) follows the prompt; one-word prompts end where the word would come.
        needs: tokens that the tokenizer must have as such.
        positions: as in `ModelSpec`; where given, they are all that the method changes.
        apart: as in `ModelSpec`. sparse: the same, where the embedder has its backbone's language head.
        causal: whether it needs a causal backbone. packed: whether it needs one that runs packed.
    """

    name: str
    paper: str
    templates: Mapping[str, str | Sequence[str]] | None = None
    besides: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    instructions: Mapping[str, str] = field(default_factory=dict)
    cleaning: str | None = None
    layers: tuple[int, ...] = (-1,)
    norm_layers: bool = False
    counted: str = "all"
    pooling: str = "last"
    mask: str | None = None
    bidirectional_from: int | None = None
    intervention: Mapping[str, Any] | None = None
    opened: bool = True
    apart: bool = False
    sparse: Mapping[str, Any] | None = None
    closed: bool = False
    needs: tuple[str, ...] = ()
    positions: Mapping[str, Any] | None = None
    causal: bool = True
    packed: bool = False

    def fields(self) -> dict[str, Any]:
        """The fields of `ModelSpec` that the method sets."""
        if self.positions is not None:
            return {"positions": self.positions}
        said: dict[str, Any] = {
            "layers": self.layers,
            "norm_layers": self.norm_layers,
            "mix": {"kind": "mean"},
            "intervention": self.intervention,
            "bidirectional_from": self.bidirectional_from,
            "counted": self.counted,
            "span": None,
            "pooling": {"kind": self.pooling},
        }
        if self.templates is not None:
            said["prompts"] = {self.name: dict(self.templates), **self.besides}
            said["default_prompt_name"] = self.name
            said["instructions"] = dict(self.instructions)
            said |= {"instruction_cleaning": None, "cleaning": self.cleaning, "apart": self.apart}
            said |= {"open": self.opened, "close": self.closed}
        if self.mask is not None:
            said["mask"] = self.mask
        return said


def marks(chat: str) -> tuple[str, ...]:
    """The tokens like <s> and <|user|> that a chat template writes: a tokenizer without them would take them for plain words."""
    return tuple(dict.fromkeys(re.findall(r"<[^<>\s]+>", chat)))
