"""The one door of attention over packed rows, registered with transformers, and its rooms."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import AttentionInterface

from ..errors import UnknownName
from .extension import Extension, extended
from .spans import Spans

NAME = "mmembed"
"""What `config._attn_implementation` is set to: `spans=` given to a model's forward then reaches every layer."""

Query = Float[Tensor, "1 H T E"]
Key = Float[Tensor, "1 K T E"]
Room = Callable[..., Query]
"""room(query, key, value, spans, *, scaling, window, softcap) -> (1, H, T, E)"""


def attend(
    module: torch.nn.Module,
    query: Query,
    key: Key,
    value: Key,
    attention_mask: Tensor | None,
    *,
    spans: Spans,
    extension: Extension | None = None,
    room: str | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Float[Tensor, "1 T H E"], None]:
    """Attention of one packed row under the rule of `spans`, in the named room or the best one for the device, or by groups
    where an `extension` says so.

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
    if spans.open_from is not None:
        layer = getattr(module, "layer_idx", None)
        if layer is None:
            raise NotImplementedError(
                f"{type(module).__name__} does not say which layer it is of: no layer can be opened"
            )
        if layer >= spans.open_from:
            spans, sliding_window = spans.opened, None
    if sliding_window is not None and not spans.causal and getattr(module, "is_causal", False):
        # transformers' masks of a decoder set to read both ways include the token `sliding_window` away.
        sliding_window += 1
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if extension is not None:
        if softcap is not None:
            raise NotImplementedError("SelfExtend knows no soft cap")
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
    if not query.is_cuda:
        return "grouped" if softcap is None else "reference"
    plain = spans.block is None and softcap is None and query.dtype in (torch.float16, torch.bfloat16)
    plain = plain and not spans.shared  # a shared part would have to be merged in by its log-sum-exp
    return "varlen" if plain and query.shape[-1] <= 256 else "flex"


def reference(
    query: Query, key: Key, value: Key, spans: Spans, *, scaling: float, window: int | None, softcap: float | None
) -> Query:
    """Every token against every token, masked; softmax in fp32. The plain way that the other rooms are held to."""
    key, value = _one_key_a_head(query, key, value)
    row = torch.arange(query.shape[2], device=query.device)
    scores = (query.float() @ key.float().transpose(-1, -2)) * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~spans.may_look(row[:, None], row[None, :], window), float("-inf"))
    return (scores.softmax(-1) @ value.float()).to(query.dtype)


def grouped(
    query: Query, key: Key, value: Key, spans: Spans, *, scaling: float, window: int | None, softcap: float | None
) -> Query:
    """One dense `scaled_dot_product_attention` for each run of items of equal length; no mask where none is needed."""
    if softcap is not None:
        raise NotImplementedError("grouped attention knows no soft cap; the room 'reference' does")
    key, value = _one_key_a_head(query, key, value)
    every = torch.arange(query.shape[2], device=query.device)
    parts = []
    for run in spans.runs:
        q, k, v = (rearrange(x[0, :, run.tokens], "h (n t) e -> n h t e", n=run.count) for x in (query, key, value))
        row = rearrange(every[run.tokens], "(n t) -> n t", n=run.count)
        depth = sum(part.stop - part.start for part in run.before)
        narrow = window is not None and window < depth + run.length
        blocks = spans.block is not None and bool((spans.block[run.tokens] >= 0).any())
        if run.before:
            past = torch.cat([every[part] for part in run.before])
            if narrow or blocks:
                columns = torch.cat([past.expand(run.count, -1), row], dim=1)
                seen = spans.may_look(row[:, :, None], columns[:, None, :], window)
            else:  # all of what came before, and of its own segment what stands behind
                columns = torch.arange(depth + run.length, device=query.device)
                seen = (columns <= columns[depth:, None])[None]
            out = _behind(q, k, v, key[0, :, past], value[0, :, past], seen, scaling)
        elif narrow or blocks:
            seen = spans.may_look(row[:, :, None], row[:, None, :], window)[:, None]
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scaling)
        else:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=spans.causal and run.length > 1, scale=scaling)
        parts.append(rearrange(out, "n h t e -> h (n t) e"))
    return torch.cat(parts, dim=1)[None]


def _behind(
    q: Float[Tensor, "N H L E"],
    k: Float[Tensor, "N H L E"],
    v: Float[Tensor, "N H L E"],
    past_k: Float[Tensor, "H P E"],
    past_v: Float[Tensor, "H P E"],
    seen: Bool[Tensor, "M L P_plus_L"],
    scaling: float,
) -> Float[Tensor, "N H L E"]:
    """Attention of N runs over the P tokens that all of them come after, which are multiplied once and never copied, and
    over their own; one softmax over both, in fp32 at least."""
    n, split = q.shape[0], past_k.shape[1]
    flat = rearrange(q, "n h l e -> h (n l) e")
    old = rearrange(flat @ past_k.transpose(-1, -2), "h (n l) p -> n h l p", n=n)
    scores = torch.cat([old, q @ k.transpose(-1, -2)], dim=-1) * scaling
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    weights = scores.masked_fill(~seen[:, None], float("-inf")).softmax(-1).to(v.dtype)
    long_ago = rearrange(weights[..., :split], "n h l p -> h (n l) p") @ past_v
    return rearrange(long_ago, "h (n l) e -> n h l e", n=n) + weights[..., split:] @ v


def varlen(
    query: Query, key: Key, value: Key, spans: Spans, *, scaling: float, window: int | None, softcap: float | None
) -> Query:
    """Variable-length flash kernels of `torch.nn.attention.varlen` (CUDA, half precision)."""
    from torch.nn.attention.varlen import varlen_attn

    if softcap is not None or spans.block is not None or spans.shared:
        raise NotImplementedError(
            "variable-length kernels know no soft cap, image blocks or shared tokens; 'flex' does"
        )
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
