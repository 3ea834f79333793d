"""Precision by name, and vectors of length one."""

from __future__ import annotations

import pytest
import torch

from mmembed.errors import UnknownName
from mmembed.nn.precision import PRECISIONS, cast, dtype_of, unit
from mmembed.testing import tiny_backbone


def test_a_precision_is_a_dtype_and_another_name_an_error():
    assert [dtype_of(name) for name in PRECISIONS] == [torch.float32, torch.bfloat16, torch.float16]
    with pytest.raises(UnknownName, match="Did you mean 'fp16'"):
        dtype_of("fp61")


def test_unit_vectors_are_fp32_of_length_one_and_zero_stays_zero():
    told = unit(torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-3, 0.0]], dtype=torch.bfloat16))
    assert told.dtype is torch.float32
    assert torch.allclose(told.norm(dim=-1), torch.tensor([1.0, 0.0, 1.0]))
    assert torch.allclose(told[0], torch.tensor([0.6, 0.8]))


def test_weights_are_cast_and_what_is_computed_from_the_configuration_stays():
    model = cast(torch.nn.Sequential(tiny_backbone(), torch.nn.BatchNorm1d(3)), torch.bfloat16)
    assert {w.dtype for w in model.parameters()} == {torch.bfloat16}
    assert model[1].running_mean.dtype is torch.bfloat16
    assert model[1].num_batches_tracked.dtype is torch.int64
    assert torch.equal(model[0].rotary_emb.inv_freq, tiny_backbone().rotary_emb.inv_freq)
