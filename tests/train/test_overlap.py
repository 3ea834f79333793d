"""Overlap of training and evaluation data: what is alike is found with its rows, what is not is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mmembed.errors import InputError
from mmembed.train.data import Column, Columns, InMemory
from mmembed.train.overlap import overlaps, runs_of


def of(name, texts):
    columns = Columns(query=Column(text="q"))
    return {name: InMemory(table=[{"q": text} for text in texts], columns=columns).open(name, Path())}


def sentence(seed):
    return " ".join(np.random.default_rng(seed).choice([f"word{k}" for k in range(500)], 20))


def test_half_a_character_is_text():
    assert len(runs_of("a lone half \ud800 of a pair", 5)) > 5


def test_equal_and_nearly_equal_texts_are_found_and_others_are_not():
    train = [sentence(k) for k in range(200)]
    near = train[7].replace(" ", "  ").upper()
    changed = " ".join([*train[30].split()[:-1], "elsewhere"])
    found = overlaps(of("t", train), of("e", [sentence(999), near, changed, "猫が座っている", sentence(998)]))
    assert [(each.trained, each.measured) for each in found] == [(("t", 7), ("e", 1)), (("t", 30), ("e", 2))]
    assert found[0].jaccard == 1
    a, b = (set(runs_of(text, 13).tolist()) for text in (train[30], changed))
    assert found[1].jaccard == pytest.approx(len(a & b) / len(a | b))
    assert overlaps(of("t", ["猫が座っている"]), of("e", ["猫が座っている "]))[0].jaccard == 1
    assert not overlaps(of("t", train), of("e", [changed]), least=0.99)


def test_of_texts_half_alike_most_are_found():
    rng = np.random.default_rng(1)
    words = [f"w{k}" for k in range(3000)]
    texts = [" ".join(rng.choice(words, 40)) for _ in range(100)]
    half = [" ".join([*text.split()[:31], *rng.choice(words, 9)]) for text in texts]
    due = []
    for text, other in zip(texts, half, strict=True):
        a, b = (set(runs_of(each, 13).tolist()) for each in (text, other))
        due.append(len(a & b) / len(a | b))
    wanted = {k for k, jaccard in enumerate(due) if jaccard >= 0.5}
    found = {each.trained[1] for each in overlaps(of("t", half), of("e", texts))}
    assert found <= wanted
    assert len(wanted) > 50
    assert len(found) > 0.8 * len(wanted)


def test_rows_that_cannot_be_read_are_no_rows_without_overlap(tmp_path):
    table, columns = [{"q": sentence(0)}, {"query": "a"}], Columns(query=Column(text="q"))
    bad, some = (InMemory(table=table, columns=columns, on_error=do).open("t", tmp_path) for do in ("raise", "skip"))
    with pytest.raises(InputError, match="data 't', row 1: no column is called 'q'"):
        overlaps({"t": bad}, of("e", [sentence(0)]))
    assert len(overlaps({"t": some}, of("e", [sentence(0)]))) == 1
    assert [*some.skipped] == [1]
    none = InMemory(table=table[1:], columns=columns, on_error="skip").open("t", tmp_path)
    with pytest.raises(InputError, match="none of the 1 rows of data 't' gives an example"):
        overlaps({"t": none}, of("e", [sentence(0)]))
