"""Heads, held to sentence-transformers' Dense and torch's LayerNorm."""

from __future__ import annotations

import pytest
import torch
from sentence_transformers.sentence_transformer.modules import Dense
from torch import nn

from mmembed.errors import SpecError, UnknownName
from mmembed.nn.heads import ACTIVATIONS, build_head, heads

THEIRS = {"identity": nn.Identity(), "tanh": nn.Tanh(), "gelu": nn.GELU(), "relu": nn.ReLU()}
SETTINGS = {"dense": {"out": 7}, "layer_norm": {}, "whiten": {"out": 4}, "standardize": {}}
SETTINGS["unit_blocks"] = {"widths": [2, 4], "weights": [1.0, 0.5]}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_dense_is_that_of_sentence_transformers(activation, bias):
    theirs = Dense(6, 7, bias=bias, activation_function=THEIRS[activation])
    ours = build_head({"kind": "dense", "out": 7, "bias": bias, "activation": activation}, 6)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0)) * 2
    assert (ours(x) - theirs({"sentence_embedding": x})["sentence_embedding"]).abs().max() <= 1e-6


def test_layer_norm_is_that_of_torch():
    head = build_head({"kind": "layer_norm", "eps": 1e-3}, 6)
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        head.norm.weight.uniform_(0.5, 1.5)
    centred = x - x.mean(-1, keepdim=True)
    expected = centred / (centred.square().mean(-1, keepdim=True) + 1e-3).sqrt() * head.norm.weight + head.norm.bias
    assert (head(x) - expected).abs().max() <= 1e-6


@pytest.mark.parametrize("kind", list(heads))
def test_a_head_says_how_wide_its_vectors_are_and_reads_them_one_by_one(kind):
    head = build_head({"kind": kind, **SETTINGS[kind]}, 6)
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    told = head(x)
    assert told.shape == (5, head.out)
    assert (torch.cat([head(row[None]) for row in x]) - told).abs().max() <= 1e-6


def test_unknown_heads_activations_and_settings_are_errors():
    with pytest.raises(UnknownName, match="Did you mean 'dense'"):
        build_head({"kind": "dens"}, 6)
    with pytest.raises(UnknownName, match="Did you mean 'gelu'"):
        build_head({"kind": "dense", "out": 3, "activation": "gelo"}, 6)
    with pytest.raises(UnknownName, match="Did you mean 'bias'"):
        build_head({"kind": "dense", "out": 3, "bia": False}, 6)
    with pytest.raises(SpecError, match="needs a 'kind'"):
        build_head({"out": 3}, 6)


def test_a_dot_product_of_unit_blocks_is_the_weighted_sum_of_their_cosines():
    a, b = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(0))
    head = build_head({"kind": "unit_blocks", "widths": [2, 4], "weights": [2.0, 0.5]}, 6)
    cosine = nn.functional.cosine_similarity
    expected = 2 * cosine(a[:, :2], b[:, :2]) + 0.5 * cosine(a[:, 2:], b[:, 2:])
    assert ((head(a) * head(b)).sum(-1) - expected).abs().max() <= 1e-6
    for widths, weights in (([2, 3], [1, 1]), ([2, 4], [1]), ([2, 4], [1, -1]), ([2, 4], [0, 0])):
        with pytest.raises(SpecError, match="make no vector of 6"):
            build_head({"kind": "unit_blocks", "widths": widths, "weights": weights}, 6)
