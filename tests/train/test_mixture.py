"""Mixtures: reproducible, without twins in a batch, balanced as asked, and exactly the same after a stop."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mmembed.errors import InputError, SpecError, UnknownName
from mmembed.train.data import Column, Columns, InMemory
from mmembed.train.mixture import Mixture, Order


def of(table, name="x", **more):
    columns = {"query": Column(text="q"), "positive": Column(text="p")}
    columns |= {key: more.pop(key) for key in ("language", "group", "score") if key in more}
    return InMemory(table=table, columns=Columns(**columns), **more).open(name, Path())


def rows(count, name="r", **more):
    return [{"q": f"{name} {k}", "p": f"{name}' {k}", **more} for k in range(count)]


def told(batch):
    return [(example.source, example.row) for example in batch]


def test_every_row_has_its_turn_once_an_epoch_and_epochs_differ():
    order = Order([np.arange(0, 50), np.arange(50, 80)], [1])
    epochs = [[next(order) for _ in range(80)] for _ in range(3)]
    assert all(sorted(epoch) == list(range(80)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    for epoch in epochs:  # blocks stay together
        assert set(epoch[:30]) == set(range(50, 80)) or set(epoch[:50]) == set(range(50))


def test_a_mixture_goes_on_exactly_where_it_stopped():
    data = {"a": of(rows(23), "a"), "b": of([*rows(9, "s"), *rows(9, "s")], "b")}  # every row of b has a twin
    make = lambda: Mixture(data, batch=7, group=3, seed=[5])  # noqa: E731
    through = make()
    batches = [told(next(through)) for _ in range(30)]
    for stop in (0, 1, 11, 29):
        first = make()
        for _ in range(stop):
            next(first)
        second = make()
        second.restore(json.loads(json.dumps(first.state())))
        assert [told(next(second)) for _ in range(30 - stop)] == batches[stop:]
    assert [told(next(Mixture(data, batch=7, group=3, seed=[6]))) for _ in range(1)] != batches[:1]


def test_no_two_of_a_batch_share_query_positive_or_group():
    table = [*rows(10), *rows(10), {"q": "r 3", "p": "another"}, {"q": "another", "p": "r' 4"}]
    mixture = Mixture({"x": of(table)}, batch=6, seed=[0])
    seen = Counter()
    for _ in range(40):
        batch = next(mixture)
        keys = [key for example in batch for key in example.keys]
        assert len(keys) == len(set(keys))
        seen.update(example.row for example in batch)
    assert len(seen) == len(table)  # who waits has a turn after all
    assert max(seen.values()) <= 2 * min(seen.values())
    grouped = Mixture({"x": of([{**row, "g": k % 4} for k, row in enumerate(rows(20))], group="g")}, batch=4)
    for _ in range(10):
        assert len({example.row % 4 for example in next(grouped)}) == 4


def test_equals_of_graded_pairs_may_meet():
    mixture = Mixture({"x": of([{"q": "same", "p": "as this", "s": k} for k in range(8)], score="s")}, batch=8)
    assert len(next(mixture)) == 8


def test_batches_are_of_one_source_interleaved_or_mixed_as_group_says():
    data = {"a": of(rows(64, "a"), "a"), "b": of(rows(64, "b"), "b")}
    kinds = lambda batch: [example.source for example in batch]  # noqa: E731
    whole = [kinds(next(m)) for m in [Mixture(data, batch=8)] for _ in range(20)]
    assert all(len(set(batch)) == 1 for batch in whole)
    assert len({batch[0] for batch in whole}) == 2
    fours = [kinds(next(m)) for m in [Mixture(data, batch=8, group=4)] for _ in range(20)]
    assert all(len(set(batch[:4])) == len(set(batch[4:])) == 1 for batch in fours)
    assert any(batch[0] != batch[4] for batch in fours)
    single = [kinds(next(m)) for m in [Mixture(data, batch=8, group=1)] for _ in range(20)]
    assert any(len(set(batch[:4])) == 2 for batch in single)


def test_shares_and_temperature_say_how_often_a_source_comes():
    data = {"small": of(rows(10, "s"), "small"), "large": of(rows(1000, "l"), "large")}
    assert Mixture(data, batch=4).chances == pytest.approx([10 / 1010, 1000 / 1010])
    assert Mixture(data, batch=4, temperature=2).chances == pytest.approx(
        [10**0.5 / (10**0.5 + 1000**0.5), 0.909091], abs=1e-5
    )
    assert Mixture(data, batch=4, shares={"small": 100.0}).chances == pytest.approx([0.5, 0.5])
    with pytest.raises(UnknownName, match="Did you mean 'small'"):
        Mixture(data, batch=4, shares={"smal": 1.0})


def test_languages_are_balanced_inside_a_source():
    table = [*rows(200, "en", lang="en"), *rows(20, "sw", lang="sw"), *rows(2, "am", lang="am")]
    mixture = Mixture({"x": of(table, language="lang")}, batch=2, language_temperature=1e9, group=1, seed=[1])
    seen = Counter(example.language for _ in range(300) for example in next(mixture))
    assert all(150 < count < 250 for count in seen.values()), seen
    with pytest.raises(SpecError, match="names no column"):
        Mixture({"x": of(table)}, batch=2, language_temperature=2.0)


def test_a_source_with_nothing_more_for_a_batch_leaves_its_turns_to_others():
    tables = {"large": rows(200, "l"), "small": rows(3, "s"), "twice": [*rows(2, "t"), *rows(2, "t")]}
    data = {name: of(table, name) for name, table in tables.items()}
    mixture = Mixture(data, batch=16, group=1, shares={"small": 1e4, "twice": 1e4}, seed=[1])
    with pytest.warns(UserWarning, match="others fill it up") as told:
        batches = [next(mixture) for _ in range(20)]
    assert {str(each.message).split("'")[1] for each in told} == {"small", "twice"}
    assert len(told) == 2, "said once"
    for batch in batches:
        assert len({key for example in batch for key in example.keys}) == sum(len(example.keys) for example in batch)
        seen = Counter(example.source for example in batch)
        assert seen["small"] == 3
        assert seen["twice"] == 2
    state, due = mixture.state(), [next(mixture) for _ in range(3)]
    again = Mixture(data, batch=16, group=1, shares={"small": 1e4, "twice": 1e4}, seed=[1])
    again.restore(state)
    with pytest.warns(UserWarning, match="others fill it up"):
        assert [next(again) for _ in range(3)] == due


def test_a_source_with_nothing_but_broken_rows_is_no_small_one():
    data = {"large": of(rows(200, "l"), "large"), "broken": of([{"q": 1}] * 3, "broken", on_error="skip")}
    mixture = Mixture(data, batch=16, group=1, shares={"broken": 1e4}, seed=[1])
    with pytest.raises(
        InputError, match=r"none of the 3 rows of data 'broken' gives an example; the last: data 'broken', row \d"
    ):
        next(mixture)
    few = of(
        [{"q": 1}, {"q": 2}, *rows(1)], on_error="skip"
    )  # of two rounds four rows are broken, of three that there are
    assert [example.row for _ in range(5) for example in next(Mixture({"x": few}, batch=1, seed=[2]))] == [2] * 5


def test_a_batch_of_one_source_is_not_filled_up_by_others():
    with pytest.raises(SpecError, match="'small' has too few rows"):
        Mixture({"large": of(rows(200, "l")), "small": of(rows(3, "s"))}, batch=4)
    data = {"large": of(rows(200, "l")), "twice": of([*rows(3, "t"), *rows(3, "t")])}
    mixture = Mixture(data, batch=4, shares={"large": 0.0})
    with pytest.raises(SpecError, match="'twice' has too few rows"):
        next(mixture)


def test_too_few_rows_that_differ_are_told_and_other_data_is_not_taken_up():
    mixture = Mixture({"x": of([*rows(3), *rows(3)])}, batch=4)
    with pytest.raises(SpecError, match="too few rows that differ"):
        next(mixture)
    before = Mixture({"x": of(rows(8))}, batch=4)
    with pytest.raises(SpecError, match="has changed"):
        Mixture({"x": of(rows(9))}, batch=4).restore(before.state())


def test_a_bad_row_stops_or_is_left_out():
    table = [*rows(5), {"q": None, "p": "p"}]
    strict = Mixture({"x": of(table)}, batch=5)
    with pytest.raises(InputError, match="row 5"):
        [next(strict) for _ in range(2)]
    mixture = Mixture({"x": of(table, on_error="skip")}, batch=5)
    assert {example.row for _ in range(4) for example in next(mixture)} == set(range(5))
    with pytest.raises(InputError):
        next(Mixture({"x": of([{"q": 1}] * 3, on_error="skip")}, batch=1))


def test_a_language_of_few_rows_leaves_its_turn_to_others():
    table = [*rows(1000, "e", lang="en"), *rows(3, "u", lang="qu")]
    batch = next(Mixture({"x": of(table, language="lang")}, batch=64, language_temperature=5.0, seed=[0]))
    assert Counter(example.language for example in batch) == {"en": 61, "qu": 3}


def test_a_language_of_broken_rows_is_left_out_where_its_source_says_so():
    table = [*rows(20, "e", lang="en"), *({"q": 1, "p": "x", "lang": "qu"} for _ in range(3))]
    skipping = Mixture({"x": of(table, language="lang", on_error="skip")}, batch=8, language_temperature=5.0)
    assert {example.language for _ in range(5) for example in next(skipping)} == {"en"}
    strict = Mixture({"x": of(table, language="lang")}, batch=8, language_temperature=5.0)
    with pytest.raises(InputError, match=r"row 2[0-2]"):
        [next(strict) for _ in range(20)]
    with pytest.raises(InputError, match="a text is wanted"):
        next(Mixture({"x": of(table[20:], language="lang", on_error="skip")}, batch=2, language_temperature=5.0))


def test_turns_of_languages_that_are_used_up_go_to_all_others():
    table = [*rows(1000, "b", l="b"), *rows(1000, "y", l="y")]
    table += [{"q": f"t {k}", "p": f"t' {k}", "l": f"c{k:02}"} for k in range(40)]  # between both in the alphabet
    mixture = Mixture({"x": of(table, language="l")}, batch=256, language_temperature=5.0)
    seen = Counter(example.language for _ in range(4) for example in next(mixture))
    assert 0.8 < seen["b"] / seen["y"] < 1.25


def test_what_waits_costs_nothing_until_its_turn():
    """Half of the rows have one positive: one of them a batch, and the rest wait."""
    table = [{"q": f"r {k}", "p": "other" if k % 2 else f"r' {k}"} for k in range(4000)]
    mixture = Mixture({"x": of(table)}, batch=32)
    read = Counter()
    examples = mixture.data["x"]
    ask, examples.__class__ = type(examples).__getitem__, type("Counted", (type(examples),), {})
    type(examples).__getitem__ = lambda self, row: read.update([row]) or ask(self, row)
    for _ in range(60):
        assert sum(example.positives == mixture.data["x"][1].positives for example in next(mixture)) <= 1
    assert max(count for row, count in read.items() if row != 1) <= 2  # when its turn came, and when it had waited


def test_a_small_temperature_is_no_overflow():
    mixture = Mixture({"a": of(rows(100, "a"), "a"), "b": of(rows(10, "b"), "b")}, batch=4, temperature=0.001)
    assert mixture.chances == pytest.approx([1.0, 0.0])


def test_a_source_without_a_share_may_be_smaller_than_a_batch():
    data = {"x": of(rows(8, "x"), "x"), "small": of(rows(2, "s"), "small")}
    with pytest.raises(SpecError, match="'small' has too few rows"):
        Mixture(data, batch=4)
    assert {source for source, _ in told(next(Mixture(data, batch=4, shares={"small": 0.0})))} == {"x"}
