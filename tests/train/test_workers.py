"""Batches made by other processes are those that the one that learns would make, and their end is told."""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image as PillowImage

from mmembed.errors import InputError, TrainingError
from mmembed.train import checkpoints
from mmembed.train.data import Column, Columns, Example, InMemory
from mmembed.train.learning import Learning
from mmembed.train.loop import Run
from mmembed.train.recipe import read_recipe
from mmembed.train.watch import read_log
from mmembed.train.workers import Workers, without_weights

from ..processes import started
from .runs import RECIPE, curve, lay, trained

AUGMENTED = RECIPE.replace(
    "  group = 4\n", '  group = 4\n  augment = [{ kind = "affine" }, { kind = "noise", by = 0.1 }]\n'
)


def stage(path, *changes, number=0) -> Learning:
    learning = Learning(Run(read_recipe(path, changes), path.parent / "none", device="cpu"), number, 0)
    learning.choose()
    return learning


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return lay(tmp_path_factory.mktemp("recipe"), AUGMENTED)


def same(one, other) -> bool:
    """All the numbers of two batches."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, Example):
        return (one.source, one.row) == (other.source, other.row)
    if hasattr(one, "__dict__"):
        return type(one) is type(other) and same(vars(one), vars(other))
    return bool(one == other)


@pytest.fixture(scope="module")
def learning(path):
    """A stage with pictures in files, and others in memory."""
    table = [{"q": f"shade {k}", "p": PillowImage.new("RGB", (32, 32), (6 * k, 9, 9))} for k in range(40)]
    recipe = read_recipe(path, ["stage.0.steps=40"])
    held = InMemory(table=table, columns=Columns(query=Column(text="q"), positive=Column(image="p")))
    learning = Learning(
        Run(replace(recipe, data={**recipe.data, "pairs": held}), path.parent / "none", device="cpu"), 0, 0
    )
    learning.choose()
    return learning


@pytest.fixture(scope="module")
def two(learning):
    with Workers(learning.collator, 2) as two:
        yield two


def batches(learning, make):
    """Those of the stage from its first on."""
    again = Learning(learning.run_, 0, 0)
    again.choose()
    return again.batches(make)


def test_the_batches_are_the_same_in_the_same_order(learning, two):
    due, told = ([*islice(batches(learning, make), 6)] for make in (Workers(learning.collator), two))
    assert [step.number for step in told] == [*range(6)]
    assert all(step.images >= 8 for step in told)
    assert {example.source for example in told[0].examples[0]} == {"pairs", "pictures"}
    assert all(same(one, other) for one, other in zip(due, told, strict=True))
    assert not same(told[0], told[1])


@pytest.mark.slow
def test_a_run_is_the_same_with_workers(path, tmp_path):
    trained(path, tmp_path / "alone")
    trained(path, tmp_path / "helped", workers=2)
    assert curve(tmp_path / "alone") == curve(tmp_path / "helped")


def test_a_collator_travels_without_weights_and_without_rows(learning):
    collator = learning.collator
    sent = without_weights(collator)
    assert isinstance(sent.sources["pairs"], InMemory)
    assert sent.sources["pairs"].table == ()
    assert {tensor.device.type for tensor in sent.embedder.model.state_dict().values()} == {"meta"}
    assert collator.embedder.model.device.type == "cpu"
    assert sent.embedder.spec == collator.embedder.spec


def test_what_is_wrong_with_a_row_is_told_as_without_workers(learning, two, path):
    picture = path.parent / "3.png"
    good, said = picture.read_bytes(), []
    picture.write_bytes(b"no picture")
    for make in (Workers(learning.collator), two):
        with pytest.raises(InputError) as told:
            deque(batches(learning, make), maxlen=0)
        said.append(str(told.value))
    picture.write_bytes(good)
    assert said[0] == said[1]
    assert "data 'pictures', row 3" in said[0]


def test_a_process_that_dies_is_told(path):
    learning = stage(path, "stage.0.steps=200")
    with Workers(learning.collator, 1) as make:
        batches = learning.batches(make)
        next(batches)
        assert make._pool is not None
        for process in make._pool._processes.values():
            os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(TrainingError, match="fewer workers"):
            deque(batches, maxlen=0)


def _slow_and_stopped(recipe, output):
    """All of a group of processes is told to end, as schedulers do it, while the one that learns waits for a batch."""
    os.setpgrp()
    trained(recipe, output, "stage.0.steps=100000", "stage.0.save_steps=100000", workers=1)


def test_a_signal_to_all_processes_loses_no_step(path, tmp_path):
    process = started(_slow_and_stopped, path, tmp_path)
    log = tmp_path / "run" / "log.jsonl"
    while not (log.exists() and len(log.read_bytes().splitlines()) >= 5) and process.is_alive():
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGTERM)
    process.join(60)
    done = len(read_log(log))
    assert done >= 5
    assert [int(file.stem) for file in checkpoints.found(tmp_path / "run")] == [done]
