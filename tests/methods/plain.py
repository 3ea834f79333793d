"""The other side of every parity test of a method: transformers' own forward over one unpadded text, nothing of ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import mmembed
from mmembed.methods import METHODS
from mmembed.methods.method import Method
from mmembed.prompts import one_sentence
from mmembed.testing import byte_tokenizer, tiny_backbone

TEXTS = ["A man is playing a guitar", "is it red?", 'she said "no"', "猫が寝ている", "x"]
BACKBONES = ("qwen3", "llama", "mistral")
"""Tiny decoders that every method is tried on; mistral's attention slides over 7 tokens."""
LAYOUTS = ("packed", "padded")
TABLE = "xlm-roberta"
"""The one that looks its positions up in a table."""
SPECIAL = tuple(dict.fromkeys(mark for method in METHODS.values() for mark in method.needs if mark != "<s>"))
"""Tokens that methods need, which every tokenizer here has."""
LONG = 4000
"""Tokens that the longest prompts fit into."""


@dataclass
class Plain:
    """A tiny backbone as transformers runs it.

    Attributes:
        kind: its model_type. depth: its layers. model: the backbone. special: tokens that bytes do not make.
        mask: what its tokens see.
    """

    kind: str = "qwen3"
    depth: int = 4
    mask: str = "causal"
    special: tuple[str, ...] = ()
    model: PreTrainedModel = field(init=False)

    def __post_init__(self) -> None:
        self.model = backbone(self.kind, self.depth)
        self.model.config.is_causal = self.mask == "causal"

    def words(self, *, closed: bool = False) -> PreTrainedTokenizerBase:
        return byte_tokenizer(eos=closed, special=(*SPECIAL, *self.special))

    def ids(self, text: str, *, closed: bool = False) -> Tensor:
        """(1, T)"""
        return self.words(closed=closed)(text, return_tensors="pt")["input_ids"]

    def hidden(self, text: str, *, closed: bool = False) -> tuple[Tensor, ...]:
        """All hidden states of one text, each (1, T, D)."""
        with torch.inference_mode():
            return self.model(self.ids(text, closed=closed), output_hidden_states=True).hidden_states

    def last(self, prompt: str, text: str, layer: int = -1) -> Tensor:
        """(D,): state of the last token, where {text} stands for the sentence as PromptEOL's authors clean it."""
        return self.hidden(prompt.replace("{text}", one_sentence(text)).strip())[layer][0, -1]


Reference = Callable[[Plain, str], Tensor]
"""(backbone, text) -> (D,), before it is brought to unit length."""


def backbone(kind: str, depth: int) -> PreTrainedModel:
    """A fresh one each time: a backbone that ours has prepared has our attention."""
    longer = {"max_position_embeddings": 4096 + 2} if kind == TABLE else {}
    return tiny_backbone(kind, num_hidden_layers=depth, **longer)


@cache
def embedder(kind: str, layout: str, depth: int = 4, mask: str | None = None) -> mmembed.Embedder:
    """The same backbone, run by ours."""
    return mmembed.compose(
        mask=mask,
        backbone=backbone(kind, depth),
        tokenizer=byte_tokenizer(special=SPECIAL),
        layout=layout,
        max_length=LONG,
        name=f"tiny {kind}",
        device="cpu",
    )


def mask_for(method: Method) -> str:
    """What tokens must see: the first one, to be pooled, all of them."""
    return "bidirectional" if method.pooling == "first" else "causal"


def suited(method: Method, kind: str = "qwen3", layout: str = "packed") -> mmembed.Embedder:
    """An embedder that a method goes on: of that kind, unless it is for a table of positions."""
    if method.positions is not None and method.positions["kind"] == "stretched":
        return embedder(TABLE, layout)
    return embedder(kind, layout, mask=mask_for(method))
