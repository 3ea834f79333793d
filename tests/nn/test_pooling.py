"""Every pooling against plain per-item code, and the contract that all of them keep."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from torch import nn

from mmembed.errors import UnknownName
from mmembed.nn.pooling import build_pooling, poolings
from mmembed.nn.spans import Counted

WIDTH = 12
LENGTHS = (4, 1, 7, 3)
SMALL = {
    "perceiver": {"latents": 5, "heads": 3, "head_width": 4},
    "latent_attention": {"latents": 5, "heads": 3, "head_width": 4},
}


def made(kind, **changed):
    torch.manual_seed(3)
    pooling = build_pooling({"kind": kind, **SMALL.get(kind, {}), **changed}, WIDTH)
    with torch.no_grad():
        for name, weight in pooling.named_parameters():
            if "norm" in name and name.endswith("weight"):
                weight.uniform_(0.5, 1.5)
    return pooling


def row(seed=0):
    """States, which of them count (the first, the last and some between do not), and the item of each."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(sum(LENGTHS), WIDTH, generator=generator)
    counts = torch.tensor([0, 1, 1, 1, 1, 0, 1, 0, 1, 1, 1, 0, 1, 1, 0], dtype=torch.bool)
    item = torch.arange(len(LENGTHS)).repeat_interleave(torch.tensor(LENGTHS))
    return states, counts, item


def counted(counts, item):
    index = counts.nonzero().flatten()
    return Counted(index, item[index], len(LENGTHS))


def weighted(rows):
    total = sum(range(1, len(rows) + 1))
    return sum((k + 1) / total * h for k, h in enumerate(rows))


PLAIN = {
    "last": lambda rows: rows[-1],
    "first": lambda rows: rows[0],
    "mean": lambda rows: sum(rows) / len(rows),
    "mean_sqrt_len": lambda rows: sum(rows) / math.sqrt(len(rows)),
    "weightedmean": weighted,
    "max": lambda rows: torch.stack([max(column) for column in torch.stack(rows).T]),
}


@pytest.mark.parametrize("kind", PLAIN)
def test_a_plain_pooling_is_the_formula_over_the_counted_tokens(kind):
    states, counts, item = row()
    told = made(kind)(states, counted(counts, item))
    for k in range(len(LENGTHS)):
        assert (told[k] - PLAIN[kind](list(states[counts & (item == k)]))).abs().max() <= 1e-6


def test_joined_poolings_stand_one_behind_the_other():
    states, counts, item = row()
    read = (states, counted(counts, item))
    told = build_pooling({"kind": "joined", "kinds": ["first", "max"]}, WIDTH)(*read)
    assert torch.equal(told, torch.cat([made("first")(*read), made("max")(*read)], dim=-1))


def test_attention_pooling_weighs_tokens_by_one_query():
    states, counts, item = row()
    pooling = made("attention")
    told = pooling(states, counted(counts, item))
    for k in range(len(LENGTHS)):
        own = states[counts & (item == k)]
        weights = torch.softmax(own @ pooling.query / math.sqrt(WIDTH), 0)
        assert (told[k] - weights @ own).abs().max() <= 1e-6


def nv_embed(pooling, states, mask, heads):
    """NV-Embed's latent attention on one item as its authors run it (arXiv 2405.17428, section 3.1): pre-norm cross
    attention of the tokens to the latents, pre-norm GEGLU feed-forward, a residual on each, mean over the mask."""
    query = pooling.norm(states) @ pooling.to_q.weight.T
    key, value = (pooling.norm_latents(pooling.latents) @ pooling.to_kv.weight.T).chunk(2, dim=-1)
    width = query.shape[-1] // heads
    heard = []
    for h in range(heads):
        own = slice(h * width, (h + 1) * width)
        weights = (query[:, own] @ key[:, own].T / math.sqrt(width)).softmax(-1)
        heard.append(weights @ value[:, own])
    x = torch.cat(heard, -1) @ pooling.to_out.weight.T + states
    up = pooling.norm_ff(x) @ pooling.up.weight.T + pooling.up.bias
    value, gates = up.chunk(2, dim=-1)
    gelu = gates * 0.5 * (1 + torch.erf(gates / math.sqrt(2)))
    x = (value * gelu) @ pooling.down.weight.T + pooling.down.bias + x
    return (x * mask[:, None]).sum(0) / mask.sum()


@pytest.mark.parametrize("head_width", [4, None])
def test_latent_attention_is_the_formula_of_nv_embed(head_width):
    states, counts, item = row()
    pooling = made("latent_attention", head_width=head_width)
    told = pooling(states, counted(counts, item))
    for k in range(len(LENGTHS)):
        own = item == k
        assert (told[k] - nv_embed(pooling, states[own], counts[own].float(), 3)).abs().max() <= 1e-5


@pytest.mark.parametrize("kind", list(poolings))
def test_an_item_has_one_vector_whatever_its_company(kind):
    states, counts, item = row()
    pooling = made(kind)
    together = pooling(states, counted(counts, item))
    assert together.shape == (len(LENGTHS), WIDTH)
    for k in range(len(LENGTHS)):
        own = item == k
        alone = Counted(counts[own].nonzero().flatten(), torch.zeros(int(counts[own].sum()), dtype=torch.long), 1)
        assert (pooling(states[own], alone)[0] - together[k]).abs().max() <= 1e-6


@pytest.mark.parametrize("kind", list(poolings))
def test_only_counted_tokens_are_read(kind):
    states, counts, item = row()
    pooling = made(kind)
    told = pooling(states, counted(counts, item))
    other = torch.where(counts[:, None], states, torch.full_like(states, float("nan")))
    assert torch.equal(pooling(other, counted(counts, item)), told)
    changed = states.clone()
    changed[counts] *= -2.0
    assert ((pooling(changed, counted(counts, item)) - told).abs().amax(-1) > 1e-3).all()


@pytest.mark.parametrize("kind", list(poolings))
def test_gradients_reach_every_weight_and_counted_tokens_alone(kind):
    states, counts, item = row()
    states.requires_grad_()
    pooling = made(kind)
    pooling(states, counted(counts, item)).pow(3).sum().backward()
    assert (states.grad[~counts] == 0).all()
    reached = states.grad[counts].abs().amax(-1) > 0
    assert bool(reached.any()) if kind in ("last", "first", "max") else bool(reached.all())
    for name, weight in pooling.named_parameters():
        assert weight.grad is not None, name
        assert bool(weight.grad.abs().sum() > 0), name


@pytest.mark.parametrize("kind", list(poolings))
def test_pooling_of_half_precision_states_is_in_fp32(kind):
    states, counts, item = row()
    pooling = made(kind)
    if kind != "latent_attention":
        half = states.bfloat16()
        told = pooling(half, counted(counts, item))
        assert told.dtype is torch.float32
        assert (told - pooling(half.float(), counted(counts, item))).abs().max() <= 1e-6
    else:
        told = pooling.bfloat16()(states.bfloat16(), counted(counts, item))
        assert told.dtype is torch.float32


def test_large_scores_do_not_overflow_attention_pooling():
    states, counts, item = row()
    pooling = made("attention")
    with torch.no_grad():
        pooling.query.mul_(1e4)
    assert torch.isfinite(pooling(states, counted(counts, item))).all()


@pytest.mark.parametrize("kind", list(poolings))
def test_a_pooling_is_a_module_of_states_and_counted(kind):
    pooling = made(kind)
    assert isinstance(pooling, nn.Module)
    assert list(inspect.signature(pooling.forward).parameters) == ["states", "counted"]


def test_unknown_poolings_and_settings_are_answered_with_the_nearest():
    with pytest.raises(UnknownName, match="Did you mean 'mean'"):
        build_pooling({"kind": "meann"}, WIDTH)
    with pytest.raises(UnknownName, match="Did you mean 'latents'"):
        build_pooling({"kind": "latent_attention", "latent": 3}, WIDTH)
