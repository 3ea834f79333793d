"""What smaller vectors cost, on vectors of which it is known."""

from __future__ import annotations

import numpy as np
import pytest

from mmembed.errors import InputError, UnknownName
from mmembed.search.tradeoff import Cost, tradeoff

RNG = np.random.default_rng(0)
DOCUMENTS = RNG.normal(size=(200, 32)).astype(np.float32)
DOCUMENTS[:, 16:] *= 0.01  # the second half says next to nothing
QUERIES = DOCUMENTS[:20] + 0.1 * RNG.normal(size=(20, 32)).astype(np.float32)
QUERIES[:, 16:] *= 0.01


def test_sizes_are_bytes_and_whole_vectors_lose_nothing():
    found = {(c.numbers, c.kind): c for c in tradeoff(QUERIES, DOCUMENTS, (32, 16))}
    assert {key: c.size for key, c in found.items()} == {
        (32, "float32"): 128, (32, "float16"): 64, (32, "int8"): 32, (32, "binary"): 4,
        (16, "float32"): 64, (16, "float16"): 32, (16, "int8"): 16, (16, "binary"): 2,
    }  # fmt: skip
    assert found[32, "float32"].overlap == 1
    assert found[16, "float32"].overlap > 0.99  # nothing was in what was cut off
    assert found[32, "float16"].overlap > 0.99
    assert found[16, "int8"].overlap > 0.9
    assert found[16, "binary"].overlap < found[16, "int8"].overlap


def test_the_overlap_is_that_of_the_nearest():
    documents = np.array([[1, 0, 0], [0.9, 0.5, 0], [0.9, -0.6, 0], [0, 0, 1]], dtype=np.float32)
    query = np.array([[1, 0.1, 0]], dtype=np.float32)
    # whole: 0, 1; by the first number alone 0, 1 and 2 are equal, and the first of them come first
    assert tradeoff(query, documents, (1,), kinds=("float32",), k=2) == [Cost(1, "float32", 4, 1.0)]
    assert tradeoff(query, documents[::-1], (1,), kinds=("float32",), k=2) == [Cost(1, "float32", 4, 0.5)]


@pytest.mark.parametrize(
    ("changed", "error", "said"),
    [
        ({"queries": QUERIES[:, :8]}, InputError, "one width"),
        ({"queries": QUERIES[:0]}, InputError, "0 queries"),
        ({"documents": DOCUMENTS[:10]}, InputError, "10 nearest of 10"),
        ({"queries": np.where(np.arange(len(QUERIES))[:, None] == 3, np.nan, QUERIES)}, InputError, "item 3: a query"),
        (
            {"documents": np.where(np.arange(len(DOCUMENTS))[:, None] == 5, np.inf, DOCUMENTS)},
            InputError,
            "item 5: a doc",
        ),
        ({"dimensions": (64,)}, InputError, "not cut to 64"),
        ({"kinds": ("int9",)}, UnknownName, "int8"),
    ],
)
def test_what_cannot_be_measured_is_told(changed, error, said):
    with pytest.raises(error, match=said):
        tradeoff(**{"queries": QUERIES, "documents": DOCUMENTS, "dimensions": (32,), **changed})


def test_a_length_that_fills_no_bytes_has_no_binary():
    assert [c.kind for c in tradeoff(QUERIES, DOCUMENTS, (12,), kinds=("int8", "binary"))] == ["int8"]
