"""The rule of the mask against brute force, runs of equal length, boundaries."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmembed.nn.spans import Spans
from mmembed.spec import MASKS


def plainly(lengths, mask, block, q, k, window):
    """Whether q may look at k, from the item lists alone."""
    owner = [(item, place) for item, length in enumerate(lengths) for place in range(length)]
    (item_q, at_q), (item_k, at_k) = owner[q], owner[k]
    if item_q != item_k:
        return False
    seen = mask == "bidirectional" or at_k <= at_q
    if mask == "causal+image" and block[q] >= 0 and block[q] == block[k]:
        seen = True
    return seen and (window is None or abs(at_q - at_k) < window)


@st.composite
def rows(draw):
    lengths = draw(st.lists(st.integers(1, 6), min_size=1, max_size=5))
    block = draw(st.lists(st.integers(-1, 2), min_size=sum(lengths), max_size=sum(lengths)))
    return lengths, block


@given(rows(), st.sampled_from(MASKS), st.sampled_from([None, 1, 2, 3]))
def test_may_look_is_the_rule_written_plainly(row, mask, window):
    lengths, block = row
    spans = Spans.of(lengths, mask, torch.tensor(block))
    every = torch.arange(sum(lengths))
    seen = spans.may_look(every[:, None], every[None, :], window)
    expected = [[plainly(lengths, mask, block, q, k, window) for k in every.tolist()] for q in every.tolist()]
    assert seen.tolist() == expected
    assert bool(seen.diagonal().all()), "a token that sees nothing has no state"


@given(st.lists(st.integers(1, 4), min_size=1, max_size=12))
def test_runs_are_the_lengths_again_in_order(lengths):
    spans = Spans.of(lengths, "causal")
    told = spans.runs
    assert [run.length for run in told for _ in range(run.count)] == lengths
    assert [run.first for run in told] == [sum(r.count * r.length for r in told[:k]) for k in range(len(told))]
    assert all(a.length != b.length for a, b in pairwise(told)), "neighbours of one length are one run"
    assert not any(run.before for run in told)


def test_boundaries_positions_start_and_end_of_a_row():
    spans = Spans.of([2, 1, 3], "causal")
    assert spans.boundaries.tolist() == [0, 2, 3, 6]
    assert spans.boundaries.dtype is torch.int32
    assert spans.positions.tolist() == [0, 1, 0, 0, 1, 2]
    assert spans.start.tolist() == [0, 0, 2, 3, 3, 3]
    assert spans.end.tolist() == [2, 2, 3, 6, 6, 6]


def test_blocks_count_for_their_own_mask_only_and_only_where_there_is_an_image():
    image = torch.tensor([-1, 0, 0])
    assert Spans.of([3], "causal", image).block is None
    assert Spans.of([3], "bidirectional", image).block is None
    assert Spans.of([3], "causal+image", torch.tensor([-1, -1, -1])).block is None
    assert Spans.of([3], "causal+image").block is None
    kept = Spans.of([3], "causal+image", image)
    assert kept.block is not None
    assert kept.to("cpu").block is not None


@pytest.mark.parametrize("mask", MASKS)
def test_moving_spans_changes_nothing(mask):
    spans = Spans.of([2, 3], mask, torch.tensor([0, 0, -1, 1, 1]))
    moved = spans.to("cpu")
    every = torch.arange(5)
    assert moved.lengths == spans.lengths
    assert torch.equal(
        moved.may_look(every[:, None], every[None, :], 2), spans.may_look(every[:, None], every[None, :], 2)
    )
