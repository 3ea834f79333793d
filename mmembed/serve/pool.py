"""Threads of a kind of work, that take so much of it and no more."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from .request import RequestError

Given = ParamSpec("Given")
Made = TypeVar("Made")


class Pool:
    """Threads for one kind of work.

    Args:
        work: what is done there, for messages. threads: how many. most: pieces of work that run or wait; one that was given
            up counts until it has ended.
    """

    def __init__(self, work: str, *, threads: int, most: int):
        self.work, self.most = work, most
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=f"mmembed-{work}")
        self._free = threading.Semaphore(most)

    async def run(self, do: Callable[Given, Made], *given: Given.args, **named: Given.kwargs) -> Made:
        """What `do` gives, run by one of the threads.

        Raises:
            RequestError: as much runs or waits as may. Exception: what `do` raised.
        """
        if not self._free.acquire(blocking=False):
            raise RequestError(f"{self.most} requests are at {self.work} already; come again in 1 s", 429, wait=1)
        future = self._threads.submit(do, *given, **named)
        future.add_done_callback(lambda _: self._free.release())
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Ends the threads after what they do now."""
        self._threads.shutdown(cancel_futures=True)
