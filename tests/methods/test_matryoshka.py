"""Shortened vectors: cut first, unit length after, as sentence-transformers has it, and as nothing else does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sentence_transformers import util

import mmembed
from mmembed.errors import SpecError

from ..test_folders import st_folder

TEXTS = ["red", "eine Katze schläft auf dem warmen Sofa", "写真", "two words"]


@pytest.mark.parametrize("width", [20, 12, 5])
def test_shortened_vectors_are_those_of_sentence_transformers(tmp_path, held, width):
    theirs = st_folder(tmp_path, "qwen3", "lasttoken")
    ours = mmembed.load(tmp_path / "st", device="cpu").respecified(dimensions=(12, 5))
    expected = theirs.encode(TEXTS, truncate_dim=width, normalize_embeddings=True)
    vectors = ours.encode(TEXTS, truncate_dim=width)
    says = {"against": "sentence-transformers", "kind": "method", "family": "matryoshka"}
    held("Matryoshka truncation", vectors, expected, **says)
    held("Matryoshka truncation", ours.similarity(vectors, vectors), util.cos_sim(expected, expected), **says)


def test_a_dot_product_of_cut_vectors_alone_would_be_another(tmp_path):
    st_folder(tmp_path, "qwen3", "lasttoken")
    ours = mmembed.load(tmp_path / "st", device="cpu").respecified(dimensions=(5,))
    full, short = ours.encode(TEXTS), ours.encode(TEXTS, truncate_dim=5)
    assert np.abs(np.linalg.norm(short, axis=1) - 1).max() <= 1e-6
    assert np.abs(full[:, :5] @ full[:, :5].T - short @ short.T).max() > 0.1
    assert np.abs(short - torch.nn.functional.normalize(torch.from_numpy(full[:, :5])).numpy()).max() <= 1e-6


def test_a_model_is_shortened_only_where_it_was_trained_to_be(tmp_path):
    st_folder(tmp_path, "qwen3", "lasttoken")
    ours = mmembed.load(tmp_path / "st", device="cpu")
    with pytest.raises(SpecError, match="not trained for vectors of 12 numbers; known: 20"):
        ours.encode(TEXTS, truncate_dim=12)
