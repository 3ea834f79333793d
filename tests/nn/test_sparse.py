"""Sparse heads, held to their formulas written out, for every registered one."""

from __future__ import annotations

import pytest
import torch

from mmembed.errors import UnknownName
from mmembed.nn import sparse
from mmembed.nn.spans import Counted
from mmembed.nn.sparse import build_sparse_head, items_of, sparse_heads, strongest

from ..conftest import floats_are

SETTINGS = {
    "term_weights": [{}],
    "splade": [{}, {"terms": 7, "normalize": True}, {"reduce": "sum"}, {"reduce": "last"}],
}
CASES = [(kind, settings) for kind, each in SETTINGS.items() for settings in each]
TERMS = 11


@pytest.fixture
def row():
    """Nine tokens of three items, the second without a counted one, the language head, and the ids."""
    draw = torch.Generator().manual_seed(0)
    states = torch.randn(9, 6, generator=draw)
    counted = Counted(torch.tensor([0, 1, 3, 6, 7, 8]), torch.tensor([0, 0, 0, 2, 2, 2]), 3)
    table = torch.randn(6, TERMS, generator=draw)
    return states, torch.tensor([4, 4, 2, 9, 0, 9]), counted, lambda x: x @ table


def test_every_sparse_head_is_tried():
    assert set(SETTINGS) == set(sparse_heads)


def built(kind, settings):
    """A head with weights of its own that fire, the same at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        head = build_sparse_head({"kind": kind, **settings}, 6, TERMS)
    if kind == "term_weights":
        torch.nn.init.constant_(head.linear.bias, 1.0)
    return head


@pytest.mark.parametrize(("kind", "settings"), CASES)
def test_an_item_has_its_weights_whatever_its_company_and_none_where_no_token_counts(kind, settings, row):
    states, ids, counted, logits = row
    head = built(kind, settings)
    whole = head(states, ids, counted, logits)
    assert whole.shape == (3, head.out)
    assert (whole >= 0).all()
    assert (whole[[0, 2]] > 0).any(1).all()
    assert not whole[1].any()
    for item in range(3):
        one = items_of(counted, item, item + 1)
        alone = head(states, ids[counted.item == item], one, logits)
        assert (alone[0] - whole[item]).abs().max() <= 1e-6


@pytest.mark.parametrize(("kind", "settings"), CASES)
def test_weights_are_fp32_whatever_torch_makes_floats_in(kind, settings, row):
    head = built(kind, settings)
    due = head(*row)
    for said in ("float64", "bfloat16"):
        with floats_are(said):
            assert torch.equal(head(*row), due)


@pytest.mark.parametrize(("kind", "settings"), CASES)
def test_blocks_change_nothing(kind, settings, row, monkeypatch):
    states, ids, counted, logits = row
    head = built(kind, settings)
    whole = head(states, ids, counted, logits)
    monkeypatch.setattr(sparse, "BLOCK", 2 * TERMS)
    assert (head(states, ids, counted, logits) - whole).abs().max() <= 1e-6


@pytest.mark.parametrize(("kind", "settings"), CASES)
def test_gradients_reach_the_states(kind, settings, row):
    states, ids, counted, logits = row
    states.requires_grad_()
    built(kind, settings)(states, ids, counted, logits).sum().backward()
    assert states.grad[counted.index].abs().sum() > 0


def test_splade_is_its_formula(row):
    states, ids, counted, logits = row
    scores = logits(states)
    for reduce, expected in {
        "max": torch.stack([scores[[0, 1, 3]].amax(0), scores[6:].amax(0)]).relu().log1p(),
        "sum": torch.stack([scores[[0, 1, 3]].relu().log1p().sum(0), scores[6:].relu().log1p().sum(0)]),
        "last": torch.stack([scores[3], scores[8]]).relu().log1p(),
    }.items():
        head = build_sparse_head({"kind": "splade", "reduce": reduce}, 6, TERMS)
        assert (head(states, ids, counted, logits)[[0, 2]] - expected).abs().max() <= 1e-6
    twice = build_sparse_head({"kind": "splade", "activation": "log1p_log1p_relu"}, 6, TERMS)
    expected = torch.stack([scores[[0, 1, 3]].amax(0), scores[6:].amax(0)]).relu().log1p().log1p()
    assert (twice(states, ids, counted, logits)[[0, 2]] - expected).abs().max() <= 1e-6


def test_a_term_has_the_greatest_weight_of_its_tokens(row):
    states, ids, counted, _ = row
    head = built("term_weights", {})
    expected = torch.zeros(3, TERMS)
    for index, item, term in zip(counted.index.tolist(), counted.item.tolist(), ids.tolist(), strict=True):
        expected[item, term] = max(expected[item, term], head.linear(states[index]).relu().item())
    assert (head(states, ids, counted, None) - expected).abs().max() <= 1e-6


def test_the_strongest_are_kept_and_ties_go_to_lower_ids():
    weights = torch.tensor([[0.0, 2.0, 1.0, 1.0, 3.0]])
    assert strongest(weights, 3).tolist() == [[0.0, 2.0, 1.0, 0.0, 3.0]]
    assert strongest(weights, None) is weights
    assert strongest(weights, 9) is weights


def test_unknown_kinds_and_ways_are_errors():
    with pytest.raises(UnknownName, match="Did you mean 'splade'"):
        build_sparse_head({"kind": "splad"}, 6, TERMS)
    with pytest.raises(UnknownName, match="Did you mean 'max'"):
        build_sparse_head({"kind": "splade", "reduce": "mx"}, 6, TERMS)
    with pytest.raises(UnknownName, match="Did you mean 'log1p_relu'"):
        build_sparse_head({"kind": "splade", "activation": "log1p_rel"}, 6, TERMS)
