"""Where things come from: every kind of source, by its rows, their places and what a bad one says."""

from __future__ import annotations

import datetime
import io
import json
import os
import tarfile
import tracemalloc
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmembed import Image, sources
from mmembed.errors import InputError, LoadError, UnknownName
from mmembed.sources import Columns, read


def things(entries):
    return [("error" if isinstance(entry.thing, InputError) else entry.thing) for entry in entries]


def save_to_disk(folder, table, files=1):
    """What `datasets.Dataset.save_to_disk` writes."""
    folder.mkdir()
    each = -(-len(table) // files)
    names = [f"data-{k:05}-of-{files:05}.arrow" for k in range(files)]
    for k, name in enumerate(names):
        with pa.OSFile(str(folder / name), "wb") as out, pa.ipc.new_stream(out, table.schema) as stream:
            stream.write_table(table.slice(k * each, each))
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text("{}")


def test_things_are_read_from_folders_lines_and_tables(tmp_path):
    folder = tmp_path / "folder/inside"
    folder.mkdir(parents=True)
    (folder / "a.txt").write_text("eins\nzwei\n", encoding="utf-8")
    (folder / "b.PNG").write_bytes(b"")
    (folder / "c.dat").write_bytes(b"")
    (folder / "d.txt").write_bytes(b"\xff")
    lines = tmp_path / "items.jsonl"
    lines.write_text('"x"\n\n{"text": "y", "image": "p.png", "id": "mine"}\nno\n{"txt": 1}\n', encoding="utf-8")
    table = tmp_path / "t.parquet"
    rows = [
        {"id": "1", "text": "one", "image": None, "more": 0},
        {"id": "2", "text": None, "image": {"bytes": b"png", "path": None}, "more": 0},
        {"id": "3", "text": None, "image": None, "more": 0},
    ]
    pq.write_table(pa.Table.from_pylist(rows), table)
    found = list(read([tmp_path / "folder", lines, table, tmp_path / "p.bin"]))
    names = [entry.name.removeprefix(f"{tmp_path}{os.sep}") for entry in found]
    assert names == [
        *(f"folder{os.sep}inside{os.sep}{name}" for name in ("a.txt", "b.PNG", "d.txt")),
        *("items.jsonl:1", "items.jsonl:3", "items.jsonl:4", "items.jsonl:5"),
        *("t.parquet:0", "t.parquet:1", "t.parquet:2", "p.bin"),
    ]
    assert [entry.id for entry in found] == [None, None, None, None, "mine", None, None, "1", "2", None, None]
    assert found[0].thing == "eins\nzwei\n"
    assert found[3].thing == "x"
    assert found[4].thing["text"] == "y"
    assert found[4].thing["image"].source == tmp_path / "p.png"
    assert found[7].thing == "one"
    assert found[7].metadata == {"more": 0}
    assert found[8].thing["image"].source == b"png"
    assert [k for k, thing in enumerate(things(found)) if thing == "error"] == [2, 5, 6, 9]
    assert things(read([folder / "a.txt"], lines=True)) == ["eins", "zwei"]
    (folder / "a.txt").rename(folder / "A.TXT")
    assert things(read([folder / "A.TXT"], lines=True)) == ["eins", "zwei"]
    assert things(read([folder], lines=True))[:2] == ["eins", "zwei"]
    for missing in ("none.jsonl", "none.parquet", "none.tar", "none-*.png"):
        with pytest.raises(LoadError, match=missing.replace("*", r"\*")):
            list(read([tmp_path / missing]))


def test_a_pattern_gives_files_in_order_and_a_file_of_that_very_name_is_itself(tmp_path):
    for name in ("b/2.png", "a/1.png", "a/x.png/3.png", "a/[1].txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"t")
    found = list(read([tmp_path / "**/*.png"]))
    assert [entry.path for entry in found] == [tmp_path / name for name in ("a/1.png", "a/x.png/3.png", "b/2.png")]
    assert things(read([tmp_path / "a/[1].txt"])) == ["t"]
    assert [entry.path for entry in read([tmp_path / "?/[12].png"])] == [tmp_path / "a/1.png", tmp_path / "b/2.png"]


def test_what_is_hidden_is_read_where_it_is_named_alone(tmp_path):
    for name in ("a.png", ".git/b.png", "c/.cache/d.png", "c/._e.png", "c/.f.txt", ".g/h.png", ".g/.i/j.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"t")

    def found(*sources):
        return [str(entry.path.relative_to(tmp_path)) for entry in read(tmp_path / source for source in sources)]

    assert found("") == ["a.png"]
    assert found(".g", "c/.f.txt", "c/.cache") == [".g/h.png", "c/.f.txt", "c/.cache/d.png"]
    assert found("**/*.png") == ["a.png"]
    assert found(".g/*.png", "*/.cache/*", "**/.*.png") == [".g/h.png", "c/.cache/d.png", "c/._e.png"]
    with pytest.raises(LoadError, match="no such file or folder"):
        found("c/*.png")


def test_a_table_of_commas_is_told_what_is_read_in_its_place(tmp_path):
    for name in ("a.csv", "a.TSV", "a.png"):
        (tmp_path / name).write_text("text\na cat\n")
    first, second, picture, missing = read([tmp_path / "a.csv", tmp_path / "*.TSV", tmp_path, tmp_path / "none.csv"])
    assert first.thing.reason.startswith(f"{tmp_path}/a.csv: CSV is not read; .jsonl and .parquet are")
    assert "TSV is not read" in second.thing.reason
    assert [picture.path, missing.path] == [tmp_path / "a.png", tmp_path / "none.csv"]


def test_a_text_that_is_null_is_told_so(tmp_path):
    rows = [{"text": "a", "image": b"p", "id": 1}, {"text": None, "image": None, "id": 2}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    (tmp_path / "t.jsonl").write_text('{"text": null, "id": "a"}\n{"txt": null}\n')
    for columns, said in ((None, "'text' and 'image' are null"), (Columns(image=None), "'text' is null")):
        assert list(read([tmp_path / "t.parquet"], columns=columns))[1].thing.reason.startswith(
            f"{tmp_path}/t.parquet:1: {said}"
        )
    null, lacking = read([tmp_path / "t.jsonl"])
    assert null.thing.reason.endswith("t.jsonl:1: 'text' is null: there is nothing to embed")
    assert "it has neither 'text' nor 'image'; it has 'txt'" in lacking.thing.reason


def test_words_on_stdin_are_told_of_lines():
    words, broken = read(["-"], io.BytesIO(b"hi\n{bad\n"))
    assert words.thing.reason.endswith("; with --lines each line is a text as it is")
    assert "--lines" not in broken.thing.reason


def test_a_folder_is_walked_in_the_order_of_paths_and_says_what_it_cannot_look_into(tmp_path, monkeypatch):
    for name in ("b.png", "a/2.png", "a.png", "a/1.PNG", "a.b/3.png", "x.jpg/4.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "round").symlink_to(tmp_path)
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    found = [entry.name.removeprefix(f"{tmp_path}/") for entry in read([tmp_path])]
    assert found == sorted([*map(str, _files(tmp_path)), "loop.png"], key=lambda name: name.split("/"))
    scandir = os.scandir

    def closed(folder):
        if str(folder).endswith("/a"):
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(sources.os, "scandir", closed)
    (error,) = [entry for entry in read([tmp_path]) if isinstance(entry.thing, InputError)]
    assert error.name == f"{tmp_path}/a"
    assert "Permission denied" in error.thing.reason


def _files(folder):
    return [file.relative_to(folder) for file in folder.rglob("*.*") if file.is_file()]


def test_a_text_that_is_a_pipe_or_too_large_is_an_error_and_blocks_nothing(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "large.txt").write_text("x" * 100)
    monkeypatch.setattr("mmembed.images.MAX_BYTES", 99)
    large, pipe = read([tmp_path])
    assert "not a regular file" in pipe.thing.reason
    assert "over the limit" in large.thing.reason


def test_a_line_that_is_too_long_is_an_error_and_the_next_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MAX_LINE", 10)
    (tmp_path / "a.jsonl").write_text('"' + "x" * 50 + '"\n"12345678"\n"123456"\n')
    assert things(read([tmp_path / "a.jsonl"])) == ["error", "error", "123456"]
    deep = "[" * 100_000
    monkeypatch.setattr(sources, "MAX_LINE", 10**6)
    (tmp_path / "a.jsonl").write_text(f'{deep}\n"\ud7ff"\n'.encode().decode("utf-8") + '{"image": "http://x/a.png"}\n')
    found = list(read([tmp_path / "a.jsonl"]))
    assert things(found[:2]) == ["error", "\ud7ff"]
    assert found[2].thing["image"].source == "http://x/a.png", "which is then not fetched"


def test_stdin_is_lines_of_json_or_of_text():
    assert things(read(["-"], io.BytesIO(b'"a"\n{"text": "b"}\n'))) == ["a", "b"]
    assert things(read(["-"], io.BytesIO(b"a\n\nb"), lines=True)) == ["a", "", "b"]


def test_columns_are_named_and_others_are_metadata(tmp_path):
    when = datetime.datetime(2026, 1, 2, 3, 4, 5)
    rows = [{"caption": "c", "jpg": b"j", "url": "u", "raw": b"r", "nan": float("nan"), "when": when, "key": 7}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    (entry,) = read([tmp_path / "t.parquet"], columns=Columns.parse(["text=caption", "id=key"]))
    assert (entry.thing, entry.id, entry.metadata) == ("c", "7", {"url": "u", "when": when.isoformat()})
    (entry,) = read([tmp_path / "t.parquet"], columns=Columns.parse(["image=jpg"]))
    assert entry.thing["image"].source == b"j"
    assert set(entry.thing) == {"image"}
    with pytest.raises(LoadError, match=r"'captoin'.*Did you mean 'caption'"):
        list(read([tmp_path / "t.parquet"], columns=Columns(text="captoin")))
    with pytest.raises(LoadError, match="no column is called 'text'"):
        list(read([tmp_path / "t.parquet"]))
    with pytest.raises(UnknownName, match=r"'txt'.*Did you mean 'text'"):
        Columns.parse(["txt=caption"])
    with pytest.raises(LoadError, match="text=NAME"):
        Columns.parse(["text"])


def test_plain_values_are_metadata_however_arrow_holds_them(tmp_path):
    table = pa.table(
        {
            "text": pa.array(["a", "a"]).dictionary_encode(),
            "category": pa.array(["x", "y"]).dictionary_encode(),
            "price": pa.array([Decimal("1.50"), None], pa.decimal128(9, 2)),
            "at": pa.array([datetime.time(1, 2, 3), None], pa.time64("us")),
            "view": pa.array(["v", "w"], pa.string_view()),
            "raw": pa.array([b"r", b"r"]).dictionary_encode(),
        }
    )
    save_to_disk(tmp_path / "saved", table)
    pq.write_table(table, tmp_path / "t.parquet")
    for name in ("saved", "t.parquet"):
        one, other = read([tmp_path / name])
        assert one.metadata == {"category": "x", "price": 1.5, "at": "01:02:03", "view": "v"}, name
        assert (one.thing, other.metadata) == ("a", {"category": "y", "view": "w"}), name


def test_an_ending_may_be_spelled_in_capitals(tmp_path):
    (tmp_path / "A.JSONL").write_text('"x"\n')
    pq.write_table(pa.table({"text": ["y"]}), tmp_path / "B.Parquet")
    with tarfile.open(tmp_path / "C.TAR", "w") as tar:
        info = tarfile.TarInfo("0.txt")
        info.size = 1
        tar.addfile(info, io.BytesIO(b"z"))
    assert things(read([tmp_path / "A.JSONL", tmp_path / "B.Parquet", tmp_path / "C.TAR"])) == ["x", "y", "z"]


def test_one_set_of_rows_is_the_same_in_lines_parquet_a_saved_dataset_and_a_tar(tmp_path):
    picture = {"bytes": b"png", "path": "a.png"}
    rows = [{"text": f"t{k}", "image": picture if k % 2 else None, "n": k} for k in range(150)]
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=40)
    save_to_disk(tmp_path / "saved", table, files=4)
    (tmp_path / "t.jsonl").write_text(
        "\n".join(json.dumps({**row, "image": row["image"] and "data:image/png;base64,cG5n"}) for row in rows)
    )
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for row in rows:
            parts = {"txt": row["text"].encode(), "json": json.dumps({"n": row["n"]}).encode()}
            for ending, data in ({**parts, "png": b"png"} if row["image"] else parts).items():
                info = tarfile.TarInfo(f"./{row['n']:04}.{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    found = {name: list(read([tmp_path / name])) for name in ("t.parquet", "saved", "t.jsonl", "t.tar")}
    for name, entries in found.items():
        assert len(entries) == 150, name
        assert [entry.metadata for entry in entries] == [{"n": k} for k in range(150)], name
        assert [entry.thing if k % 2 == 0 else entry.thing["text"] for k, entry in enumerate(entries)] == [
            f"t{k}" for k in range(150)
        ], name
    for name in ("t.parquet", "saved", "t.tar"):
        assert found[name][77].thing["image"].source == b"png"
    assert found["saved"][77].name == f"{tmp_path}/saved:77"
    assert found["t.tar"][77].name == f"{tmp_path}/t.tar/./0077"


def test_a_dataset_of_datasets_is_read_without_decoding(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = {"text": [f"t{k}" for k in range(100)], "image": [{"bytes": b"broken", "path": None}] * 100, "n": range(100)}
    whole = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    whole.save_to_disk(tmp_path / "saved")
    for each in (whole.select(range(99, -1, -1)), whole.to_iterable_dataset()):
        found = list(read([each]))
        assert sorted(entry.metadata["n"] for entry in found) == list(range(100))
        assert found[3].thing["image"].source == b"broken"
        assert found[0].thing["text"] == f"t{found[0].metadata['n']}"
    assert [entry.thing["text"] for entry in read([tmp_path / "saved"])] == rows["text"]
    datasets.DatasetDict(train=whole).save_to_disk(tmp_path / "splits")
    with pytest.raises(LoadError, match="several splits"):
        list(read([tmp_path / "splits"]))
    assert len(list(read([tmp_path / "splits/train"]))) == 100


def test_what_is_no_source_is_told():
    with pytest.raises(LoadError, match="a dict is neither a path nor a dataset"):
        list(read([{"text": "a"}]))


def test_a_file_of_rows_that_breaks_off_gives_what_comes_before_and_an_error(tmp_path):
    table = pa.table({"text": [f"{k}" * 50 for k in range(1000)]})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=100, compression="none")
    data = bytearray((tmp_path / "t.parquet").read_bytes())
    place = data.index(b"557" * 10)
    data[place - 600 : place - 10] = b"\xff" * 590
    (tmp_path / "t.parquet").write_bytes(data)
    found = list(read([tmp_path / "t.parquet"]))
    assert things(found)[:100] == [f"{k}" * 50 for k in range(100)]
    assert "breaks off" in found[-1].thing.reason
    assert 500 <= len(found) - 1 <= 557
    (tmp_path / "no.parquet").write_bytes(b"words")
    assert things(read([tmp_path / "no.parquet"])) == ["error"]
    save_to_disk(tmp_path / "saved", table, files=2)
    file = tmp_path / "saved/data-00000-of-00002.arrow"
    file.write_bytes(file.read_bytes()[:100])
    found = things(read([tmp_path / "saved"]))
    assert found[0] == "error"
    assert len(found) == 501, "the other file is read"


def test_a_cell_that_cannot_be_read_costs_its_own_row_alone(tmp_path):
    raw = pa.array([b"a", b"\xff\xfe", b"c", b"d"], pa.binary())
    offsets, data = raw.buffers()[1:]
    table = pa.table(
        {
            "text": pa.Array.from_buffers(pa.string(), 4, [None, offsets, data]),
            "when": pa.array([0, 0, 2**62, 1], pa.timestamp("us")),
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    save_to_disk(tmp_path / "saved", table)
    for name in ("t.parquet", "saved"):
        found = list(read([tmp_path / name]))
        assert things(found) == ["a", "error", "error", "d"]
        assert [entry.name for entry in found] == [f"{tmp_path}/{name}:{k}" for k in range(4)]
        assert found[1].thing.reason.startswith(f"{tmp_path}/{name}:1: 'text' cannot be read: 'utf-8' codec")
        assert found[2].thing.reason.startswith(f"{tmp_path}/{name}:2: 'when' cannot be read: ")
        assert found[3].metadata == {"when": "1970-01-01T00:00:00.000001"}


def test_of_a_table_one_group_of_rows_is_held_and_a_few_pictures(tmp_path):
    schema = pa.schema({"image": pa.binary()})
    with pq.ParquetWriter(tmp_path / "t.parquet", schema, compression="none") as out:
        for _ in range(4):
            out.write_table(pa.table({"image": [os.urandom(100_000) for _ in range(200)]}, schema))  # a group: 20 MB
    tracemalloc.start()
    before = pa.total_allocated_bytes()
    most = 0
    for entry in read([tmp_path / "t.parquet"]):
        assert isinstance(entry.thing["image"], Image)
        most = max(most, pa.total_allocated_bytes() - before)
    assert most < 60e6, "the file is 80 MB"
    assert tracemalloc.get_traced_memory()[1] < 30e6
    tracemalloc.stop()


def test_an_empty_path_of_a_picture_is_told_so(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"image": ""}\n{"text": "a", "image": ""}\n')
    for entry in read([tmp_path / "t.jsonl"]):
        assert "here the path is empty" in entry.thing.reason
