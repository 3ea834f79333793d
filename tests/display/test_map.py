"""The map: every vector where the plane lays it, in its group's colour, with labels that lie on no other."""

from __future__ import annotations

import sys
from itertools import combinations

import numpy as np
import pytest

from mmembed import Index
from mmembed.display import draw_index, draw_map
from mmembed.display.map import GROUPS
from mmembed.errors import InputError, MissingExtra, UnknownName
from mmembed.search.plane import plane

VECTORS = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)
LANGUAGES = [("en", "ar", "zh")[n % 3] for n in range(60)]
LABELS = [("cat", "قطة", "猫")[n % 3] for n in range(60)]


def dots(figure) -> dict[str, np.ndarray]:
    return {c.get_label(): np.asarray(c.get_offsets()) for c in figure.axes[0].collections}


@pytest.mark.filterwarnings("error:Glyph")
def test_each_group_has_its_vectors_and_a_line_of_the_legend():
    figure = draw_map(VECTORS, LANGUAGES, labels=LABELS, title="languages")
    laid = plane(VECTORS)
    found = dots(figure)
    assert list(found) == ["ar (20)", "en (20)", "zh (20)"]
    for name, places in found.items():
        mine = [group == name[:2] for group in LANGUAGES]
        np.testing.assert_allclose(places, laid[mine], atol=1e-6)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(found)
    assert figure.axes[0].get_title() == "languages"


@pytest.mark.parametrize(("many", "least"), [(10, 8), (60, 20), (400, 20)])
def test_labels_lie_on_no_point_and_no_other_and_within_the_axes(many, least):
    vectors = np.random.default_rng(1).normal(size=(many, 8)).astype(np.float32)
    figure = draw_map(vectors, ["a", "b"] * (many // 2), labels=["a word", "قطة"] * (many // 2))
    figure.draw_without_rendering()
    axes = figure.axes[0]
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) >= least
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    for dotted in axes.collections:
        points = axes.transData.transform(dotted.get_offsets())
        radius = dotted.get_sizes()[0] ** 0.5 / 2 * figure.dpi / 72
        for box in boxes:
            assert not ((points + radius > box.min) & (points - radius < box.max)).all(1).any()
    inside = axes.get_window_extent().padded(1)
    assert all(inside.x0 <= b.x0 and b.x1 <= inside.x1 and inside.y0 <= b.y0 and b.y1 <= inside.y1 for b in boxes)


def test_modalities_are_moved_together_where_they_are_named():
    apart = VECTORS + 50 * (np.arange(60) % 2)[:, None].astype(np.float32)
    kinds = [("text", "image")[n % 2] for n in range(60)]
    gap = {name: places.mean(0) for name, places in dots(draw_map(apart, kinds)).items()}
    near = {name: places.mean(0) for name, places in dots(draw_map(apart, kinds, modalities=kinds)).items()}
    assert np.linalg.norm(gap["text (30)"] - gap["image (30)"]) > 1
    assert np.linalg.norm(near["text (30)"] - near["image (30)"]) < 1e-5


def test_groups_may_be_numbers_of_clusters_and_nothing():
    figure = draw_map(VECTORS, [None if k % 4 == 3 else np.int64(k % 4) for k in range(60)])
    assert sorted(dots(figure)) == ["(none) (15)", "0 (15)", "1 (15)", "2 (15)"]


def test_small_groups_beyond_the_largest_are_grey():
    many = [f"g{n % (GROUPS + 5)}" for n in range(60)]
    found = dots(draw_map(VECTORS, many))
    assert len(found) == GROUPS + 1
    assert sum(map(len, found.values())) == 60
    assert "others" in list(found)[-1]


def test_one_vector_and_equal_ones_make_a_map():
    assert len(dots(draw_map(VECTORS[:1], ["only"]))["only (1)"]) == 1
    assert np.isfinite(dots(draw_map(np.ones((3, 4), np.float32), ["a", "", "a"]))["(none) (1)"]).all()


def test_an_index_is_drawn_by_modality(tmp_path, tiny):
    index = Index.create(tmp_path / "i", tiny)
    with pytest.raises(InputError, match="nothing that could be drawn"):
        draw_index(index)
    index.add(["one", "two", "three"])
    figure = draw_index(index)
    assert list(dots(figure)) == ["text (3)"]
    assert {text.get_text() for text in figure.axes[0].texts} == {"one", "two", "three"}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"groups": ["a"]}, "1 groups for 60 vectors"),
        ({"labels": ["a"]}, "1 labels for 60 vectors"),
        ({"vectors": VECTORS[0]}, r"not of \(8,\)"),
        ({"vectors": VECTORS[:, :1]}, r"not of \(60, 1\)"),
        ({"vectors": np.where(np.arange(60)[:, None] == 7, np.nan, VECTORS)}, "item 7"),
    ],
)
def test_what_has_no_place_is_told(changed, said):
    with pytest.raises(InputError, match=said):
        draw_map(**{"vectors": VECTORS, "groups": LANGUAGES, **changed})


def test_a_method_that_is_not_known_or_not_installed_is_told(monkeypatch):
    with pytest.raises(UnknownName, match="umap"):
        draw_map(VECTORS, LANGUAGES, method="umpa")
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(MissingExtra, match=r"umap-learn .* pip install 'mmembed\[umap\]'"):
        draw_map(VECTORS, LANGUAGES, method="umap")


@pytest.mark.slow
def test_umap_keeps_neighbours_together():
    pytest.importorskip("umap")
    clusters = VECTORS + 20 * np.eye(8, dtype=np.float32)[np.arange(60) % 3]
    laid = plane(clusters, method="umap")
    np.testing.assert_array_equal(laid, plane(clusters, method="umap"))
    middles = np.stack([laid[n::3].mean(0) for n in range(3)])
    nearest = np.linalg.norm(laid[:, None] - middles, axis=-1).argmin(1)
    assert (nearest == np.arange(60) % 3).all()


def test_a_group_whose_name_begins_with_a_stroke_stands_in_the_legend():
    (legend,) = draw_map(VECTORS, ["_drafts"] * 30 + ["done"] * 30).legends
    assert [text.get_text() for text in legend.get_texts()] == ["_drafts (30)", "done (30)"]


def test_of_a_sample_of_an_index_its_size_is_told(tmp_path, tiny, monkeypatch):
    index = Index.create(tmp_path / "i", tiny)
    index.add(["one", "two", "three"])
    assert draw_index(index).axes[0].get_title() == "i"
    some = index.layout()[:2]
    monkeypatch.setattr(index, "layout", lambda: some)
    assert draw_index(index).axes[0].get_title() == "i (2 of 3)"
