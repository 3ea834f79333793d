"""Two processes learn what one learns of the whole batch."""

from __future__ import annotations

from datetime import timedelta
from typing import ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import mmembed
from mmembed.cli import main
from mmembed.errors import SpecError
from mmembed.testing import tiny_embedder
from mmembed.train.loop import Run
from mmembed.train.recipe import read_recipe
from mmembed.train.watch import read_log
from mmembed.train.world import World

from ..processes import started
from .runs import RECIPE, lay, together, trained


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """Mixed batches, two losses (one with parameters of its own), a broken picture in one of the two shares."""
    text = RECIPE.replace("temperature = 0.05 }", 'temperature = 0.05 }, { kind = "siglip", weight = 0.1 }')
    text = text.replace('path = "pictures.jsonl"', 'path = "pictures.jsonl"\non_error = "skip"')
    path = lay(tmp_path_factory.mktemp("recipe"), text)
    (path.parent / "7.png").write_bytes(b"no picture")
    return path


def losses(output):
    records = read_log(output / "run" / "log.jsonl")
    return [(r["step"], r["loss"], r["grad_norm"], r.get("skipped", 0), r["tokens"]) for r in records]


def test_two_processes_learn_what_one_learns_of_the_whole_batch(recipe, tmp_path):
    trained(recipe, tmp_path / "one", "stage.0.steps=8")
    together(2, trained, recipe, tmp_path / "two", "stage.0.steps=8")
    one, two = np.array(losses(tmp_path / "one")), np.array(losses(tmp_path / "two"))
    assert len(one) == 8
    assert one[:, 3].sum() > 0  # the broken picture came up
    np.testing.assert_allclose(two, one, rtol=2e-4)
    assert np.abs(two[:, 1] / one[:, 1] - 1).max() < 1e-5
    a, b = (load_file(tmp_path / name / "weights.safetensors") for name in ("one", "two"))
    assert all(torch.allclose(a[name], b[name], atol=2e-5) for name in a)
    assert mmembed.load(tmp_path / "two").self_test().passed


def test_two_processes_go_on_from_a_checkpoint_of_one(recipe, tmp_path):
    steps = ("stage.0.steps=8", "stage.0.save_steps=4")
    trained(recipe, tmp_path / "one", *steps)
    (tmp_path / "two" / "run").mkdir(parents=True)
    for name in ("00000004.safetensors", "log.jsonl"):
        (tmp_path / "two" / "run" / name).write_bytes((tmp_path / "one" / "run" / name).read_bytes())
    together(2, resumed, recipe, tmp_path / "two", *steps)
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=2e-4)


def resumed(recipe, output, *changes):
    trained(recipe, output, *changes, resume=True)


def _gathers(folder):
    world = World.joined(torch.device("cpu"))
    own = torch.arange(2.0 + 3 * world.rank).reshape(-1, 1).requires_grad_()  # 2 rows, 5 rows
    every = world.gathered(own)
    (every**2).sum().backward()
    shared = torch.nn.Parameter(torch.ones(3))
    shared.grad = torch.full((3,), 4.0)
    plain = torch.nn.Parameter(torch.ones(2, 2))
    plain.grad = torch.full((2, 2), 1.0 + world.rank)
    world.add_gradients([plain], [shared])
    torch.save((every.detach(), own.grad, plain.grad, shared.grad), folder / f"{world.rank}.pt")


def test_vectors_of_all_are_gathered_by_rank_and_gradients_are_summed(tmp_path):
    together(2, _gathers, tmp_path)
    for rank in (0, 1):
        every, own, plain, shared = torch.load(tmp_path / f"{rank}.pt")
        assert every[:, 0].tolist() == [0, 1, 0, 1, 2, 3, 4]
        assert own[:, 0].tolist() == [2.0 * k for k in range(2 + 3 * rank)]
        assert plain.unique().tolist() == [3.0]
        assert shared.tolist() == [4.0] * 3


def test_processes_wait_for_what_one_of_them_does_alone(monkeypatch):
    told = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda kind, timeout: told.append(timeout))
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    assert World.joined(torch.device("cpu")) == World(1, 2)
    assert told[0] >= timedelta(hours=12)


class Differing(World):
    """The first of two processes, the other of which sees something else."""

    other: ClassVar[dict] = {}

    def told(self, thing):
        return [thing, {**thing, **self.other}]


@pytest.mark.parametrize(
    ("what", "said"), [("the step that it goes on from", 4), ("data 'pairs'", "39 rows"), ("the recipe", "another")]
)
def test_processes_that_do_not_see_the_same_files_are_told(recipe, tmp_path, monkeypatch, what, said):
    monkeypatch.setattr(World, "joined", lambda device: Differing(0, 2))
    monkeypatch.setattr(Differing, "other", {what: said})
    with pytest.raises(
        SpecError, match=f"processes 0 and 1 differ in {what} .* and {said}.*a disk that all machines see"
    ):
        Run(read_recipe(recipe), tmp_path / "out", device="cpu")


@pytest.mark.parametrize(("size", "code"), [(1, 3), (2, 0)])
def test_rows_that_were_left_out_are_no_failure_of_a_job(recipe, tmp_path, monkeypatch, capfd, size, code):
    class Done:
        def __init__(self, *given, **settings):
            self.world, self.skipped, self.data = World(0, size), {"pictures": 1}, {"pictures": range(12)}
            self.folder = self.output = self.log = tmp_path
            self.learnt, self.scores = {"first": 6}, {}

        def train(self):
            return tiny_embedder()

    monkeypatch.setattr("mmembed.train.loop.Run", Done)
    with pytest.raises(SystemExit) as ended:
        main(["train", str(recipe), "--json"])
    assert (ended.value.code or 0) == code
    assert "1 of 12 rows of 'pictures' were left out" in capfd.readouterr().err


def test_one_alone_is_a_world(tmp_path):
    process = started(_gathers, tmp_path)
    process.join(60)
    every, *_ = torch.load(tmp_path / "0.pt")
    assert every[:, 0].tolist() == [0, 1]
    assert [World(rank, 3).share(range(8)) for rank in range(3)] == [(0, 2), (2, 5), (5, 8)]
