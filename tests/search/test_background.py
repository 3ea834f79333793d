"""Relevance stands out against unrelated things; balanced hits are not buried by the modality gap."""

from __future__ import annotations

import numpy as np
import pytest

import mmembed
from mmembed.errors import InputError
from mmembed.search.background import LEAST, TEXTS, Background
from mmembed.search.index import Index
from mmembed.search.plane import plane
from mmembed.search.why import why_picture, why_text

from ..conftest import picture


def _units(seed: int, count: int, width: int = 16) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, width))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_relevance_is_a_gumbel_law_of_how_far_a_score_stands_out():
    sample, query = _units(0, 500), _units(1, 1)[0]
    scores = np.linspace(-0.5, 1, 7, dtype=np.float32)
    told = Background({"text": sample}, {"text": 5000}).log_relevance(query, "text", scores)
    usual = sample @ query
    z = (scores - usual.mean()) / usual.std()
    slope = np.diff(np.log(-told)) / np.diff(z)  # ln(-ln relevance) = ln(count / n) + (m - z) / b
    assert slope == pytest.approx(np.full(6, slope[0]), rel=1e-3)
    width = -1 / slope[0]
    place = width * (np.log(-told[0]) - np.log(10)) + z[0]
    draw = np.random.default_rng(5)
    asked = np.stack([sample[draw.choice(500, TEXTS, replace=False)].mean(0) for _ in range(4000)]) @ sample.T
    greatest = (asked.max(1) - asked.mean(1)) / asked.std(1)
    for share in (0.25, 0.5, 0.75):  # the quartiles of what mixtures score at best
        assert place - width * np.log(-np.log(share)) == pytest.approx(np.quantile(greatest, share), abs=0.1)


def test_relevance_rises_with_the_score_and_falls_with_the_number_of_things():
    sample, query = _units(0, 500), _units(1, 1)[0]
    scores = np.linspace(-1, 1, 50, dtype=np.float32)

    def told(samples, counts):
        return Background(samples, counts).log_relevance(query, "text", scores)

    few, many = (told({"text": sample}, {"text": n}) for n in (1000, 10000))
    assert (np.diff(few) > 0).all()
    assert many == pytest.approx(10 * few)
    assert told({"text": sample, "image": _units(2, 50)}, {"text": 1000, "image": 50}) == pytest.approx(2 * few)
    assert few[-1] == pytest.approx(0, abs=0.01)


def test_relevance_hangs_on_what_the_sample_holds_and_not_on_its_order():
    sample, query = _units(0, 300), _units(1, 1)[0]
    mixed = sample[np.random.default_rng(0).permutation(300)]
    scores = np.linspace(0, 1, 9, dtype=np.float32)
    one, other = (Background({"text": s}, {"text": 300}).log_relevance(query, "text", scores) for s in (sample, mixed))
    assert one == pytest.approx(other, rel=1e-4)


def test_pictures_alone_have_a_relevance_too():
    sample = _units(0, 100)
    near, far = Background({"image": sample}, {"image": 100}).log_relevance(
        sample[3], "image", np.array([1, 0], dtype=np.float32)
    )
    assert np.exp(near) > 0.9 > 0.01 > np.exp(far)


def test_things_that_are_alike_tell_nothing_beside_others_that_vary():
    """Notes about one thing, beside pictures of everything: by cosine, no note may go before the picture that is asked for."""
    pictures, near = _units(0, 100), _units(1, 1)[0]
    notes = near + 0.1 * _units(2, 40)
    notes /= np.linalg.norm(notes, axis=1, keepdims=True)
    samples = {"text": notes.astype(np.float32), "image": pictures}
    both = Background(samples, {kind: len(sample) for kind, sample in samples.items()})
    asked = pictures[3]
    assert both.log_relevance(asked, "text", samples["text"] @ asked) is None
    assert np.exp(both.log_relevance(asked, "image", pictures @ asked)).argmax() == 3
    alone = Background({"text": samples["text"]}, {"text": 40})  # all that there is, and so what is usual
    assert alone.log_relevance(asked, "text", samples["text"] @ asked) is not None


def test_too_few_things_tell_nothing():
    sample = _units(0, LEAST - 1)
    assert (
        Background({"text": sample}, {"text": len(sample)}).log_relevance(
            sample[0], "text", np.ones(1, dtype=np.float32)
        )
        is None
    )
    assert Background({}, {}).log_relevance(sample[0], "text", np.ones(1, dtype=np.float32)) is None


@pytest.fixture(scope="module")
def mixed(tiny, tmp_path_factory):
    """Thirty texts and seventy pictures, far from each other: a tiny model with random weights has a wide modality gap. Of the
    pictures, which vary less, many are alike."""
    index = Index.create(tmp_path_factory.mktemp("mixed") / "index", tiny)
    words = [
        f"{a} {b}" for a in ("red", "blue", "old", "new", "big", "odd") for b in ("cat", "dog", "sun", "hat", "car")
    ]
    ids = [f"t{n}" for n in range(30)] + [f"i{n}" for n in range(70)]
    index.add([*words, *(picture(n) for n in range(70))], ids=ids)
    return index


def test_balanced_hits_are_those_of_each_modality_merged_by_relevance(mixed):
    hits = mixed.search("red cat", k=100)
    assert {hit.id for hit in hits} == {hit.id for hit in mixed.search("red cat", k=100, balanced=False)}
    told = [hit.log_relevance for hit in hits]
    assert told == sorted(told, reverse=True)
    assert [hit.rank for hit in hits] == list(range(1, 101))
    for kind in ("text", "image"):
        alone = mixed.search("red cat", k=100, modality=kind)
        assert [hit.id for hit in hits if hit.modality == kind] == [hit.id for hit in alone]
    assert [hit.id for hit in mixed.search("red cat", k=7)] == [hit.id for hit in hits[:7]]


def test_raw_hits_are_by_cosine_and_the_gap_shows(mixed):
    raw = mixed.search("red cat", k=100, balanced=False)
    scores = [hit.score for hit in raw]
    assert scores == sorted(scores, reverse=True)
    first = {how: [hit.modality for hit in mixed.search("red cat", k=10, balanced=how)] for how in (True, False)}
    assert first[False].count("image") < first[True].count("image")


def test_the_background_follows_the_index(tiny, tmp_path):
    index = Index.create(tmp_path / "index", tiny)
    index.add([f"text {n}" for n in range(LEAST - 1)])
    assert index.search("text", k=1)[0].relevance is None
    index.add(["one more"])
    assert 0 <= index.search("text", k=1)[0].relevance <= 1


def test_more_like_an_item_begins_with_itself(mixed):
    assert mixed.nearest(mixed.vector("i3"), k=1)[0].id == "i3"
    with pytest.raises(InputError, match="i99"):
        mixed.vector("i99")


def test_a_map_holds_every_item_once_and_hides_the_gap(mixed):
    rows = mixed.layout()
    assert {row["id"] for row in rows} == {hit.id for hit in mixed.search("a", k=100)}
    places = np.array([[row["x"], row["y"]] for row in rows])
    assert np.abs(places).max() == pytest.approx(1)
    for kind in ("text", "image"):
        assert places[[row["modality"] == kind for row in rows]].mean(0) == pytest.approx(0, abs=1e-5)
    assert len(mixed.layout(most=20)) < 45


def test_a_plane_keeps_what_varies_most_and_is_the_same_every_time():
    flat = np.zeros((50, 8), dtype=np.float32)
    flat[:, 3], flat[:, 5] = np.linspace(-3, 3, 50), np.tile([1.0, -1.0], 25)
    laid = plane(flat)
    assert np.abs(np.corrcoef(laid[:, 0], flat[:, 3])[0, 1]) > 0.999
    assert np.array_equal(laid, plane(flat))
    assert plane(flat[:1]).tolist() == [[0, 0]]


def test_a_plane_of_many_numbers_lies_along_the_two_greatest_components():
    rows = np.random.default_rng(0).normal(size=(300, 200)) * np.arange(1, 201) ** -0.5
    _, axes = np.linalg.eigh(np.cov(rows.T))
    expected = (rows - rows.mean(0)) @ axes[:, :-3:-1]
    expected *= np.sign(axes[:, :-3:-1][np.abs(axes[:, :-3:-1]).argmax(0), [0, 1]])
    np.testing.assert_allclose(plane(rows), expected / np.abs(expected).max(), atol=1e-6)


def test_a_label_of_a_map_is_no_book(tiny, tmp_path):
    index = mmembed.Index.create(tmp_path / "index", tiny)
    index.add(["a book " * 1000])
    (row,) = index.layout()
    assert row["label"] == "a book " * 14 + "a…"


def test_why_a_picture_points_at_the_part_that_matters():
    pico = mmembed.load()
    cat, corner = _pictograph("cat"), np.full((128, 128, 3), 255, dtype=np.uint8)
    corner[64:, :64] = cat[::2, ::2]
    (query,) = pico.encode_query(["cat"])
    weight = np.abs(why_picture(pico, query, mmembed.Image(corner)))
    assert weight.shape == (7, 7)
    assert weight[4:, :3].mean() > 10 * max(weight[:3].mean(), weight[:, 4:].mean())
    whole = why_picture(pico, query, mmembed.Image(cat))
    assert whole[1:-1, 1:-1].mean() > whole.mean() > 0


def _pictograph(name: str) -> np.ndarray:
    from mmembed.demo import DATA

    pixels = mmembed.Image(DATA / "pictographs" / f"{name}.png").load()
    assert pixels.shape == (128, 128, 3)
    return pixels


def test_why_a_text_points_at_the_word_that_matters():
    pico = mmembed.load()
    (query,) = pico.encode_query(["cat"])
    told = why_text(pico, query, "seven words and among them a cat")
    word, _ = max(((told.text[a:b], drop) for a, b, drop in told.parts), key=lambda each: each[1])
    assert word == "cat"
    assert "".join(told.text[a:b] for a, b, _ in told.parts) == "sevenwordsandamongthemacat"
    mixed = why_text(pico, query, "红色的 cat")
    assert [mixed.text[a:b] for a, b, _ in mixed.parts] == ["红", "色", "的", "cat"]
    (alone,) = why_text(pico, query, "cat").parts
    assert alone[2] > 0.3  # 0 until what is left was asked too
    long = why_text(pico, query, "word " * 300)
    assert (len(long.parts), long.parts[-1][1]) == (96, 1499)
