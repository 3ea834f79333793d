"""Memory: what it looks like when it runs out, how much there is for a batch and to spare, what is given back, what is kept;
and when Python does not search it."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import chain
from pathlib import Path
from typing import TypeVar

import torch

T = TypeVar("T")

BUDGET = {"cpu": 4096, "cuda": 65536}
"""Tokens of one batch: on a CPU more falls out of cache, on a GPU the host takes longer to tell it what to do than it takes to
do less."""
SHARE = 0.5
"""Of the memory that is free a batch on a GPU plans for so much, and all processes of a host take no more for copies of weights;
the rest is for what nobody estimates."""
EVERY = 5.0
"""Seconds from one time that the host's free memory is given back to the next, which takes some 30 ms."""
UNSEARCHED = 10.0
"""Seconds that Python does not search its memory for cycles, at the most."""
MAPPED, HELD = 2**26, 2**28
"""Blocks of as many bytes are the system's own to give and take back; of smaller ones glibc keeps so many bytes that are free."""
CGROUPS = Path("/sys/fs/cgroup")
LIMITS = {
    "": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
"""Files of a control group's limit and of what it takes, and what its statistics call files that nobody uses, by version: in the
second, whose kind is not named, and in the first."""

SAID = (
    *("can't allocate memory", "bad_alloc", "could not create a primitive", "could not create a memory"),
    *("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED"),
)
"""Words of a RuntimeError when memory runs out: of the host's, those of torch's allocator, of C++ and of oneDNN; of a device's,
where another than torch's allocator asks for it, those of CUDA, cuBLAS and cuDNN."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: on the device, or for torch or numpy on the host."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in SAID)


def budget(device: torch.device, width: int, inner: int, size: int) -> int:
    """Tokens of a batch by default: as many as keep the device busy, or fewer where not so many fit.

    Args:
        width, inner: numbers of a token between layers, and inside an MLP. size: bytes of a number.
    """
    known = BUDGET.get(device.type, BUDGET["cpu"])
    if device.type != "cuda":
        return known
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return max(1, min(known, int(SHARE * free / bytes_per_token(width, inner, size))))


def bytes_per_token(width: int, inner: int, size: int) -> int:
    """What a token takes while its layer runs: gate, up and their product; the residual, its norm in fp32, queries, keys,
    values and what attention gives, of twice the width at most."""
    return size * (3 * inner + 10 * width) + 4 * 2 * width


def spare() -> int:
    """Bytes of the host's memory that one model may take beside what it needs: half of what is free, times half (it may not be
    the only model) or the share that this process's threads are of the machine's cores, if that is less (processes that divide
    the cores divide the memory too). 0 where nothing says what is free."""
    share = min(0.5, torch.get_num_threads() / (os.cpu_count() or 1))
    return int(SHARE * share * free_on_host())


def free_on_host() -> int:
    """Bytes that Linux, and every control group that this process is in, would still give it; 0: not known."""
    try:
        listed, groups = (Path("/proc", name).read_text() for name in ("meminfo", "self/cgroup"))
        available = next(line for line in listed.splitlines() if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return 0
    left = chain.from_iterable(map(_left, groups.splitlines()))
    return max(0, min([int(available.split()[1]) * 1024, *left]))


def _left(group: str) -> Iterator[int]:
    """What is left of the limits of a control group, a line of /proc/self/cgroup, and of those above it; what files take that
    nobody uses can be had."""
    _, kinds, path = group.split(":", 2)
    if kinds not in ("", "memory"):
        return
    root = CGROUPS / kinds
    most, taken, unused = LIMITS[kinds]
    own = root / path.lstrip("/")  # not there where a container sees its own group as the root
    for folder in (own, *own.parents):
        if not folder.is_relative_to(root):
            return
        try:
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            limit, now = ((folder / name).read_text().strip() for name in (most, taken))
            if limit != "max":
                yield int(limit) - int(now) + int(stat[unused])
        except (OSError, KeyError, ValueError):
            continue


def let_go(device: torch.device) -> None:
    """Give back what the device holds for later."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def trim() -> None:
    """Give back to the system, now and then, what glibc holds of blocks that were freed: batches of ever other sizes leave holes
    between what stays, and a server of short requests grew by 600 MB in a minute so."""
    global _trimmed
    now = time.monotonic()
    if _malloc_trim is not None and now - _trimmed >= EVERY:
        _trimmed = now
        _malloc_trim(0)


@cache
def keep_freed() -> bool:
    """Have glibc keep the blocks of a forward pass for the next layer, up to `HELD`, and say whether it does.

    By itself it learns from what is freed first, and then gives blocks of some megabytes back to the system and asks for them
    anew many times in a batch; the system clears each page it gives. Photographs, short queries and texts of a small model took
    3 to 15 % longer, not the same in every process (LOG.md). Its settings are the process's: where whoever began it made some
    (`MALLOC_*`, `GLIBC_TUNABLES`) they stand. `trim` gives back what is kept all the same.
    """
    told = any(name.startswith("MALLOC_") for name in os.environ)
    if _mallopt is None or told or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    # Before 2.35 glibc refuses more than half of the heap of a thread.
    mapped = any(_mallopt(M_MMAP_THRESHOLD, size) for size in (MAPPED, MAPPED // 2))
    return mapped and bool(_mallopt(M_TRIM_THRESHOLD, HELD))


@contextmanager
def uncollected() -> Iterator[None]:
    """Inside, Python does not search its memory for cycles, in any thread: thousands of small objects that are made at once, and
    have none, would have it search everything that torch and transformers hold, for a quarter of a second. Where threads are in
    here one after the other without a gap, it does again after `UNSEARCHED`."""
    global _without, _since
    now = time.monotonic()
    with _counting:
        if not _without:
            _since = now
        _without += gc.isenabled() or _without > 0  # whoever turned it off for good finds it so
        if _without and now - _since < UNSEARCHED:
            gc.disable()
        elif _without:
            gc.enable()
    try:
        yield
    finally:
        with _counting:
            if _without:
                _without -= 1
                if not _without:
                    gc.enable()


def uncollected_steps(steps: Iterable[T]) -> Iterator[T]:
    """The same, `uncollected` while a step is made; not while a caller has it."""
    going, end = iter(steps), object()
    while True:
        with uncollected():
            step = next(going, end)
        if step is end:
            return
        yield step  # type: ignore[misc]


_without, _since = 0, 0.0
_counting = threading.Lock()
_trimmed = time.monotonic()
_glibc = ctypes.CDLL(None) if sys.platform == "linux" else None
_malloc_trim, _mallopt = (getattr(_glibc, name, None) for name in ("malloc_trim", "mallopt"))
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
