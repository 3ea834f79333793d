"""Hits that differ from each other, and near-duplicates behind the best of them, held to the formulas."""

from __future__ import annotations

import numpy as np
import pytest

import mmembed
from mmembed import Hits, Index
from mmembed.errors import InputError, SpecError
from mmembed.search.diversity import diversified, grouped
from mmembed.search.hits import Hit


def hits_of(count: int) -> list[Hit]:
    return [Hit(rank, 1 / rank, id=f"h{rank}", modality="text", text=str(rank)) for rank in range(1, count + 1)]


def units(seed: int, count: int, width: int = 6) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, width))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("diversity", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_hits_are_chosen_by_maximal_marginal_relevance(diversity):
    hits, vectors = hits_of(12), units(0, 12)
    due = [0]
    while len(due) < 7:

        def gain(at, chosen=tuple(due)):
            alike = max(float(vectors[at] @ vectors[c]) for c in chosen)
            return (1 - diversity) * (1 - at / 12) - diversity * alike

        due.append(max((at for at in range(12) if at not in due), key=gain))
    found = diversified(hits, vectors, 7, diversity)
    assert [hit.id for hit in found] == [f"h{at + 1}" for at in due]
    assert [hit.rank for hit in found] == list(range(1, 8))


def test_no_diversity_keeps_the_order_and_more_is_chosen_on_from_less():
    hits, vectors = hits_of(9), units(1, 9)
    assert diversified(hits, vectors, 9, 0.0) == hits
    assert diversified(hits, vectors, 4, 0.4) == diversified(hits, vectors, 9, 0.4)[:4]
    assert diversified([], np.zeros((0, 6), np.float32), 4, 0.4) == []
    for odd in (-0.1, 1.1, float("nan")):
        with pytest.raises(SpecError, match="diversity"):
            diversified(hits, vectors, 4, odd)


def test_near_duplicates_go_behind_the_best_that_is_like_them():
    angles = np.array([0.0, 0.5, 0.02, 0.52, 2.0, 0.01])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    found = grouped(hits_of(6), vectors, 0.99)
    assert [(hit.id, hit.duplicates) for hit in found] == [("h1", ("h3", "h6")), ("h2", ("h4",)), ("h5", ())]
    assert [hit.rank for hit in found] == [1, 2, 3]
    assert grouped(found, vectors[[0, 1, 4]], 0.8)[0].duplicates == ("h3", "h6", "h2", "h4")
    assert grouped([], np.zeros((0, 2), np.float32), 0.9) == []


def test_an_index_groups_the_same_thing_under_many_ids_and_shows_other_things_first(tmp_path):
    index = Index.create(tmp_path / "index", mmembed.load())
    index.add(["cat"] * 3, ids=["a", "b", "c"])
    index.add(["dog", "apple", "rocket", "Birne", "雪"])
    hits = index.search("cat", k=8)
    assert [hit.id for hit in hits[:3]] == ["a", "b", "c"]
    together = index.group(hits)
    assert (together[0].id, together[0].duplicates, len(together)) == ("a", ("b", "c"), 6)
    shown = index.diversify(hits, k=3, diversity=0.5)
    assert shown[0].id == "a"
    assert not {"b", "c"} & {hit.id for hit in shown}
    assert together.query == shown.query == hits.query
    with pytest.raises(InputError, match="elsewhere"):
        index.group(Hits([Hit(1, 0.5, id="elsewhere", modality="text")]))
