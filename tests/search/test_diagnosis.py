"""A collection whose gap, spread, hubs and languages are known is told as what it is."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import skew

from mmembed import Index
from mmembed.search.diagnosis import NEIGHBOURS, diagnosed
from tests.conftest import picture


def cloud(seed: int, count: int, centre: np.ndarray, wide: float) -> np.ndarray:
    rows = centre + wide * np.random.default_rng(seed).normal(size=(count, len(centre)))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_numbers_are_those_of_their_formulas():
    axes = np.eye(8)
    texts, pictures = cloud(0, 60, axes[0], 0.2), cloud(1, 40, axes[1] + 0.3 * axes[0], 0.1)
    vectors = np.concatenate([texts, pictures]).astype(np.float64)
    told = diagnosed([str(n) for n in range(100)], vectors, ["text"] * 60 + ["image"] * 40, [None] * 100)
    cosines = texts.astype(np.float64) @ texts.T
    pairs = cosines[np.triu_indices(60, 1)]
    group = told.modalities["text"]
    assert (group.count, group.cosine, group.spread) == (60, pytest.approx(pairs.mean()), pytest.approx(pairs.std()))
    means = texts.mean(0, dtype=np.float64), pictures.mean(0, dtype=np.float64)
    assert told.gaps == {("image", "text"): pytest.approx(np.linalg.norm(means[0] - means[1]))}
    assert told.between[("image", "text")] == pytest.approx((texts @ pictures.T).mean(), abs=1e-6)
    every = vectors @ vectors.T - 2 * np.eye(100)
    met = np.bincount(np.argsort(-every, axis=1)[:, :NEIGHBOURS].reshape(-1), minlength=100)
    assert told.hubness == pytest.approx(skew(met))
    assert told.hubs[0][1] == met.max()
    assert group.expected == pytest.approx(59 / 99)
    assert group.same > 0.99
    assert 1 < group.dimensions < 8
    assert told.languages == {}


@pytest.mark.parametrize("wide", [16, 128])
def test_dimensions_are_those_that_the_variances_fill(wide):
    rows = cloud(3, 40, np.ones(wide), 0.5)
    told = diagnosed([str(n) for n in range(40)], rows, ["text"] * 40, [None] * 40)
    variances = np.linalg.eigvalsh(np.cov(rows.T, dtype=np.float64))
    assert told.modalities["text"].dimensions == pytest.approx(variances.sum() ** 2 / (variances**2).sum())


def test_a_gap_and_narrow_cones_are_told_with_what_to_do():
    axes = np.eye(16)
    apart = np.concatenate([cloud(0, 50, axes[0], 0.1), cloud(1, 50, axes[1], 0.1)])
    told = diagnosed([str(n) for n in range(100)], apart, ["text"] * 50 + ["image"] * 50, [None] * 100)
    assert any("balanced" in line for line in told.advice)
    assert any("anisotropy" in line for line in told.advice)
    even = cloud(2, 100, np.zeros(64), 1.0)
    fine = diagnosed([str(n) for n in range(100)], even, ["text", "image"] * 50, ["en", "de"] * 50)
    assert fine.advice == []
    assert "Nothing stands out" in str(fine)


def test_a_hub_is_named():
    axis = np.eye(128)[0]
    rows = cloud(0, 300, 10 * axis, 1.0)
    rows[0] = axis  # nearer to all than they are to each other
    told = diagnosed([f"n{n}" for n in range(300)], rows, ["text"] * 300, [None] * 300)
    assert told.hubs[0] == ("n0", 299)
    assert any("n0" in line and "hubness" in line for line in told.advice)


def test_languages_that_keep_to_themselves_are_told():
    axes = np.eye(16)
    rows = np.concatenate([cloud(n, 30, axes[n], 0.1) for n in range(3)])
    told = diagnosed([str(n) for n in range(90)], rows, ["text"] * 90, ["en"] * 30 + ["de"] * 30 + ["zh"] * 30)
    assert list(told.languages) == ["de", "en", "zh"]
    assert all(group.same == 1 for group in told.languages.values())
    assert any("de, en, zh" in line for line in told.advice)


def test_an_index_is_diagnosed_without_a_model(tiny, tmp_path):
    index = Index.create(tmp_path / "index", tiny)
    texts = [f"text {n}" for n in range(30)]
    index.add([*texts, *(picture(n) for n in range(25))], metadata=[{"language": "en"}] * 30 + [{}] * 25)
    told = Index.open(tmp_path / "index").diagnose()
    assert {kind: group.count for kind, group in told.modalities.items()} == {"text": 30, "image": 25}
    assert told.languages["en"].count == 30  # by the name that the README and the demo give it
    assert json.loads(json.dumps(told.as_dict()))["between"][0]["modalities"] == ["image", "text"]
    assert "modality gap" in str(told)


@pytest.mark.parametrize("count", [0, 1, 2, 19])
def test_too_few_things_tell_nothing_and_break_nothing(count):
    told = diagnosed([str(n) for n in range(count)], cloud(0, count, np.ones(8), 1.0), ["text"] * count, [None] * count)
    assert told.modalities == {}
    assert np.isfinite(told.hubness)
    assert "Nothing stands out" in str(told)
