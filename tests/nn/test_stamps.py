"""Stamps change with what a tensor holds, however it was written."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmembed.nn.stamps import stamp

WRITES = {
    "through torch": lambda x: x.detach().mul_(1.5),
    "through .data": lambda x: x.data.mul_(1.5),
    "in another's place": lambda x: setattr(x, "data", x.data.clone()),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_every_write_is_seen(write, dtype):
    made = (torch.rand(6, 8) * 100 + 20).to(dtype)
    weight = nn.Parameter(made, requires_grad=False) if dtype is torch.int8 else nn.Parameter(made)
    if dtype is torch.int8 and write is not WRITES["in another's place"]:
        pytest.skip("int8 does not take a factor of 1.5")
    before = stamp(weight)
    assert stamp(weight) == before
    write(weight)
    assert stamp(weight) != before


@pytest.mark.parametrize("shape", [(0,), (1,), (3,), (7, 1)])
def test_small_and_odd_tensors_have_one(shape):
    weight = torch.ones(shape)
    views = [weight, weight.T if weight.ndim > 1 else weight, torch.ones(9)[::2], torch.ones(1).expand(50)]
    assert [stamp(view) for view in views] == [stamp(view) for view in views]


def test_a_tensor_that_nobody_counts_has_none():
    with torch.inference_mode():
        weight = torch.ones(8)
    with pytest.raises(RuntimeError, match="version"):
        stamp(weight)
