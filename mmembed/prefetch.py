"""Threads ahead of the device: what comes next is prepared while the caller is at what came before, in order."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Generic, NoReturn, TypeVar

A = TypeVar("A")
B = TypeVar("B")
_END: Any = object()


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Prefetcher(Generic[B]):
    """`make` of each thing of a source, in order, one ahead: in a thread, while the caller works on the one before.

    The source is pulled in the caller's own thread. A lone thing is made there too, without any other thread. What the source
    or `make` raises comes after all that was made before it. A context, at whose end the thread is gone.
    """

    def __init__(self, source: Iterable[A], make: Callable[[A], B]):
        self._things, self._make = iter(source), make
        self._pool: ThreadPoolExecutor | None = None
        self._making: Future[B] | None = None
        self._coming: Callable[[], B] | None = self._pulled(first=True)

    def __enter__(self) -> Prefetcher[B]:
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def __iter__(self) -> Iterator[B]:
        return self

    def __next__(self) -> B:
        if self._coming is None:
            raise StopIteration
        made = self._coming()
        self._coming = self._pulled()
        return made

    def awaited(self) -> bool:
        """Wait for the next one to be made: whether there is one, and no error in its place."""
        return self._making is not None and self._making.exception() is None

    def _pulled(self, *, first: bool = False) -> Callable[[], B] | None:
        """What gives the next one; None at the end."""
        self._making = None
        try:
            thing = next(self._things, _END)
        except Exception as error:
            return partial(_raised, error)
        if thing is _END:
            return None
        if first:
            return partial(self._make, thing)
        self._pool = self._pool or ThreadPoolExecutor(1, "mmembed-ahead")
        self._making = self._pool.submit(self._make, thing)
        return self._making.result


def _raised(error: Exception) -> NoReturn:
    raise error


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
