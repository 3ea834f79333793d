"""One forward of a backbone as we read it: how many layers run, whose states are kept, and what is changed on the way.

transformers gives all hidden states or the last, and always runs every layer. Here hooks on the layers read the few that are
wanted and end the forward after the deepest of them. The hooks are put on once and are idle: what a forward asks of them lies in
a context variable, which every thread has for itself (transformers records its own outputs in the same way), so that one
backbone serves many threads and many specs.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import SpecError
from ..nn.interventions import Intervention, Places


@dataclass(frozen=True)
class Change:
    """An intervention in one batch: where it looks, and what it compares with, see `Intervention`."""

    by: Intervention
    at: Places
    other: Float[Tensor, "B HE"] | None = None


@dataclass
class _Forward:
    """What one forward is asked for, and what it found.

    Attributes:
        wanted: layers, counted from 0 (what enters the first block). stop: how many blocks run, None: all, and the norm.
        rows: (T,) the packed row's tokens in the flattened grid of the layers; None where the two are the same.
        change: with places in that grid. attended: the block whose attention, before its output projection, is wanted.
    """

    wanted: frozenset[int]
    stop: int | None
    rows: Int[Tensor, " T"] | None
    change: Change | None = None
    attended: int | None = None
    found: dict[int, Tensor] = field(default_factory=dict)

    def keep(self, layer: int, states: Tensor) -> None:
        self.found[layer] = _flat(states) if self.rows is None else _flat(states)[self.rows]


class _Enough(Exception):
    """Ends a forward: what was asked for is found."""


_now: ContextVar[_Forward | None] = ContextVar("mmembed_forward", default=None)
_installing = threading.Lock()


def read(
    model: PreTrainedModel,
    inputs: dict[str, Any],
    rows: Int[Tensor, " T"] | None,
    layers: Sequence[int],
    change: Change | None = None,
) -> Float[Tensor, "L T D"]:
    """States of `layers` as one forward gives them, in their order.

    Args:
        inputs: of the model's forward. rows: where the tokens lie in its grid of items and places, None: as they are.
        layers: 0 is what enters the first block, l what leaves the l-th, -1 the last, after the final norm unless the
            configuration has tie_last_hidden_states=False.
        change: what is changed on the way.

    Raises:
        SpecError: the layers of the model cannot be told.
    """
    config = model.config.get_text_config()
    depth, normed = int(config.num_hidden_layers), getattr(config, "tie_last_hidden_states", None) is not False
    wanted = [layer % (depth + 1) for layer in layers]
    if change is None and set(wanted) == {depth} and normed:
        last = _flat(model(**inputs).last_hidden_state)
        return (last if rows is None else last[rows])[None]
    if change is not None and rows is not None:
        there = None if change.at.placeholder is None else rows[change.at.placeholder]
        change = Change(change.by, Places(rows[change.at.last], there), change.other)
    forward = _Forward(frozenset(wanted), None if depth in wanted else max(wanted), rows, change)
    out = _run(model, inputs, forward)
    if depth in wanted and normed:
        forward.keep(depth, out.last_hidden_state)
    return torch.stack([forward.found[layer] for layer in wanted])


def attended(
    model: PreTrainedModel, inputs: dict[str, Any], rows: Int[Tensor, " T"] | None, layer: int
) -> Float[Tensor, "T HE"]:
    """What goes into the output projection of attention of block `layer`; nothing behind it runs."""
    forward = _Forward(frozenset(), layer + 1, rows, attended=layer)
    _run(model, inputs, forward)
    return forward.found[layer]


def _run(model: PreTrainedModel, inputs: dict[str, Any], forward: _Forward) -> Any:
    _install(model)
    before = _now.set(forward)
    try:
        return model(**inputs)
    except _Enough:
        return None
    finally:
        _now.reset(before)


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    """The blocks of a backbone, in order.

    Raises:
        SpecError: no list, or more than one, of as many modules as the configuration says.
    """
    config = model.config.get_text_config()
    text = next(m for m in model.modules() if isinstance(m, PreTrainedModel) and m.config is config)
    depth = int(config.num_hidden_layers)
    found = [module for module in text.modules() if isinstance(module, nn.ModuleList) and len(module) == depth]
    if len(found) != 1:
        raise SpecError(
            f"the layers of a {model.config.model_type} backbone cannot be told: {len(found)} lists of {depth} modules; only "
            "the last layer can be read"
        )
    return found[0]


def final_norm(model: PreTrainedModel, inputs: dict[str, Any]) -> nn.Module:
    """The module that makes the last hidden state of what leaves the last block, found by running `inputs`.

    Raises:
        SpecError: the backbone has none (BERT and its kin norm every block at its end).
    """
    blocks = {id(part) for part in layers_of(model).modules()}
    made: list[tuple[nn.Module, Tensor]] = []
    handles = [
        module.register_forward_hook(lambda part, _, out: made.append((part, out)))
        for module in model.modules()
        if id(module) not in blocks and not list(module.children())
    ]
    try:
        with torch.no_grad():
            last = model(**inputs).last_hidden_state
    finally:
        for handle in handles:
            handle.remove()
    found = [module for module, out in made if out is last]
    if not found:
        raise SpecError(f"a {model.config.model_type} backbone has no final norm that inner layers could be given")
    return found[0]


def _install(model: PreTrainedModel) -> None:
    layers = layers_of(model)
    with _installing:
        if getattr(layers, "read_by_mmembed", False):
            return
        for number, layer in enumerate(layers):
            layer.register_forward_pre_hook(partial(_entering, number), with_kwargs=True)
            layer.register_forward_hook(partial(_left, number))
            projection = _output_projection(layer)
            if projection is not None:
                projection.register_forward_pre_hook(partial(_attended, number))
        layers.read_by_mmembed = True  # type: ignore[assignment]


def _output_projection(layer: nn.Module) -> nn.Module | None:
    attention = getattr(layer, "self_attn", None)
    return getattr(attention, "o_proj", getattr(attention, "out_proj", None))


def has_output_projection(model: PreTrainedModel, layer: int) -> bool:
    """Whether block `layer` has an attention output projection that an intervention can stand before."""
    return _output_projection(layers_of(model)[layer]) is not None


def _entering(number: int, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    forward = _now.get()
    if forward is None:
        return None
    states = args[0] if args else kwargs["hidden_states"]
    if number == 0 and 0 in forward.wanted:
        forward.keep(0, states)
        if forward.stop == 0:
            raise _Enough
    if forward.change is None:
        return None
    changed = forward.change.by.entering(number, _flat(states), forward.change.at).view(states.shape)
    return ((changed, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": changed})


def _left(number: int, _: nn.Module, __: Any, out: Any) -> None:
    forward = _now.get()
    if forward is None:
        return
    if number + 1 in forward.wanted:
        forward.keep(number + 1, out[0] if isinstance(out, tuple) else out)
    if number + 1 == forward.stop:
        raise _Enough


def _attended(number: int, _: nn.Module, args: tuple[Any, ...]) -> Any:
    forward = _now.get()
    if forward is None:
        return None
    if forward.attended == number:
        forward.keep(number, args[0])
        raise _Enough
    if forward.change is None:
        return None
    heads = args[0]
    changed = forward.change.by.attended(number, _flat(heads), forward.change.at, forward.change.other)
    return (changed.view(heads.shape), *args[1:])


def _flat(states: Tensor) -> Float[Tensor, "R D"]:
    return states.reshape(-1, states.shape[-1])
