"""The batcher and the desk before it: who is let in, and whose item an error names."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from mmembed.batch import Sample
from mmembed.embedder import Embedder
from mmembed.errors import InputError
from mmembed.serve.asked import Asked, Limits
from mmembed.serve.desk import Desk
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
    desk = Desk(picky, limits=Limits())
    desk.batcher.budget = 4  # two texts a batch

    async def ask(texts: Sequence[str], prompt: str | None = None) -> None:
        await desk.answer(lambda: Asked(things=tuple(texts), prompt_name=prompt))

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
    desk.close()
