"""Texts that come again are not tokenised again, and are what they were."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mmembed import Text
from mmembed.batch import Sample
from mmembed.cache import LRUCache
from mmembed.errors import InputError
from mmembed.testing import tiny_embedder
from mmembed.train.collator import ROOM, Collator, _read
from mmembed.train.compared import Embedded
from mmembed.train.data import Column, Columns, Example, InMemory
from mmembed.train.drawn import Drawn, compared
from mmembed.train.recipe import Stage, Task
from mmembed.train.world import World

from ..conftest import picture

ASK = "{instruction}: {text}"
ITEMS = [(Text("a cat"),), (Text("a dog"),), (Text("a cat"),)]


def alike(one: Sample | InputError, other: Sample | InputError) -> bool:
    assert isinstance(one, Sample)
    assert isinstance(other, Sample)
    return np.array_equal(one.ids, other.ids) and np.array_equal(one.counted, other.counted)


@pytest.fixture
def embedder():
    return tiny_embedder(
        prompts={"query": {"text": ASK}, "document": {"text": ASK}, "plain": {"text": "{text}", "image": "{image}"}},
        instructions={"query": "find", "document": "hold"},
    )


def test_a_text_is_read_once(embedder):
    kept: LRUCache = LRUCache(ROOM)
    first = _read(embedder, ITEMS, kept, {}, "plain", None, "vectors", "query")
    assert first[0] is first[2]
    assert len(kept) == 2
    again = _read(embedder, ITEMS[::-1], kept, {}, "plain", None, "vectors", "document")
    assert [id(sample) for sample in again] == [id(sample) for sample in first[::-1]]
    due = embedder.samples(ITEMS, prompt_name="plain")
    assert all(alike(one, other) for one, other in zip(first, due, strict=True))


def test_prompts_that_look_alike_and_say_something_else_are_told_apart(embedder):
    kept: LRUCache = LRUCache(ROOM)
    for name, instruction in [("query", None), ("document", None), ("query", "hold"), ("query", "sort")]:
        told = _read(embedder, ITEMS, kept, {}, name, instruction, "vectors", "query")
        due = embedder.samples(ITEMS, prompt_name=name, instruction=instruction)
        assert all(alike(one, other) for one, other in zip(told, due, strict=True))
    assert len(kept) == 6  # the document's own words are the query's third ones


def test_pictures_are_read_every_time_and_a_bad_item_is_told(embedder):
    kept: LRUCache = LRUCache(ROOM)
    items = [(picture(1),), (Text("a cat"), picture(1)), (Text("a cat"),)]
    told = _read(embedder, items, kept, {}, "plain", None, "vectors", "query")
    assert isinstance(told[0], Sample)
    assert isinstance(told[1], InputError)
    assert isinstance(told[2], Sample)
    assert len(kept) == 1
    assert all(
        isinstance(one, Sample)
        for one in _read(embedder, [items[0], items[2]], kept, {}, "plain", None, "vectors", "query")
    )


def test_room_that_is_full_is_no_harm(embedder):
    kept: LRUCache = LRUCache(1500)
    for _ in range(2):
        told = _read(embedder, ITEMS, kept, {}, "plain", None, "vectors", "query")
        assert all(
            alike(one, other) for one, other in zip(told, embedder.samples(ITEMS, prompt_name="plain"), strict=True)
        )
    assert len(kept) == 1


@pytest.mark.parametrize(("outputs", "speaking"), [(["vectors"], []), (["vectors", "tokens"], []), ([], [0])])
def test_every_item_that_is_cut_is_counted_also_where_it_is_kept(outputs, speaking):
    tokens = {"head": {"kind": "dense", "out": 16}}
    embedder = tiny_embedder(max_length=12, tokens=tokens if "tokens" in outputs else None)
    columns = Columns(query=Column(text="q"), positive=Column(text="p"))
    table = [{"q": "short", "p": "long " * 30}, {"q": "longer " * 30, "p": "long " * 30}, {"q": "a", "p": "b"}]
    rows = InMemory(table=table, columns=columns).open("x", Path())
    stage = Stage(name="one", steps=2, train=("all",), task=(Task(data=("x",), batch=3),))
    make = Collator(embedder, {"x": rows.source}, stage, World(), outputs, speaking, [0])
    # What a language head says is one text of query and positive.
    due = 2 if speaking else 3
    assert [make({0: [rows[k] for k in range(3)]}, step).truncated for step in range(2)] == [due, due]
    assert make({0: [rows[2]]}, 2).truncated == 0


def test_a_positive_that_was_not_drawn_is_known_to_answer_all_the_same():
    """Another example brings it as a hard negative."""
    texts = {name: (Text(name),) for name in ("capital?", "river?", "Paris", "the city of Paris", "Seine")}
    rows = [
        Example(
            "x", 0, texts["capital?"], (texts["Paris"], texts["the city of Paris"]), (), (), ((), ()), None, frozenset()
        ),
        Example("x", 1, texts["river?"], (texts["Seine"],), (texts["Paris"],), (), ((), ()), None, frozenset()),
    ]
    things = Embedded(vectors=torch.eye(5))
    for chosen, known in (
        (1, [[True, False, True], [False, True, False]]),
        (0, [[True, False, True], [False, True, False]]),
    ):
        found, _ = compared(Drawn(0, [chosen, 0], range(2), [0, 1], [2, 3, 4], {}), rows, things, World(), 0)
        assert found is not None
        assert found.known(torch.arange(2)).tolist() == known
