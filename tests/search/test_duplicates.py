"""Near-duplicates: groups are those of a plain comparison of all with all, whatever the blocks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmembed import Index
from mmembed.errors import InputError, UnknownName
from mmembed.search import duplicates as module
from mmembed.search.vectors import unit
from tests.conftest import picture


@pytest.fixture
def index(tmp_path, tiny):
    return Index.create(tmp_path / "i", tiny)


def groups_of(vectors, threshold):
    """Connected components, by hand."""
    scores = vectors.astype(np.float64) @ vectors.astype(np.float64).T
    left = set(range(len(vectors)))
    found = []
    while left:
        group, more = set(), {left.pop()}
        while more:
            group |= more
            more = {j for i in more for j in left if scores[i, j] >= threshold}
            left -= more
        found.append(frozenset(group))
    return {group for group in found if len(group) > 1}


def links_as_groups(vectors, threshold):
    parents = list(range(len(vectors)))
    for left, right in module._links(vectors, threshold):
        parents[module._root(parents, left)] = module._root(parents, right)
    members = {}
    for row in range(len(vectors)):
        members.setdefault(module._root(parents, row), set()).add(row)
    return {frozenset(rows) for rows in members.values() if len(rows) > 1}


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), count=st.integers(2, 60), block=st.integers(1, 70), threshold=st.floats(0.3, 0.99))
def test_groups_are_those_of_comparing_all_with_all(seed, count, block, threshold):
    draw = np.random.default_rng(seed)
    centres = draw.standard_normal((max(count // 4, 1), 6))
    vectors = unit(centres[draw.integers(len(centres), size=count)] + 0.3 * draw.standard_normal((count, 6)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", block)
        assert links_as_groups(vectors, threshold) == groups_of(vectors, threshold)


def test_the_same_content_comes_first_and_then_what_is_alike(index):
    nearly = picture(0).load().copy()
    nearly[0, 0] ^= 1
    from mmembed import Image

    index.add(
        [picture(0), Image(nearly), "twice", "twice", "once", picture(9)],
        ids=["p", "p2", "t1", "t2", "u", "far"],
        metadata=[{}, {}, {"name": "a name"}, {}, {}, {}],
    )
    same, alike = index.duplicates(0.9999)
    assert (same.same, {hit.id for hit in same.hits}) == (True, {"t1", "t2"})
    assert (alike.same, {hit.id for hit in alike.hits}) == (False, {"p", "p2"})
    assert [hit.rank for hit in alike.hits] == [1, 2]
    assert alike.hits[1].score == pytest.approx(1, abs=1e-3)
    assert "a name" in str(same.hits)
    assert [group.hits[0].modality for group in index.duplicates(0.9999, modality="image")] == ["image"]


def test_nothing_alike_is_no_group_and_odd_thresholds_are_told(index):
    assert index.duplicates() == []
    index.add(["a"])
    assert index.duplicates() == []
    for threshold in (0, -1, 1.01, float("nan")):
        with pytest.raises(InputError, match="a threshold is a cosine"):
            index.duplicates(threshold)
        with pytest.raises(InputError, match="a threshold is a cosine"):
            index.group(index.search("a"), threshold=threshold)
    for count in (0, -1, True, 1.5, "2"):
        with pytest.raises(InputError, match="the number of hits wanted"):
            index.items(limit=count)
        with pytest.raises(InputError, match="the number of hits wanted"):
            index.search("a", k=count)
    with pytest.raises(UnknownName):
        index.duplicates(modality="pictures")


def test_a_thousand_times_the_same_is_one_group(index):
    index.add(["same"] * 1000, ids=[f"{k:03}" for k in range(1000)])
    (group,) = index.duplicates(1.0)
    assert group.same
    assert len(group.hits) == 1000
