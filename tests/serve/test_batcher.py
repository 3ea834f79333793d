"""The batcher, the service before it and its pools: who is let in, and whose item an error names."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from mmembed.batch import Sample
from mmembed.embedder import Embedder
from mmembed.errors import InputError
from mmembed.serve import batcher as batcher_module
from mmembed.serve.batcher import Batcher
from mmembed.serve.pool import Pool
from mmembed.serve.request import EmbedRequest, Limits, RequestError
from mmembed.serve.service import Service
from mmembed.testing import tiny_embedder

TWICE = {"both": {"text": ["one: {text}", "two: {text}"]}}


@pytest.fixture
def picky() -> Embedder:
    """An embedder whose vectors of texts with a Z are no numbers."""
    embedder = tiny_embedder(prompts=TWICE)
    with torch.no_grad():
        embedder.model.backbone.embed_tokens.weight[embedder.tokenizer.id_of("Z")] = float("nan")
    return embedder


def test_an_error_names_the_item_of_the_request_not_of_the_batch_it_fell_into(picky):
    service = Service(picky, limits=Limits())
    service.batcher.budget = 4  # two texts a batch

    async def ask(texts: Sequence[str], prompt: str | None = None) -> None:
        await service.answer(lambda _: EmbedRequest(things=tuple(texts), prompt_name=prompt))

    async def together() -> None:
        with pytest.raises(InputError, match=r"item 6: .*no finite vector"):
            await ask([*"abcdef", "Z"])
        with pytest.raises(InputError, match=r"item 6: .*no finite vector"):
            await ask([*"abcdef", "Z"], "both")
        good, bad = await asyncio.gather(ask(["a", "b"]), ask(["c", "Z"]), return_exceptions=True)
        assert good is None
        assert isinstance(bad, InputError)
        assert bad.item == 1

    asyncio.run(together())
    service.close()


def held() -> tuple[Callable[[Sequence[Sample]], np.ndarray], threading.Event, threading.Event]:
    """A model that says when it runs, and goes on when it is told to."""
    running, goes_on = threading.Event(), threading.Event()

    def compute(samples: Sequence[Sample]) -> np.ndarray:
        running.set()
        goes_on.wait(10)
        return np.zeros((len(samples), 2), np.float32)

    return compute, running, goes_on


def test_a_request_that_is_larger_than_the_queue_is_let_in_where_nothing_else_waits():
    compute, running, goes_on = held()
    batcher = Batcher(compute, budget=2, most=4)
    sample = Sample(np.array([1]), np.array([True]), (), 0)

    async def ask() -> None:
        large = asyncio.ensure_future(batcher.vectors([sample] * 9))
        await asyncio.to_thread(running.wait, 10)
        with pytest.raises(RequestError, match="come again"):  # others wait
            await batcher.vectors([sample])
        goes_on.set()
        assert len(await large) == 9
        assert len(await batcher.vectors([sample] * 9)) == 9

    asyncio.run(ask())
    batcher.close()


def test_pictures_that_wait_are_bounded_by_their_patches(monkeypatch):
    monkeypatch.setattr(batcher_module, "HEAVIEST", 10)
    compute, running, goes_on = held()
    batcher = Batcher(compute, budget=2, most=4096)
    heavy, light = (Sample(np.arange(n), np.ones(n, bool), (), 0) for n in (8, 1))

    async def ask() -> None:
        first = asyncio.ensure_future(batcher.vectors([light]))
        await asyncio.to_thread(running.wait, 10)
        second = asyncio.ensure_future(batcher.vectors([heavy]))
        await asyncio.sleep(0.05)
        third = asyncio.ensure_future(batcher.vectors([light]))
        await asyncio.sleep(0.05)
        with pytest.raises(RequestError, match="come again"):
            await batcher.vectors([heavy])
        third.cancel()
        goes_on.set()
        assert len(await first) == len(await second) == 1
        assert len(await batcher.vectors([heavy, heavy])) == 2

    asyncio.run(ask())
    batcher.close()


@pytest.mark.parametrize(("is_named", "most"), [(True, 4), (False, 12)])
def test_of_a_batch_that_fails_the_request_at_fault_alone_goes_without_and_few_run_again(is_named, most):
    sizes: list[int] = []
    compute, running, goes_on = held()

    def picky(samples: Sequence[Sample]) -> np.ndarray:
        sizes.append(len(samples))
        bad = [place for place, sample in enumerate(samples) if sample.ids[0] == 13]
        if bad and is_named:
            raise InputError("unlucky", bad[0])
        if bad:
            raise RuntimeError("unlucky")
        return compute(samples)

    def sample(number: int) -> Sample:
        return Sample(np.array([number]), np.array([True]), (), 0)

    async def ask() -> list[np.ndarray | BaseException]:
        first = asyncio.ensure_future(batcher.vectors([sample(0)]))
        await asyncio.to_thread(running.wait, 10)
        waiting = [asyncio.ensure_future(batcher.vectors([sample(n), sample(n)])) for n in range(1, 17)]
        await asyncio.sleep(0)
        goes_on.set()
        return await asyncio.gather(first, *waiting, return_exceptions=True)

    batcher = Batcher(picky, budget=1000)
    found = asyncio.run(ask())
    assert [n for n, each in enumerate(found) if isinstance(each, Exception)] == [13]
    assert len(sizes) <= most, sizes
    batcher.close()


def test_what_waits_is_told_at_once_that_the_server_stops_and_what_runs_is_answered():
    compute, running, goes_on = held()
    batcher = Batcher(compute, budget=1)
    sample = Sample(np.array([1]), np.array([True]), (), 0)

    async def ask() -> None:
        runs = asyncio.ensure_future(batcher.vectors([sample]))
        await asyncio.to_thread(running.wait, 10)
        waits = asyncio.ensure_future(batcher.vectors([sample]))
        await asyncio.sleep(0)
        batcher.stop()
        for late in (waits, batcher.vectors([sample])):
            with pytest.raises(RequestError, match="is stopping"):
                await asyncio.wait_for(late, 5)
        goes_on.set()
        assert len(await runs) == 1

    asyncio.run(ask())
    batcher.close()


def test_a_pool_takes_so_much_work_and_what_was_given_up_counts_until_it_has_ended():
    running, goes_on = threading.Event(), threading.Event()
    pool = Pool("reading", threads=1, most=2)

    def work() -> bool:
        running.set()
        return goes_on.wait(10)

    async def ask() -> None:
        given_up = asyncio.ensure_future(pool.run(work))
        await asyncio.to_thread(running.wait, 10)
        waits = asyncio.ensure_future(pool.run(work))
        given_up.cancel()
        await asyncio.sleep(0)
        with pytest.raises(RequestError, match="2 requests are at reading already") as refused:
            await pool.run(work)
        assert (refused.value.status, refused.value.wait) == (429, 1)
        waits.cancel()  # what has not begun never will
        await asyncio.sleep(0)
        last = asyncio.ensure_future(pool.run(work))
        await asyncio.sleep(0)
        goes_on.set()
        assert await last

    asyncio.run(ask())
    pool.close()
