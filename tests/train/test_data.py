"""Training data of every kind: the same rows from each, and what a bad one says."""

from __future__ import annotations

import base64
import csv
import io
import json
import pickle
import tarfile
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image as PillowImage

from mmembed import Image, Text
from mmembed.errors import InputError, SpecError
from mmembed.train import data
from mmembed.train.data import (
    Column,
    Columns,
    Csv,
    HuggingFace,
    ImageFolder,
    InMemory,
    Jsonl,
    Parquet,
    Tar,
    digest,
)
from mmembed.train.mixture import Mixture, Order

from .runs import write_lines

TEXTS = Columns(query=Column(text="q"), positive=Column(text="p"))


def png(shade: int) -> bytes:
    out = io.BytesIO()
    PillowImage.new("RGB", (9, 7), (shade, 0, 0)).save(out, "PNG")
    return out.getvalue()


def pairs(examples):
    return [(examples[k].query, examples[k].positives) for k in range(len(examples))]


def test_jsonl_and_parquet_give_the_same_rows_in_any_order(tmp_path):
    rows = [{"q": f"frage {k} ü", "p": [f"a{k}", f"b{k}"]} for k in range(25)]
    write_lines(tmp_path / "x.jsonl", rows)
    (tmp_path / "x.jsonl").write_text((tmp_path / "x.jsonl").read_text() + "\n  \n")  # blank lines are no rows
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet", row_group_size=4)
    by_line = Jsonl(path="x.jsonl", columns=TEXTS).open("x", tmp_path)
    by_group = Parquet(path="x.parquet", columns=TEXTS).open("x", tmp_path)
    assert len(by_line) == len(by_group) == 25
    order = np.random.default_rng(0).permutation(25)
    assert (
        [by_line[k].query for k in order]
        == [by_group[k].query for k in order]
        == [(Text(f"frage {k} ü"),) for k in order]
    )
    assert by_group[7].positives == ((Text("a7"),), (Text("b7"),))
    assert sorted(np.concatenate(by_group.blocks())) == list(range(25))


def test_csv_gives_the_rows_that_were_written_in_any_order(tmp_path):
    rows = [{"q": f"frage {k}, ü", "p": 'of two\nlines, "said"' if k % 3 else f"a{k}"} for k in range(25)]
    for name, delimiter in (("x.csv", ","), ("x.tsv", "\t")):
        with (tmp_path / name).open("w", encoding="utf-8-sig", newline="") as file:
            writer = csv.DictWriter(file, ["q", "p"], delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
            file.write("\r\n\r\n")  # blank lines are no rows
        found = Csv(path=name, columns=TEXTS, delimiter=delimiter).open("x", tmp_path)
        order = np.random.default_rng(0).permutation(25)
        assert len(found) == 25
        assert [found[k].query[0].text for k in order] == [rows[k]["q"] for k in order]
        assert [found[k].positives for k in order] == [((Text(rows[k]["p"]),),) for k in order]


def test_cells_of_scores_are_numbers_and_empty_ones_of_groups_are_of_none(tmp_path):
    (tmp_path / "0.csv").write_text("q,p,s,g,l\na,b,1e-1,,\nc,d,-2,1,en\n")
    (tmp_path / "1.csv").write_text("l,q,s,g,p\nde,e,high,1,f")
    columns = Columns(query=Column(text="q"), positive=Column(text="p"), score="s", group="g", language="l")
    found = Csv(path="*.csv", columns=columns).open("x", tmp_path)
    assert [(found[k].scores, found[k].group, found[k].language) for k in (0, 1)] == [
        ((0.1,), None, None),
        ((-2.0,), "1", "en"),
    ]
    assert {group: rows.tolist() for group, rows in found.groups().items()} == {"1": [1, 2]}
    with pytest.raises(InputError, match="row 2: column 's' holds 'high', and a number is wanted"):
        found[2]
    bare = Csv(path="1.csv", columns=replace(columns, score=None)).open("x", tmp_path)
    assert bare[0].positives == ((Text("f"),),)  # the last line may end without a break


def test_a_bad_row_of_cells_is_told_by_its_line_and_those_behind_it_are_read(tmp_path):
    (tmp_path / "x.csv").write_bytes(b'q,p\n"a\nb",c\nd\n\n1,2,3\ne,\xff\n"f"g,h\ni,j\n')
    found = Csv(path="x.csv", columns=TEXTS).open("x", tmp_path)
    assert [found[k].query[0].text for k in (0, 5)] == ["a\nb", "i"]
    for row, said in (
        (1, "line 4 of x.csv: it has 1 cells, and there are 2 columns"),
        (2, "line 6 of x.csv: it has 3 cells"),
    ):
        with pytest.raises(InputError, match=f"data 'x', row {row}: {said}"):
            found[row]
    for row, said in ((3, "line 7 of x.csv: 'utf-8' codec"), (4, "line 8 of x.csv: ',' expected after '\"'")):
        with pytest.raises(InputError, match=f"data 'x', row {row}: {said}"):
            found[row]
    for name, text, said in (
        ("open", 'q,p\na,"b\nc,d\n', r"open\.csv: the row of line 2 does not end"),
        ("twice", "q,p,q\na,b,c\n", r"twice\.csv: its columns are \['q', 'p', 'q'\]"),
        ("bare", "q,p\n", "holds no rows"),
        ("empty", "", "holds no rows"),
        ("other", "q,answer\na,b\n", "no column of .* is called 'p'"),
    ):
        (tmp_path / f"{name}.csv").write_text(text)
        with pytest.raises(SpecError, match=said):
            Csv(path=f"{name}.csv", columns=TEXTS).open("x", tmp_path)
    (tmp_path / "two").mkdir()
    for name, text in (("0.csv", "q,p\na,b\n"), ("1.csv", "q\na\n")):
        (tmp_path / "two" / name).write_text(text)
    with pytest.raises(SpecError, match=r"1\.csv: its columns are \['q'\], which are not each once those of .*0\.csv"):
        Csv(path="two/*.csv", columns=TEXTS).open("x", tmp_path)
    for delimiter in ("", ";;", '"', "\n", "§"):
        with pytest.raises(SpecError, match="one character of ASCII"):
            Csv(path="x.csv", columns=TEXTS, delimiter=delimiter)


def test_parquet_takes_the_rows_that_where_names(tmp_path):
    rows = [{"q": f"{k}", "p": f"{k}", "split": "train" if k % 3 else "test"} for k in range(20)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet", row_group_size=6)
    found = Parquet(path="x.parquet", columns=TEXTS, where={"split": "test"}).open("x", tmp_path)
    assert [found[k].query[0].text for k in range(len(found))] == [str(k) for k in range(0, 20, 3)]
    with pytest.raises(SpecError, match="Did you mean 'split'"):
        Parquet(path="x.parquet", columns=TEXTS, where={"splitt": "test"}).open("x", tmp_path)


def test_pictures_come_as_paths_from_their_folder_as_bytes_and_from_tars(tmp_path):
    for name in ("cats/1.png", "dogs/2.png"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name).write_bytes(png(int(name[5])))
    (tmp_path / "images/cats/1.txt").write_text("a cat\n")
    (tmp_path / "images/dogs/2.txt").write_text("a dog")
    folder = ImageFolder(path="images", columns=Columns(query=Column(text="text"), positive=Column(image="image")))
    write_lines(tmp_path / "x.jsonl", [{"q": "a cat", "p": "cats/1.png"}, {"q": "a dog", "p": "dogs/2.png"}])
    pictured = Columns(query=Column(text="q"), positive=Column(image="p"))
    lines = Jsonl(path="x.jsonl", columns=pictured, images="images")
    rows = [{"q": "a cat", "p": png(1)}, {"q": "a dog", "p": png(2)}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for k, word in ((1, "a cat"), (2, "a dog")):
            for ending, data in (("png", png(k)), ("json", json.dumps({"q": word}).encode()), ("txt", word.encode())):
                info = tarfile.TarInfo(f"shard/{k:03}.{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    tar_columns = Columns(query=Column(text="json.q"), positive=Column(text="txt", image="image"))
    found = {
        "folder": folder.open("x", tmp_path),
        "jsonl": lines.open("x", tmp_path),
        "parquet": Parquet(path="x.parquet", columns=pictured).open("x", tmp_path),
        "tar": Tar(path="x.tar", columns=tar_columns).open("x", tmp_path),
    }
    for name, examples in found.items():
        assert [example[0][0].text for example in pairs(examples)] == ["a cat", "a dog"], name
        shades = [int(positives[0][0].load()[0, 0, 0]) for _, positives in pairs(examples)]
        assert shades == [1, 2], name
    assert found["tar"][0].positives[0][1] == Text("a cat")


def test_pictures_that_are_held_in_memory_are_taken_in_every_form(tmp_path):
    (tmp_path / "1.png").write_bytes(png(1))
    picture = PillowImage.open(io.BytesIO(png(1)))
    pixels = np.asarray(picture)
    data_uri = "data:image/png;base64," + base64.b64encode(png(1)).decode()
    forms = [
        *("1.png", tmp_path / "1.png", Image(tmp_path / "1.png"), data_uri, Image(data_uri)),
        *(png(1), bytearray(png(1)), memoryview(png(1)), Image(png(1))),
        *({"bytes": png(1), "path": None}, {"bytes": None, "path": "1.png"}),
        *(picture, pixels, Image(picture), Image(pixels), (pixels / 255).astype(np.float32)),
    ]
    table = [{"q": form, "p": [form, form], "n": "x"} for form in forms]
    columns = Columns(query=Column(image="q"), positive=Column(image="p"), negatives=(Column(text="n"),))
    found = InMemory(table=table, columns=columns).open("x", tmp_path)
    for k, form in enumerate(forms):
        assert [len(found[k].positives), found[k].query[0].load().tolist()] == [2, pixels.tolist()], form
        assert len(found[k].keys) == 1, form  # query and positives are one picture
    assert [len({key for k in own for key in found[k].keys}) for own in ((5, 6, 7, 8, 9), range(11, 16))] == [1, 1]
    lists = InMemory(table=[{"q": "1.png", "p": np.array(["1.png", "1.png"])}], columns=replace(columns, negatives=()))
    assert len(lists.open("x", tmp_path)[0].positives) == 2  # an array of texts is a list
    for wrong, said in (
        (None, "not NoneType"),
        ([7], "not int"),
        (pixels.astype(np.int64), "array is uint8"),
        ({}, "NoneT"),
    ):
        bad = InMemory(table=[{"q": "1.png", "p": wrong, "n": "x"}], columns=columns).open("x", tmp_path)
        with pytest.raises(InputError, match=f"data 'x', row 0: .*{said}"):
            bad[0]


def test_pictures_in_memory_are_told_apart_by_shape_and_pixels_and_stay_as_they_were(tmp_path):
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    assert digest((Image(pixels),)) == digest((Image(PillowImage.fromarray(pixels)),))
    assert len({digest((Image(own),)) for own in (pixels, pixels.reshape(6, 4, 3), 255 - pixels)}) == 3
    columns = Columns(query=Column(text="q"), positive=Column(image="p"))
    example = InMemory(table=[{"q": "a", "p": pixels}], columns=columns).open("x", tmp_path)[0]
    before = digest(example.positives[0])
    pixels[:] = 0
    sent = pickle.loads(pickle.dumps(example))
    assert digest(example.positives[0]) == digest(sent.positives[0]) == before


def test_scores_are_numbers_of_any_kind(tmp_path):
    table = [{"q": "a", "p": "b", "s": s} for s in (1, 0.5, np.float32(0.5), np.int64(2), Decimal("0.25"))]
    columns = Columns(query=Column(text="q"), positive=Column(text="p"), score="s")
    found = InMemory(table=table, columns=columns).open("x", tmp_path)
    assert [found[k].scores for k in range(5)] == [(1.0,), (0.5,), (0.5,), (2.0,), (0.25,)]
    for wrong in (True, np.bool_(True), float("nan"), "1"):
        with pytest.raises(InputError, match="a number is wanted"):
            InMemory(table=[{**table[0], "s": wrong}], columns=columns).open("x", tmp_path)[0]


class Own(Sequence):
    """A table of a program's own: neither a list nor equal to another that holds the same."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, row):
        return self.rows[row]


def test_rows_in_memory_are_known_by_what_their_columns_say():
    columns = Columns(query=Column(text="q"), positive=Column(text="p"), negatives=(Column(text="n"),), score="s")
    row = {"q": "a", "p": "b", "n": ["c", "d"], "s": np.array([1.0, 0.5, 0.2]), "unused": np.zeros(3)}

    def stamp(table):
        return InMemory(table=table, columns=columns).open("x", Path()).stamp

    same = {stamp(kind([{**row, "unused": k}])) for k, kind in enumerate((list, tuple, Own))}
    others = ({"q": "ab", "p": ""}, {"n": ["cd"]}, {"s": np.array([1.0, 0.5, 0.3])}, {"q": "\ud800"}, {"q": None})
    assert len(same) == 1
    assert len(same | {stamp([{**row, **other}]) for other in others}) == 1 + len(others)
    broken = PillowImage.open(io.BytesIO(png(1)[:-20]))  # a row of which it is told when it is read
    shown = {stamp([{**row, "q": each}]) for each in (png(1), Image(png(1)), PillowImage.new("L", (2, 2)), broken)}
    assert len(shown) == 3


def test_graded_pairs_triples_and_lists_of_negatives(tmp_path):
    columns = Columns(
        query=Column(text="q"), positive=Column(text="p"), negatives=(Column(text="n"), Column(text="m")), score="s"
    )
    write_lines(tmp_path / "x.jsonl", [{"q": "q", "p": "p", "n": ["n1", "n2"], "m": "m", "s": [1, 0.5, 0, 0.25]}])
    (example,) = [Jsonl(path="x.jsonl", columns=columns).open("x", tmp_path)[0]]
    assert [item[0].text for item in example.negatives] == ["n1", "n2", "m"]
    assert example.scores == (1.0, 0.5, 0.0, 0.25)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"q": None, "p": "p"}, "row 1: column 'q' holds None, and a text is wanted"),
        ({"q": 7, "p": "p"}, "row 1: column 'q' holds 7, and a text is wanted"),
        ({"q": "q", "pp": "p"}, "row 1: no column is called 'p'. Did you mean 'pp'?"),
        ({"q": "q", "p": []}, "row 1: it has no positive"),
        ({"q": "", "p": "p"}, "row 1: the query is empty"),
        ({"q": "q", "p": ["p", " \n\u3000"]}, "row 1: a positive is empty"),
        ({"q": "q", "p": "p", "n": ["n", "\t"]}, "row 1: a negative is empty"),
        ({"q": ["a", "b"], "p": "p"}, "row 1: the query holds 2 items, and one is wanted"),
        ({"q": "q", "p": "p", "s": "high"}, "row 1: column 's' holds 'high', and a number is wanted"),
        ({"q": "q", "p": "p", "s": True}, "row 1: column 's' holds True, and a number is wanted"),
        ({"q": "q", "p": "p", "s": [1, 2]}, "row 1: it has 2 scores, of a positive and 0 negatives"),
        ("no object", "row 1: no JSON object"),
    ],
)
def test_a_bad_row_is_told_by_data_and_row(tmp_path, row, said):
    columns = Columns(query=Column(text="q"), positive=Column(text="p"), score="s" if "s" in row else None)
    columns = replace(columns, negatives=(Column(text="n"),)) if "n" in row else columns
    write_lines(tmp_path / "x.jsonl", [{"q": "q", "p": "p", "s": 1, "n": []}, row])
    examples = Jsonl(path="x.jsonl", columns=columns).open("words", tmp_path)
    assert examples[0].query == (Text("q"),)
    with pytest.raises(InputError) as caught:
        examples[1]
    assert str(caught.value) == f"data 'words', {said}" or said in str(caught.value)


def test_a_text_that_is_no_unicode_is_an_error_of_its_row(tmp_path):
    (tmp_path / "x.jsonl").write_text(r'{"q": "q", "p": ["p", "half \ud800"]}')
    examples = Jsonl(path="x.jsonl", columns=TEXTS).open("words", tmp_path)
    with pytest.raises(InputError, match=r"data 'words', row 0: the text is no Unicode: at character 5 stands U\+D800"):
        examples[0]


def test_lines_that_nest_too_deeply_are_errors_of_their_rows(tmp_path):
    (tmp_path / "x.jsonl").write_text("[" * 200_000)
    examples = Jsonl(path="x.jsonl", columns=TEXTS).open("words", tmp_path)
    with pytest.raises(InputError, match="data 'words', row 0: no JSON: "):
        examples[0]


def test_an_empty_text_beside_a_picture_is_no_empty_item(tmp_path):
    columns = Columns(query=Column(text="q", image="i"))
    found = InMemory(table=[{"q": "", "i": png(1)}], columns=columns).open("x", tmp_path)
    assert found[0].query[1] == Text("")


def test_files_that_hold_nothing_to_learn_from_are_told(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "no.parquet").write_bytes(b"words")
    (tmp_path / "no.tar").write_bytes(b"words")
    image = Columns(query=Column(image="image"), positive=Column(text="text"))
    for source, said in (
        (Jsonl(path="empty.jsonl", columns=TEXTS), "holds no rows"),
        (Jsonl(path="gone.jsonl", columns=TEXTS), "no such file"),
        (Jsonl(path="*.lines", columns=TEXTS), "no such file"),
        (ImageFolder(path="folder", columns=image), "holds no rows"),
        (Parquet(path="no.parquet", columns=TEXTS), "no parquet file"),
        (Tar(path="no.tar", columns=TEXTS), "no tar file without compression"),
    ):
        with pytest.raises(SpecError, match=said):
            source.open("x", tmp_path)
    pq.write_table(pa.table({"q": ["a"], "answer": ["b"]}), tmp_path / "x.parquet")
    with pytest.raises(SpecError, match=r"no column of .* is called 'p'"):
        Parquet(path="x.parquet", columns=TEXTS).open("x", tmp_path)


def test_many_files_are_one_table_in_order(tmp_path):
    for k in range(3):
        write_lines(tmp_path / f"part-{k}.jsonl", [{"q": f"{k}{j}", "p": "p"} for j in range(k + 1)])
    found = Jsonl(path="part-*.jsonl", columns=TEXTS).open("x", tmp_path)
    assert [found[k].query[0].text for k in range(len(found))] == ["00", "10", "11", "20", "21", "22"]
    assert len(Jsonl(path="part-*.jsonl", columns=TEXTS, limit=4).open("x", tmp_path)) == 4


def test_paths_of_pictures_start_from_the_folder_of_their_own_file(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(png(ord(name)))
        rows = [{"q": f"{name}{k}", "p": "1.png", "s": k} for k in range(2)]
        write_lines(tmp_path / name / "x.jsonl", rows)
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name / "x.parquet")
    columns = Columns(query=Column(text="q"), positive=Column(image="p"))
    monkeypatch.setenv("HOME", str(tmp_path))
    for source, due in (
        (Jsonl(path="*/x.jsonl", columns=columns, images="~/b"), ["b"] * 4),
        (Parquet(path="*/x.parquet", columns=columns, where={"s": 1}), ["a", "b"]),
        (Jsonl(path="*/x.jsonl", columns=columns), ["a", "a", "b", "b"]),
    ):
        found = source.open("x", tmp_path)
        assert [found[k].positives[0][0].source.parent.name for k in range(len(found))] == due
    write_lines(tmp_path / "mined.jsonl", [{"mined_of": found.numbered}, {"row": 0, "negatives": [3]}])
    mined = replace(source, mined="~/mined.jsonl").open("x", tmp_path)
    assert [item[0].source for item in mined[0].negatives] == [tmp_path / "b/1.png"]


def test_pictures_are_those_of_a_pattern_too(tmp_path):
    for name in ("a/1.png", "a/2.jpg", "b/3.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png(1))
        (tmp_path / name).with_suffix(".txt").write_text(f"text {name}")
    columns = Columns(query=Column(text="text"), positive=Column(image="image"))
    for path, due in (("*/*.png", ["a/1.png", "b/3.png"]), ("a/*", ["a/1.png", "a/2.jpg"]), ("b/3.png", ["b/3.png"])):
        found = ImageFolder(path=path, columns=columns).open("x", tmp_path)
        assert [found[k].query for k in range(len(found))] == [(Text(f"text {name}"),) for name in due]
        stamp = found.stamp
        (tmp_path / "b/3.png").write_bytes(png(2))  # a picture may be mended
        assert stamp == found.stamp
        (tmp_path / due[0]).with_suffix(".txt").write_text("another")
        assert stamp != found.stamp
        (tmp_path / due[0]).with_suffix(".txt").write_text(f"text {due[0]}")
    with pytest.raises(SpecError, match=r"it fits folders alone, whose files are .*/\*/\*"):
        ImageFolder(path="*", columns=columns).open("x", tmp_path)


def test_a_folder_that_is_no_saved_dataset_is_told_and_so_is_a_split_of_one_without(tmp_path):
    datasets = pytest.importorskip("datasets")
    write_lines(tmp_path / "x.jsonl", [{"q": "a", "p": "b"}])
    for path in (".", "x.jsonl"):
        with pytest.raises(SpecError, match="no folder that save_to_disk of datasets wrote"):
            HuggingFace(path=path, columns=TEXTS).open("x", tmp_path)
    datasets.Dataset.from_list([{"q": "a", "p": "b"}]).save_to_disk(tmp_path / "saved")
    with pytest.raises(SpecError, match="without splits: leave split = 'train' out"):
        HuggingFace(path="saved", columns=TEXTS, split="train").open("x", tmp_path)


def test_a_dataset_that_was_saved_with_a_format_is_read_as_one_without(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [{"q": "a", "p": "b", "s": 0.5, "i": png(1)}]
    made = datasets.Dataset.from_list(rows).cast_column("i", datasets.Image())
    made.with_format("torch").save_to_disk(tmp_path / "saved")
    columns = Columns(query=Column(text="q", image="i"), positive=Column(text="p"), score="s")
    (example,) = [*HuggingFace(path="saved", columns=columns).open("x", tmp_path)]
    assert (example.query[1], example.scores) == (Text("a"), (0.5,))
    assert example.query[0].load()[0, 0, 0] == 1


def test_equal_items_have_equal_digests_and_a_group_makes_rows_positives_of_each_other():
    assert digest((Text("a"),)) == digest((Text("a"),)) != digest((Text("b"),))
    assert digest((Image(b"1"),)) == digest((Image(b"1"),)) != digest((Text("1"),))
    columns = Columns(query=Column(text="q"), positive=Column(text="p"), group="g")
    table = [{"q": "a", "p": "b", "g": 1}, {"q": "c", "p": "d", "g": 1}, {"q": "e", "p": "f", "g": 2}]
    found = InMemory(table=table, columns=columns).open("x", Path())
    assert found[0].keys & found[1].keys
    assert not found[0].keys & found[2].keys


def test_a_broken_line_is_told_or_left_out_where_rows_are_told_apart_by_a_column(tmp_path):
    (tmp_path / "x.jsonl").write_text(
        '{"q": "a", "p": "b", "lang": "en"}\n{"q": \n{"q": "c", "p": "d", "lang": "de"}\n'
    )
    columns = Columns(query=Column(text="q"), positive=Column(text="p"), language="lang")
    with pytest.raises(InputError, match="data 'x', row 1: no JSON"):
        Jsonl(path="x.jsonl", columns=columns).open("x", tmp_path).languages()
    found = Jsonl(path="x.jsonl", columns=columns, on_error="skip").open("x", tmp_path).languages()
    assert {name: own.tolist() for name, own in found.items()} == {"en": [0], "de": [2]}


def test_of_several_parquet_files_the_one_that_does_not_fit_is_named(tmp_path):
    rows = [{"q": "a", "p": "b"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "0.parquet")
    pq.write_table(pa.Table.from_pylist([{"q": "a"}]), tmp_path / "1.parquet")
    with pytest.raises(SpecError, match=r"1\.parquet.*'p'|'p'.*1\.parquet"):
        Parquet(path="*.parquet", columns=TEXTS).open("x", tmp_path)
    (tmp_path / "1.parquet").write_bytes(b"no table")
    with pytest.raises(SpecError, match=r"1\.parquet: no parquet file"):
        Parquet(path="*.parquet", columns=TEXTS).open("x", tmp_path)
    with pytest.raises(SpecError, match="column 'q' holds string"):
        Parquet(path="0.parquet", columns=TEXTS, where={"q": 1}).open("x", tmp_path)


def test_a_column_that_is_not_there_is_told_and_an_empty_cell_is_of_no_group(tmp_path):
    write_lines(
        tmp_path / "a.jsonl", [{"q": f"q {k}", "p": f"p {k}", "g": (None, "", "same", "same")[k]} for k in range(4)]
    )
    columns = {"query": Column(text="q"), "positive": Column(text="p")}
    misspelt = Jsonl(path="a.jsonl", columns=Columns(**columns, group="gg")).open("x", tmp_path)
    with pytest.raises(InputError, match=r"row 0: no column is called 'gg'\. Did you mean 'g'"):
        misspelt[0]
    with pytest.raises(InputError, match=r"row 0: no column is called 'gg'\. Did you mean 'g'"):
        misspelt.groups()
    found = Jsonl(path="a.jsonl", columns=Columns(**columns, group="g", language="g")).open("x", tmp_path)
    assert [found[k].group for k in range(4)] == [None, None, "same", "same"]
    assert found[0].keys.isdisjoint(found[1].keys)
    assert not found[2].keys.isdisjoint(found[3].keys)
    assert {key: rows.tolist() for key, rows in found.groups().items()} == {"same": [2, 3]}
    with pytest.raises(SpecError, match="2 rows have none, as row 0"):
        found.groups(all_of_one=True)
    assert {key: rows.tolist() for key, rows in found.languages().items()} == {"": [0, 1], "same": [2, 3]}
    table = [{"q": f"{k}", "p": f"{k}", "g": own} for k, own in enumerate((np.nan, np.float32("nan"), "nan", 1.0))]
    pandas = InMemory(table=table, columns=Columns(**columns, group="g")).open("x", tmp_path)
    assert [pandas[k].group for k in range(4)] == [None, None, "nan", "1.0"]  # Minnan is a language


def test_row_groups_are_held_by_what_they_take_in_memory(tmp_path, monkeypatch):
    """Texts that repeat take little room in the file and all of it once read."""
    table = pa.table({"q": [f"a text that is long and comes often {k % 5}" for k in range(6000)], "n": range(6000)})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=1000)
    monkeypatch.setattr(data, "HELD", 300_000)
    rows = Parquet(path="a.parquet", columns=Columns(query=Column(text="q"))).open("x", tmp_path)
    assert [rows[k].query[0].text[-1] for k in range(0, 6000, 7)] == [str(k % 5) for k in range(0, 6000, 7)]
    held = rows._rows._held
    assert 100_000 < held.used <= 300_000
    assert len(held) < 6
    assert held.misses == 6  # in order, each is read once


def test_row_groups_of_pictures_are_shuffled_as_far_as_they_are_held(tmp_path, monkeypatch):
    """Read in the order in which they are drawn, each row group is read once; other columns do not count."""
    table = pa.table({"q": [bytes(1000) for _ in range(400)], "n": [bytes(9000) for _ in range(400)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=10, use_dictionary=False)
    monkeypatch.setattr(data, "HELD", 100_000)
    found = Parquet(path="a.parquet", columns=Columns(query=Column(image="q"))).open("x", tmp_path)
    blocks = found.blocks()
    assert [len(block) for block in blocks] == [50] * 8
    order = Order(blocks, [0])
    assert len({found[next(order)].row for _ in range(400)}) == 400
    assert found._rows._held.misses == 40
    few = Parquet(path="a.parquet", columns=Columns(query=Column(image="q")), limit=70).open("x", tmp_path)
    assert [block.tolist() for block in few.blocks()] == [[*range(50)], [*range(50, 70)]]


def test_row_groups_are_read_once_a_language(tmp_path, monkeypatch):
    table = pa.table({"q": [bytes([k % 256]) * 1000 for k in range(800)], "l": ["de", "en", "fr", "sw"] * 200})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=10, use_dictionary=False)
    monkeypatch.setattr(data, "HELD", 200_000)
    columns = Columns(query=Column(image="q"), language="l")
    found = Parquet(path="a.parquet", columns=columns).open("x", tmp_path)
    mixture = Mixture({"x": found}, batch=4, language_temperature=1.0, twins=True)
    assert len({example.row for _ in range(180) for example in next(mixture)}) > 600
    assert found._rows._held.misses <= 4 * 80


@pytest.mark.parametrize("kind", ["tar", "datasets", "parquet"])
def test_rows_are_told_apart_by_a_column_without_their_pictures_and_once(tmp_path, monkeypatch, kind):
    rows = [{"q": f"q {k}", "p": png(k), "l": ("de", "en")[k % 2]} for k in range(4)]
    if kind == "tar":
        with tarfile.open(tmp_path / "x", "w") as tar:
            for k, row in enumerate(rows):
                for ending, cell in (("txt", row["q"].encode()), ("png", row["p"]), ("l", row["l"].encode())):
                    info = tarfile.TarInfo(f"{k}.{ending}")
                    info.size = len(cell)
                    tar.addfile(info, io.BytesIO(cell))
        source, names = Tar, ("txt", "png", "l")
    elif kind == "datasets":
        datasets = pytest.importorskip("datasets")
        datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "x")
        source, names = HuggingFace, ("q", "p", "l")
    else:
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x")
        source, names = Parquet, ("q", "p", "l")
    columns = Columns(query=Column(text=names[0]), positive=Column(image=names[1]), language=names[2])
    found = source(path="x", columns=columns).open("x", tmp_path)
    seen = []
    plain = type(found._rows).__getitem__
    monkeypatch.setattr(type(found._rows), "__getitem__", lambda self, row: seen.append(plain(self, row)) or seen[-1])
    for _ in range(2):
        assert [own.tolist() for own in found.languages().values()] == [[0, 2], [1, 3]]
    assert [{*row} for row in seen] == [{names[2]}] * 4


def test_where_reads_columns_that_are_numbered(tmp_path):
    table = pa.table({"q": ["a", "b", "c"], "l": pa.array(["en", "de", "en"]).dictionary_encode()})
    pq.write_table(table, tmp_path / "a.parquet")
    rows = Parquet(path="a.parquet", columns=Columns(query=Column(text="q")), where={"l": "en"}).open("x", tmp_path)
    assert [rows[k].query[0].text for k in range(len(rows))] == ["a", "c"]


def test_a_negative_that_is_a_positive_of_its_row_is_none(tmp_path):
    write_lines(tmp_path / "x.jsonl", [{"q": "a", "p": ["b", "c"], "n": ["d", "c", "e"], "s": [4, 1, 3, 2]}])
    columns = Columns(query=Column(text="q"), positive=Column(text="p"), negatives=(Column(text="n"),), score="s")
    example = Jsonl(path="x.jsonl", columns=columns).open("x", tmp_path)[0]
    assert [item[0].text for item in example.negatives] == ["d", "e"]
    assert example.scores == (4, 1, 2)
