"""What `verify` finds."""

from __future__ import annotations

import io
import os
import random
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from mmembed import Image, Index
from mmembed.errors import FingerprintMismatch, StoreError
from mmembed.search.table import NAME, checksum
from mmembed.testing import TINY_VIT, tiny_embedder
from tests.conftest import picture


@pytest.fixture
def index(tmp_path, tiny):
    data = io.BytesIO()
    PIL.Image.fromarray(picture(1).load()).save(data, "PNG")
    (tmp_path / "a.png").write_bytes(data.getvalue())
    os.utime(tmp_path / "a.png", ns=(10**18, 10**18))
    index = Index.create(tmp_path / "things", tiny)
    index.add([f"text {n}" for n in range(30)], metadata=[{"n": n, "odd": n % 2 == 1} for n in range(30)])
    index.add([Image(tmp_path / "a.png"), ("both", picture(2))])
    return index


def test_an_index_as_it_was_written_is_whole(index):
    told = index.verify(sample=40)
    assert told.is_whole
    assert (told.items, told.problems, told.missing, told.changed) == (32, [], [], [])
    assert told.embedded == 31  # the pair is of a picture that is nowhere else
    assert told.difference < 1e-5


def test_a_sample_is_of_what_can_be_embedded_as_it_was(index, tmp_path):
    index.add([("one", "two")], ids=["both"])
    assert index.verify(sample=100).is_whole
    file = next(Path(hit.path) for hit in index.items() if hit.modality == "image" and hit.path)
    look = file.stat()
    file.write_bytes(b"x" * look.st_size)
    os.utime(file, ns=(look.st_atime_ns, look.st_mtime_ns))
    assert not index.verify(sample=100).is_whole, "as it was by size and time, and no picture"


def test_files_that_changed_or_are_gone_are_listed(index, tmp_path):
    os.utime(tmp_path / "a.png", ns=(10**18 + 1, 10**18 + 1))
    assert index.verify().changed == [str(tmp_path / "a.png")]
    (tmp_path / "a.png").unlink()
    told = index.verify(sample=40)
    assert (told.missing, told.embedded, told.is_whole) == ([str(tmp_path / "a.png")], 30, True)


def test_vectors_of_another_model_under_the_same_name_are_found(index, monkeypatch):
    other = tiny_embedder(seed=1)
    monkeypatch.setattr(index, "embedder", other)
    told = index.verify(sample=5)
    assert [problem.what.split(" by ")[0] for problem in told.problems] == ["embedded anew its vector differs"] * 5


@pytest.mark.parametrize("what", ["long", "endless", "column"])
def test_a_row_that_is_not_as_rows_are_is_named(index, what):
    name = index.items(where="n = 3")[0].id
    vector = index.vector(name)
    values = {"long": {"vector": (vector * 2).tolist()}, "endless": {"vector": [1e39, *vector[1:].tolist()]}}
    index._table._table.update(where=f"id = '{name}'", values=values.get(what, {"n": 4.0}))
    told = index.verify()
    assert {problem.id for problem in told.problems} == {name}
    expected = {"long": "2 long", "endless": "not finite", "column": "metadata"}[what]
    assert any(expected in problem.what for problem in told.problems)


def newest(index: Index) -> Path:
    return max((Path(index.path) / f"{NAME}.lance" / "data").glob("*"), key=lambda file: file.stat().st_mtime_ns)


def test_a_byte_that_the_disk_changed_is_found(index, tiny):
    """Where it stands in a value; what lies between values says nothing."""
    index.compact()
    file = newest(index)
    whole = file.read_bytes()
    vectors = [index.vector(hit.id) for hit in index.items()]
    places = [at for vector in vectors if (at := whole.find(vector.tobytes())) >= 0]
    assert len(places) > 20, "vectors lie in the file as they are"
    chance = random.Random(0)
    for at in chance.sample(places, 8):
        broken = bytearray(whole)
        broken[at + chance.randrange(32 * 4)] ^= 1 << chance.randrange(8)
        file.write_bytes(bytes(broken))
        assert not Index.open(index.path, tiny).verify().is_whole
    file.write_bytes(whole)
    assert Index.open(index.path, tiny).verify().is_whole


def test_a_file_that_is_cut_is_a_problem_of_the_whole(index, tiny):
    file = newest(index)
    file.write_bytes(file.read_bytes()[:100])
    told = Index.open(index.path, tiny).verify()
    assert told.problems[-1].id is None
    assert "damaged" in told.problems[-1].what


def test_a_sample_needs_a_model(index):
    with pytest.raises(StoreError, match="without an embedder"):
        Index.open(index.path).verify(sample=1)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"seed": 1}, "weights"),
        ({"prompts": {"query": {"any": "find: {content}"}}}, "prompts"),
        ({"max_length": 99}, "max_length"),
        ({"mask": "bidirectional"}, "mask"),
        ({"pooling": "mean"}, "pooling"),
        ({"precision": "bf16"}, "precision"),
        ({"vision": {**TINY_VIT, "layer": -2}}, "vision"),
    ],
)
def test_a_model_that_differs_in_anything_is_refused_with_what_differs(index, changed, said):
    with pytest.raises(FingerprintMismatch, match=rf"other .*{said}.*: open it with"):
        Index.open(index.path, tiny_embedder(**changed))


def test_checksums_are_of_all_that_is_given_back(index):
    rows = index._table.read(index._table.schema.names)
    row = next(row for row in rows if row["thumbnail"] and row["text"])
    for name in ("id", "content", "modality", "text", "path", "metadata"):
        assert checksum({**row, name: "x"}) != row["checksum"]
    assert checksum({**row, "thumbnail": row["thumbnail"][:-1]}) != row["checksum"]
    assert checksum({**row, "vector": np.flip(row["vector"])}) != row["checksum"]
