"""Freed memory of the host goes back to the system."""

from __future__ import annotations

import gc
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
