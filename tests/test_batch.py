"""Plans and packed rows."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mmembed.batch import Picture, Sample, Slots, pack, plan


@given(st.lists(st.integers(1, 200), max_size=60), st.integers(1, 500))
def test_a_plan_takes_every_row_once_and_keeps_to_the_budget(lengths, budget):
    batches = plan(lengths, budget)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert all(len(batch) == 1 or sum(lengths[row] for row in batch) <= budget for batch in batches)
    order = [lengths[row] for batch in batches for row in batch]
    assert order == sorted(order, reverse=True)


def test_pixels_cost_as_tokens_do():
    image = Slots(0, 1, Picture(np.zeros((3, 28, 42), np.uint8)))
    assert Sample(np.zeros(5, np.int64), np.ones(5, bool), (image, image), 0).cost == 5 + 2 * 6


def test_a_packed_row_holds_every_token_and_knows_whose_it_is():
    picture = Picture(np.zeros((3, 4, 4), np.uint8))
    first = Sample(np.array([5, 0, 0, 6]), np.array([False, True, True, True]), (Slots(1, 2, picture),), 0)
    second = Sample(np.array([7, 8]), np.array([True, True]), (), 0)
    batch = pack([first, second], [4, 2], "causal+image")
    assert batch.ids.tolist() == [5, 0, 0, 6, 7, 8]
    assert batch.spans.positions.tolist() == [0, 1, 2, 3, 0, 1]
    assert batch.spans.block is not None
    assert batch.spans.block.tolist() == [-1, 0, 0, -1, -1, -1]
    assert batch.counted.index.tolist() == [1, 2, 3, 4, 5]
    assert batch.counted.item.tolist() == [0, 0, 0, 1, 1]
    assert batch.slots.tolist() == [1, 2]
    assert batch.pictures == (picture,)
    assert batch.rows == (4, 2)
    assert pack([second], [0], "causal+image").spans.block is None
