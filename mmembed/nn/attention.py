"""The one door of attention over packed rows, registered with transformers, and its rooms."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AttentionInterface

from ..errors import UnknownName
from .extension import Extension, extended
from .grouped import grouped
from .spans import Spans

NAME = "mmembed"
"""What `config._attn_implementation` is set to: `spans=` given to a model's forward then reaches every layer."""

Query = Float[Tensor, "1 H Q E"]
Key = Float[Tensor, "1 K T E"]
Room = Callable[..., Query]
"""room(query, key, value, spans, *, scaling, window, softcap) -> (1, H, Q, E), of the queries that `spans.asking` names, over
keys and values of the whole row."""
Recall = Callable[[int, Key, Key], tuple[Key, Key]]
"""recall(layer, key, value) -> those of the whole row, where a layer was given no more than some of its tokens."""


def attend(
    module: torch.nn.Module,
    query: Query,
    key: Key,
    value: Key,
    attention_mask: Tensor | None,
    *,
    spans: Spans,
    extension: Extension | None = None,
    recall: Recall | None = None,
    room: str | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Float[Tensor, "1 T H E"], None]:
    """Attention of one packed row under the rule of `spans`, in the named room or the best one for the device, or by groups
    where an `extension` says so.

    Where `spans.asking` names tokens, queries are of these. Keys and values are of the whole row: as they are given, or as
    `recall` makes them of those given, which are of the tokens that went through the layer.

    The signature is that of transformers' `AttentionInterface`; keyword arguments that say nothing about the mask or
    the softmax (`deterministic`, `use_cache`, ...) are not ours to read.

    Raises:
        UnknownName: no room of that name.
        NotImplementedError: attention dropout in training, which no room has.
    """
    if attention_mask is not None:
        raise NotImplementedError("a packed row carries its mask in `spans`; an attention_mask came as well")
    if dropout:
        raise NotImplementedError("attention dropout is not supported over packed rows: set attention_dropout to 0")
    if not spans.windows:
        sliding_window = None
    layer = getattr(module, "layer_idx", None)
    if layer is None and (spans.open_from is not None or recall is not None):
        raise NotImplementedError(f"{type(module).__name__} does not say which layer it is of: no layer can be opened")
    if recall is not None:
        key, value = recall(int(layer), key, value)  # type: ignore[arg-type]
    if spans.open_from is not None and int(layer) >= spans.open_from:  # type: ignore[arg-type]
        spans, sliding_window = spans.opened, None
    if sliding_window is not None and not spans.causal and getattr(module, "is_causal", False):
        # transformers' masks of a decoder set to read both ways include the token `sliding_window` away.
        sliding_window += 1
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if extension is not None:
        if softcap is not None or spans.asking is not None:
            raise NotImplementedError("SelfExtend knows no soft cap, and no queries of some tokens only")
        heads = _one_key_a_head(query, key, value)
        out = extended(query, *heads, spans, extension, scaling=scale, window=sliding_window)
        return out.transpose(1, 2).contiguous(), None
    name = room or choose(query, spans, sliding_window, softcap)
    try:
        chosen = ROOMS[name]
    except KeyError:
        raise UnknownName("attention room", name, ROOMS) from None
    out = chosen(query, key, value, spans, scaling=scale, window=sliding_window, softcap=softcap)
    return out.transpose(1, 2).contiguous(), None  # some models take a view of it


def choose(query: Query, spans: Spans, window: int | None, softcap: float | None) -> str:
    """Which room serves: variable-length kernels or FlexAttention on CUDA, grouped on the CPU."""
    if not query.is_cuda or spans.asking is not None:
        return "grouped" if softcap is None else "reference"
    plain = spans.block is None and softcap is None and query.dtype in (torch.float16, torch.bfloat16)
    plain = plain and not spans.shared  # a shared part would have to be merged in by its log-sum-exp
    return "varlen" if plain and query.shape[-1] <= 256 else "flex"


def reference(
    query: Query, key: Key, value: Key, spans: Spans, *, scaling: float, window: int | None, softcap: float | None
) -> Query:
    """Every token against every token, masked; softmax in fp32. The plain way that the other rooms are held to."""
    key, value = _one_key_a_head(query, key, value)
    row = torch.arange(key.shape[2], device=query.device)
    scores = (query.float() @ key.float().transpose(-1, -2)) * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~spans.may_look(spans.queries[:, None], row[None, :], window), float("-inf"))
    return (scores.softmax(-1) @ value.float()).to(query.dtype)


def varlen(
    query: Query, key: Key, value: Key, spans: Spans, *, scaling: float, window: int | None, softcap: float | None
) -> Query:
    """Variable-length flash kernels of `torch.nn.attention.varlen` (CUDA, half precision)."""
    from torch.nn.attention.varlen import varlen_attn

    if softcap is not None or spans.block is not None or spans.shared:
        raise NotImplementedError(
            "variable-length kernels know no soft cap, image blocks or shared tokens; 'flex' does"
        )
    if spans.asking is not None:
        raise NotImplementedError("variable-length kernels know no queries of some tokens only; 'grouped' does")
    reach = -1 if window is None else window - 1
    longest = max(spans.lengths)
    out: Any = varlen_attn(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        spans.boundaries,
        spans.boundaries,
        longest,
        longest,
        scale=scaling,
        window_size=(reach, 0 if spans.causal else reach),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out.transpose(0, 1)[None]


def flex(
    query: Query, key: Key, value: Key, spans: Spans, *, scaling: float, window: int | None, softcap: float | None
) -> Query:
    """FlexAttention: the rule of the mask compiled into one kernel on CUDA, run plainly elsewhere."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def rule(_batch: Tensor, _head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return spans.may_look(q, k, window)

    def cap(score: Tensor, *_where: Tensor) -> Tensor:
        return score if softcap is None else softcap * torch.tanh(score / softcap)

    if spans.asking is not None:
        raise NotImplementedError("FlexAttention knows no queries of some tokens only; 'grouped' does")
    tokens = query.shape[2]
    mask = create_block_mask(rule, None, None, tokens, tokens, device=query.device)
    run: Any = _compiled_flex() if query.is_cuda else flex_attention
    gqa = query.shape[1] != key.shape[1]
    out = run(query, key, value, score_mod=cap if softcap else None, block_mask=mask, scale=scaling, enable_gqa=gqa)
    assert isinstance(out, Tensor)
    return out


@cache
def _compiled_flex() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


def _one_key_a_head(query: Query, key: Key, value: Key) -> tuple[Query, Query]:
    groups = query.shape[1] // key.shape[1]
    if groups == 1:
        return key, value
    return key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)


ROOMS: dict[str, Room] = {"reference": reference, "grouped": grouped, "varlen": varlen, "flex": flex}

AttentionInterface.register(NAME, attend)
