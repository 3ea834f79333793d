"""Plans and packed rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmembed.batch import Picture, Sample, Slots, pack, plan
from mmembed.nn.spans import Spans
from mmembed.prefix_tree import SHARED


def plain(ids: Sequence[int]) -> Sample:
    return Sample(np.asarray(ids, dtype=np.int64), np.ones(len(ids), bool), (), 0)


@given(st.lists(st.integers(1, 200), max_size=60), st.integers(1, 500))
def test_a_plan_takes_every_row_once_and_keeps_to_the_budget(lengths, budget):
    batches = plan([plain(range(n)) for n in lengths], budget)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert all(len(batch) == 1 or sum(lengths[row] for row in batch) <= budget for batch in batches)
    order = [lengths[row] for batch in batches for row in batch]
    assert order == sorted(order, reverse=True)


@given(st.lists(st.integers(1, 200), max_size=60), st.integers(1, 500))
def test_a_padded_plan_takes_every_row_once_and_fills_no_more_than_the_budget(lengths, budget):
    batches = plan([plain(range(n)) for n in lengths], budget, padded=True)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert all(len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= budget for batch in batches)
    windows = replace(plain(range(12)), windows=(8, 4))
    assert plan([windows, windows], 31, padded=True) == [[0], [1]], "four rows of eight"
    assert plan([windows, windows], 32, padded=True) == [[0, 1]]


@st.composite
def families(draw):
    """Items that begin with what one of some stems begins with, a level or two deep."""
    stems = [[9] * n for n in draw(st.lists(st.integers(0, 3 * SHARED), min_size=1, max_size=3))]
    stems += [[*stem, *([8] * draw(st.integers(0, 2 * SHARED)))] for stem in stems]
    ends = st.lists(st.integers(1, 3), max_size=6)
    items = [[*draw(st.sampled_from(stems)), *draw(ends)] for _ in range(draw(st.integers(1, 12)))]
    return [item or [1] for item in items]


@given(families(), st.integers(1, 100))
def test_a_plan_that_shares_takes_every_row_once_and_lays_no_more_than_the_budget(items, budget):
    samples = [plain(item) for item in items]
    batches = plan(samples, budget, share=True)
    assert sorted(row for batch in batches for row in batch) == list(range(len(items)))
    for batch in batches:
        laid = len(pack([samples[row] for row in batch], batch, "causal", share=True).ids)
        assert len(batch) == 1 or laid <= budget


def test_a_plan_of_items_in_windows_lays_no_more_than_the_budget():
    """No window sees what others begin with, so that nothing is laid once."""
    samples = [replace(plain(range(12)), windows=windows) for windows in ((6, 6), (4, 4, 4), (3, 3, 3, 3))]
    for batch in plan(samples, 24, share=True):
        assert len(pack([samples[row] for row in batch], batch, "causal", share=True).ids) <= 24


@given(families())
def test_a_tree_holds_every_item_and_lays_what_many_begin_with_once(items):
    samples = [plain(item) for item in items]
    batch = pack(samples, range(len(items)), "causal", share=True)
    spans = batch.spans
    every = torch.arange(len(batch.ids))
    seen = spans.may_look(every[:, None], every[None, :])
    for k, item in enumerate(items):
        own = batch.counted.index[batch.counted.item == k]
        assert batch.ids[own].tolist() == item
        assert spans.positions[own].tolist() == list(range(len(item)))
        # Each of its tokens sees those of the item before it, and nothing else in the row.
        for place, token in enumerate(own.tolist()):
            assert seen[token].nonzero().view(-1).tolist() == sorted(own[: place + 1].tolist())
    assert spans.longest == max(map(len, items))
    laid = {tuple(item[:n]) for item in items for n in range(1, len(item) + 1)}
    assert len(batch.ids) <= sum(map(len, items))
    assert len(batch.ids) >= len(laid), "tokens that differ in what came before are never one"
    starts = [tuple(item[:SHARED]) for item in items if len(item) >= SHARED]
    if len(set(starts)) < len(starts):
        assert len(batch.ids) <= sum(map(len, items)) - SHARED


def test_several_levels_are_laid_once_each():
    stem, turn = list(range(100, 120)), list(range(200, 210))
    items = [[*stem, *turn, 1], [*stem, *turn, 2], [*stem, 3, 4], [*stem, *turn], [5]]
    batch = pack([plain(item) for item in items], range(5), "causal", share=True)
    assert len(batch.ids) == 20 + 10 + 1 + 1 + 2 + 1
    assert batch.spans.shared


def test_texts_that_each_go_on_from_the_one_before_are_a_tree_however_deep():
    whole = list(range(SHARED * 1100))
    samples = [plain(whole[:n]) for n in range(SHARED, len(whole) + 1, SHARED)]
    batch = pack(samples, range(len(samples)), "causal", share=True)
    assert batch.ids.tolist() == whole
    (together,) = plan(samples, len(whole), share=True)
    assert sorted(together) == list(range(len(samples)))


def test_nothing_is_shared_where_both_ways_are_read():
    items = [plain(range(20)), plain(range(20))]
    assert len(pack(items, [0, 1], "bidirectional", share=True).ids) == 40
    with pytest.raises(ValueError, match="share no tokens"):
        Spans.of([3, 2], "bidirectional", parents=[-1, 0])
    with pytest.raises(ValueError, match="before its parent"):
        Spans.of([3, 2], "causal", parents=[1, -1])


def test_one_picture_under_many_prompts_is_laid_once_and_two_pictures_are_not():
    red, blue = (Picture(np.full((3, 4, 4), shade, np.uint8)) for shade in (1, 2))
    again = Picture(red.pixels.copy())

    def seen(picture: Picture, *words: int) -> Sample:
        ids = np.asarray([7, *([0] * SHARED), *words])
        return Sample(ids, np.ones(len(ids), bool), (Slots(1, SHARED, picture),), 0)

    batch = pack([seen(red, 5), seen(again, 6), seen(blue, 5)], [0, 1, 2], "causal+image", share=True)
    assert len(batch.pictures) == 2
    assert len(batch.ids) == 2 * (1 + SHARED) + 3
    assert sorted(batch.slots.tolist()) == batch.slots.tolist()


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


def test_a_start_is_laid_once_only_where_that_saves_more_than_it_costs():
    stem, turn = list(range(100, 110)), list(range(200, 230))
    longer = [
        [*stem, *turn, *range(k, k + 20)] for k in (1000, 2000)
    ]  # these two have 40 tokens in common, all three 10
    items = [*longer, [*stem, *range(3000, 3200)]]
    samples = [plain(item) for item in items]

    def laid(price: float) -> int:
        batch = pack(samples, range(3), "causal", share=True, price=price)
        found = {tuple(batch.ids[own].tolist()) for own in _paths(batch)}
        assert found == set(map(tuple, items))
        assert plan(samples, len(batch.ids), share=True, price=price) == [list(plan(samples, 10**6, share=True)[0])]
        return len(batch.ids)

    assert laid(0.0) == 10 + 30 + 2 * 20 + 200
    assert laid(0.25) == 40 + 2 * 20 + 210, "20 tokens saved, of which 250 behind them would pay 62"
    assert laid(1.5) == sum(map(len, items))


def _paths(batch):
    """Where the tokens of each item lie in the row, from its root to its end."""
    firsts = [0, *np.cumsum(batch.spans.lengths).tolist()]
    ends = sorted(set(range(len(batch.spans.lengths))) - set(batch.spans.parents))
    for end in ends:
        own = []
        while end >= 0:
            own = [*range(firsts[end], firsts[end + 1]), *own]
            end = batch.spans.parents[end]
        yield own
