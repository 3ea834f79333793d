"""Exports: what is written is what the index holds, in files that numpy, pyarrow and clip-retrieval's own way of reading take."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmembed import Index
from mmembed.errors import StoreError, UnknownName
from mmembed.search import table as module
from tests.conftest import picture

METADATA = [{"n": 1, "lang": "hi", "odd": [1]}, {"n": 2.5, "lang": None, "odd": "x", "caption": "not mine"}, {}]


@pytest.fixture
def texts(tmp_path, tiny, monkeypatch):
    monkeypatch.setattr(module, "ROWS", 2)  # so that a handful of rows comes in several parts
    index = Index.create(tmp_path / "texts", tiny)
    index.add(["एक लाल कार", "b", "c"], ids=["x", "y", "z"], metadata=METADATA)
    return index


@pytest.fixture
def pictures(tmp_path, tiny):
    index = Index.create(tmp_path / "pictures", tiny)
    index.add([picture(0), ("both", picture(1))], ids=["p", "q"])
    return index


def test_parquet_has_every_column_and_says_of_what_the_vectors_are(texts, tmp_path):
    assert texts.export(tmp_path / "new" / "out.parquet") == 3
    table = pq.read_table(tmp_path / "new" / "out.parquet")
    rows = {row["id"]: row for row in table.to_pylist()}
    assert {key: row["text"] for key, row in rows.items()} == {"x": "एक लाल कार", "y": "b", "z": "c"}
    assert json.loads(rows["x"]["metadata"]) == METADATA[0]
    for key, row in rows.items():
        assert np.array_equal(np.float32(row["vector"]), texts.vector(key))
    assert json.loads(table.schema.metadata[b"mmembed"])["fingerprint"] == texts.info()["fingerprint"]
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["out.parquet"]


def test_vectors_that_are_kept_in_half_are_written_in_float32(tmp_path, tiny):
    index = Index.create(tmp_path / "half", tiny, store="float16")
    index.add(["a", "b"], ids=["x", "y"])
    index.export(tmp_path / "out.parquet")
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.schema.field("vector").type == pa.list_(pa.float32(), index.dimension)
    for row in table.to_pylist():
        assert np.array_equal(np.float32(row["vector"]), index.vector(row["id"]))


def test_numpy_has_a_row_a_line(texts, tmp_path):
    assert texts.export(tmp_path / "out.npy") == 3
    vectors = np.load(tmp_path / "out.npy", mmap_mode="r")
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert vectors.dtype == np.float32
    assert vectors.shape == (3, texts.dimension)
    for line, vector in zip(lines, vectors, strict=True):
        assert np.array_equal(vector, texts.vector(line["id"]))
        assert line["metadata"] == METADATA["xyz".index(line["id"])]
    assert json.loads((tmp_path / "out.json").read_text())["dimension"] == texts.dimension


def read_as_clip_retrieval(folder):
    """Its index builder takes img_emb/*.npy and text_emb/*.npy, its server metadata/*.parquet, row by row in their order."""
    found = {}
    for kind in ("img_emb", "text_emb"):
        files = sorted((folder / kind).glob("*.npy"))
        found[kind] = np.concatenate([np.load(file) for file in files]) if files else None
    metadata = [pq.read_table(file).to_pylist() for file in sorted((folder / "metadata").glob("*.parquet"))]
    return found["img_emb"], found["text_emb"], [row for part in metadata for row in part]


def test_the_layout_of_clip_retrieval_has_a_row_of_metadata_a_vector(texts, pictures, tmp_path):
    assert texts.export(tmp_path / "t") == 3
    images, words, rows = read_as_clip_retrieval(tmp_path / "t")
    assert images is None
    by_id = {row["id"]: (row, vector) for row, vector in zip(rows, words, strict=True)}
    for key, (row, vector) in by_id.items():
        assert np.array_equal(vector, texts.vector(key))
        assert row["caption"] == texts.get(key).text
    assert {key: (row["n"], row["lang"], row["odd"]) for key, (row, _) in by_id.items()} == {
        "x": (1.0, "hi", "[1]"), "y": (2.5, None, "x"), "z": (None, None, None),
    }  # fmt: skip
    assert pictures.export(tmp_path / "p") == 2
    images, words, rows = read_as_clip_retrieval(tmp_path / "p")
    assert words is None
    assert (len(images), {row["caption"] for row in rows}) == (2, {None, "both"})


def test_the_layout_of_clip_retrieval_loses_no_digit_of_a_whole_number(tmp_path, tiny):
    index = Index.create(tmp_path / "numbers", tiny)
    numbers = [{"whole": 2**63 - 1, "huge": 2**64 - 1, "mixed": 2**53 + 1, "small": 2**53}, {"whole": 1, "huge": 1}]
    numbers += [{"mixed": 0.5, "small": 0.5}]
    index.add(["a", "b", "c"], metadata=numbers)
    index.export(tmp_path / "out")
    rows = {row["caption"]: row for row in read_as_clip_retrieval(tmp_path / "out")[2]}
    told = {text: tuple(rows[text][key] for key in ("whole", "huge", "mixed", "small")) for text in "abc"}
    assert told == {
        "a": (2**63 - 1, str(2**64 - 1), str(2**53 + 1), 2.0**53), "b": (1, "1", None, None), "c": (None, None, "0.5", 0.5),
    }  # fmt: skip


def test_the_layout_of_clip_retrieval_holds_one_kind(texts, pictures, tmp_path):
    texts.add([picture(2)], ids=["p"])
    with pytest.raises(StoreError, match="1 with a picture and 3 of text"):
        texts.export(tmp_path / "out")
    assert not list(tmp_path.glob("out*"))
    assert texts.export(tmp_path / "out", modality="image") == 1
    assert texts.export(tmp_path / "t", modality="text") == 3
    assert texts.export(tmp_path / "out.npy", modality="image+text") == 0
    assert np.load(tmp_path / "out.npy").shape == (0, texts.dimension)


def test_what_is_there_is_not_written_over_and_other_endings_are_told(texts, tmp_path):
    (tmp_path / "out.jsonl").write_text("mine")
    with pytest.raises(StoreError, match=r"out\.jsonl exists already"):
        texts.export(tmp_path / "out.npy")
    assert not (tmp_path / "out.npy").exists()
    with pytest.raises(UnknownName, match=r"\.csv"):
        texts.export(tmp_path / "out.csv")
    with pytest.raises(UnknownName, match=r"'images'.*Did you mean 'image'"):
        texts.export(tmp_path / "out", modality="images")


def test_an_export_that_fails_leaves_nothing(texts, tmp_path, monkeypatch):
    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_batch", full)
    with pytest.raises(OSError, match="No space"):
        texts.export(tmp_path / "out.parquet")
    assert not list(tmp_path.glob("out*"))
