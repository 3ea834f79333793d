"""Rankings made one, held to the formulas, with documents missing here and there."""

from __future__ import annotations

import pytest

from mmembed.errors import SpecError
from mmembed.search.fusion import fuse_ranks, fuse_scores


def test_scores_are_brought_to_one_scale_and_summed():
    fused = fuse_scores([{"a": 3.0, "b": 1.0, "c": 2.0}, {"b": 0.9, "d": 0.1, "a": 0.5}])
    assert fused == pytest.approx({"a": 0.5 * 1 + 0.5 * 0.5, "b": 0.5 * 0 + 0.5 * 1, "c": 0.5 * 0.5, "d": 0.0})
    assert list(fused) == ["a", "b", "c", "d"]
    assert fuse_scores([{"a": 1.0, "b": 0.0}, {"b": 1.0, "a": 0.0}], [0.9, 0.1]) == pytest.approx({"a": 0.9, "b": 0.1})


def test_a_missing_document_is_no_better_than_the_last():
    fused = fuse_scores([{"a": -5.0, "b": -7.0}, {"a": 2.0}])
    assert fused == pytest.approx({"a": 0.5, "b": 0.0})
    assert fuse_scores([{"a": 1.0}, {}]) == {"a": 0.0}
    assert fuse_scores([]) == {}


def test_ranks_are_summed_by_their_reciprocals():
    fused = fuse_ranks([["a", "b", "c"], ["c", "a"], []])
    assert fused == pytest.approx({"a": 1 / 61 + 1 / 62, "c": 1 / 63 + 1 / 61, "b": 1 / 62})
    assert list(fused) == ["a", "c", "b"]
    assert fuse_ranks([[1, 2]], k=1) == pytest.approx({1: 1 / 2, 2: 1 / 3})


def test_what_makes_no_ranking_is_an_error():
    with pytest.raises(SpecError, match="1 weights were given for 2 rankings"):
        fuse_scores([{}, {}], [1.0])
    for odd in (float("nan"), float("-inf")):
        with pytest.raises(SpecError, match="no finite number"):
            fuse_scores([{"a": odd}])
    with pytest.raises(SpecError, match="twice"):
        fuse_ranks([["a", "a"]])
