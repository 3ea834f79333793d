"""Copies between host and device: the same numbers, and nobody waits before they are read."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmembed.nn.transfer import fetched, numbers, to_device

from ..paper import OnPaper, paper

MIXED = [torch.arange(6.0).view(2, 3), torch.tensor([3, 1]), torch.zeros(0, 3), torch.tensor(7.0), torch.arange(4)]


def same(arrays):
    return all(np.array_equal(own, x) and own.dtype == x.numpy().dtype for own, x in zip(arrays, MIXED, strict=True))


def test_on_the_host_nothing_is_copied():
    x = torch.arange(3)
    assert to_device(x, "cpu") is x
    assert numbers(x) == [0, 1, 2]
    assert same(fetched(MIXED)())


def test_a_part_of_a_tensor_comes_in_memory_of_its_own():
    whole = torch.zeros(6, 2)
    parts = fetched(whole.split([1, 5]))()
    whole.fill_(1)
    assert [part.sum() for part in parts] == [0, 0]


def test_there_and_back_waits_for_one_event():
    with paper() as device:
        there = [to_device(x, "cuda") for x in MIXED]
        wait = fetched(there)
        assert all(isinstance(x, OnPaper) for x in there)
        assert not device.waits
        assert same(wait())
        assert device.waits == ["an event"]


def test_two_batches_on_their_way_are_two_events():
    with paper():
        first, second = (fetched([to_device(x + k, "cuda") for x in MIXED]) for k in (0, 1))
        assert np.array_equal(second()[4], [1, 2, 3, 4])
        assert same(first())


def test_numbers_that_were_kept_need_not_come_back():
    x = torch.tensor([4, 2])
    with paper() as device:
        assert numbers(to_device(x, "cuda", keep=True)) == [4, 2]
        assert not device.waits
        assert numbers(to_device(x, "cuda")) == [4, 2]
        assert device.waits == ["a copy from the device"]


@pytest.mark.gpu
def test_there_and_back_on_a_gpu():
    waits = []
    for k in range(50):  # buffers are used again and again
        x = torch.full((1000, 100), float(k))
        there = to_device(x, "cuda")
        x.fill_(-1)  # the copy was of what stood there
        waits.append(fetched([there.square(), torch.arange(k, device="cuda")]))
    for k, wait in enumerate(waits):
        square, row = wait()
        assert (square == k * k).all()
        assert row.tolist() == list(range(k))
