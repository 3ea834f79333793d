"""An index survives: kill -9 at any point, two writers at once, a disk that is full or may not be written."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest

from mmembed import Index
from mmembed.errors import StoreError
from mmembed.search import adding
from mmembed.search.table import NAME, Table, checksum, exists
from mmembed.testing import tiny_embedder

from ..processes import started
from .writers import NAMES, barred, churn, filled, put

WHOLE = ["id", "content", "modality", "text", "path", "thumbnail", "metadata", "checksum", "vector"]


@pytest.mark.parametrize("kills", [4, pytest.param(100, marks=pytest.mark.slow)])
def test_no_row_is_lost_or_doubled_by_kills(tmp_path, kills):
    """What a call had returned for is there; the rows of the call that died are each as before or as it wanted."""
    chance = random.Random(kills)
    state: dict[str, str] = {}
    folder, died, slowest = tmp_path / "0", dict.fromkeys(("create", "put", "remove", "compact", "between"), 0), 0.0
    for kill in range(kills):
        if kill % 10 == 4:
            folder, state = tmp_path / str(kill), {}
        log = tmp_path / f"log{kill}"
        log.touch()
        process = started(churn, folder, log, kill)
        call = b"create" if kill % 10 == 4 else (b"put", b"remove", b"compact")[kill % 3]
        begun, times = b'"begin": "%s"' % call, 1 if call == b"create" else chance.randint(1, 6)
        wait_for(lambda log=log, begun=begun, times=times: log.read_bytes().count(begun) >= times)
        time.sleep(chance.random() * {b"remove": 0.008, b"compact": 0.02}.get(call, 0.04))
        assert process.pid is not None
        assert process.is_alive()
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        doubted = replay(log, state, died)
        began = time.perf_counter()
        if not exists(folder):
            assert not state, "an index that was made is there"
            continue
        rows = Table.open(folder).read(WHOLE)
        slowest = max(slowest, time.perf_counter() - began)
        found = {row["id"]: row["text"] for row in rows}
        assert len(found) == len(rows), "no id twice"
        for name in {*found, *state, *doubted}:
            allowed = {state.get(name), doubted[name]} if name in doubted else {state.get(name)}
            assert found.get(name) in allowed, f"{name} after kill {kill}"
        assert all(row["checksum"] == checksum(row) for row in rows)
        state = found
    index = Index.open(folder, tiny_embedder()) if exists(folder) else None
    if index is not None and state:
        vectors = index.embedder.encode_document(list(state.values()))
        worst = max(abs(index.vector(name) - vector).max() for name, vector in zip(state, vectors, strict=True))
        assert worst < 1e-5
    print(f"{kills} kills during {died}: nothing lost, nothing twice; opened and read in {slowest:.2f} s at most")
    assert slowest < 2


def replay(log: Path, state: dict[str, str], died: dict[str, int]) -> dict[str, str | None]:
    """Bring `state` up to what was acknowledged; returns what the call wanted that did not return."""
    pending: dict[str, Any] | None = None
    for line in log.read_bytes().splitlines(keepends=True):
        if not line.endswith(b"\n"):
            break
        said = json.loads(line)
        if "begin" in said:
            pending = said
        else:
            assert pending is not None
            settle(state, pending.get("rows", {}))
            pending = None
    died["between" if pending is None else pending["begin"]] += 1
    return {} if pending is None else pending.get("rows", {})


def settle(state: dict[str, str], rows: dict[str, str | None]) -> None:
    for name, text in rows.items():
        if text is None:
            state.pop(name, None)
        else:
            state[name] = text


def wait_for(ready: Any) -> None:
    until = time.monotonic() + 60
    while not ready():
        assert time.monotonic() < until
        time.sleep(0.002)


@pytest.fixture
def index(tmp_path, tiny):
    index = Index.create(tmp_path / "things", tiny)
    index.add([f"{name} old" for name in NAMES[:20]], ids=NAMES[:20])
    return index


@pytest.mark.parametrize("kind", ["processes", "threads"])
def test_two_writers_of_the_same_ids_both_succeed_and_no_id_is_there_twice(index, kind):
    if kind == "processes":
        workers = [started(put, index.path, who, 12) for who in ("one", "two")]
        for process in workers:
            process.join(60)
        assert [process.exitcode for process in workers] == [0, 0]
    else:
        with ThreadPoolExecutor() as threads:
            for writer in [threads.submit(put, index.path, who, 12, index.embedder) for who in ("one", "two")]:
                writer.result()
    rows = Table.open(index.path).read(WHOLE)
    assert sorted(row["id"] for row in rows) == sorted(NAMES[:120])
    assert {row["text"].split(" by ")[1] for row in rows} <= {"one", "two"}
    assert all(row["checksum"] == checksum(row) for row in rows)


def test_what_another_process_wrote_is_found_at_once(index):
    writer = started(put, index.path, "other", 1)
    writer.join(60)
    assert index.search("r3 by other")[0].text == "r3 by other"
    assert {hit.metadata["other"] for hit in index.items()[:1]} == {0}


def answer_of(work: Any, folder: Path) -> dict[str, Any]:
    here, there = Pipe(duplex=False)
    process = started(work, folder, there)
    there.close()
    assert here.poll(60)
    answers = here.recv()
    process.join(60)
    return answers


def test_a_folder_that_may_not_be_written_says_so_and_is_searched(index):
    index.add(["r20 old"], ids=["r20"])  # a second piece, so that there is something to compact
    parents = [p for p in index.path.parents if p.stat().st_uid == os.geteuid() and p != Path("/")]
    for parent in parents:
        parent.chmod(parent.stat().st_mode | 0o055)
    said = answer_of(barred, index.path)
    for what in ("add", "remove", "compact", "create"):
        assert said[what].startswith("StoreError: "), what
        assert "cannot be written: " in said[what]
        assert "ermission denied" in said[what]
    assert (said["items"], said["best"]) == (21, "r1 old")


def test_a_full_disk_says_so_and_what_was_there_is_whole(index, monkeypatch, tiny):
    said = answer_of(filled, index.path)
    assert said["few"] == "done"
    assert said["many"].startswith("StoreError: no room is left to write ")
    assert said["best"] == "few 7"
    again = Index.open(index.path, tiny)
    assert len(again) == said["items"] >= 70
    monkeypatch.setattr(adding, "CHUNK", 50)
    report = again.add([f"many {n} " + str(n) * 1000 for n in range(100)])
    assert (report.added + report.unchanged, len(again)) == (100, 170)


def data_of(index: Index) -> list[Path]:
    return sorted((Path(index.path) / f"{NAME}.lance" / "data").glob("*"), key=lambda file: file.stat().st_mtime_ns)


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_file_is_told_and_no_answer_is_made_up(index, damage):
    file = data_of(index)[0]
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-700])
    else:
        file.unlink()
    again = Index.open(index.path, index.embedder)
    with pytest.raises(StoreError, match="is damaged"):
        again.search("r1")


@pytest.mark.parametrize("name", ["quotations", "a commit conflict", "100% No space left"])
def test_what_an_index_is_called_says_nothing_of_what_happened_to_it(tmp_path, tiny, name):
    index = Index.create(tmp_path / name, tiny)
    index.add(["a"])
    data_of(index)[0].unlink()
    with pytest.raises(StoreError, match="is damaged"):
        index.search("a")


def test_what_is_no_index_is_told(tmp_path, tiny):
    (tmp_path / "file").write_text("x")
    (tmp_path / "half" / f"{NAME}.lance" / "data").mkdir(parents=True)  # what a kill leaves of `create`
    for name in ("file", "half", "nowhere"):
        with pytest.raises(StoreError, match=f"{name} holds no index"):
            Index.open(tmp_path / name)
    for name in ("file", "file/below"):
        with pytest.raises(StoreError, match=name):
            Index.create(tmp_path / name, tiny)
    assert Index.create(tmp_path / "half", tiny).add(["a"]).added == 1


def test_compacting_lets_go_of_what_was_removed(index):
    secret = "the secret of the house " * 40
    index.add([secret], ids=["secret"])
    index.remove(["secret"])
    before = {file: file.read_bytes() for file in data_of(index)}
    assert any(b"the secret" in data for data in before.values())
    index.compact(held=timedelta(0))
    assert not any(b"the secret" in file.read_bytes() for file in data_of(index))
    assert len(data_of(index)) == 1
    assert len(index) == 20


def test_compacting_leaves_what_was_read_until_then_however_old_it_is(index):
    table = index._table._table
    before = table.version
    time.sleep(0.2)
    for held, is_there in ((0.1, True), (0, False)):
        index.compact(held=timedelta(seconds=held))
        assert (before in [version["version"] for version in table.list_versions()]) is is_there


def test_many_small_adds_do_not_scatter_an_index(index, monkeypatch):
    monkeypatch.setattr("mmembed.search.table.SCATTERED", 6)
    for number in range(15):
        index.add([f"one more {number}"])
    assert len(index) == 35
    assert index._table._table.stats()["fragment_stats"]["num_fragments"] <= 6
