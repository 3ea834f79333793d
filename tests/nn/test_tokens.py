"""Token heads, and clusters of token vectors, held to torch and to sentence-transformers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sentence_transformers.multi_vector_encoder.modules import HierarchicalTokenPooling

from mmembed.errors import SpecError, UnknownName
from mmembed.nn.tokens import build_token_head, pool_tokens, token_heads

SETTINGS = {"states": {"normalize": True}, "dense": {"out": 4}}


@pytest.mark.parametrize("kind", list(token_heads))
def test_a_token_head_reads_tokens_one_by_one(kind):
    head = build_token_head({"kind": kind, **SETTINGS[kind]}, 6)
    states = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    told = head(states)
    assert told.shape == (5, head.out)
    assert (told.norm(dim=-1) - 1).abs().max() <= 1e-6
    assert (torch.cat([head(one[None]) for one in states]) - told).abs().max() <= 1e-6
    assert head(states[:0]).shape == (0, head.out)


def test_layers_follow_each_other_and_states_may_stay_as_they_are():
    states = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    head = build_token_head({"kind": "dense", "out": [5, 3], "bias": False, "normalize": False}, 6)
    expected = states @ head.layers[0].weight.T @ head.layers[1].weight.T
    assert (head(states) - expected).abs().max() <= 1e-6
    assert torch.equal(build_token_head({"kind": "states"}, 6)(states), states)
    with pytest.raises(UnknownName, match="Did you mean 'dense'"):
        build_token_head({"kind": "dens"}, 6)


@pytest.mark.parametrize(("factor", "protected"), [(1, 0), (2, 0), (3, 1), (2.5, 0), (100, 1)])
@pytest.mark.parametrize("count", [1, 2, 13])
def test_clusters_are_those_of_sentence_transformers(factor, protected, count, held):
    raw = torch.randn(count, 8, generator=torch.Generator().manual_seed(count))
    vectors = torch.nn.functional.normalize(raw, dim=-1)
    theirs = HierarchicalTokenPooling(factor, num_protected_tokens=protected).pool([vectors])[0]
    ours = pool_tokens(vectors.numpy(), factor, protected=protected)
    says = {"against": "sentence-transformers", "kind": "method", "family": "tokens", "what": "tokens"}
    held("token pooling of documents", ours, theirs, **says)


def test_a_cluster_is_the_mean_of_its_tokens():
    a, b = np.eye(4, dtype=np.float32)[:2]
    near = np.stack([a, a + 0.01 * b, b]) / np.linalg.norm(np.stack([a, a + 0.01 * b, b]), axis=1, keepdims=True)
    told = pool_tokens(near.astype(np.float32), 1.5)
    expected = near[:2].mean(0) / np.linalg.norm(near[:2].mean(0))
    assert min(np.abs(told - row).max(1).min() for row in (expected, b)) <= 1e-6
    assert len(told) == 2
    assert np.isnan(pool_tokens(np.full((1, 4), np.nan, dtype=np.float32), 2)).all()
    with pytest.raises(SpecError, match="1 leaves every token"):
        pool_tokens(near, 0.5)
