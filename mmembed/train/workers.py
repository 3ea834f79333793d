"""Batches made in processes of their own, in order, ahead of the one that learns."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Self

import torch

from ..errors import TrainingError
from .collator import Collator
from .data import Example
from .drawn import TrainStep

GRACE = 30.0
"""Seconds that a process goes on after SIGTERM, for the one that learns to finish its step."""


class Workers:
    """Processes that run a collator; none of them: whoever asks for a batch makes it.

    Args:
        collator: it goes to each of them without the weights of its model, which take no part.
        count: how many. They are started anew, no fork: a script that trains with them says `if __name__ == "__main__"`.
    """

    def __init__(self, collator: Collator, count: int = 0):
        self._collator, self.count = collator, count
        self._pool = (
            ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _begin, (without_weights(collator),))
            if count
            else None
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def __call__(self, tasks: Mapping[int, Sequence[Example]], number: int) -> Callable[[], TrainStep]:
        """Begin a batch.

        Returns:
            what waits for it, and raises what `Collator.__call__` raises, or TrainingError where a process has died.
        """
        if self._pool is None:
            return partial(self._collator, tasks, number)
        try:
            waiting = self._pool.submit(_collated, tasks, number)
        except BrokenProcessPool as error:
            raise _died(error) from None

        def made() -> TrainStep:
            try:
                step: TrainStep = pickle.loads(waiting.result())
            except BrokenProcessPool as error:
                raise _died(error) from None
            return step

        return made


def _died(error: BrokenProcessPool) -> TrainingError:
    return TrainingError(
        f"a process that makes batches has died (out of memory?): {error}. Go on with --resume, and with fewer workers"
    )


def without_weights(collator: Collator) -> Collator:
    """A copy whose model lies on torch's device "meta", which holds no numbers: those of the model are not copied on the way."""
    model = collator.embedder.model
    numbers = (*model.parameters(), *model.buffers())
    return copy.deepcopy(collator, {id(tensor): tensor.detach().to("meta") for tensor in numbers})


# ---- in a process ----------------------------------------------------------------------------------------------------

_collator: Collator


def _begin(collator: Collator) -> None:
    global _collator
    # Ctrl-C, and the SIGTERM that a scheduler sends to all of a job, are for the one that learns: it saves, and ends them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_later)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["RAYON_NUM_THREADS"] = "1"  # of tokenizers: as many processes as there are cores are enough
    torch.set_num_threads(1)
    _collator = collator


def _end_later(*_: object) -> None:
    timer = threading.Timer(GRACE, os._exit, (1,))
    timer.daemon = True
    timer.start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _collated(tasks: Mapping[int, Sequence[Example]], number: int) -> bytes:
    return pickle.dumps(
        _collator(tasks, number), pickle.HIGHEST_PROTOCOL
    )  # by value: torch's own way takes file handles
