"""Parts of one softmax, put together in plain torch and by the kernel, which runs in Triton's interpreter or on a GPU."""

from __future__ import annotations

import importlib.util
import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mmembed.nn.merging import MergeIndex, PartialAttention, _merge, merged

ROWS = {"several": [1, 2, 3, 4, 5], "one": [3], "all": list(range(8))}
LATER = [[1, 3], [3], []]
"""Which of the rows that have several parts have one in each part but the second, which all have."""


def parts_of(rows, heads=(2, 4), device="cpu", dtype=torch.float32, by_head=True):
    """Eight rows: the first part, what comes behind it, which rows stand where, and the softmax over all keys."""
    generator = torch.Generator().manual_seed(3)
    count, width = heads
    scores = (torch.randn(8, count, 15, generator=generator) * 5).double()
    value = torch.randn(15, count, width, generator=generator).double()

    def part(own, keys):
        told = scores[own][..., keys]
        out = torch.einsum("nhk,khe->nhe", told.softmax(-1), value[keys])
        lse = told.logsumexp(-1).float().to(device)
        return PartialAttention(out.to(device, dtype), lse.T.contiguous().T if by_head else lse)

    every = [np.array(rows)] + [np.array([row for row in rows if row in some], dtype=np.int64) for some in LATER]
    every = [some for some in every if len(some)]
    cuts = [slice(3 * k, 3 * k + 3) for k in range(len(every) + 1)]
    later = [part(torch.from_numpy(own), keys) for own, keys in zip(every, cuts[1:], strict=True)]
    due = torch.stack(
        [
            torch.einsum("hk,khe->he", scores[row][:, seen].softmax(-1), value[seen])
            for row in range(8)
            for seen in [
                [k for own, cut in zip([range(8), *every], cuts, strict=True) if row in own for k in range(15)[cut]]
            ]
        ]
    )
    places = MergeIndex.of(every[0], every, torch.device(device))
    return part(torch.arange(8), cuts[0]), later, places, due.to(device)


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_merged_parts_are_one_softmax(rows):
    whole, parts, places, due = parts_of(rows)
    told = merged(whole, parts, places)
    assert told is whole.out
    assert (told - due).abs().max() <= 1e-5
    for order in itertools.permutations(range(len(parts))):
        whole, _, places, _ = parts_of(rows)
        among = places.among[list(order)]
        assert (merged(whole, [parts[k] for k in order], MergeIndex(places.rows, among)) - due).abs().max() <= 1e-5


def test_parts_that_lie_far_apart_lose_nothing():
    far = [
        PartialAttention(torch.ones(1, 1, 2), torch.tensor([[300.0]])),
        PartialAttention(torch.zeros(1, 1, 2), torch.tensor([[-300.0]])),
    ]
    for first, second in itertools.permutations(far):
        whole = PartialAttention(first.out.clone(), first.lse)
        told = merged(whole, [second], MergeIndex.of(np.array([0]), [np.array([0])], torch.device("cpu")))
        assert torch.equal(told, torch.ones(1, 1, 2))


INTERPRETED = """
import torch
from mmembed.nn.merging import _merge
from mmembed.nn.merging_triton import merge
from tests.nn.test_merging import ROWS, parts_of

for rows in ROWS.values():
    for heads in ((2, 4), (3, 20), (14, 64)):
        for by_head in (True, False):
            whole, parts, places, due = parts_of(rows, heads, by_head=by_head)
            merge(whole, parts, places)
            plain, parts, places, _ = parts_of(rows, heads, by_head=by_head)
            _merge(plain, parts, places)
            assert (whole.out - plain.out).abs().max() <= 1e-5, heads
            assert (whole.out - due).abs().max() <= 1e-5, heads
print("alike")
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton comes with torch for CUDA")
def test_the_kernel_is_what_plain_torch_says_in_its_interpreter():
    told = subprocess.run(
        [sys.executable, "-c", INTERPRETED],
        capture_output=True,
        text=True,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=Path(__file__).resolve().parents[2],
    )
    assert told.stdout.strip() == "alike", told.stderr[-2000:]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_the_kernel_is_what_plain_torch_says_on_cuda(rows, dtype):
    for heads in ((2, 4), (3, 20), (16, 128)):
        whole, parts, places, due = parts_of(rows, heads, "cuda", dtype)
        plain = PartialAttention(whole.out.clone(), whole.lse)
        _merge(plain, parts, places)
        told = merged(whole, parts, places).float()
        near = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}[dtype]
        assert (told - plain.out.float()).abs().max() <= near
        assert (told - due).abs().max() <= near
