"""Similarity by kind, held to numpy's plain loops, to scipy, and to sentence-transformers' MaxSim."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array, random_array
from sentence_transformers.util.similarity import maxsim

from mmembed.errors import SpecError, UnknownName
from mmembed.nn import similarity as module
from mmembed.nn.similarity import kind_of, similarity

from ..conftest import floats_are

AGAINST = {"against": "sentence-transformers", "kind": "method", "family": "similarity", "what": "tokens"}


def tokens(lengths: list[int], seed: int, width: int = 8) -> list[np.ndarray]:
    draw = np.random.default_rng(seed)
    return [draw.normal(size=(n, width)).astype(np.float32) / 3 for n in lengths]


def plain(queries: list[np.ndarray], documents: list[np.ndarray]) -> np.ndarray:
    return np.array([[sum(max(q @ d for d in doc) for q in query) for doc in documents] for query in queries])


def test_token_vectors_are_compared_by_maxsim(held):
    queries, documents = tokens([3, 1, 7], 0), tokens([5, 1, 2, 9], 1)
    documents[1][:] *= -1
    ours = similarity(queries, documents)
    as_tensors = [[torch.from_numpy(x) for x in side] for side in (queries, documents)]
    held("MaxSim", ours, maxsim(*as_tensors), **AGAINST)
    mean = similarity(queries, documents, maxsim="meanmaxsim")
    held("MaxSim over the number of query tokens", mean, maxsim(*as_tensors, length_normalize=True), **AGAINST)
    assert np.abs(ours.numpy() - plain(queries, documents)).max() <= 1e-5
    assert (mean - ours / torch.tensor([[3.0], [1.0], [7.0]])).abs().max() <= 1e-6


def test_vectors_of_any_layout_and_type_are_compared():
    vectors = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
    due = similarity(vectors, vectors).numpy()
    read_only = vectors.copy()
    read_only.flags.writeable = False
    learnt = torch.tensor(vectors, requires_grad=True)
    for same in (
        vectors.astype(">f4"),
        vectors.astype(np.float64),
        read_only,
        [*vectors],
        learnt,
        np.asfortranarray(vectors),
    ):
        assert np.abs(similarity(same, vectors).numpy() - due).max() <= 1e-6
    assert np.abs(similarity(vectors[::-1], vectors).numpy() - due[::-1]).max() <= 1e-6
    assert np.abs(similarity(learnt.bfloat16(), vectors).numpy() - due).max() <= 1e-2
    assert np.abs(similarity(vectors[0], vectors).numpy() - due[:1]).max() <= 1e-6


def test_no_other_similarity_of_tokens_is_taken_for_maxsim():
    with pytest.raises(UnknownName, match="Did you mean 'meanmaxsim'"):
        similarity(tokens([2], 0), tokens([2], 1), maxsim="mean-maxsim")


def test_a_document_whose_tokens_all_point_away_is_not_lifted_to_zero_by_its_company():
    query = [np.array([[1.0, 0.0]], dtype=np.float32)]
    away, long = np.array([[-1.0, 0.0]], dtype=np.float32), np.zeros((5, 2), dtype=np.float32)
    assert similarity(query, [away, long]).tolist() == [[-1.0, 0.0]]


def test_blocks_change_no_score(monkeypatch):
    queries, documents = tokens([3, 0, 7, 2], 0), tokens([5, 1, 0, 9, 4], 1)
    whole = similarity(queries, documents)
    monkeypatch.setattr(module, "BLOCK", 20)
    assert np.allclose(similarity(queries, documents), whole, rtol=0, atol=1e-6)


def test_nothing_to_match_is_minus_infinity_and_nothing_to_ask_is_zero():
    queries, documents = tokens([3, 0], 0), tokens([2, 0], 1)
    scores = similarity(queries, documents)
    assert scores[0, 1] == float("-inf")
    assert scores[1, 0] == 0
    assert similarity(queries, documents, maxsim="meanmaxsim")[1, 0] == 0


def test_what_was_skipped_is_nan_in_every_kind():
    gap = np.full((1, 8), np.nan, dtype=np.float32)
    assert np.isnan(similarity([gap, *tokens([2], 0)], tokens([3, 4], 1))[0]).all()
    scores = similarity(tokens([2, 3], 0), [*tokens([3], 1), gap])
    assert np.isnan(scores[:, 1]).all()
    assert np.isfinite(scores[:, 0]).all()
    weights = csr_array(np.array([[np.nan, 0, 0], [0, 1, 2]], dtype=np.float32))
    others = csr_array(np.array([[0, 1, 1], [1, 0, 0]], dtype=np.float32))
    scores = similarity(weights, others)
    assert np.isnan(scores[0]).all()
    assert scores[1].tolist() == [3.0, 0.0]
    assert np.isnan(similarity(others, weights)[:, 0]).all()
    assert np.isnan(similarity(np.full((1, 4), np.nan), np.ones((2, 4)))).all()


def test_sparse_weights_are_compared_by_their_dot_product():
    a, b = (random_array((n, 50), density=0.2, rng=n, dtype=np.float32, format="csr") for n in (4, 6))
    assert np.abs(similarity(a, b).numpy() - a.toarray() @ b.toarray().T).max() <= 1e-6
    assert similarity(csr_array((2, 5)), csr_array((3, 5))).tolist() == [[0.0] * 3] * 2


def test_vectors_are_compared_by_their_cosine():
    a, b = np.array([[3.0, 4.0], [0.0, 0.0]]), np.array([1.0, 0.0])
    assert np.abs(similarity(a, b).numpy() - [[0.6], [0.0]]).max() <= 1e-6


def test_two_kinds_or_two_widths_are_errors():
    vectors, sparse, several = np.ones((2, 4)), csr_array((2, 4)), [np.ones((3, 4))]
    assert [kind_of(x) for x in (vectors, sparse, several, [1.0, 2.0])] == ["dense", "sparse", "tokens", "dense"]
    with pytest.raises(SpecError, match="dense and sparse are not compared"):
        similarity(vectors, sparse)
    with pytest.raises(SpecError, match="tokens and dense are not compared"):
        similarity(several, vectors)
    for one, other in ((vectors, np.ones((2, 5))), (sparse, csr_array((2, 5))), (several, [np.ones((3, 5))])):
        with pytest.raises(SpecError, match="widths differ"):
            similarity(one, other)
    for odd in (np.ones((2, 2, 2)), [np.ones(2), np.ones((2, 2))], "text"):
        with pytest.raises(SpecError, match="similarity compares"):
            similarity(odd, odd)


def test_scores_are_fp32_whatever_torch_makes_floats_in():
    one = [np.random.default_rng(4).standard_normal((3, 8)).astype(np.float32)]
    due = similarity(one, one)
    for said in ("float64", "bfloat16"):
        with floats_are(said):
            assert torch.equal(similarity(one, one), due)


def test_under_autocast_scores_are_those_of_fp32():
    rng = np.random.default_rng(3)
    a, b = (rng.standard_normal((n, 8)).astype(np.float32) for n in (3, 4))
    for one, other in ((a, b), ([a], [b])):
        due = similarity(one, other)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(similarity(one, other), due)
