"""Whitening against the published kernel and bias, over transformers' own states."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import mmembed
from mmembed.errors import InputError, SpecError
from mmembed.methods import whitening
from mmembed.testing import WIDTH, byte_tokenizer, tiny_backbone, tiny_embedder

from ..conftest import picture

WORDS = (
    "red",
    "green",
    "blue",
    "cat",
    "dog",
    "house",
    "rain",
    "sun",
    "car",
    "tree",
    "seven",
    "night",
    "milk",
    "bread",
    "salt",
)
FITTED_ON = [f"{a} {b} {c}" for k, a in enumerate(WORDS) for b in WORDS[k:] for c in WORDS[:2]]
TEXTS = ["a red cat", "eine Katze", "写真を撮る", "the sun is out", "x"]


@pytest.fixture(scope="module")
def sharp():
    return tiny_embedder(pooling="mean")


def states_mean(text: str) -> np.ndarray:
    ids = byte_tokenizer()(text, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        return tiny_backbone()(ids).last_hidden_state[0].mean(0).double().numpy()


def published(vectors: np.ndarray, texts: np.ndarray, kept: int) -> np.ndarray:
    """compute_kernel_bias and transform_and_normalize of bojone/BERT-whitening, in their words."""
    mu = vectors.mean(axis=0, keepdims=True)
    u, s, _ = np.linalg.svd(np.cov(vectors.T))
    kernel = np.dot(u, np.diag(1 / np.sqrt(s)))[:, :kept]
    moved = (texts - mu).dot(kernel)
    return moved / (moved**2).sum(axis=1, keepdims=True) ** 0.5


@pytest.mark.parametrize("kept", [WIDTH, 12])
def test_whitened_vectors_are_the_published_ones(sharp, held, kept):
    fitted_on = np.stack([states_mean(text) for text in FITTED_ON])
    expected = published(fitted_on, np.stack([states_mean(text) for text in TEXTS]), kept)
    ours = whitening.whitened(sharp, FITTED_ON, dimension=kept)
    assert ours.dimension == kept
    says = {"against": "the authors' formula over transformers", "kind": "method", "family": "whitening"}
    held("whitening", ours.encode(TEXTS), expected, **says)


def test_vectors_that_were_fitted_on_come_out_white(sharp):
    ours = whitening.whitened(sharp, FITTED_ON).respecified(normalize=False)
    vectors = ours.encode(FITTED_ON).astype(np.float64)
    assert np.abs(vectors.mean(0)).max() <= 1e-4
    assert np.abs(np.cov(vectors.T) - np.eye(WIDTH)).max() <= 1e-3


def test_the_strongest_directions_come_first(sharp):
    whole, short = (whitening.whitened(sharp, FITTED_ON, dimension=d).encode(TEXTS) for d in (None, 7))
    cut = whole[:, :7] / np.linalg.norm(whole[:, :7], axis=1, keepdims=True)
    assert np.abs(cut - short).max() <= 1e-5


def test_a_whitened_embedder_is_saved_and_its_source_stays_as_it_was(sharp, tmp_path):
    before = sharp.encode([*TEXTS, picture(1)])
    ours = whitening.whitened(sharp, [*FITTED_ON, *map(picture, range(10))], dimension=9)
    vectors = ours.encode([*TEXTS, picture(1)])
    assert np.array_equal(sharp.encode([*TEXTS, picture(1)]), before)
    assert ours.fingerprint != sharp.fingerprint
    again = mmembed.load(ours.save(tmp_path / "w"), device="cpu")
    assert np.array_equal(again.encode([*TEXTS, picture(1)]), vectors)
    assert again.spec.heads == ({"kind": "whiten", "out": 9},)
    alone = np.concatenate([again.encode([text]) for text in TEXTS])
    assert np.abs(alone - vectors[:-1]).max() <= 1e-5


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_was_fitted_stays_in_fp32(tmp_path, precision):
    halved = tiny_embedder(pooling="mean", weights="fp16", precision=precision).save(tmp_path / "halved")
    ours = whitening.whitened(mmembed.load(halved, device="cpu", precision=precision), FITTED_ON)
    again = mmembed.load(ours.save(tmp_path / "w"), device="cpu", precision=precision)
    assert (ours.model.precision, again.model.precision) == (precision, precision)
    assert {weight.dtype for weight in again.model.heads.parameters()} == {torch.float32}
    assert np.array_equal(again.encode(TEXTS), ours.encode(TEXTS))
    vectors = again.respecified(normalize=False).encode(FITTED_ON).astype(np.float64)
    assert np.abs(np.cov(vectors.T) - np.eye(WIDTH)).max() <= 1e-3


def test_a_prompt_is_fitted_under_as_encode_has_it():
    ours = tiny_embedder(pooling="mean", prompts={"query": {"any": "ask: {content}"}})
    asked = whitening.whitened(ours, FITTED_ON, dimension=8, prompt_name="query")
    said = whitening.whitened(ours, [f"ask: {text}" for text in FITTED_ON], dimension=8)
    assert np.abs(asked.encode(TEXTS) - said.encode(TEXTS)).max() <= 1e-5


def test_what_has_no_spread_cannot_be_whitened(sharp):
    with pytest.raises(InputError, match=r"20 vectors span 19 directions, not 32.*dimension=19"):
        whitening.whitened(sharp, FITTED_ON[:20])
    with pytest.raises(InputError, match="things that are not all alike"):
        whitening.whitened(sharp, ["a"] * 50)
    assert whitening.whitened(sharp, FITTED_ON[:20], dimension=19).dimension == 19
    with pytest.raises(SpecError, match=r"dimension=\.\.\. keeps the strongest"):
        whitening.whitened(sharp, ["a", "b"], truncate_dim=8)
    with pytest.raises(InputError, match="no 33 directions"):
        whitening.whitened(sharp, FITTED_ON, dimension=33)
    with pytest.raises(InputError, match="many vectors"):
        whitening.fit(np.ones((1, 4)))
    with pytest.raises(InputError, match="all of them finite"):
        whitening.fit(np.full((9, 4), np.nan))
