"""The kernel of `merging`: Triton comes with torch where there is CUDA, and nowhere else is this file imported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import triton
import triton.language as tl

if TYPE_CHECKING:
    from .merging import MergeIndex, PartialAttention


def merge(whole: PartialAttention, parts: Sequence[PartialAttention], places: MergeIndex) -> None:
    """Merge the parts into the first, a row at a time.

    No number of a batch's tokens is told but `count`: Triton makes the kernel anew where 16 divides one that it did not divide
    before.
    """
    heads, width = whole.out.shape[1:]
    heads_up, width_up = triton.next_power_of_2(heads), triton.next_power_of_2(width)
    _merge[(len(places.rows),)](
        whole.out,
        whole.lse.contiguous(),
        *whole.out.stride(),
        tuple(part.out.contiguous() for part in parts),
        tuple(part.lse.contiguous() for part in parts),
        places.rows,
        places.among,
        len(places.rows),
        heads=heads,
        width=width,
        heads_up=heads_up,
        width_up=width_up,
        num_warps=min(16, max(4, heads_up * width_up // 1024)),  # so many numbers a thread as its registers hold
    )


@triton.jit(do_not_specialize=["count"])
def _merge(  # type: ignore[no-untyped-def]
    out, lse, out_row, out_head, out_one, part_outs, part_lses, rows, among, count,
    heads: tl.constexpr, width: tl.constexpr, heads_up: tl.constexpr, width_up: tl.constexpr,
):  # fmt: skip
    """One row: all heads of it, (heads, width) numbers, in fp32."""
    place = tl.program_id(0)
    row = tl.load(rows + place)
    head = tl.arange(0, heads_up)
    one = tl.arange(0, width_up)
    is_head = head < heads
    inside = is_head[:, None] & (one < width)[None, :]
    at = out + row * out_row + head[:, None] * out_head + one[None, :] * out_one
    sum_out = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    most = tl.load(lse + row * heads + head, mask=is_head, other=0.0).to(tl.float32)
    total = tl.full((heads_up,), 1.0, tl.float32)
    for k in tl.static_range(len(part_outs)):
        own = tl.load(among + k * count + place).to(tl.int64)
        if own >= 0:
            there = tl.load(part_lses[k] + own * heads + head, mask=is_head, other=0.0).to(tl.float32)
            higher = tl.maximum(most, there)
            before, after = tl.exp(most - higher), tl.exp(there - higher)
            block = part_outs[k] + own * heads * width + head[:, None] * width + one[None, :]
            states = tl.load(block, mask=inside, other=0.0).to(tl.float32)
            sum_out = sum_out * before[:, None] + states * after[:, None]
            total = total * before + after
            most = higher
    tl.store(at, (sum_out / total[:, None]).to(out.dtype.element_ty), mask=inside)
