"""Micro-batches by tokens: samples of many requests go through the model together, fairly, and none waits for a fuller batch."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..batch import Sample
from ..errors import InputError
from .request import RequestError

if TYPE_CHECKING:
    from numpy.typing import NDArray


HEAVIEST = 2**21
"""Tokens and patches of images that may wait, unless they are of one request: 1.2 GB of pixels at the most."""


@dataclass(eq=False)
class _Job:
    """Samples of one request, their vectors as they come, and who waits for them."""

    samples: Sequence[Sample]
    rows: list[NDArray[np.float32] | None]
    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[NDArray[np.float32]]
    next: int = 0
    missing: int = field(init=False)
    dropped: bool = False

    def __post_init__(self) -> None:
        self.missing = len(self.samples)


class Batcher:
    """One thread that runs the model over whatever waits.

    A batch takes a sample of each waiting request in turn until its budget of tokens is spent, so that a short question does
    not wait behind a long list; while it runs, the next one gathers. Samples of a request that was given up are never run.

    Args:
        compute: samples -> their vectors (B, D), in order; called in the batcher's own thread, by no one else.
        budget: tokens of a batch, at least one sample. most: samples that may wait, unless they are of one request.
    """

    def __init__(self, compute: Callable[[Sequence[Sample]], NDArray[np.float32]], *, budget: int, most: int = 4096):
        self._compute, self.budget, self.most = compute, budget, most
        self._jobs: deque[_Job] = deque()
        self._waiting, self._weight = 0, 0
        self._rate = 100.0  # samples a second, as lately seen
        self._ready = threading.Condition()
        self._closed = False
        self.batches, self.tokens = 0, 0
        self._thread = threading.Thread(target=self._run, name="mmembed-batcher", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Samples that are not yet in a batch."""
        return self._waiting

    async def vectors(self, samples: Sequence[Sample]) -> NDArray[np.float32]:
        """The vectors (B, D) of samples, in order. Cancelled, it takes its samples back.

        Raises:
            RequestError: others wait already, and this would be too much beside them; or it was closed.
            Exception: what the model raised; an InputError names its place among the samples.
        """
        loop = asyncio.get_running_loop()
        job = _Job(samples, [None] * len(samples), loop, loop.create_future())
        with self._ready:
            if self._closed:
                raise _stopping()
            weight = sum(sample.cost for sample in samples)
            full = self._waiting + len(samples) > self.most or self._weight + weight > HEAVIEST
            if self._waiting and full:  # coming again would help no request alone
                seconds = max(1, round(self._waiting / self._rate))
                reason = f"the server has all the work that it may queue; come again in {seconds} s"
                raise RequestError(reason, 429, wait=seconds)
            self._waiting += len(samples)
            self._weight += weight
            self._jobs.append(job)
            self._ready.notify()
        try:
            return await job.done
        finally:
            self._drop(job)

    def stop(self) -> None:
        """Takes nothing more; what waits is refused at once, what runs with its vectors."""
        with self._ready:
            self._closed = True
            stopped, self._jobs = self._jobs, deque()
            self._ready.notify()
        for job in stopped:
            self._tell(job, _stopping())

    def close(self) -> None:
        """Stops, and ends the thread after the batch that runs."""
        self.stop()
        self._thread.join()

    def _drop(self, job: _Job) -> None:
        with self._ready:
            if not job.dropped:
                job.dropped = True
                self._waiting -= len(job.samples) - job.next
                self._weight -= sum(sample.cost for sample in job.samples[job.next :])
                if job in self._jobs:
                    self._jobs.remove(job)

    def _run(self) -> None:
        while True:
            with self._ready:
                while not self._jobs and not self._closed:
                    self._ready.wait()
                if self._closed:
                    return
                batch = self._gather()
            self._serve(batch)

    def _gather(self) -> list[tuple[_Job, int]]:
        batch: list[tuple[_Job, int]] = []
        spent = 0
        while self._jobs:
            job = self._jobs[0]
            cost = job.samples[job.next].cost
            if batch and spent + cost > self.budget:
                break
            self._jobs.popleft()
            batch.append((job, job.next))
            spent += cost
            job.next += 1
            self._waiting -= 1
            self._weight -= cost
            if job.next < len(job.samples):
                self._jobs.append(job)
        return batch

    def _serve(self, batch: list[tuple[_Job, int]]) -> None:
        """Run a batch for those who still wait. Where it fails, the request that is known to be at fault is told, and each half
        of the others runs by itself: one bad sample must not take their answers, nor have all of them run one by one."""
        batch = [(job, place) for job, place in batch if not job.dropped]
        if not batch:
            return
        began = time.perf_counter()
        samples = [job.samples[place] for job, place in batch]
        try:
            found: Any = self._compute(samples)
        except Exception as error:  # whoever asked is told; the thread goes on
            blamed = batch[0][0] if len({id(job) for job, _ in batch}) == 1 else None
            if isinstance(error, InputError) and error.item is not None:
                blamed, error.item = batch[error.item]
            if blamed is not None:
                self._drop(blamed)
                self._tell(blamed, error)
            middle = len(batch) // 2
            self._serve(batch[:middle])
            self._serve(batch[middle:])
            return
        took = time.perf_counter() - began
        self._rate = 0.9 * self._rate + 0.1 * len(batch) / max(took, 1e-6)
        self.batches += 1
        self.tokens += sum(len(sample) for sample in samples)
        for (job, place), vector in zip(batch, found, strict=True):
            job.rows[place] = vector
            job.missing -= 1
            if not job.missing:
                self._tell(job, np.stack(job.rows))  # type: ignore[arg-type]

    def _tell(self, job: _Job, result: NDArray[np.float32] | Exception) -> None:
        def settle() -> None:
            if job.done.done():
                return
            if isinstance(result, Exception):
                job.done.set_exception(result)
            else:
                job.done.set_result(result)

        with contextlib.suppress(RuntimeError):  # its loop has ended: no one waits any more
            job.loop.call_soon_threadsafe(settle)


def _stopping() -> RequestError:
    return RequestError("the server is stopping", 503, wait=5)
