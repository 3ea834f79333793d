"""Dense attention on a CPU, as torch does it or, where that is slow, as products by oneDNN with a softmax between.

torch's flash kernel multiplies by MKL, which on processors of other makers than Intel takes half the steps that they could take.
On two AMD cores with AVX-512 texts of 500 to 4,000 tokens are 1.02 to 1.22 times as fast as a whole by products
(`benchmarks/measure_dense.py`); by itself attention is 1.2 to 1.4 times as fast, but for few heads of 64 numbers that share keys.

Of many short items that kernel makes a small product for each head of each, which takes two to three times as long as batched
products of all of them: 64 items of 12 tokens, 12 heads of 32 numbers, 1.48 and .41 ms there.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from .kernels import is_intel

ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
"""Whether torch has oneDNN's products as an operator."""
LEAST = 2**18
"""Scores of the heads that share a key from which on products pay."""
BLOCK = 512
"""Rows of scores at a time: with 500 keys they are a megabyte, which stays in the cache."""
SHORT = 16
"""Tokens of short items, which are filled up to as many."""
FEWEST, MOST = 4, 64
"""Short items are multiplied together where there are so many at least, and so many at a time, which the caches hold."""
STEP = 64
"""Queries and keys are filled up to a multiple of it: oneDNN keeps what it compiles for every shape, a megabyte and more each."""


def dense(
    query: Float[Tensor, "N H M E"],
    key: Float[Tensor, "N K L E"],
    value: Float[Tensor, "N K L E"],
    mask: Bool[Tensor, "_ 1 M L"] | None = None,
    dropout: float = 0.0,
    *,
    scaling: float,
    causal: bool,
) -> Float[Tensor, "N H M E"]:
    """Attention of M queries over L keys, H / K heads to a key; `causal`: M is L, and each query sees what stands up to it."""
    if mask is None and not dropout and by_products(query, key):
        return products(query, key, value, scaling=scaling, causal=causal)
    if mask is None and not dropout and are_short(query, key):
        parts = zip(*(x.split(MOST) for x in (query, key, value)), strict=True)
        return torch.cat([batched(*part, scaling=scaling, causal=causal) for part in parts])
    gqa = query.shape[1] != key.shape[1]
    return F.scaled_dot_product_attention(
        query, key, value, mask, dropout, is_causal=causal, scale=scaling, enable_gqa=gqa
    )


def by_products(query: Float[Tensor, "N H M E"], key: Float[Tensor, "N K L E"]) -> bool:
    """Whether products are for these numbers: many, in fp32 on such a processor, without gradients."""
    many = query.shape[1] // key.shape[1] * query.shape[2] * key.shape[2] >= LEAST
    return many and _plain(query) and bool(torch.backends.mkldnn.enabled) and slowed()


def are_short(query: Float[Tensor, "N H M E"], key: Float[Tensor, "N K L E"]) -> bool:
    """Whether these are many short items, in fp32 on a CPU, without gradients."""
    return len(query) >= FEWEST and max(query.shape[2], key.shape[2]) <= SHORT and _plain(query)


def _plain(numbers: Tensor) -> bool:
    return numbers.dtype == torch.float32 and alone(numbers)


def alone(numbers: Tensor) -> bool:
    """On a CPU, where neither gradients nor autocast have a say."""
    return numbers.is_cpu and not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")


@cache
def slowed() -> bool:
    """Whether torch multiplies by MKL on a processor of another maker than Intel, and has oneDNN beside it."""
    other = Path("/proc/cpuinfo").exists() and not is_intel()
    return other and torch.backends.mkl.is_available() and ONEDNN


def products(
    query: Float[Tensor, "N H M E"],
    key: Float[Tensor, "N K L E"],
    value: Float[Tensor, "N K L E"],
    *,
    scaling: float,
    causal: bool,
) -> Float[Tensor, "N H M E"]:
    """The same by oneDNN's products, a block of queries of the heads that share a key at a time."""
    (n, heads, m, width), (of_keys, length) = query.shape, key.shape[1:3]
    groups = heads // of_keys
    rows, columns = _up(m), _up(length)
    queries, out = (query.new_empty(n, of_keys, groups, rows, width) for _ in range(2))
    queries[..., :m, :] = query.unflatten(1, (of_keys, groups)) * scaling
    queries[..., m:, :] = 0
    keys = F.pad(key, (0, 0, 0, columns - length)).contiguous()
    values = F.pad(value, (0, 0, 0, columns - length)).transpose(2, 3).contiguous()
    none = query.new_zeros(columns)
    none[length:] = -torch.inf
    step = _up(max(1, BLOCK // groups))
    for item in range(n):
        for head in range(of_keys):
            for first in range(0, rows, step):
                last = min(first + step, rows)
                end = last if causal else columns
                own = queries[item, head, :, first:last].reshape(-1, width)
                scores = _product(own, keys[item, head, :end], none[:end])
                if causal:
                    scores.view(groups, -1, end)[:, :, first:].add_(_ahead(last - first))
                seen = values[item, head] if end == columns else values[item, head, :, :end].contiguous()
                out[item, head, :, first:last] = _product(scores.softmax(-1), seen, None).view(groups, -1, width)
    return out[..., :m, :].flatten(1, 2)


def batched(
    query: Float[Tensor, "N H M E"],
    key: Float[Tensor, "N K L E"],
    value: Float[Tensor, "N K L E"],
    *,
    scaling: float,
    causal: bool,
) -> Float[Tensor, "N H M E"]:
    """The same for `SHORT` tokens at most, all heads of all items in two batched products."""
    (n, heads, m, width), (of_keys, length) = query.shape, key.shape[1:3]
    groups = heads // of_keys
    queries = query.new_zeros(n, of_keys, groups, SHORT, width)
    queries[..., :m, :] = query.unflatten(1, (of_keys, groups))
    keys, values = key.new_zeros(n, of_keys, SHORT, width), value.new_zeros(n, of_keys, SHORT, width)
    keys[..., :length, :], values[..., :length, :] = key, value
    of_each = _unseen(length, causal).repeat(groups, 1)
    scores = torch.baddbmm(of_each, queries.view(n * of_keys, -1, width), keys.flatten(0, 1).mT, alpha=scaling)
    out = torch.bmm(scores.softmax(-1), values.flatten(0, 1)).view(n, of_keys, groups, SHORT, width)
    return out[..., :m, :].flatten(1, 2)


def _product(rows: Float[Tensor, "R D"], weight: Float[Tensor, "C D"], bias: Tensor | None) -> Float[Tensor, "R C"]:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
    return out


def _up(count: int) -> int:
    return -(-count // STEP) * STEP


@cache
def _ahead(count: int) -> Float[Tensor, "B B"]:
    """What is added to the scores of neighbours, so that none sees those behind it."""
    return torch.full((count, count), -torch.inf, dtype=torch.float32, device="cpu").triu_(1)


@cache
def _unseen(length: int, causal: bool) -> Float[Tensor, "S S"]:
    """What is added to the scores of a short item, so that no query sees what it is filled up with."""
    ahead = _ahead(SHORT).clone() if causal else torch.zeros(SHORT, SHORT, dtype=torch.float32, device="cpu")
    ahead[:, length:] = -torch.inf
    return ahead
