"""Batches larger than a device: two processes, packed rows one at a time, and models cut short, learn as one process does."""

from __future__ import annotations

import pytest
import torch

from mmembed.batch import pack, plan
from mmembed.errors import SpecError
from mmembed.testing import tiny_embedder
from mmembed.train.compared import Compared, Embedded
from mmembed.train.grad_cache import accumulate
from mmembed.train.losses import build_loss
from mmembed.train.world import World

from ..conftest import picture
from .runs import RECIPE, lay, read_log, together, trained

QUERIES = ["under it: a cat", "under it: two dogs", "under it: Haus", "under it: a", "under it: bb", "under it: c c c"]
DOCUMENTS = ["cat", picture(1), "house", (picture(2), "with words"), "b", picture(3)]
KINDS = {
    "infonce": {"temperature": 0.1},
    "gte": {"temperature": 0.1},
    "siglip": {},
    "cosent": {},
    "spread_out": {},
    "matryoshka_2d": {"loss": {"kind": "symmetric", "temperature": 0.1}, "dimensions": [32, 16]},
}


def of_all(own, world):
    """The things of all processes, by rank."""
    layers = world.gathered(own.layers.transpose(0, 1)).transpose(0, 1)
    return Embedded(vectors=world.gathered(own.vectors), layers=layers)


def gradient(kind, world, budget):
    """The loss of the joined batch and its gradient, where this process embeds its share, some tokens at a time."""
    torch.manual_seed(0)
    embedder = tiny_embedder()
    model = embedder.model
    loss = build_loss({"kind": kind, **KINDS[kind]}, width=32)
    own = range(*world.share(QUERIES))
    samples = embedder.samples([QUERIES[k] for k in own] + [DOCUMENTS[k] for k in own])
    planned = plan(samples, budget, share=model.shares)
    rows = [pack([samples[k] for k in places], places, model.spec.mask, share=model.shares) for places in planned]
    place = torch.tensor([k for places in planned for k in places]).argsort()
    half = torch.arange(len(own))
    owner = torch.arange(len(QUERIES))

    def measure(every):
        every = every.take(place)
        return loss(
            Compared(
                queries=of_all(every.take(half), world),
                documents=of_all(every.take(half + len(own)), world),
                owner=owner,
                positive=torch.ones(len(QUERIES), dtype=torch.bool),
                score=owner.float() / 3,
            )
        )

    def embed(batch):
        layers = model.layer_vectors(batch)
        return Embedded(vectors=layers[-1], layers=layers)

    told = accumulate(embed, rows, measure)
    weights, learnt = list(model.parameters()), list(loss.parameters())
    world.add_gradients(weights, learnt)
    flat = torch.cat([w.grad.flatten() for w in (*weights, *learnt) if w.grad is not None])
    return float(told), flat, len(rows)


def one_of_two(folder):
    world = World.joined(torch.device("cpu"))
    torch.save({kind: gradient(kind, world, 40) for kind in KINDS}, folder / f"{world.rank}.pt")


def test_two_processes_have_loss_and_gradient_of_one_with_the_joined_batch(tmp_path):
    together(2, one_of_two, tmp_path)
    both = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for kind in KINDS:
        loss, due, rows = gradient(kind, World(), 10_000)
        assert rows == 1
        for told in both:
            assert told[kind][2] > 1
            assert abs(told[kind][0] - loss) <= 1e-6 * max(1.0, abs(loss)), kind
            off = float((told[kind][1] - due).norm() / due.norm())
            assert off <= 1e-5, (kind, off)


def test_a_model_cut_behind_a_layer_is_one_whose_spec_says_that_layer(tiny):
    model = tiny.model
    samples = tiny.samples(["a cat", "two dogs", picture(1)])
    batch = pack(samples, range(3), model.spec.mask, share=True)
    with torch.no_grad():
        told = model.layer_vectors(batch)
        assert (told[-1] - model(batch)).abs().max() <= 1e-5
        assert len(told) == model.depth > 1
        for k in range(model.depth - 1):
            due = tiny.respecified(layers=(k + 1,)).model(batch)
            assert (told[k] - due).abs().max() <= 1e-5
    with pytest.raises(SpecError, match="not cut behind another"):
        tiny.respecified(layers=(1,)).model.layer_vectors(batch)


def test_the_loop_reads_a_large_batch_one_row_at_a_time(tmp_path):
    """A recipe's batches in one packed row each and in several have the same losses and gradients."""
    path = lay(tmp_path)
    curves = []
    for tokens in (100_000, 48):
        output = tmp_path / str(tokens)
        trained(path, output, f"stage.0.batch_tokens={tokens}", "stage.0.steps=3")
        curves.append([(r["loss"], r["grad_norm"]) for r in read_log(output / "run" / "log.jsonl")])
    for due, told in zip(*curves, strict=True):
        assert due == pytest.approx(told, rel=1e-4)


def test_a_recipe_may_cut_the_model_behind_its_layers(tmp_path):
    kind = '{ kind = "matryoshka_2d", loss = { kind = "simcse" }, dimensions = [32, 8] }'
    path = lay(tmp_path, RECIPE.replace('{ kind = "infonce", temperature = 0.05 }', kind))
    run = trained(path, tmp_path / "out", "stage.0.steps=2", "stage.0.batch_tokens=64")
    assert run.embedder.encode(["a"]).shape == (1, 32)
