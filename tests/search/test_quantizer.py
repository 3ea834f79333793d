"""Codes: those of sentence-transformers bit for bit, one for each vector whatever its company, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sentence_transformers.util.quantization import _dequantize_embeddings, quantize_embeddings

import mmembed
from mmembed.errors import InputError, LoadError, SpecError, UnknownName
from mmembed.search.quantizer import KINDS, Quantizer


def vectors(count: int, seed: int = 0, width: int = 64) -> np.ndarray:
    drawn = np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32) + 0.2
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


@pytest.mark.parametrize("kind", KINDS)
def test_codes_are_those_of_sentence_transformers(kind, held):
    calibration, new = vectors(300), vectors(50, seed=1) * 1.5  # some lie outside the ranges
    calibration[:, 3] = 0.25  # a number that never changes
    quantizer = Quantizer.fit(calibration, kind)
    expected = quantize_embeddings(new, kind, calibration_embeddings=calibration)
    codes = quantizer.encode(new)
    assert codes.dtype == expected.dtype == KINDS[kind]
    assert np.array_equal(codes, expected)
    held(f"{kind} codes", codes, expected, against="sentence-transformers", kind="method", family="quantizer")


@pytest.mark.parametrize("kind", ["int8", "uint8"])
def test_decoding_is_that_of_sentence_transformers_and_half_a_step(kind):
    calibration, new = vectors(300), vectors(50, seed=1)
    quantizer = Quantizer.fit(calibration, kind)
    codes = quantizer.encode(new)
    edge = _dequantize_embeddings(codes, kind, quantizer.ranges)
    step = (quantizer.ranges[1] - quantizer.ranges[0]) / 255
    assert np.abs(quantizer.decode(codes) - (edge + step / 2)).max() <= 1e-6
    inside = np.clip(new, *quantizer.ranges)
    assert (np.abs(quantizer.decode(codes) - inside) <= step / 2 + 1e-6).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_vector_has_one_code_whatever_its_company(kind):
    quantizer = Quantizer.fit(vectors(300), kind)
    new = vectors(40, seed=2)
    assert np.array_equal(quantizer.encode(new), np.concatenate([quantizer.encode(new[k : k + 1]) for k in range(40)]))


def test_ranges_of_the_batch_would_give_a_vector_many_codes():
    new = vectors(40, seed=2)
    whole = quantize_embeddings(new, "int8")
    halves = np.concatenate([quantize_embeddings(half, "int8") for half in (new[:20], new[20:])])
    assert (whole != halves).mean() > 0.2  # what a fitted quantizer is for


@pytest.mark.parametrize("kind", KINDS)
def test_rescoring_orders_as_floats_do_as_far_as_codes_can_tell(kind):
    documents, queries = vectors(300), vectors(30, seed=3)
    quantizer = Quantizer.fit(documents, kind)
    decoded = quantizer.decode(quantizer.encode(documents))
    scores = quantizer.similarity(queries, quantizer.encode(documents))
    unit = decoded / np.linalg.norm(decoded, axis=1, keepdims=True)
    assert np.abs(scores - queries @ unit.T).max() <= 1e-6
    exact = queries @ documents.T
    assert np.corrcoef(scores.ravel(), exact.ravel())[0, 1] > (0.75 if quantizer.packed else 0.999)


@pytest.mark.parametrize("kind", ["int8", "uint8"])
def test_a_number_that_never_changes_is_that_number(kind):
    vectors = np.random.default_rng(0).normal(size=(50, 16)).astype(np.float32)
    vectors[:, 3], vectors[:, 5] = 0, 0.25
    quantizer = Quantizer.fit(vectors, kind)
    told = quantizer.decode(quantizer.encode(vectors))
    assert (told[:, [3, 5]] == [0, 0.25]).all()


def test_signs_are_told_apart_by_how_many_differ():
    quantizer, signed = Quantizer("ubinary", 64), Quantizer("binary", 64)
    a, b = vectors(7), vectors(9, seed=5)
    expected = ((a > 0)[:, None] != (b > 0)[None]).sum(-1)
    assert np.array_equal(quantizer.hamming(quantizer.encode(a), quantizer.encode(b)), expected)
    assert np.array_equal(signed.hamming(signed.encode(a), signed.encode(b)), expected)
    # Of two vectors of signs, the cosine is 1 - 2 h / D.
    cosine = quantizer.similarity(quantizer.decode(quantizer.encode(a)), quantizer.encode(b))
    assert np.abs(cosine - (1 - 2 * expected / 64)).max() <= 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantizer_is_kept_beside_its_embedder(kind, tiny, tmp_path):
    folder = tiny.save(tmp_path / "tiny")
    found = tiny.encode([f"text {k}" for k in range(20)], truncate_dim=16)
    quantizer = Quantizer.fit(found, kind)
    again = mmembed.Quantizer.load(quantizer.save(folder))
    assert (again.kind, again.dimension, again.width) == (kind, 16, 2 if quantizer.packed else 16)
    assert np.array_equal(again.encode(found), quantizer.encode(found))
    assert np.array_equal(again.decode(again.encode(found)), quantizer.decode(quantizer.encode(found)))
    assert np.array_equal(mmembed.load(folder, device="cpu").encode(["x"]), tiny.encode(["x"]))


def test_what_cannot_be_coded_is_refused():
    with pytest.raises(UnknownName, match="Did you mean 'int8'"):
        Quantizer.fit(vectors(3), "int4")
    with pytest.raises(SpecError, match="fill no whole bytes"):
        Quantizer.fit(vectors(3, width=60), "binary")
    with pytest.raises(SpecError, match=r"need ranges: Quantizer\.fit"):
        Quantizer("int8", 64)
    with pytest.raises(SpecError, match="no ranges"):
        Quantizer("binary", 64, np.zeros((2, 64)))
    with pytest.raises(SpecError, match="least and the greatest"):
        Quantizer("int8", 64, np.stack([np.ones(64), np.zeros(64)]))
    with pytest.raises(InputError, match="many vectors"):
        Quantizer.fit(vectors(1))
    quantizer = Quantizer.fit(vectors(30))
    with pytest.raises(InputError, match="takes vectors of 64 numbers, and these have 32"):
        quantizer.encode(vectors(2, width=32))
    with pytest.raises(InputError, match="floats"):
        quantizer.encode(quantizer.encode(vectors(2)))
    with pytest.raises(InputError, match=r"int8 \(N, 64\), not uint8"):
        quantizer.decode(np.zeros((1, 64), dtype=np.uint8))
    with pytest.raises(SpecError, match="no signs"):
        quantizer.hamming(quantizer.encode(vectors(2)), quantizer.encode(vectors(2)))
    skipped = vectors(3)
    skipped[1] = np.nan
    with pytest.raises(InputError, match="item 1"):
        quantizer.encode(skipped)


def test_a_broken_file_is_refused(tmp_path):
    with pytest.raises(LoadError, match=r"holds no quantizer\.json"):
        Quantizer.load(tmp_path)
    for text, reason in (
        ("{", "broken"),
        (json.dumps({"kind": "int8"}), "format 1"),
        (json.dumps({"mmembed": 1, "kind": "int8", "dimension": 64}), "need ranges"),
        (json.dumps({"mmembed": 1, "kind": "ubinary", "dimension": 64, "colour": 3}), "broken"),
    ):
        (tmp_path / "quantizer.json").write_text(text, encoding="utf-8")
        with pytest.raises(LoadError, match=reason):
            Quantizer.load(tmp_path)
