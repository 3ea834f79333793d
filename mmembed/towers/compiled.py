"""Blocks of a backbone compiled by torch: what lies between their products in as few kernels as the compiler makes of it.

Of a forward pass of a small model on a GPU two thirds are norms, rotary positions, activations and sums, each a walk over
memory of its own (LOG.md). `torch.compile` joins them. A block is compiled as one graph, once for all blocks of a kind and for
rows of any length; the door of attention is one operator in it, which no compiler looks into, and which is told of the
row's spans past the graph.

Where gradients are recorded, under autocast, for a block with hooks on it (those of `mmembed.towers.reading` while they read: at
the deepest one, mostly), and padded, a block's own forward runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import cache
from inspect import signature
from types import FunctionType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from ..nn import row
from ..nn.attention import WITHIN
from ..nn.compiling import compiled
from .lean import Over, over
from .reading import layers_of, watched

M = TypeVar("M", bound=PreTrainedModel)
KINDS = 32
"""Forms that blocks of one kind may take (precisions, devices, layers with a window and without): torch's own limit is 8."""


def compile_blocks(model: M) -> M:
    """The model itself, whose blocks compile themselves when they first run: those that read tokens, and those of a tower whose
    pictures go through the door in one row."""
    seeing = [part for part in model.modules() if isinstance(part, GradientCheckpointingLayer) and _sees(part)]
    for number, block in (*enumerate(layers_of(model)), *((-1, each) for each in seeing)):
        own: Any = type(block)
        if not issubclass(own, CompiledBlock):
            block.__class__ = over(CompiledBlock, own)
            block.layer_number = number
            block.hooks = tuple(
                told for part in block.modules() for told in (part._forward_hooks, part._forward_pre_hooks)
            )
    return model


def plain_blocks(model: M) -> M:
    """The model itself, whose blocks run as they are."""
    for block in model.modules():
        if isinstance(block, CompiledBlock):
            block.__class__ = type(block).__bases__[1]
            del block.layer_number, block.hooks
    return model


def is_compiled(model: nn.Module) -> bool:
    return any(isinstance(part, CompiledBlock) for part in model.modules())


def _sees(block: nn.Module) -> bool:
    """Whether a block is told where each picture ends in its row, and hands it to the door."""
    told = CUTS in signature(type(block).forward).parameters
    configs = (getattr(part, "config", None) for part in block.modules())
    return told and any(getattr(config, "_attn_implementation", None) == WITHIN for config in configs)


class CompiledBlock(Over):
    """A block of a backbone or a tower whose forward is compiled, wherever that may stand in for its own.

    Attributes:
        layer_number: of a block that reads tokens, -1 for one of a tower.
        hooks: where its parts hold theirs, which no call then has to walk for. A graph would leave out those that come
            after it, without a word.
    """

    training: bool
    layer_number: int
    hooks: tuple[Mapping[int, Callable[..., Any]], ...]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        own: Any = super()
        told = {name: value for name, value in kwargs.items() if name not in ROW}
        of_row = {name: kwargs[name] for name in ROW if name in kwargs}
        if not ("spans" in of_row or CUTS in told) or self.training or watched(self.hooks) or not _plain(args, told):
            return own.forward(*args, **kwargs)
        graph = _compiled(type(self).__bases__[1])
        with row.of(row.AttentionContext(layer=self.layer_number, **of_row)) if of_row else nullcontext():
            return graph(self, *args, **told)


CUTS = "cu_seqlens"
"""What transformers calls the places in a row where pictures begin and the last one ends."""
ROW = ("spans", "recall", "extension")
"""What the door of attention is told of a row, past the graph."""


def _plain(args: tuple[Any, ...], told: dict[str, Any]) -> bool:
    """Whether a block is given two tokens at least, and nothing watches what it computes."""
    states = args[0] if args else told["hidden_states"]
    return (
        states.shape[-2] > 1
        and not torch.is_grad_enabled()
        and not torch.compiler.is_dynamo_compiling()
        and not torch.is_autocast_enabled(states.device.type)
    )


@cache
def _compiled(own: Any) -> Callable[..., Tensor]:
    """The forward of a class of blocks, for rows of any length. torch counts forms by code, and in transformers all classes wrap
    their forwards in one: this one is its own."""
    forward = own.forward
    alone = FunctionType(
        forward.__code__.replace(co_name=f"{own.__name__}_forward"),
        forward.__globals__,
        forward.__name__,
        forward.__defaults__,
        forward.__closure__,
    )
    alone.__kwdefaults__ = forward.__kwdefaults__
    return compiled(alone, KINDS, dynamic=True)
