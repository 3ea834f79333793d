"""The service: what was asked becomes samples in a pool of threads, then vectors in the batcher's; one way for every form."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ..embedder import Embedder
from ..errors import InputError
from ..prefetch import cores
from ..walk import Prepared, budget
from .batcher import Batcher
from .pool import Pool
from .request import EmbedRequest, EmbedResponse, Limits, Pictures, Waits


class Service:
    """An embedder at the service of many requests at once.

    Args:
        embedder: what embeds. limits: of one request. waiting: samples that may queue; what would be more while
            others wait is refused with the time after which to come again. seconds: that the pictures of a request may take to
            be fetched, all of them.

    Attributes:
        readers: threads that read requests, and wait for no one. fetchers: those that wait for hosts, which hold up only others
            that ask hosts. explainers: for what takes its time, as it embeds a hundred things by itself or reads a whole index:
            one at a time, and no request is read later by it.
    """

    def __init__(self, embedder: Embedder, *, limits: Limits, waiting: int = 4096, seconds: float = 60.0):
        self.embedder, self.limits, self.seconds = embedder, limits, seconds
        self.batcher = Batcher(embedder.compute, budget=budget(embedder.model), most=waiting)
        self.readers = Pool("reading", threads=min(4, cores()), most=64)
        self.fetchers = Pool("fetching", threads=16, most=64)
        self.explainers = Pool("explaining", threads=1, most=8)

    async def answer(self, read: Callable[[Pictures], EmbedRequest]) -> EmbedResponse:
        """Vectors of what `read` finds to be asked; it may be called twice.

        Raises:
            InputError, SpecError, UnknownName: as `Embedder.encode`. RequestError: too much, or too busy.
        """
        asked = await self._asked(read)
        prepared, width = await self.readers.run(self._prepare, asked), asked.truncate_dim
        del asked  # lets go of its pictures while it waits
        return await self._vectors(prepared, width)

    def close(self) -> None:
        """Ends its threads."""
        self.batcher.close()
        for pool in (self.readers, self.fetchers, self.explainers):
            pool.close()

    async def _asked(self, read: Callable[[Pictures], EmbedRequest]) -> EmbedRequest:
        """What is asked, with its pictures at hand."""
        try:
            return await self.readers.run(read, Pictures(self.limits))
        except Waits:
            pictures = Pictures(self.limits, time.monotonic() + self.seconds)
        try:
            return await self.fetchers.run(read, pictures)
        finally:
            pictures.until = 0.0  # a thread that still reads for a client who is gone fetches no more

    def _prepare(self, asked: EmbedRequest) -> Prepared:
        self.limits.check(asked)
        self.embedder.width(asked.truncate_dim)  # what cannot be had is refused before the model runs
        options: Any = {"prompt_name": asked.prompt_name} if asked.prompt_name is not None else {}
        return self.embedder.prepare(
            asked.things, side=asked.side, instruction=asked.instruction, truncate=asked.truncate, **options
        )

    async def _vectors(self, prepared: Prepared, truncate_dim: int | None) -> EmbedResponse:
        try:
            vectors = await self.batcher.vectors(prepared.samples)
        except InputError as error:  # by its sample, of which a prompt may make several of a thing
            error.item = None if error.item is None else prepared.rows[error.item]
            raise
        finished = self.embedder.finish(prepared, vectors, truncate_dim=truncate_dim)
        return EmbedResponse(finished, sum(len(sample) for sample in prepared.samples))
