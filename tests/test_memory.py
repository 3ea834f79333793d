"""What is freed on the host is kept for what comes next, and goes back to the system now and then."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
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
print(said, *(round() for _ in range(4)))
"""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    told = subprocess.run(
        [sys.executable, "-c", script], env={**own, **settings}, capture_output=True, text=True, check=True
    )
    said, *pages = told.stdout.split()
    assert said == str(not settings)
    if not settings:
        assert int(pages[-1]) < 0.1 * 8 * 20_000_000 / os.sysconf("SC_PAGESIZE")


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


def test_who_turned_the_search_off_finds_it_off():
    gc.disable()
    try:
        with memory.uncollected():
            assert not gc.isenabled()
        assert not gc.isenabled()
    finally:
        gc.enable()
