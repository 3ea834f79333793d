"""Files of vectors: every format, kills at any point, other models and things, two writers."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import numpy as np
import PIL.Image
import pytest

from mmembed import Image, Report, walk
from mmembed.errors import FingerprintMismatch, InputError, SpecError, StoreError, UnknownName
from mmembed.files import SINKS, Block, VectorFile, chained, whole
from mmembed.testing import tiny_embedder

from .conftest import picture

FORMATS = tuple(SINKS)
BAD = Image(b"no picture")


@pytest.fixture(scope="module")
def tiny():
    return tiny_embedder(pooling="mean")


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
    monkeypatch.setattr(walk, "WINDOWS", {"cpu": (4, 4)})


def contents(path):
    """(ids, vectors with NaN, errors) of a file of vectors, as its own readers see it."""
    if path.suffix == ".npy":
        vectors = np.load(path, mmap_mode="r")
        assert vectors.dtype == np.float32
        assert isinstance(vectors, np.memmap)
        beside = path.with_name(f"{path.name}.errors.jsonl")
        told = [json.loads(line) for line in beside.read_text().splitlines()] if beside.exists() else []
        errors = {row["row"]: row["error"] for row in told}
        return None, np.array(vectors), [errors.get(row) for row in range(len(vectors))]
    if path.suffix == ".jsonl":
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    elif path.suffix == ".parquet":
        import pyarrow.parquet as pq

        rows = pq.read_table(path).to_pylist()
    else:
        import lancedb

        rows = lancedb.connect(path.parent).open_table(path.stem).to_arrow().to_pylist()
        rows.sort(key=lambda row: row["row"])
    assert [row["row"] for row in rows] == list(range(len(rows)))
    width = next(len(row["vector"]) for row in rows if row.get("vector"))
    gap = [np.nan] * width
    vectors = np.array([row.get("vector") or gap for row in rows], dtype=np.float32)
    return [row["id"] for row in rows], vectors, [row.get("error") for row in rows]


@pytest.mark.parametrize("ending", FORMATS)
def test_a_file_holds_every_row_in_its_place_and_says_why_one_has_no_vector(tiny, tmp_path, ending):
    path = tmp_path / f"deep/vectors{ending}"
    things = [BAD if k % 7 == 3 else picture(k) if k % 7 == 5 else f"text {k}" for k in range(30)]
    ids = [f"№ {k}" for k in range(30)]
    report = tiny.encode_to(path, iter(things), ids=ids, on_error="skip", truncate_dim=16)
    expected = tiny.encode(things, on_error="skip", truncate_dim=16, report=Report())
    names, vectors, errors = contents(path)
    assert names in (None, ids)
    np.testing.assert_allclose(vectors, expected, atol=1e-6)
    assert [row for row, error in enumerate(errors) if error] == list(range(3, 30, 7))
    assert [skipped.row for skipped in report.skipped] == list(range(3, 30, 7))
    assert all("broken" in error or "none of" in error for error in errors if error)
    assert (report.items, report.resumed) == (26, 0)
    assert [file.name for file in path.parent.iterdir() if "part" in file.name] == []
    about = json.loads(path.with_name(f"{path.name}.json").read_text())
    assert about["rows"] == 30
    assert about["made"]["fingerprint"] == tiny.fingerprint

    again = tiny.encode_to(path, things, ids=ids, on_error="skip", truncate_dim=16)
    assert (again.items, again.resumed) == (0, 30)
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(contents(path)[1], vectors, strict=True))


@pytest.mark.parametrize("ending", FORMATS)
def test_after_an_error_the_same_call_goes_on(tiny, tmp_path, ending):
    path = tmp_path / f"vectors{ending}"
    things = [f"text {k}" for k in range(40)]

    def broken():
        yield from things[:25]
        raise OSError("the disk of the source is gone")

    with pytest.raises(OSError, match="the source"):
        tiny.encode_to(path, broken())
    assert not path.exists()
    with pytest.raises(InputError, match="item 30"):
        tiny.encode_to(path, [*things[:30], BAD, *things[31:]])
    report = tiny.encode_to(path, things)
    assert report.resumed >= 20, "what was written stays, though it was another list, as far as it is the same"
    assert report.items == 40 - report.resumed
    np.testing.assert_allclose(contents(path)[1], tiny.encode(things), atol=1e-6)


def test_other_models_options_things_and_strange_files_are_refused(tiny, tmp_path):
    path = tmp_path / "vectors.npy"
    things = [f"text {k}" for k in range(20)]
    with pytest.raises(InputError, match="item 12"):
        tiny.encode_to(path, [*things[:12], BAD])
    part = path.with_name("vectors.npy.part").read_bytes()
    with pytest.raises(FingerprintMismatch, match="fingerprint"):
        tiny_embedder(seed=1, pooling="mean").encode_to(path, things)
    with pytest.raises(FingerprintMismatch, match="dimension 32, not 16"):
        tiny.encode_to(path, things, truncate_dim=16)
    with pytest.raises(FingerprintMismatch, match="prompt None, not 'query: '"):
        tiny.encode_to(path, things, prompt="query: ")
    for others in (["other", *things[1:]], things[:3], [picture(1), *things[1:]]):
        with pytest.raises(StoreError, match="not of the first things"):
            tiny.encode_to(path, others)
    with pytest.raises(StoreError, match="not of the first things"):
        tiny.encode_to(path, things, ids=[f"id {k}" for k in range(20)])
    assert path.with_name("vectors.npy.part").read_bytes() == part, "nothing was touched"
    tiny.encode_to(path, things)
    with pytest.raises(StoreError, match="more are given"):
        tiny.encode_to(path, [*things, "one more"])
    strange = tmp_path / "mine.npy"
    strange.write_bytes(b"of somebody else")
    with pytest.raises(StoreError, match=r"exists, and no mine\.npy\.json"):
        tiny.encode_to(strange, things)
    assert strange.read_bytes() == b"of somebody else"
    with pytest.raises(UnknownName, match=r"'\.csv'.*Known: \.jsonl, \.lance"):
        tiny.encode_to(tmp_path / "x.csv", things)
    for one in ("one text", ("one", "thing"), {"text": "one thing"}, b"one"):
        with pytest.raises(InputError, match="goes in a list"):
            tiny.encode_to(tmp_path / "x.npy", one)
    for unordered in ({"things": {"a"}}, {"things": frozenset("a")}, {"things": ["a"], "ids": {"x"}}):
        with pytest.raises(InputError, match=r"a set has no order, and (things|ids) come in theirs"):
            tiny.encode_to(tmp_path / "x.npy", unordered["things"], ids=unordered.get("ids"))
    assert not [*tmp_path.glob("x.npy*")]
    for ids in (["a"], ["a"] * 21):
        with pytest.raises(StoreError, match="ids were given"):
            tiny.encode_to(tmp_path / f"{len(ids)}.npy", things, ids=ids)
    with pytest.raises(SpecError):
        tiny.encode_to(tmp_path / "y.npy", things, truncate_dim=7)


def test_one_writer_at_a_time(tmp_path):
    made = {"fingerprint": "f"}
    with VectorFile(tmp_path / "v.jsonl", made, 4), pytest.raises(StoreError, match="another process is writing"):
        VectorFile(tmp_path / "v.jsonl", made, 4).__enter__()
    with VectorFile(tmp_path / "v.jsonl", made, 4) as file:
        file.finish()


def test_a_file_system_without_locks_is_written_all_the_same(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    asked = []

    def none_here(opened, how):
        asked.append(fcntl.fcntl(opened, fcntl.F_GETFL) & os.O_ACCMODE)
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none_here)
    for name in ("v.jsonl", "v.parquet"):
        with VectorFile(tmp_path / name, {}, 3) as file:
            file.finish()
    assert asked == [os.O_RDWR, os.O_RDONLY], (
        "NFS locks a file that may be written to, and a folder cannot be opened so"
    )


@pytest.mark.parametrize("ending", FORMATS)
def test_a_file_without_rows_is_begun_anew_under_other_options(tiny, tmp_path, ending):
    path = tmp_path / f"vectors{ending}"
    with pytest.raises(UnknownName, match="qurey"):
        tiny.encode_to(path, ["a"], prompt_name="qurey")
    with pytest.raises(InputError):
        tiny.encode_to(path, [BAD], truncate_dim=16)
    tiny.encode_to(path, ["a"])
    np.testing.assert_allclose(contents(path)[1], tiny.encode(["a"]), atol=1e-6)


@pytest.mark.parametrize("name", ["my vectors", "größe", "."])
def test_a_name_that_lancedb_does_not_open_is_told_before_anything_is_made(tiny, tmp_path, name):
    with pytest.raises(StoreError, match=f"{re.escape(repr(name))} is no name of a table"):
        tiny.encode_to(tmp_path / f"{name}.lance", ["a"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ending", [".npy", ".jsonl"])
def test_after_a_full_disk_the_same_process_goes_on(tiny, tmp_path, ending):
    resource = pytest.importorskip("resource")
    path, things = tmp_path / f"vectors{ending}", [f"text {k}" for k in range(40)]
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(
            StoreError, match=rf"vectors\{ending} cannot be written: File too large; its first \d+ rows"
        ):
            tiny.encode_to(path, things)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    tiny.encode_to(path, things)
    np.testing.assert_allclose(contents(path)[1], tiny.encode(things), atol=1e-6)


@pytest.mark.parametrize("ending", FORMATS)
def test_rows_that_were_written_and_never_told_of_are_cut_off(tmp_path, ending):
    """Killed between the rows and NAME.json, or in the middle of the rows."""
    path, made = tmp_path / f"vectors{ending}", {"fingerprint": "f"}

    def block(first, value):
        return Block(first, [f"{value}"] * 4, np.full((4, 3), value, dtype=np.float32), [None, None, None, "bad"])

    with VectorFile(path, made, 3) as file:
        file.append(block(0, 1), b"one")
        file._sink.append(block(4, 9))
    for broken in (path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.errors.jsonl")):
        if broken.is_file():
            with broken.open("ab") as half:
                half.write(b'{"row": 8, "id')
    with VectorFile(path, made, 3) as file:
        assert (file.rows, file.failed, file.digest) == (4, 1, b"one")
        file.append(block(4, 2), b"two")
        file.finish()
    names, vectors, errors = contents(path)
    assert names in (None, ["1"] * 4 + ["2"] * 4)
    assert vectors[[0, 1, 2, 4, 5, 6], 0].tolist() == [1, 1, 1, 2, 2, 2]
    assert errors == [None, None, None, "bad"] * 2


def test_things_are_told_apart_by_all_that_they_are():
    things = [
        "a",
        "b",
        ("a", "b"),
        ("ab",),
        {"text": "a"},
        Image("a"),
        Image(b"a"),
        picture(1),
        InputError("a"),
        "a\0b",
    ]
    assert len({chained(b"", "id", thing) for thing in things}) == len(things)
    assert chained(b"", "id", "a") != chained(b"", "i", "a") != chained(b"x", "i", "a")


@pytest.mark.parametrize("ending", FORMATS)
def test_a_finish_that_was_cut_short_is_finished(tiny, tmp_path, ending):
    """Killed after the file was put in place, before that was told."""
    path = tmp_path / f"vectors{ending}"
    things = [f"text {k}" for k in range(9)]
    tiny.encode_to(path, things)
    beside = path.with_name(f"{path.name}.json")
    about = json.loads(beside.read_text())
    assert about["complete"]
    beside.write_text(json.dumps({**about, "complete": False}))
    assert tiny.encode_to(path, things).resumed == 9
    assert json.loads(beside.read_text()) == about
    np.testing.assert_allclose(contents(path)[1], tiny.encode(things), atol=1e-6)


KILLED = """
import sys, torch
from mmembed import Image, walk
from mmembed.testing import tiny_embedder
torch.set_num_threads(1)
walk.WINDOWS = {"cpu": (16, 16)}
embedder = tiny_embedder(pooling="mean")
things = [Image(b"no picture") if k % 50 == 7 else f"text {k} " * (k % 5 + 1) for k in range(int(sys.argv[2]))]
print("ready", flush=True)
embedder.encode_to(sys.argv[1], iter(things), ids=(f"id {k}" for k in range(len(things))), on_error="skip")
"""


def rows_told(path):
    """Rows that the file beside says to be written."""
    beside = path.with_name(f"{path.name}.json")
    return json.loads(beside.read_text())["rows"] if beside.exists() else 0


def run_killed(path, count, rows, later):
    """Starts a writer and kills it so many seconds after that many rows are told to be written."""
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path), str(count)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "ready"
        while rows_told(path) < rows and process.poll() is None:
            time.sleep(0.002)
        time.sleep(later)
        process.send_signal(signal.SIGKILL)
        _, err = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), err


def check_killed(embedder, path, count, kills, seed):
    """Writers that are killed, each a process, and one here that ends; the rows behind each kill."""
    draw = random.Random(seed)
    rows = [0]
    for _ in range(kills):
        run_killed(path, count, rows[-1] + draw.randint(0, count // (kills + 1)), draw.uniform(0, 0.03))
        rows.append(rows_told(path))
    assert rows == sorted(rows), "what was written once stays written"
    things = [Image(b"no picture") if k % 50 == 7 else f"text {k} " * (k % 5 + 1) for k in range(count)]
    report = embedder.encode_to(path, iter(things), ids=(f"id {k}" for k in range(count)), on_error="skip")
    assert report.resumed == rows[-1]
    names, vectors, errors = contents(path)
    expected = embedder.encode(things, on_error="skip", report=Report())
    assert names in (None, [f"id {k}" for k in range(count)])
    np.testing.assert_allclose(vectors, expected, atol=1e-6)
    assert [row for row, error in enumerate(errors) if error] == list(range(7, count, 50))
    return rows


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
def test_a_writer_that_is_killed_loses_no_row_and_doubles_none(tiny, tmp_path):
    rows = check_killed(tiny, tmp_path / "vectors.npy", 600, 1, 0)
    assert 0 < rows[-1] < 600


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
@pytest.mark.parametrize("ending", FORMATS)
def test_a_writer_that_is_killed_again_and_again_loses_no_row_and_doubles_none(tiny, tmp_path, ending):
    rows = check_killed(tiny, tmp_path / f"vectors{ending}", 4000, 12, 1)
    print(ending, rows)
    assert len(set(rows)) > 4, "kills fell at different points"


def test_drafts_and_parts_that_run_together_are_other_things():
    told = [
        chained(b"", "0", thing)
        for thing in (
            Image("p.jpg"),
            Image("p.jpg", draft=64),
            ("a", "b"),
            ("a\0text b",),
            ("a", "\ud800"),
            Image("a\ud800.png"),
        )
    ]
    assert len(set(told)) == len(told)
    assert chained(b"", "0", Image(memoryview(b"abcd")[::2])) == chained(b"", "0", Image(b"ac"))


def test_an_id_that_is_none_is_told(tiny, tmp_path):
    with pytest.raises(StoreError, match="the id of row 0 is None"):
        tiny.encode_to(tmp_path / "x.npy", ["a", "b"], ids=[None, "b"])


@pytest.mark.parametrize(
    "form", [Image, lambda path: {"image": str(path)}, lambda path: {"image": [path]}, lambda path: ("a", Image(path))]
)
def test_a_picture_that_was_written_anew_is_another(tmp_path, form):
    path = tmp_path / "p.png"
    path.write_bytes(b"one")
    before = chained(b"", "p", form(path))
    assert chained(b"", "p", form(path)) == before
    path.write_bytes(b"two")
    os.utime(path, ns=(1, 1))
    assert chained(b"", "p", form(path)) != before


def test_a_file_of_a_picture_that_was_written_anew_is_refused(tiny, tmp_path):
    path = tmp_path / "p.png"
    PIL.Image.fromarray(picture(0).load()).save(path)
    things = [Image(path), Image("https://host/p.png"), "a"]
    tiny.encode_to(tmp_path / "v.npy", things, on_error="skip")
    assert tiny.encode_to(tmp_path / "v.npy", things, on_error="skip").resumed == 3
    PIL.Image.fromarray(picture(1).load()).save(path)
    with pytest.raises(StoreError, match="not of the first things"):
        tiny.encode_to(tmp_path / "v.npy", things, on_error="skip")


def test_a_file_is_whole_or_not_there(tmp_path):
    with whole(tmp_path / "a") as fresh:
        fresh.write_text("all")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a", "all")]

    def half():
        with whole(tmp_path / "a") as fresh:
            fresh.write_text("ha")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        half()
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a", "all")]


def test_what_is_put_in_its_place_is_on_the_disk_before(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(os, "fsync", lambda opened: flushed.append(os.fstat(opened).st_ino))
    with whole(tmp_path / "folder") as fresh:
        (fresh / "in").mkdir(parents=True)
        (fresh / "in" / "a").write_text("all")
    there = tmp_path / "folder"
    assert flushed == [each.stat().st_ino for each in (there / "in" / "a", there / "in", there, tmp_path)]
    assert (there / "in" / "a").read_text() == "all"
    assert not fresh.exists()
