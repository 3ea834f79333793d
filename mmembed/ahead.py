"""Threads ahead of the device: what comes next is prepared while the caller is at what came before, in order."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")
_END = object()


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ahead(source: Iterable[A], make: Callable[[A], B]) -> Iterator[B]:
    """`make` of each thing of a source, in order, one ahead: in a thread, while the caller works on the one before.

    The source is pulled in the caller's own thread. A lone thing is made there too, without any other thread. What the source
    or `make` raises comes after all that was made before it. At the end, after an error, or when the caller closes this
    generator, the thread is gone.
    """
    things = iter(source)
    pool: ThreadPoolExecutor | None = None
    thing = next(things, _END)
    if thing is _END:
        return
    try:
        made = make(thing)  # type: ignore[arg-type]
        while True:
            coming: Future[B] | None = None
            failure: Exception | None = None
            try:
                thing = next(things, _END)
            except Exception as error:
                failure = error
            else:
                if thing is not _END:
                    pool = pool or ThreadPoolExecutor(1, "mmembed-ahead")
                    coming = pool.submit(make, thing)  # type: ignore[arg-type]
            yield made
            if failure is not None:
                raise failure
            if coming is None:
                return
            made = coming.result()
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)


class Crew:
    """Threads that share the pieces of one thing, made when there are first several; a context, at whose end they are gone.

    Args:
        size: how many; of less than two nothing comes but the plain way.
    """

    def __init__(self, size: int):
        self.size = size
        self._pool: ThreadPoolExecutor | None = None
        self._closed = False

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *error: object) -> None:
        self._closed = True
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def map(self, work: Callable[[A], B], pieces: Sequence[A]) -> Iterator[B]:
        """`work` of every piece, in order. What it raises comes in its turn.

        Raises:
            CancelledError: the context has ended meanwhile.
        """
        if self.size < 2 or len(pieces) < 2 or self._closed:
            return map(work, pieces)
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.size, "mmembed-crew")
        return self._pool.map(work, pieces)
