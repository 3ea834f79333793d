"""What is freed on the host is kept for what comes next, and goes back to the system now and then."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mmembed import memory


def resident() -> int:
    """MiB that this process holds."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) // 1024


@pytest.mark.skipif(memory._malloc_trim is None, reason="not glibc")
def test_what_lies_freed_between_blocks_that_stay_is_given_back_now_and_then(monkeypatch):
    blocks = [bytes(6000) for _ in range(50_000)]
    stay = blocks[::100]
    full = resident()
    del blocks
    monkeypatch.setattr(memory, "_trimmed", memory.time.monotonic())
    memory.trim()
    assert resident() > full - 100, "not so soon after the last time"
    monkeypatch.setattr(memory, "_trimmed", -memory.EVERY)
    memory.trim()
    assert resident() < full - 200
    assert len(stay) == 500


def group(folder: Path, files: dict[str, object]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, said in files.items():
        (folder / name).write_text(f"{said}\n")


def test_a_control_group_leaves_what_its_limit_and_those_above_it_leave(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "CGROUPS", tmp_path)
    group(tmp_path / "a/b", {"memory.max": "max", "memory.current": 5, "memory.stat": "anon 1\ninactive_file 2"})
    group(tmp_path / "a", {"memory.max": 1000, "memory.current": 700, "memory.stat": "inactive_file 50"})
    old = {"memory.limit_in_bytes": 900, "memory.usage_in_bytes": 800, "memory.stat": "total_inactive_file 7"}
    group(tmp_path / "memory", old)
    assert list(memory._left("0::/a/b")) == [350]
    assert list(memory._left("4:memory:/elsewhere")) == [107], "a container sees its own group as the root"
    assert list(memory._left("1:cpu:/a")) == []


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="not Linux")
def test_what_is_to_spare_is_a_quarter_of_what_is_free_or_the_share_of_the_threads_of_half(monkeypatch):
    assert 2**20 < memory.free_on_host() < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGESIZE")
    monkeypatch.setattr(memory, "free_on_host", lambda: 1000)
    monkeypatch.setattr(memory.os, "cpu_count", lambda: 4 * memory.torch.get_num_threads())
    assert memory.spare() == 125
    monkeypatch.setattr(memory.os, "cpu_count", lambda: 1)
    assert memory.spare() == 250


@pytest.mark.skipif(memory._mallopt is None, reason="not glibc")
@pytest.mark.parametrize("settings", [{}, {"MALLOC_ARENA_MAX": "4"}, {"GLIBC_TUNABLES": "glibc.malloc.arena_max=4"}])
def test_blocks_that_are_freed_are_kept_unless_whoever_began_the_process_had_his_own_settings(settings):
    """In a process of its own: pages that the system had to give when blocks of 20 MB were freed and asked for again."""
    script = """
import resource, torch
from mmembed import memory
def round():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.zeros(5_000_000).add_(1) for _ in range(8)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
said = memory.keep_freed()
print(said, *(round() for _ in range(8)))
"""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    told = subprocess.run(
        [sys.executable, "-c", script], env={**own, **settings}, capture_output=True, text=True, check=True
    )
    said, *pages = told.stdout.split()
    assert said == str(not settings)
    if not settings:
        assert sorted(map(int, pages))[len(pages) // 2] < 0.1 * 8 * 20_000_000 / os.sysconf("SC_PAGESIZE")


def test_python_does_not_search_for_cycles_inside():
    with memory.uncollected():
        assert not gc.isenabled()
        with memory.uncollected():
            pass
        assert not gc.isenabled()
        with ThreadPoolExecutor(1) as others:
            others.submit(memory.uncollected()(lambda: None)).result()
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError), memory.uncollected():
        _ = 1 // 0
    assert gc.isenabled()


def test_threads_that_are_inside_one_after_the_other_do_not_end_the_search_for_good(monkeypatch):
    monkeypatch.setattr(memory, "UNSEARCHED", 0.05)
    first, second = memory.uncollected(), memory.uncollected()
    with first:
        assert not gc.isenabled()
        time.sleep(0.1)
        second.__enter__()
        assert gc.isenabled()
    assert gc.isenabled()
    second.__exit__(None, None, None)
    with memory.uncollected():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_who_turned_the_search_off_finds_it_off():
    gc.disable()
    try:
        with memory.uncollected():
            assert not gc.isenabled()
        assert not gc.isenabled()
    finally:
        gc.enable()
