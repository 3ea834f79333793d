"""An index and a folder that changes: what is new, other, gone, moved, copied, or as it was."""

from __future__ import annotations

import io
import os
import shutil
import time
from pathlib import Path

import PIL.Image
import pytest

from mmembed import Image, Index, sources
from mmembed.errors import StoreError
from mmembed.search import adding, known, rows
from mmembed.sources import Entry
from mmembed.testing import tiny_embedder
from tests.conftest import picture

OLD = time.time_ns() - 3600 * 10**9


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    draw(folder / "a.png", 1)
    draw(folder / "deep" / "b.png", 2)
    write(folder / "note.txt", "a note")
    return folder


@pytest.fixture
def index(tmp_path, tiny, folder) -> Index:
    index = Index.create(tmp_path / "index", tiny)
    assert index.add_folder(folder).added == 3
    return index


def draw(path: Path, seed: int, when: int = OLD) -> None:
    data = io.BytesIO()
    PIL.Image.fromarray(picture(seed).load()).save(data, "PNG")
    path.write_bytes(data.getvalue())
    os.utime(path, ns=(when, when))


def write(path: Path, text: str, when: int = OLD) -> None:
    path.write_text(text, encoding="utf-8")
    os.utime(path, ns=(when, when))


def paths(index: Index) -> list[str]:
    return sorted(Path(hit.path).name for hit in index.items())


def counts(report) -> tuple[int, int, int]:
    return report.added, report.replaced, report.unchanged


@pytest.fixture
def opened(monkeypatch):
    """Pictures that are decoded from now on."""
    names = []

    def counted(part):
        if isinstance(part.source, Path):
            names.append(part.source.name)
        return load(part)

    load = Image.load
    monkeypatch.setattr(Image, "load", counted)
    return names


@pytest.fixture
def embedded(monkeypatch, tiny):
    """Things that are embedded from now on."""
    things = []
    encode = tiny.encode_document

    def counted(inputs, **options):
        things.extend(inputs)
        return encode(inputs, **options)

    monkeypatch.setattr(tiny, "encode_document", counted)
    return things


def test_what_is_as_it_was_is_neither_read_nor_embedded(index, folder, opened, embedded):
    assert counts(index.add_folder(folder)) == (0, 0, 3)
    assert (opened, embedded) == ([], [])
    assert counts(index.add_folder(folder, reread=True)) == (0, 0, 3)
    assert (opened, embedded) == (["a.png", "b.png"], [])


def test_a_new_file_is_added_a_changed_one_replaced_and_a_gone_one_removed_when_asked(index, folder, embedded):
    draw(folder / "c.png", 3)
    draw(folder / "a.png", 4, OLD + 10**9)
    write(folder / "note.txt", "another note", OLD + 10**9)
    (folder / "deep" / "b.png").unlink()
    assert counts(index.add_folder(folder)) == (1, 2, 0)
    assert len(embedded) == 3
    assert paths(index) == ["a.png", "b.png", "c.png", "note.txt"]
    assert index.search(picture(4))[0].path == str(folder / "a.png")
    assert index.remove_gone(folder) == [str(folder / "deep" / "b.png")]
    assert paths(index) == ["a.png", "c.png", "note.txt"]
    assert index.search(picture(2))[0].score < 0.9999
    assert index.remove_gone(folder) == []


def test_a_file_that_takes_on_what_the_index_has_is_one_that_was_replaced(index, folder):
    later = OLD + 10**9
    draw(folder / "a.png", 2, later)
    draw(folder / "new.png", 5)
    assert counts(index.add_folder(folder)) == (1, 1, 2)
    assert len(index) == 3
    for name in ("a.png", "new.png"):  # two files of one new content
        draw(folder / name, 6, later + 10**9)
    assert counts(index.add_folder(folder)) == (1, 1, 2), "a.png was a copy, and has an item of its own now"
    assert len(index) == 3
    draw(folder / "deep" / "b.png", 6, later)
    write(folder / "note.txt", "another", later)
    assert counts(index.add_folder(folder)) == (0, 2, 2)
    assert len(index) == 2


def test_a_touched_file_is_read_once_more_and_not_embedded(index, folder, opened, embedded):
    os.utime(folder / "a.png", ns=(OLD + 10**9, OLD + 10**9))
    assert counts(index.add_folder(folder)) == (0, 0, 3)
    assert counts(index.add_folder(folder)) == (0, 0, 3)
    assert (opened, embedded) == (["a.png"], [])


def test_a_file_of_the_same_size_and_time_is_seen_when_it_is_read_again(index, folder):
    write(folder / "note.txt", "A NOTE")
    assert counts(index.add_folder(folder)) == (0, 0, 3)
    assert counts(index.add_folder(folder, reread=True)) == (0, 1, 2)
    assert index.search("A NOTE")[0].text == "A NOTE"


def test_a_file_that_was_just_written_is_read_again_for_it_may_be_written_again(index, folder, opened):
    draw(folder / "c.png", 3, time.time_ns())
    index.add_folder(folder)
    draw(folder / "c.png", 3, OLD)
    for _ in range(2):
        assert counts(index.add_folder(folder)) == (0, 0, 4)
    assert opened == ["c.png", "c.png"]


def test_a_moved_file_is_not_embedded_again_and_bears_its_new_name(index, folder, embedded):
    (folder / "a.png").rename(folder / "z.png")
    assert counts(index.add_folder(folder)) == (0, 0, 3)
    assert index.remove_gone(folder) == []
    assert (paths(index), embedded) == (["b.png", "note.txt", "z.png"], [])


def test_a_copy_is_no_item_of_its_own_and_stands_in_when_the_first_goes(index, folder, embedded):
    shutil.copy2(folder / "a.png", folder / "z.png")
    assert counts(index.add_folder(folder)) == (0, 0, 4)
    assert paths(index) == ["a.png", "b.png", "note.txt"]
    (folder / "a.png").unlink()
    assert counts(index.add_folder(folder)) == (0, 0, 3)
    assert index.remove_gone(folder) == []
    assert (paths(index), embedded) == (["b.png", "note.txt", "z.png"], [])


def test_of_two_copies_that_were_just_written_one_keeps_the_item_when_the_other_is_written_anew(index, folder):
    now = time.time_ns()
    for name in ("x.txt", "y.txt"):
        write(folder / name, "cat", now)
    assert counts(index.add_folder(folder)) == (1, 0, 4)
    write(folder / "x.txt", "dog", time.time_ns())
    index.add_folder(folder)
    assert {hit.text: Path(hit.path).name for hit in index.items() if hit.modality == "text"} == {
        "a note": "note.txt", "cat": "y.txt", "dog": "x.txt",
    }  # fmt: skip


def test_files_that_change_places_keep_their_contents(index, folder, embedded):
    a, b = folder / "a.png", folder / "deep" / "b.png"
    a.rename(folder / "x.png")
    b.rename(a)
    (folder / "x.png").rename(b)
    for file in (a, b):
        os.utime(file, ns=(OLD + 10**9, OLD + 10**9))
    index.add_folder(folder)
    assert embedded == []
    assert index.search(picture(2))[0].path == str(a)
    assert index.search(picture(1))[0].path == str(b)
    assert len(index) == 3


def test_a_file_that_cannot_be_read_any_more_is_told_and_keeps_what_is_known_of_it(index, folder):
    (folder / "a.png").write_bytes(b"<html>")
    report = index.add_folder(folder)
    assert [Path(skipped.name).name for skipped in report.skipped] == ["a.png"]
    assert index.remove_gone(folder) == []
    assert paths(index) == ["a.png", "b.png", "note.txt"]


def test_what_a_kill_left_of_a_changed_file_is_put_right_by_the_next_run(index, folder, monkeypatch):
    draw(folder / "a.png", 4, OLD + 10**9)
    monkeypatch.setattr(known.Known, "outdated", lambda self: {})  # as if killed before the last step
    index.add_folder(folder)
    assert paths(index) == ["a.png", "a.png", "b.png", "note.txt"]
    monkeypatch.undo()
    index.add_folder(folder)
    assert paths(index) == ["a.png", "b.png", "note.txt"]
    assert index.search(picture(4))[0].score == pytest.approx(1, abs=1e-6)


def test_an_item_with_an_id_of_its_own_is_not_taken_for_the_file(index, folder):
    index.add([Image(folder / "a.png")], ids=["mine"], metadata=[{"who": "me"}])
    draw(folder / "a.png", 4, OLD + 10**9)
    assert counts(index.add_folder(folder)) == (0, 1, 2)
    assert index.get("mine").metadata == {"who": "me"}


def test_a_run_that_was_stopped_goes_on_where_it_was(index, folder, monkeypatch, opened):
    monkeypatch.setattr(adding, "CHUNK", 2)
    for number in range(6):
        draw(folder / f"n{number}.png", 10 + number)
    write(folder / "odd.txt", "x")
    (folder / "n5.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"n5\.png"):
        index.add_folder(folder, on_error="raise")
    draw(folder / "n5.png", 15)
    opened.clear()
    assert counts(index.add_folder(folder)) == (3, 0, 7)
    assert "n0.png" not in opened


def test_an_empty_folder_takes_nothing_out(index, folder):
    shutil.rmtree(folder)
    for make in (lambda: None, folder.mkdir):
        make()
        with pytest.raises(StoreError, match="nothing is taken out"):
            index.remove_gone(folder)
    assert len(index) == 3


def test_what_lies_elsewhere_is_not_gone(index, folder, tmp_path):
    beside = tmp_path / "photos2"
    beside.mkdir()
    draw(beside / "far.png", 7)
    index.add_folder(beside)
    index.add(["no file"])
    (beside / "far.png").unlink()
    assert index.remove_gone(folder) == []
    assert len(index) == 5


def test_what_lies_behind_a_link_or_in_a_folder_that_is_shut_is_not_gone(index, folder):
    (folder.parent / "other").mkdir()
    draw(folder.parent / "other" / "d.png", 5, OLD)
    (folder / "link").symlink_to(folder.parent / "other")
    index.add_files([str(folder / "link" / "*.png")])
    assert index.remove_gone(folder) == []
    (folder.parent / "other" / "d.png").unlink()
    assert index.remove_gone(folder) == [str(folder / "link" / "d.png")]


def test_a_row_that_names_a_file_and_the_file_itself_are_two_items(index, folder):
    rows = folder.parent / "rows.jsonl"
    rows.write_text('{"id": "product-7", "image": "%s"}\n' % (folder / "a.png"), encoding="utf-8")
    before = len(index)
    assert counts(index.add_files([folder, rows])) == (1, 0, 3)
    for _ in range(2):
        assert counts(index.add_files([folder, rows])) == (0, 0, 4)
    assert len(index) == before + 1


@pytest.mark.parametrize("first", ["file", "caption"])
def test_a_picture_with_its_caption_and_two_pictures_are_not_the_file(tiny, tmp_path, folder, first):
    index = Index.create(tmp_path / "fresh", tiny)
    of_two = (Image(folder / "a.png"), Image(folder / "deep" / "b.png"))
    adding = [
        (lambda: index.add_folder(folder), 3),
        (lambda: index.add([("my cat", Image(folder / "a.png")), of_two]), 2),
    ]
    for add, count in adding if first == "file" else reversed(adding):
        assert counts(add()) == (count, 0, 0)
    for _ in range(2):
        for add, count in adding:
            assert counts(add()) == (0, 0, count)
        assert counts(index.add_folder(folder, reread=True)) == (0, 0, 3)
    assert len(index) == 5
    assert index.search("my cat", mode="text")[0].text == "my cat"
    assert index.verify(sample=10).is_whole


def test_what_another_process_says_of_a_thing_meanwhile_stays(index, folder, tiny, monkeypatch):
    other = Index.open(index.path)
    index.add(["old"], ids=["o"])

    class Slow:
        def __getattr__(self, name):
            return getattr(tiny, name)

        def encode_document(self, things, **options):
            twin = Index.open(index.path, tiny)
            twin.add(["new", "old"], ids=["n", "o"], metadata=[{"year": 2020}, {"year": 2021}])
            return tiny.encode_document(things, **options)

    monkeypatch.setattr(index, "embedder", Slow())
    index.add(["new", "else"], ids=["n", "e"])
    assert {hit.id: hit.metadata for hit in other.items(where="id IN ('n', 'o', 'e')")} == {
        "n": {"year": 2020},
        "o": {"year": 2021},
        "e": {},
    }


def test_a_vector_is_of_the_text_beside_it_whoever_writes_another_one_meanwhile(index, tiny, monkeypatch):
    index.add(["one", "two"], ids=["x", "gone"])
    encode, others = tiny.encode_document, Index.open(index.path, tiny_embedder())

    def slow(things, **options):
        monkeypatch.setattr(tiny, "encode_document", encode)
        others.add(["quite another text"], ids=["x"])
        others.remove(["gone"])
        return encode(things, **options)

    monkeypatch.setattr(tiny, "encode_document", slow)
    report = index.add(["new", "one", "two"], ids=["n", "x", "gone"], metadata=[{"y": 1}] * 3)
    assert counts(report) == (2, 1, 0)
    assert {hit.id: (hit.text, hit.metadata) for hit in index.items(where="y = 1")} == {
        "n": ("new", {"y": 1}),
        "x": ("one", {"y": 1}),
        "gone": ("two", {"y": 1}),
    }
    assert index.verify(sample=10).is_whole


def test_a_text_that_changes_while_others_are_added_is_read_again_the_next_time(tmp_path, tiny, monkeypatch):
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in "ab":
        write(folder / f"{name}.txt", name)
    index, stats = Index.create(tmp_path / "fresh", tiny), known.FileStat.at

    def changing(path):
        if Path(path).name == "b.txt":
            monkeypatch.setattr(rows.FileStat, "at", stats)
            write(folder / "b.txt", "another", OLD + 10**9)
        return stats(path)

    monkeypatch.setattr(rows.FileStat, "at", changing)
    index.add_folder(folder)
    monkeypatch.undo()
    index.add_folder(folder)
    assert [hit.text for hit in index.items(where="path LIKE '%b.txt'")] == ["another"]


def test_a_text_that_is_as_it_was_is_not_read(index, folder, monkeypatch):
    monkeypatch.setattr(sources, "read_file", lambda path: pytest.fail(f"{path} was read"))
    assert counts(index.add_folder(folder)) == (0, 0, 3)


def test_many_characters_make_a_chunk_of_few_texts(index, monkeypatch, embedded):
    monkeypatch.setattr(adding, "CHUNK_CHARACTERS", 5)
    chunks = []
    monkeypatch.setattr(adding.Table, "merge", lambda self, rows, vectors: chunks.append([row["text"] for row in rows]))
    index.add(["123", "45", "6", "7890123", "4"])
    assert chunks == [["123", "45"], ["6"], ["7890123"], ["4"]]


def test_what_was_said_of_a_file_stays_when_it_is_written_anew(index, folder):
    about = {"name": "the garden", "year": 2020}
    index.add_entries([Entry("a", Image(folder / "a.png"), path=folder / "a.png", metadata=about)])
    draw(folder / "a.png", 4, OLD + 10**9)
    assert counts(index.add_folder(folder)) == (0, 1, 2)
    (hit,) = index.items(where="year = 2020")
    assert (hit.path, hit.metadata) == (str(folder / "a.png"), about)
    assert index.search("the garden", mode="text")[0].id == hit.id
    assert index.verify().is_whole
    draw(folder / "a.png", 5, OLD + 2 * 10**9)
    index.add_entries([Entry("a", Image(folder / "a.png"), path=folder / "a.png", metadata={"year": 2021})])
    assert [hit.metadata for hit in index.items(where="path LIKE '%a.png'")] == [{"year": 2021}]


def test_what_was_said_of_a_file_goes_with_it_to_its_new_name_alone(index, folder):
    index.add_entries([Entry("a", Image(folder / "a.png"), path=folder / "a.png", metadata={"year": 2020})])
    (folder / "a.png").rename(folder / "c.png")
    draw(folder / "a.png", 4, OLD + 10**9)
    assert counts(index.add_folder(folder)) == (1, 0, 3)
    assert [Path(hit.path).name for hit in index.items(where="year = 2020")] == ["c.png"]


def test_a_copy_elsewhere_goes_with_the_file_that_brought_it_until_its_folder_is_added_again(index, folder, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(folder, elsewhere)
    index.add_folder(elsewhere)
    (folder / "a.png").unlink()
    assert index.remove_gone(folder) == [str(folder / "a.png")]
    assert index.add_folder(elsewhere).added == 1
    (folder / "note.txt").unlink()
    index.add_folder(elsewhere)  # first, and it stays
    assert index.remove_gone(folder) == []
    assert len(index) == 3
