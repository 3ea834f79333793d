"""The one door of attention over packed rows, registered with transformers, and its backends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import AttentionInterface

from ..errors import UnknownName
from . import row
from .extension import Extension, extended
from .flex import NARROWEST, flex
from .grouped import grouped
from .spans import Spans
from .varlen import is_learning, serves, varlen

NAME = "mmembed"
"""What `config._attn_implementation` is set to: `spans=` given to a model's forward then reaches every layer."""
WITHIN = "mmembed_flash_within"
"""What it is set to in a tower, whose attention is `within`; with "flash" in its name transformers hands over a row of pictures
whole, and says where each ends."""

Query = Float[Tensor, "1 H Q E"]
Key = Float[Tensor, "1 K T E"]
Backend = Callable[..., Query]
"""backend(query, key, value, spans, *, scaling, window, softcap[, dropout]) -> (1, H, Q, E), of the queries that `spans.asking`
names, over keys and values of the whole row."""


def attend(
    module: torch.nn.Module,
    query: Query,
    key: Key,
    value: Key,
    attention_mask: Tensor | None,
    *,
    spans: Spans | None = None,
    extension: Extension | None = None,
    recall: row.Recall | None = None,
    backend: str | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Float[Tensor, "1 T H E"], None]:
    """Attention of one packed row under the rule of `spans`, in the named backend or the best one for the device, or by groups
    where an `extension` says so.

    Without spans, in a graph that torch compiles: those of `mmembed.nn.row`.

    Where `spans.asking` names tokens, queries are of these. Keys and values are of the whole row: as they are given, or as
    `recall` makes them of those given, which are of the tokens that went through the layer.

    The signature is that of transformers' `AttentionInterface`; keyword arguments that say nothing about the mask or
    the softmax (`deterministic`, `use_cache`, ...) are not ours to read.

    Raises:
        UnknownName: no backend of that name.
        NotImplementedError: attention dropout in a backend that has none, or beside an `extension`.
        TypeError: no spans, and no graph.
    """
    if attention_mask is not None:
        raise NotImplementedError("a packed row carries its mask in `spans`; an attention_mask came as well")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    causal = bool(getattr(module, "is_causal", False))
    if spans is None:
        if not torch.compiler.is_dynamo_compiling():
            raise TypeError(f"{type(module).__name__} was handed no spans of its row")
        return row.attend(query, key, value, scale, sliding_window, softcap, causal), None
    layer = getattr(module, "layer_idx", None)
    if layer is None and (spans.open_from is not None or recall is not None):
        raise NotImplementedError(f"{type(module).__name__} does not say which layer it is of: no layer can be opened")
    told = row.AttentionContext(spans, -1 if layer is None else int(layer), recall, extension)
    how: dict[str, Any] = {"scaling": scale, "window": sliding_window, "softcap": softcap, "causal": causal}
    return in_row(query, key, value, told, **how, backend=backend, dropout=dropout), None


def in_row(
    query: Query,
    key: Key,
    value: Key,
    told: row.AttentionContext,
    *,
    scaling: float,
    window: int | None,
    softcap: float | None,
    causal: bool,
    backend: str | None = None,
    dropout: float = 0.0,
) -> Float[Tensor, "1 Q H E"]:
    """What `attend` gives, of a row as one of its layers is told of it.

    Args:
        window: the layer's own. causal: whether the layer is by make.

    Raises:
        UnknownName, NotImplementedError: as `attend`.
    """
    spans = told.spans
    if told.recall is not None:
        key, value = told.recall(told.layer, key, value)
    if torch.is_autocast_enabled(query.device.type):
        # As autocast does it for torch's own attention, below which some backends reach: norms give fp32 beside bf16.
        query, key, value = (x.to(torch.get_autocast_dtype(x.device.type)) for x in (query, key, value))
    if spans.open_from is not None and told.layer >= spans.open_from:
        spans, window = spans.opened, None
    if window is not None:
        # transformers' masks of a decoder set to read both ways include the token `window` away.
        window = window + (causal and not spans.causal) if spans.windows else None
    if told.extension is not None:
        if softcap is not None or spans.asking is not None or dropout:
            raise NotImplementedError("SelfExtend knows no soft cap, no dropout, and no queries of some tokens only")
        heads = _one_key_a_head(query, key, value)
        out = extended(query, *heads, spans, told.extension, scaling=scaling, window=window)
        return out.transpose(1, 2).contiguous()
    query, key, value, width = _of_one_width(query, key, value)
    name = backend or choose(query, spans, window, softcap, dropout, learning=is_learning(query, key, value))
    try:
        chosen = BACKENDS[name]
    except KeyError:
        raise UnknownName("attention backend", name, BACKENDS) from None
    if dropout and name not in DROPPING:
        raise NotImplementedError(f"the attention backend {name!r} has no dropout; {' and '.join(DROPPING)} have")
    more = {"dropout": dropout} if dropout else {}
    out = chosen(query, key, value, spans, scaling=scaling, window=window, softcap=softcap, **more)
    out = out if out.shape[-1] == width else out[..., :width]
    return out.transpose(1, 2).contiguous()  # some models take a view of it


def within(
    module: torch.nn.Module,
    query: Query,
    key: Key,
    value: Key,
    attention_mask: Tensor | None,
    *,
    cu_seq_lens_q: Int[Tensor, " S_plus_1"],
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Float[Tensor, "1 T H E"], None]:
    """Attention within the segments of one row, each read both ways, as the towers of vision-language models ask for it."""
    if torch.compiler.is_dynamo_compiling() and not torch.is_grad_enabled():  # the operator has no gradient
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        return row.within(query, key, value, cu_seq_lens_q, scale), None
    spans = _SEGMENTS.get(cu_seq_lens_q)
    if spans is None:  # once a forward: all layers are handed the same tensor
        spans = Spans.of(cu_seq_lens_q.diff().tolist(), "bidirectional").to(query.device)
        _SEGMENTS[cu_seq_lens_q] = spans
    return attend(module, query, key, value, attention_mask, spans=spans, scaling=scaling, dropout=dropout)


_SEGMENTS: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def choose(
    query: Query,
    spans: Spans,
    window: int | None,
    softcap: float | None,
    dropout: float = 0.0,
    *,
    learning: bool = False,
) -> str:
    """Which backend serves: variable-length kernels or FlexAttention on CUDA; grouped on the CPU, for heads of a few numbers and
    under dropout."""
    if query.is_cuda and not dropout and serves(query, spans, window, softcap, learning):
        return "varlen"
    if query.is_cuda and not dropout and query.shape[-1] >= NARROWEST:
        return "flex"
    return "grouped" if softcap is None else "reference"


def reference(
    query: Query,
    key: Key,
    value: Key,
    spans: Spans,
    *,
    scaling: float,
    window: int | None,
    softcap: float | None,
    dropout: float = 0.0,
) -> Query:
    """Every token against every token, masked; softmax in fp32. The plain way that the other backends are held to."""
    key, value = _one_key_a_head(query, key, value)
    row = torch.arange(key.shape[2], device=query.device)
    scores = (query.float() @ key.float().transpose(-1, -2)) * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~spans.may_look(spans.queries[:, None], row[None, :], window), float("-inf"))
    weights = torch.nn.functional.dropout(scores.softmax(-1), dropout)
    return (weights @ value.float()).to(query.dtype)


def _of_one_width(query: Query, key: Key, value: Key) -> tuple[Query, Key, Key, int]:
    """Filled up with zeros to one width, as kernels have it, and the width of a value: DeepSeek's values are narrower than its
    keys."""
    width, wide = value.shape[-1], query.shape[-1]
    if width < wide:
        value = torch.nn.functional.pad(value, (0, wide - width))
    elif width > wide:
        query, key = (torch.nn.functional.pad(x, (0, width - wide)) for x in (query, key))
    return query, key, value, width


def _one_key_a_head(query: Query, key: Key, value: Key) -> tuple[Query, Query]:
    groups = query.shape[1] // key.shape[1]
    if groups == 1:
        return key, value
    return key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)


BACKENDS: dict[str, Backend] = {"reference": reference, "grouped": grouped, "varlen": varlen, "flex": flex}
DROPPING = ("reference", "grouped")
"""Those that leave out a share of what attention looks at, where a model in training asks for that."""

AttentionInterface.register(NAME, attend)
AttentionInterface.register(WITHIN, within)
