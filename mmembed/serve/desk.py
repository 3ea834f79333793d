"""The desk: what was asked becomes samples in a pool of threads, then vectors in the batcher's; one way for every form."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, ParamSpec, TypeVar

from ..ahead import cores
from ..embedder import Embedder
from ..errors import InputError
from ..walk import Prepared, budget
from .asked import Answer, Asked, Limits, Refused
from .batcher import Batcher, Busy, Stopping

Given = ParamSpec("Given")
Made = TypeVar("Made")


class Desk:
    """An embedder at the service of many requests at once.

    Args:
        embedder: what embeds. limits: of one request. waiting: samples that may queue; what would be more while
            others wait is refused with the time after which to come again. seconds: that a request may take in all, its
            reading too.
    """

    def __init__(self, embedder: Embedder, *, limits: Limits, waiting: int = 4096, seconds: float = 60.0):
        self.embedder, self.limits, self.seconds = embedder, limits, seconds
        self.batcher = Batcher(embedder.compute, budget=budget(embedder.model), most=waiting)
        self._readers = ThreadPoolExecutor(min(4, cores()), thread_name_prefix="mmembed-reader")
        self._preparing = 0
        self._most_preparing = 64

    async def answer(self, read: Callable[Given, Asked], *given: Given.args, **named: Given.kwargs) -> Answer:
        """Vectors of what `read` finds to be asked.

        Raises:
            InputError, SpecError, UnknownName: as `Embedder.encode`. Refused: too much, too busy, or too slow.
        """
        try:
            async with asyncio.timeout(self.seconds):
                asked = await self.reading(read, *given, **named)
                if not asked.things:
                    raise Refused("nothing to embed: the list is empty")
                if len(asked.things) > self.limits.things:
                    raise Refused(f"{len(asked.things)} things in one request; at most {self.limits.things}", 413)
                prepared = await self.reading(self._prepare, asked)
                return await self._vectors(prepared, asked.truncate_dim)
        except TimeoutError:
            raise Refused(f"the answer took more than {self.seconds:.0f} s", 503, wait=5) from None
        except Busy as busy:
            raise Refused(str(busy), 429, wait=busy.seconds) from None
        except Stopping as stopping:
            raise Refused(str(stopping), 503, wait=5) from None

    async def reading(self, work: Callable[Given, Made], *given: Given.args, **named: Given.kwargs) -> Made:
        """What `work` gives, run by a thread that reads requests.

        Raises:
            Refused: too many requests are being read.
        """
        if self._preparing >= self._most_preparing:
            raise Refused("the server reads as many requests as it may; come again in 1 s", 429, wait=1)
        self._preparing += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._readers, partial(work, *given, **named))
        finally:
            self._preparing -= 1

    def close(self) -> None:
        """Ends its threads."""
        self.batcher.close()
        self._readers.shutdown(cancel_futures=True)

    def _prepare(self, asked: Asked) -> Prepared:
        options: Any = {"prompt_name": asked.prompt_name} if asked.prompt_name is not None else {}
        return self.embedder.prepare(
            asked.things, side=asked.side, instruction=asked.instruction, truncate=asked.truncate, **options
        )

    async def _vectors(self, prepared: Prepared, truncate_dim: int | None) -> Answer:
        try:
            vectors = await self.batcher.vectors(prepared.samples)
        except InputError as error:  # by its sample, of which a prompt may make several of a thing
            error.item = None if error.item is None else prepared.rows[error.item]
            raise
        finished = self.embedder.finish(prepared, vectors, truncate_dim=truncate_dim)
        return Answer(finished, sum(len(sample) for sample in prepared.samples))
