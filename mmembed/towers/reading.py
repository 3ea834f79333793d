"""One forward of a backbone as we read it: how many layers run, whose states are kept, and what is changed on the way.

transformers gives all hidden states or the last, and always runs every layer. Here hooks on the layers read the few that are
wanted and end the forward after the deepest of them. The hooks are put on once and are idle: what a forward asks of them lies in
a context variable, which every thread has for itself (transformers records its own outputs in the same way), so that one
backbone serves many threads and many specs.

Where the states of few tokens are read, only these go through the deepest block: it runs twice, once over all tokens up to the
door of attention, which keeps the keys and values that it is given and ends it there, and once over the few, which look at those.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import SpecError
from ..nn.interventions import Intervention, Places
from ..nn.precision import PART, alike
from ..nn.spans import Spans

FEW = 0.75
"""Only the tokens that are read go through the deepest block where they are at most this share of all,"""
LEAST = 64
"""and where so many go through at least: two goes of a block cost a row of 12 a thirtieth of all its time."""
ROW = {"input_ids", "inputs_embeds", "position_ids", "spans", "recall", "use_cache"}
"""What a packed row of text is to a model's forward; another part of a model may do with its tokens what it will."""


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
        few: of the tokens that go through the last block to run, the only ones whose states are read; None: all.
        taking: how many tokens that block now runs for up to its attention, for keys and values alone; 0: it does not.
    """

    wanted: frozenset[int]
    stop: int | None
    rows: Int[Tensor, " T"] | None
    change: Change | None = None
    attended: int | None = None
    few: Int[Tensor, " C"] | None = None
    taking: int = 0
    found: dict[int, Tensor] = field(default_factory=dict)

    def keep(self, layer: int, states: Tensor) -> None:
        self.found[layer] = _flat(states) if self.rows is None else _flat(states)[self.rows]


class _Enough(Exception):
    """Ends a forward: what was asked for is found."""


class _Taken(Exception):
    """Ends a block: these are the keys and values of the whole row."""

    def __init__(self, key: Tensor, value: Tensor):
        super().__init__()
        self.key, self.value = key, value


_now: ContextVar[_Forward | None] = ContextVar("mmembed_forward", default=None)
_installing = threading.Lock()
_layers: WeakKeyDictionary[PreTrainedModel, nn.ModuleList] = WeakKeyDictionary()
_narrow: WeakKeyDictionary[PreTrainedModel, dict[tuple[int, str], bool]] = WeakKeyDictionary()
"""Whether a block gives tokens the same states where only these go through it, by its number and the mask."""


def read(
    model: PreTrainedModel,
    inputs: dict[str, Any],
    rows: Int[Tensor, " T"] | None,
    layers: Sequence[int],
    change: Change | None = None,
    only: Int[Tensor, " C"] | None = None,
) -> Float[Tensor, "L C D"]:
    """States of `layers` as one forward gives them, in their order.

    Args:
        inputs: of the model's forward. rows: where the tokens lie in its grid of items and places, None: as they are.
        layers: 0 is what enters the first block, l what leaves the l-th, -1 the last, after the final norm unless the
            configuration has tie_last_hidden_states=False.
        change: what is changed on the way.
        only: the tokens of the row whose states are given, in order; None: all that go through the model.

    Raises:
        SpecError: the layers of the model cannot be told.
    """
    wanted = [layer % (_depth(model)[0] + 1) for layer in layers]
    if change is not None and rows is not None:
        there = None if change.at.placeholder is None else rows[change.at.placeholder]
        change = Change(change.by, Places(rows[change.at.last], there), change.other)
    given = rows if only is None else _places(inputs, rows, only)
    few = None
    if only is not None and len(only) and rows is None and change is None and len(set(wanted)) == 1 and wanted[0] > 0:
        few = given if _narrows(model, inputs, wanted[0] - 1, len(only)) else None
    return _states(model, inputs, wanted, given if few is None else None, few, change)


def _states(
    model: PreTrainedModel,
    inputs: dict[str, Any],
    wanted: Sequence[int],
    rows: Int[Tensor, " C"] | None,
    few: Int[Tensor, " C"] | None,
    change: Change | None = None,
) -> Float[Tensor, "L C D"]:
    """States of layers, counted from 0, of the tokens `rows` or of the only `few` that go through the deepest block."""
    depth, normed = _depth(model)
    if change is None and few is None and set(wanted) == {depth} and normed:
        last = _flat(model(**inputs).last_hidden_state)
        return (last if rows is None else last[rows])[None]
    forward = _Forward(frozenset(wanted), None if depth in wanted else max(wanted), rows, change, few=few)
    # Hooks on all blocks where something is changed, else on those whose states are wanted.
    blocks = range(depth) if change is not None else sorted({max(layer - 1, 0) for layer in wanted})
    out = _run(model, inputs, forward, blocks)
    if depth in wanted and normed:
        forward.keep(depth, out.last_hidden_state)
    return torch.stack([forward.found[layer] for layer in wanted])


def _depth(model: PreTrainedModel) -> tuple[int, bool]:
    """How many blocks there are, and whether what leaves the last one is read after the final norm."""
    config = model.config.get_text_config()
    return int(config.num_hidden_layers), getattr(config, "tie_last_hidden_states", None) is not False


def _places(inputs: dict[str, Any], rows: Int[Tensor, " T"] | None, only: Int[Tensor, " C"]) -> Int[Tensor, " C"]:
    """Where tokens of the row lie among those that go through the model."""
    if rows is not None:
        return rows[only]
    asking = inputs["spans"].asking if "spans" in inputs else None
    return only if asking is None else torch.searchsorted(asking, only)


def attended(
    model: PreTrainedModel, inputs: dict[str, Any], rows: Int[Tensor, " T"] | None, layer: int
) -> Float[Tensor, "T HE"]:
    """What goes into the output projection of attention of block `layer`; nothing behind it runs."""
    forward = _Forward(frozenset(), layer + 1, rows, attended=layer)
    _run(model, inputs, forward, [layer])
    return forward.found[layer]


def _run(model: PreTrainedModel, inputs: dict[str, Any], forward: _Forward, blocks: Sequence[int]) -> Any:
    _install(model, blocks)
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
    if model in _layers:
        return _layers[model]
    config = model.config.get_text_config()
    text = next(m for m in model.modules() if isinstance(m, PreTrainedModel) and m.config is config)
    depth = int(config.num_hidden_layers)
    found = [module for module in text.modules() if isinstance(module, nn.ModuleList) and len(module) == depth]
    if len(found) != 1:
        raise SpecError(
            f"the layers of a {model.config.model_type} backbone cannot be told: {len(found)} lists of {depth} modules; only "
            "the last layer can be read"
        )
    _layers[model] = found[0]
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


def _install(model: PreTrainedModel, blocks: Sequence[int]) -> None:
    layers = layers_of(model)
    fresh = [number for number in blocks if not getattr(layers[number], "read_by_mmembed", False)]
    if not fresh:
        return
    with _installing:
        for number in fresh:
            layer = layers[number]
            if getattr(layer, "read_by_mmembed", False):
                continue
            layer.register_forward_pre_hook(partial(_entering, number), with_kwargs=True)
            layer.register_forward_hook(partial(_left, number))
            projection = _output_projection(layer)
            if projection is not None:
                projection.register_forward_pre_hook(partial(_attended, number))
            queries = _query_projection(layer)
            if queries is not None:
                queries.register_forward_pre_hook(_asking_one)
                queries.register_forward_hook(_asked_one)
            layer.read_by_mmembed = True  # type: ignore[assignment]


def watched(hooks: Iterable[Mapping[int, Callable[..., Any]]]) -> bool:
    """Whether hooks on a block and its parts, as these hold them, may do something now: those of this module only while something
    is read by them."""
    found = [hook for own in hooks for hook in own.values()]
    return bool(found) and (_now.get() is not None or any(getattr(hook, "func", hook) not in OURS for hook in found))


def _narrows(model: PreTrainedModel, inputs: dict[str, Any], number: int, count: int) -> bool:
    """Whether only `count` tokens are to go through block `number` of a packed row: where it pays, and where on a probe they
    have the states that they have among all."""
    spans: Spans | None = inputs.get("spans")
    through = 0 if spans is None else len(spans.queries)
    if spans is None or not inputs.keys() <= ROW or not 0 < count <= FEW * through:
        return False
    try:
        layer = layers_of(model)[number]
    except SpecError:  # ALBERT's blocks are one, that runs again and again
        return False
    # Processes that hold parts of the weights must run the same blocks, whatever rows they have.
    if through < LEAST and type(next(layer.parameters())) is nn.Parameter:
        return False
    known = _narrow.setdefault(model, {})
    key = number, spans.mask
    if key not in known:
        true = _gives_the_same(model, number, spans)
        if not true and model.training:
            return False  # dropout: nothing was learnt of the block
        known[key] = true
    return known[key] and not (layer.training and getattr(layer, "gradient_checkpointing", False))


def _gives_the_same(model: PreTrainedModel, number: int, spans: Spans) -> bool:
    """Whether three tokens of two short items leave block `number`, and the model, alike by themselves and among all."""
    rows = model.get_input_embeddings().num_embeddings
    ids = (torch.arange(7, device=spans.start.device) * (rows // 11) + rows // 5)[None]
    probe = Spans.of([4, 3], spans.mask).to(ids.device)
    inputs = {"input_ids": ids, "position_ids": probe.positions[None], "spans": probe}
    few = torch.tensor([1, 3, 6], device=ids.device)
    try:
        here = [ids.device] if ids.is_cuda else []
        with (
            torch.no_grad(),
            torch.random.fork_rng(here),
        ):  # dropout draws nothing here that a caller's own would have been
            due, ours = (_states(model, inputs, [number + 1], *asked) for asked in ((few, None), (None, few)))
    except (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return False  # a block that takes its tokens in a way of its own goes through whole
    return alike(ours, due, PART)


def _output_projection(layer: nn.Module) -> nn.Module | None:
    attention = getattr(layer, "self_attn", None)
    return getattr(attention, "o_proj", getattr(attention, "out_proj", None))


def _query_projection(layer: nn.Module) -> nn.Module | None:
    """What makes queries alone, of a block whose attention projects them by themselves."""
    return getattr(getattr(layer, "self_attn", None), "q_proj", None)


def has_output_projection(model: PreTrainedModel, layer: int) -> bool:
    """Whether block `layer` has an attention output projection that an intervention can stand before."""
    return _output_projection(layers_of(model)[layer]) is not None


def _reads() -> _Forward | None:
    """What is read just now; nothing in a graph that torch compiles, which has no say in where it runs."""
    return None if torch.compiler.is_dynamo_compiling() else _now.get()


def _entering(number: int, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    forward = _reads()
    if forward is None or forward.taking:
        return None
    if forward.few is not None and number + 1 in forward.wanted:
        return _narrowed(forward, layer, args, kwargs)
    states = args[0] if args else kwargs["hidden_states"]
    if number == 0 and 0 in forward.wanted:
        forward.keep(0, states)
        if forward.stop == 0:
            raise _Enough
    if forward.change is None:
        return None
    changed = forward.change.by.entering(number, _flat(states), forward.change.at).view(states.shape)
    return ((changed, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": changed})


def _narrowed(forward: _Forward, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What the deepest block is given of the few tokens that are read, and how they look at all of the row."""
    few, spans, recall = forward.few, kwargs["spans"], kwargs.get("recall")
    assert few is not None

    def take(number: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        raise _Taken(*((key, value) if recall is None else recall(number, key, value)))

    forward.taking = len(spans.queries)
    try:
        layer(*args, **{**kwargs, "recall": take})
    except _Taken as taken:
        whole = taken.key, taken.value
    else:
        raise NotImplementedError(f"{type(layer).__name__} does not go through the door of attention")
    finally:
        forward.taking = 0
    through = len(spans.queries)
    args, kwargs = _some(args, few, through), _some(kwargs, few, through)
    asked = spans.asked(few if spans.asking is None else spans.asking[few])  # the same tensor: it knows its numbers
    return args, {**kwargs, "spans": asked, "recall": lambda *_: whole}


def _some(given: Any, few: Int[Tensor, " C"], through: int) -> Any:
    """What a block is given, of some tokens only: in all that has one row of as many places as tokens go `through`, positions
    along several axes too."""
    if isinstance(given, Tensor):
        shape = tuple(given.shape)
        if shape[:2] == (1, through):
            return given[:, few]
        return given[:, :, few] if shape[1:3] == (1, through) else given
    if isinstance(given, dict):
        return {name: _some(each, few, through) for name, each in given.items()}
    return tuple(_some(each, few, through) for each in given) if isinstance(given, (tuple, list)) else given


def _asking_one(_: nn.Module, args: tuple[Any, ...]) -> Any:
    """While a block runs for its keys and values alone, one query is made in place of all, which nothing reads."""
    forward = _reads()
    return None if forward is None or not forward.taking else (args[0][:, :1], *args[1:])


def _asked_one(_: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor | None:
    forward = _reads()
    return None if forward is None or not forward.taking else out.expand(-1, forward.taking, -1)


def _left(number: int, _: nn.Module, __: Any, out: Any) -> None:
    forward = _reads()
    if forward is None or forward.taking:
        return
    if number + 1 in forward.wanted:
        forward.keep(number + 1, out[0] if isinstance(out, (tuple, list)) else out)
    if number + 1 == forward.stop:
        raise _Enough


def _attended(number: int, _: nn.Module, args: tuple[Any, ...]) -> Any:
    forward = _reads()
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


OURS = (_entering, _left, _attended, _asking_one, _asked_one)


def _flat(states: Tensor) -> Float[Tensor, "R D"]:
    return states.reshape(-1, states.shape[-1])
