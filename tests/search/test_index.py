"""The index: what goes in, what is left as it was, exact search, and whose vectors it takes."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mmembed
from mmembed import Image, Index, Query
from mmembed.errors import FingerprintMismatch, InputError, SpecError, StoreError, UnknownName
from mmembed.search import adding as module
from mmembed.testing import tiny_embedder
from tests.conftest import picture

WORDS = ["a red car", "ein rotes Auto", "赤い車", "красная машина", "سيارة حمراء", "एक लाल कार", "รถสีแดง"]


@pytest.fixture
def index(tmp_path, tiny):
    return Index.create(tmp_path / "things", tiny)


def png(image: Image) -> bytes:
    data = io.BytesIO()
    PIL.Image.fromarray(image.load()).save(data, "PNG")
    return data.getvalue()


def test_a_text_of_any_script_is_its_own_best_hit(index):
    assert index.add(WORDS).added == len(WORDS) == len(index)
    for text in WORDS:
        best = index.search(text)[0]
        assert (best.text, best.rank, best.modality) == (text, 1, "text")
        assert best.score == pytest.approx(1, abs=1e-6)


def test_a_picture_is_found_by_itself_and_a_pair_by_the_pair(index):
    index.add([picture(0), picture(1), ("a word", picture(2))])
    assert index.search(picture(1))[0].score == pytest.approx(1, abs=1e-6)
    pair = index.search(("a word", picture(2)))[0]
    assert (pair.modality, pair.text) == ("image+text", "a word")
    assert pair.score == pytest.approx(1, abs=1e-6)


def test_search_equals_the_exact_ranking_in_numpy(index, tiny):
    texts = [f"number {n} of {n * n}" for n in range(1500)]
    index.add(texts)
    documents = tiny.encode_document(texts).astype(np.float64)
    for query in ("number 7", "что-то другое", "x"):
        exact = documents @ tiny.encode_query([query])[0].astype(np.float64)
        hits = index.search(query, k=40)
        order = np.argsort(-exact)[:40]
        np.testing.assert_allclose([hit.score for hit in hits], exact[order], atol=1e-6)
        assert {hit.text for hit in hits[:30]} <= {texts[row] for row in order}


@settings(max_examples=15)
@given(st.data())
def test_search_is_exact_for_any_collection(tmp_path_factory, tiny, data):
    some = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
    texts = data.draw(st.lists(some.filter(str.strip), min_size=1))  # one of nothing but blanks is refused
    k = data.draw(st.integers(1, 60))
    index = Index.create(tmp_path_factory.mktemp("any") / "index", tiny)
    ids = [f"{row}'\"\\%_" for row in range(len(texts))]
    index.add(texts, ids=ids)
    exact = tiny.encode_document(texts).astype(np.float64) @ tiny.encode_query(["q"])[0].astype(np.float64)
    hits = index.search("q", k=k)
    assert len(hits) == min(k, len(texts))
    found = {hit.id: hit.score for hit in hits}
    np.testing.assert_allclose([found[i] for i in found], [exact[ids.index(i)] for i in found], atol=1e-6)
    np.testing.assert_allclose(sorted(found.values()), np.sort(exact)[-len(found) :], atol=1e-6)


def test_equal_scores_come_in_the_order_of_ids(index):
    ids = [f"{number:03}" for number in range(300)]
    shuffled = list(np.random.default_rng(0).permutation(ids))
    index.add(["the same"] * 300, ids=shuffled)
    index.add(["another"])
    assert [hit.id for hit in index.search("the same", k=25)] == ids[:25]


def test_a_modality_is_all_that_is_searched_when_it_is_named(index):
    index.add(["a", "b", picture(0), ("c", picture(1))])
    for kind, count in (("text", 2), ("image", 1), ("image+text", 1)):
        assert [hit.modality for hit in index.search("a", modality=kind)] == [kind] * count
    with pytest.raises(UnknownName, match="image"):
        index.search("a", modality="imgae")


def test_adding_again_changes_nothing(index):
    things = ["one", picture(0), ("two", picture(1))]
    index.add(things)
    again = index.add(thing for thing in things)
    assert (again.added, again.replaced, again.unchanged, len(index)) == (0, 0, 3, 3)


def test_one_picture_has_one_id_from_a_path_from_bytes_and_from_pixels(index, tmp_path):
    data = png(picture(0))
    (tmp_path / "p.png").write_bytes(data)
    report = index.add([Image(tmp_path / "p.png"), Image(data), PIL.Image.open(io.BytesIO(data)), picture(0)])
    assert (report.added, report.unchanged) == (1, 3)


def test_a_known_id_with_other_content_is_replaced(index):
    index.add(["old", "other"], ids=["x", "y"])
    report = index.add(["new", "other"], ids=["x", "y"])
    assert (report.replaced, report.unchanged, len(index)) == (1, 1, 2)
    assert index.search("new")[0].text == "new"
    assert "old" not in {hit.text for hit in index.search("old")}


def test_an_id_given_twice_in_one_call_keeps_what_came_last(index):
    report = index.add(["first", "second"], ids=["x", "x"])
    assert (report.added, report.replaced, len(index)) == (1, 1, 1)
    assert index.search("x")[0].text == "second"


def test_metadata_comes_back_and_stays_where_none_is_given(index):
    about = {"language": "हिन्दी", "n": [1, None, {"deep": True}]}
    index.add(["a"], metadata=[about])
    assert index.add(["a"]).unchanged == 1
    assert index.search("a")[0].metadata == about
    assert index.add(["a"], metadata=[{"n": 2}]).replaced == 1
    assert index.search("a")[0].metadata == {"n": 2}


def test_ids_or_metadata_of_another_count_are_an_error(index):
    with pytest.raises(StoreError, match="1 ids were given"):
        index.add(["a", "b"], ids=["x"])
    with pytest.raises(StoreError, match="more metadata"):
        index.add(["a"], metadata=[{}, {}])
    with pytest.raises(InputError, match="many"):
        index.add(["a", "b"], ids="ab")


@pytest.mark.parametrize("bad", [b"no picture", b""])
def test_a_bad_thing_stops_the_call_by_its_row(index, bad):
    with pytest.raises(InputError) as caught:
        index.add(["a", "b", Image(bad)])
    assert caught.value.item == 2
    assert len(index) == 0


def test_a_bad_thing_is_skipped_and_reported_on_request(index):
    report = index.add(["a", Image(b"no picture"), 7, "b\ud800", "c"], on_error="skip")
    assert report.added == 2
    assert [skipped.row for skipped in report.skipped] == [1, 2, 3]
    assert "10 bytes" in report.skipped[0].name
    assert "surrogate" in report.skipped[2].reason


@pytest.mark.parametrize("empty", ["", " \n\t", ("", " ")])
def test_nothing_is_not_kept(index, empty):
    with pytest.raises(InputError, match="empty") as caught:
        index.add(["a", empty])
    assert caught.value.item == 1


def test_bad_metadata_and_ids_name_their_row(index):
    with pytest.raises(InputError, match="item 1: metadata"):
        index.add(["a", "b"], metadata=[{}, {"x": object()}])
    with pytest.raises(InputError, match="item 0: an id"):
        index.add(["a"], ids=[""])


def test_chunks_before_an_error_are_kept_and_adding_goes_on_from_there(index, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 4)
    things = [f"text {n}" for n in range(10)]
    with pytest.raises(InputError, match="item 9"):
        index.add([*things[:9], Image(b"bad")])
    assert len(index) == 8
    report = index.add(things)
    assert (report.added, report.unchanged, len(index)) == (2, 8, 10)


def test_a_generator_is_taken_by_chunks_and_not_ahead(index, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 4)
    stored = []

    def things():
        for number in range(12):
            stored.append(len(index))
            yield f"text {number}"

    assert index.add(things()).added == 12
    assert stored[-1] >= 4


def test_many_pixels_make_a_chunk_of_few_pictures(index, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_PIXELS", 40 * 50 * 2)
    assert index.add([picture(n) for n in range(5)]).added == 5
    assert len(index) == 5


def test_a_thing_that_comes_again_and_cannot_be_embedded_is_skipped_again(tmp_path):
    short = tiny_embedder(max_length=16)
    index = Index.create(tmp_path / "i", short)
    report = index.add([("x", picture(0)), ("x", picture(0)), "fits"], on_error="skip")
    assert [skipped.row for skipped in report.skipped] == [0, 1]
    assert (report.added, report.unchanged) == (1, 0)


def test_a_text_cut_at_the_limit_is_reported_by_its_row(tmp_path):
    index = Index.create(tmp_path / "i", tiny_embedder(max_length=16))
    assert index.add(["short", "long " * 20]).truncated == [1]


def test_a_folder_gives_its_pictures_and_texts_in_order_and_says_what_it_left_out(index, tmp_path):
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    (folder / "b.png").write_bytes(png(picture(0)))
    (folder / "deep" / "a.JPG").write_bytes(png(picture(1)))
    (folder / "text.txt").write_text("\ufeffein Text", encoding="utf-8")
    (folder / "notes.md").write_text("not taken")
    (folder / "broken.jpg").write_bytes(b"<html>")
    (folder / "latin.txt").write_bytes(b"caf\xe9")
    (folder / "dir.png").mkdir()
    (folder / "gone.png").symlink_to(folder / "nothing")
    report = index.add_folder(folder)
    assert report.added == 3
    assert [os.path.basename(skipped.name) for skipped in report.skipped] == ["broken.jpg", "gone.png", "latin.txt"]  # noqa: PTH119
    assert index.search("ein Text")[0].path == str(folder / "text.txt")
    assert index.search(picture(1))[0].path == str(folder / "deep" / "a.JPG")
    with pytest.raises(StoreError, match=r"nowhere is no folder"):
        index.add_folder(tmp_path / "nowhere")


def test_rows_of_files_keep_their_ids_and_metadata_and_bad_ones_are_named_by_their_place(index, tmp_path):
    (tmp_path / "a.png").write_bytes(png(picture(0)))
    lines = [
        {"text": "eins", "id": "one", "lang": "de", "n": 1},
        {"text": "zwei", "image": "a.png"},
        {"image": "gone.png"},
        {"txt": "x"},
        {"text": "drei", "id": ""},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    with tarfile.open(tmp_path / "rows.tar", "w") as tar:
        for name, data in (("k1.png", png(picture(1))), ("k1.json", b'{"url": "u"}'), ("k2.png", b"<html>")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    report = index.add_files([tmp_path / "rows.jsonl", tmp_path / "rows.tar"])
    assert (report.added, len(index)) == (3, 3)
    assert [(one.row, one.name.removeprefix(f"{tmp_path}/")) for one in report.skipped] == [
        (2, "rows.jsonl:3"), (3, "rows.jsonl:4"), (4, "rows.jsonl:5"), (6, "rows.tar/k2"),
    ]  # fmt: skip
    assert index.get("one").metadata == {"lang": "de", "n": 1}
    both, pictured = (index.search("x", modality=kind)[0] for kind in ("image+text", "image"))
    assert both.path == str(tmp_path / "a.png")
    assert (pictured.metadata, pictured.path) == ({"url": "u"}, None)
    again = index.add_files([tmp_path / "rows.*"])
    assert (again.added, again.replaced, again.unchanged, len(again.skipped)) == (0, 0, 3, 4)
    with pytest.raises(InputError, match=r"gone\.png"):
        index.add_files([tmp_path / "rows.jsonl"], on_error="raise")


@pytest.mark.parametrize("name", ['it\'s "q".png', "שלום.png", "a\nb.png", os.fsdecode(b"\xff\xfe.png"), "🙂.png"])
def test_odd_file_names_are_stored(index, tmp_path, name):
    folder = tmp_path / "odd"
    folder.mkdir()
    (folder / name).write_bytes(png(picture(0)))
    assert index.add_folder(folder).added == 1
    assert index.search("x")[0].path.endswith(".png")


def test_hits_hold_a_small_picture_that_outlives_its_source(index, tmp_path):
    file = tmp_path / "wide.png"
    PIL.Image.new("RGB", (1000, 20), "red").save(file)
    index.add([Image(file)])
    file.unlink()
    small = PIL.Image.open(io.BytesIO(index.search("x")[0].thumbnail))
    assert small.size == (128, 3)
    red, green, blue = small.convert("RGB").getpixel((64, 1))
    assert red > 230
    assert max(green, blue) < 30


def test_removed_items_are_found_no_more(index):
    index.add(["a", "b", "c"], ids=["1'", "2", "3"])
    assert index.remove(["1'", "nowhere"]) == 1
    assert {hit.id for hit in index.search("a")} == {"2", "3"}
    assert index.add(["a"], ids=["1'"]).added == 1


def test_an_index_is_there_when_it_is_opened_again(index, tiny):
    index.add(WORDS)
    again = Index.open(index.path, tiny)
    assert again.search(WORDS[2])[0].text == WORDS[2]
    assert again.info()["fingerprint"] == tiny.fingerprint


def test_vectors_of_another_model_are_refused(index):
    with pytest.raises(FingerprintMismatch, match="model it was made with"):
        Index.open(index.path, tiny_embedder(seed=1))


def test_a_model_that_was_trained_since_adds_nothing(tmp_path):
    own = tiny_embedder(seed=2)
    index = Index.create(tmp_path / "own.index", own)
    index.add(["a"])
    with torch.no_grad():
        next(own.model.backbone.parameters()).mul_(2)
    with pytest.raises(FingerprintMismatch, match="other weights"):
        index.add(["b"])
    assert len(index) == 1


def test_without_a_model_an_index_can_be_read_but_not_searched(index):
    index.add(["a"], ids=["x"])
    closed = Index.open(index.path)
    assert closed.info()["items"] == 1
    with pytest.raises(StoreError, match="without an embedder"):
        closed.search("a")
    with pytest.raises(StoreError, match="without an embedder"):
        closed.add(["b"])
    assert closed.remove(["x"]) == 1


def test_info_counts_what_is_there(index):
    index.add(["a", "b", picture(0), ("c", picture(0))])
    info = index.info()
    assert info["modalities"] == {"text": 2, "image": 1, "image+text": 1}
    assert (info["items"], info["dimension"], info["model"]) == (4, 32, "tiny")
    assert info["bytes"] > 4 * 32 * 4
    json.dumps(info)


def test_an_index_of_shorter_vectors_searches_in_them(tmp_path, tiny):
    index = Index.create(tmp_path / "short", tiny, truncate_dim=16)
    index.add(WORDS)
    assert index.dimension == 16
    assert index.search(WORDS[0])[0].score == pytest.approx(1, abs=1e-6)
    expected = tiny.similarity(
        tiny.encode_query([WORDS[0]], truncate_dim=16), tiny.encode_document([WORDS[1]], truncate_dim=16)
    )[0, 0]
    found = {hit.text: hit.score for hit in index.search(WORDS[0])}
    assert found[WORDS[1]] == pytest.approx(expected, abs=1e-6)
    with pytest.raises(SpecError):
        Index.create(tmp_path / "odd", tiny, truncate_dim=17)


def test_an_index_is_made_once_and_opened_only_where_one_is(index, tmp_path, tiny):
    with pytest.raises(StoreError, match="holds an index already"):
        Index.create(index.path, tiny)
    with pytest.raises(StoreError, match="holds no index"):
        Index.open(tmp_path / "nowhere", tiny)
    assert not (tmp_path / "nowhere").exists()


def test_an_empty_index_finds_nothing(index):
    assert list(index.search("a")) == []


def test_a_query_that_cannot_be_embedded_is_an_error(index):
    index.add(["a"])
    with pytest.raises(InputError):
        index.search(Image(b"no picture"))
    with pytest.raises(InputError, match="k is"):
        index.search("a", k=0)
    with pytest.raises(InputError, match="many things"):
        index.add("a")
    with pytest.raises(InputError, match="many things"):
        index.add(picture(0))


@pytest.mark.parametrize("vector", [np.zeros(32), np.full(32, np.nan), np.ones(31), "a cat", None, [[1.0], [1.0, 2.0]]])
def test_a_vector_that_points_nowhere_asks_for_nothing(index, vector):
    index.add(["a"])
    with pytest.raises(InputError, match=r"32 numbers|points nowhere"):
        index.nearest(vector)


def test_a_copied_folder_is_the_same_index(index, tmp_path, tiny):
    index.add(WORDS)
    shutil.copytree(index.path, tmp_path / "copy")
    assert len(Index.open(tmp_path / "copy", tiny)) == len(WORDS)


def test_the_names_stand_at_the_top():
    assert mmembed.Index is Index
    assert mmembed.Hits.__name__ == "Hits"


def test_one_thing_where_many_are_taken_is_an_error_that_says_so(tiny, tmp_path):
    index = Index.create(tmp_path / "index", tiny)
    for source in ("notes.jsonl", tmp_path):
        with pytest.raises(InputError, match="one goes in a list"):
            index.add_files(source)
    for unordered in ({"things": {"a"}}, {"things": ["a"], "ids": {"x"}}):
        with pytest.raises(InputError, match="a set has no order"):
            index.add(**unordered)
    for wrong in ({"things": "a"}, {"things": ["a"], "ids": "x"}, {"things": ["a"], "metadata": {"x": 1}}):
        with pytest.raises(InputError, match="goes in a list"):
            index.add(**wrong)
    assert len(index) == 0
    index.add(["a", "b"], ids=["x", "y"])
    assert index.remove(np.array(["x"])) == index.remove({"y"}) == 1  # in whatever order they go
    with pytest.raises(InputError, match="at least 1, not '3'"):
        index.search("a", k="3")
    with pytest.raises(InputError, match=r"as mmembed.load gives it, not for 'pico'"):
        Index.create(tmp_path / "other", "pico")


@pytest.mark.parametrize("width", [None, 16])
@pytest.mark.parametrize("rows", [1, 2])
def test_an_index_that_was_made_anew_for_another_model_is_neither_searched_nor_written(index, width, rows):
    index.add(["a", "b"], ids=["a", "b"])
    index.search("a")
    shutil.rmtree(index.path)
    other = Index.create(index.path, tiny_embedder(seed=1), truncate_dim=width)
    for row in range(rows):  # as many versions as there were, and more
        other.add(["c"], ids=[f"c{row}"])
    for ask in (
        lambda: index.search("a"),
        lambda: index.search("a", mode="hybrid"),
        lambda: index.nearest(np.ones(32, np.float32)),
        lambda: index.add(["d"]),
    ):
        with pytest.raises(FingerprintMismatch, match="made anew meanwhile and holds vectors of 'tiny'"):
            ask()
    assert len(other) == rows
    assert other.verify().is_whole


def test_an_index_of_another_width_under_an_open_one_is_refused_and_read_as_it_is(index, tiny):
    closed = Index.open(index.path)
    shutil.rmtree(index.path)
    Index.create(index.path, tiny, truncate_dim=16).add(["c"], ids=["c"])
    for handle in (index, closed):
        assert handle.vector("c").shape == (16,)
    for ask in (lambda: index.search("a"), closed.info, closed.diagnose, closed.layout, closed.duplicates):
        with pytest.raises(FingerprintMismatch, match="16 numbers"):
            ask()


def test_an_index_made_anew_while_things_are_added_takes_none_of_the_rest(index, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 1)
    other = tiny_embedder(seed=1)

    def things():
        yield "a"
        yield "b"
        shutil.rmtree(index.path)
        Index.create(index.path, other)
        yield "c"

    with pytest.raises(FingerprintMismatch):
        index.add(things())
    assert len(Index.open(index.path, other)) == 0


def test_an_index_that_was_moved_says_so(index, tmp_path):
    index.add(["a"])
    index.path.rename(tmp_path / "elsewhere")
    for ask in (
        lambda: index.search("a"),
        lambda: index.add(["b"]),
        lambda: index.background,
        index.info,
        index.diagnose,
    ):
        with pytest.raises(StoreError, match="holds no index any more"):
            ask()


@pytest.mark.parametrize("empty", ["", " \n", ("", " "), {"text": "\t"}])
@pytest.mark.parametrize("mode", ["vector", "text", "hybrid"])
def test_a_query_of_nothing_is_an_error(index, empty, mode):
    index.add(["a"])
    for ask in (lambda: index.search(empty, mode=mode), lambda: Query([("a", 1), (empty, 0.5)])):
        with pytest.raises(InputError, match="says nothing to look for"):
            ask()


@pytest.mark.parametrize("mode", ["vector", "text", "hybrid"])
def test_more_hits_than_there_are_numbers_for_are_all_that_there_are(index, mode):
    index.add(["a cat", "a cat too"])
    assert len(index.search("a cat", k=2**70, mode=mode)) == 2
    assert len(index.search("a cat", k=2**70, mode=mode, modality="text")) == 2


def test_an_id_that_is_no_text_is_an_error(index):
    for ask in (lambda: index.remove([1]), lambda: index.get(None), lambda: index.vector(5)):
        with pytest.raises(InputError, match="an id is a text"):
            ask()


def test_an_index_wants_a_folder(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for ask in (lambda: Index.create("", tiny), lambda: Index.open("")):
        with pytest.raises(StoreError, match="its path is empty"):
            ask()
    assert not list(tmp_path.iterdir())


UNHELD = [
    ({"odd key": "\ud800"}, "half a surrogate pair"),
    ({"plain": ["\udfff"]}, "half a surrogate pair"),
    ({"k\ud800": 1}, "half a surrogate pair"),
    ({"n": 2**64}, "beyond 64 bits"),
    ({"deep": [{"n": -(2**63) - 1}]}, "beyond 64 bits"),
    ({"deep": json.loads("[" * 300 + "]" * 300)}, "in each other"),
]


@pytest.mark.parametrize(("metadata", "said"), UNHELD)
def test_metadata_that_others_cannot_read_is_refused_by_its_row(index, tmp_path, metadata, said):
    with pytest.raises(InputError, match=f"item 1: metadata.*{said}"):
        index.add(["a", "b"], metadata=[{}, metadata])
    lines = [{"text": "a"}, {"text": "b", **metadata}, {"text": "c", "n": 2**64 - 1}, {"text": "d", "n": -(2**63)}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    report = index.add_files([tmp_path / "rows.jsonl"])
    assert (report.added, len(index)) == (3, 3)
    assert [(one.row, said in one.reason) for one in report.skipped] == [(1, True)]


def test_metadata_that_another_writer_named_otherwise_meanwhile_is_skipped_by_its_row(index, tiny):
    other = Index.open(index.path, tiny)

    def things(*, meanwhile):
        yield "a"
        other.add(["z"], ids=[f"other {meanwhile}"], metadata=[meanwhile])
        yield "b"
        yield "c"

    about = [{"x": 1}, {"Lang": "en"}, {"y": 1}]
    with pytest.raises(InputError, match="item 0: metadata: 'x' is a number here and a text elsewhere"):
        index.add(things(meanwhile={"x": "text"}), metadata=about)
    report = index.add(things(meanwhile={"lang": "text"}), ids=list("abc"), metadata=about, on_error="skip")
    assert [(one.row, one.reason.split(": ")[1][:6]) for one in report.skipped] == [(0, "'x' is"), (1, "'Lang'")]
    assert (report.added, index.get("c").metadata) == (1, {"y": 1})
    assert index.get("a") is index.get("b") is None
    assert set(index.info()["metadata"]) == {"x", "lang", "y"}
