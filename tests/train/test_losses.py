"""The contract that every loss keeps: fp32, finite, a true gradient, the same in any order; settings are said wrong at once."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import count
from typing import get_args

import pytest
import torch

from mmembed.errors import SpecError, UnknownName
from mmembed.train.compared import GRADED, Compared, Embedded, joined
from mmembed.train.losses import build_loss, losses
from mmembed.train.losses.proxies import Proxies
from mmembed.train.signatures import schema

from .things import B, D, V, W, things

PLAIN = {"kind": "infonce", "temperature": 0.1}
SETTINGS = {
    "adaptive_layers": {"loss": PLAIN},
    "embedding_matching": {"projection": True},
    "espresso": {"loss": PLAIN, "dimension": 3},
    "learnt_temperature": {"loss": {"kind": "symmetric"}},
    "matryoshka": {"loss": PLAIN, "dimensions": [D, 4, 2], "per_step": 2},
    "matryoshka_2d": {"loss": PLAIN, "dimensions": [D, 4, 2]},
    "mntp": {"block": 4},
    "positive_aware": {"share": 0.9},
    "splade": {"queries": 0.0, "documents": 0.0},
    "sum": {"losses": [PLAIN, {"kind": "language_modelling"}], "weights": [1.0, 2.0]},
}
EVERY = sorted(losses)
WITH_CONSTANTS = {"llave", "embeddinggemma", "adaptive_layers", "matryoshka_2d", "espresso", "self_distillation"}
"""Which weigh by a similarity that is held constant, or go by a target that is."""


def built(kind, **changed):
    torch.manual_seed(5)
    loss = build_loss({"kind": kind, **SETTINGS.get(kind, {}), **changed}, width=D, teacher_width=W)
    if isinstance(loss, Proxies):
        loss.begin(torch.randn(4, D))
    return loss


def leaves(compared):
    """What a model made of both sides, by name."""
    sides = {"queries": compared.queries, "documents": compared.documents}
    return {(side, field): getattr(sides[side], field) for side in sides for field in GRADED}


def with_leaves(compared, values):
    sides = {side: {f: v for (s, f), v in values.items() if s == side} for side in ("queries", "documents")}
    return replace(
        compared,
        queries=replace(compared.queries, **sides["queries"]),
        documents=replace(compared.documents, **sides["documents"]),
    )


@pytest.mark.parametrize("kind", EVERY)
def test_a_loss_is_one_finite_number_in_fp32_with_a_gradient(kind):
    compared = things()
    values = {name: x.bfloat16().requires_grad_() for name, x in leaves(compared).items()}
    states = compared.predicted.states.clone().requires_grad_()
    given = replace(with_leaves(compared, values), predicted=replace(compared.predicted, states=states))
    loss = built(kind)
    with torch.autocast("cpu", torch.bfloat16):
        told = loss(given)
    assert told.shape == ()
    assert told.dtype == torch.float32
    assert told.isfinite()
    told.backward()
    reached = [x.grad for x in (*values.values(), states) if x.grad is not None]
    assert reached
    assert all(g.isfinite().all() for g in reached)
    assert any((g != 0).any() for g in reached)
    assert all(p.grad is not None and (p.grad != 0).any() for p in loss.parameters() if p.ndim)


@pytest.mark.parametrize("kind", EVERY)
def test_what_a_loss_computes_under_autocast_is_what_it_computes_without(kind):
    compared, loss = things(), built(kind)
    due = loss(compared)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss(compared), due)


@pytest.mark.parametrize("kind", EVERY)
def test_the_gradient_of_a_loss_is_that_of_its_number(kind):
    compared = things(dtype=torch.float64, count=3)
    loss = built(kind).double()
    names = [(s, f) for s, f in leaves(compared) if f in loss.needs]
    values = [leaves(compared)[name].clone().requires_grad_() for name in names]
    if "predicted" in loss.needs:
        values.append(compared.predicted.states.clone().requires_grad_())

    constants, detach = [], torch.Tensor.detach

    def measured(*given):
        predicted = replace(compared.predicted, states=given[-1]) if "predicted" in loss.needs else None
        asked = replace(with_leaves(compared, dict(zip(names, given, strict=False))), predicted=predicted)
        place = count()

        def constant(tensor):
            """As it was at the values themselves: with another one the number is not what the gradient says."""
            if (here := next(place)) == len(constants):
                constants.append(detach(tensor).clone())
            return constants[here]

        with pytest.MonkeyPatch.context() as patch:
            if kind in WITH_CONSTANTS:
                patch.setattr(torch.Tensor, "detach", constant)
            return loss(asked)

    assert values
    fast = kind in WITH_CONSTANTS  # along random directions: they are the slow ones
    assert torch.autograd.gradcheck(measured, values, eps=1e-6, atol=1e-6, rtol=1e-4, fast_mode=fast)
    assert bool(constants) == (kind in WITH_CONSTANTS)


@pytest.mark.parametrize("kind", EVERY)
def test_the_order_of_a_batch_changes_nothing(kind):
    compared, loss = things(), built(kind)
    generator = torch.Generator().manual_seed(1)
    q, d = torch.randperm(B, generator=generator), torch.randperm(len(compared.owner), generator=generator)
    back = q.argsort()
    moved = replace(
        compared,
        queries=compared.queries.take(q),
        documents=compared.documents.take(d),
        owner=back[compared.owner[d]],
        positive=compared.positive[d],
        score=compared.score[d],
        classes=compared.classes[q],
    )
    assert abs(float(loss(moved).detach() - loss(compared).detach())) <= 2e-6 * max(
        1, abs(float(loss(compared).detach()))
    )


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("extreme", ["zeros", "equal", "far", "opposite"])
def test_a_loss_stays_finite(kind, extreme):
    compared, loss = things(), built(kind)

    def changed(side, sign):
        parts = {f: getattr(side, f) for f in GRADED}
        make = {
            "zeros": torch.zeros_like,
            "equal": torch.ones_like,
            "far": lambda x: x * 1e4,
            "opposite": lambda x: sign * torch.ones_like(x),
        }[extreme]
        return replace(side, **{f: make(x).requires_grad_() for f, x in parts.items()}, teacher=make(side.teacher))

    given = replace(compared, queries=changed(compared.queries, 1), documents=changed(compared.documents, -1))
    if extreme == "equal":
        given = replace(given, score=torch.ones_like(compared.score))
    told = loss(given)
    assert told.isfinite()
    if told.requires_grad:
        told.backward()
    made = [getattr(side, f).grad for side in (given.queries, given.documents) for f in GRADED]
    assert all(g.isfinite().all() for g in made if g is not None)


@pytest.mark.parametrize("kind", EVERY)
def test_an_unknown_setting_names_the_nearest(kind):
    known = [*SETTINGS.get(kind, {})] or ["temperature"]
    with pytest.raises(UnknownName, match=f"setting of the loss '{kind}'"):
        built(kind, **{known[0] + "x": 1})


NAMES = (
    "similarity",
    "by",
    "directions",
    "hard_negatives",
    "hardness_of",
    "metric",
    "sides",
    "between",
    "of",
    "over",
    "weighting",
)
ABOVE = ("temperature", "teacher_temperature", "scale", "least", "weights")
COUNTS = ("hardest", "most", "block", "dimensions", "dimension", "per_step", "layers_per_step", "dimensions_per_step")
NOT_NEGATIVE = (
    *(
        "hardness",
        "pull",
        "mean",
        "second",
        "documents",
        "warmup",
        "sparse_score",
        "sparse_loss",
        "last",
        "prior",
        "kl",
    ),
    "in_batch",
)
ANY = ("margin", "bias", "positive_above")
OTHERS = ("loss", "losses", "start")
LISTS = ("directions", "sides", "of", "dimensions", "weights")


@pytest.mark.parametrize("kind", EVERY)
def test_every_setting_of_every_loss_refuses_what_it_cannot_be_when_it_is_built(kind):
    settings, hints = schema(losses[kind])
    for name in settings:
        wrong = [object()]
        number = name in (*ABOVE, *COUNTS, *NOT_NEGATIVE, *ANY) or (
            name in ("queries", "share") and hints[name] is not bool
        )
        if name in NAMES:
            wrong += ["onw"]
        elif number:
            whole = int in (hints[name], *get_args(hints[name])) or name in COUNTS
            wrong += [0.5 if whole else x for x in (math.nan, math.inf, -math.inf)]
            wrong += [] if name in ANY else [-1]
            wrong += [0] if name in (*ABOVE, *COUNTS, "share") else []
            wrong += [1.5] if name in ("in_batch", "share") else []
        else:
            assert hints[name] is bool or name in OTHERS, f"what {name!r} of {kind!r} may be is not tried here"
        for value in wrong:
            with pytest.raises((SpecError, UnknownName), match=name):
                built(kind, **{name: [value] if name in LISTS else value})
        if name in LISTS or name == "losses":
            with pytest.raises(SpecError, match=name):
                built(kind, **{name: []})


CONTRASTIVE = {
    *("embeddinggemma", "gist", "gte", "hardest_negatives", "infonce", "late_interaction", "late_interaction_pairwise"),
    *("learnt_temperature", "llave", "matryoshka", "modality_aware", "positive_aware", "qwen3", "self_distillation"),
    *("simcse", "splade", "symmetric"),
}


@pytest.mark.parametrize("kind", sorted(CONTRASTIVE))
def test_a_pair_with_nothing_beside_it_teaches_a_contrastive_loss_nothing(kind):
    compared, loss = things(), built(kind)
    first = ((compared.owner == 0) & compared.positive).nonzero()[0]
    values = {name: x.requires_grad_() for name, x in leaves(compared).items()}
    given = with_leaves(compared, values)
    one = Compared(
        queries=given.queries.take(torch.tensor([0])),
        documents=given.documents.take(first),
        owner=torch.tensor([0]),
        positive=torch.tensor([True]),
    )
    loss(one).backward()
    assert all((x.grad == 0).all() for x in values.values() if x.grad is not None)
    assert loss.contrastive


def test_what_is_over_a_contrastive_loss_is_one():
    found = {kind for kind in EVERY if built(kind).contrastive}
    assert found == CONTRASTIVE | {"adaptive_layers", "espresso", "matryoshka_2d", "siglip", "sum"}


@pytest.mark.parametrize("kind", EVERY)
def test_a_loss_says_what_it_reads_and_reads_nothing_else(kind):
    compared, loss = things(), built(kind)
    kept = {f for f in (*GRADED, "teacher", "modality") if f in loss.needs}

    def bare(side):
        tokens = {"token_of": side.token_of} if "tokens" in kept else {}
        return Embedded(**{f: getattr(side, f) for f in kept}, **tokens, count=len(side))

    given = Compared(
        queries=bare(compared.queries),
        documents=bare(compared.documents),
        owner=compared.owner,
        positive=compared.positive,
        score=compared.score if "score" in loss.needs else None,
        predicted=compared.predicted if "predicted" in loss.needs else None,
        classes=compared.classes if "classes" in loss.needs else None,
        step=compared.step,
    )
    assert torch.equal(loss(given), loss(compared))
    for need in loss.needs:
        if need in ("score", "predicted", "classes"):
            lacking = replace(given, **{need: None})
        else:
            queries = replace(given.queries, **{need: None})
            lacking = replace(given, queries=queries, documents=replace(given.documents, **{need: None}))
        with pytest.raises(SpecError, match=r"reads"):
            loss(lacking)


def test_every_loss_is_documented_with_its_formula_or_source():
    for name in losses:
        assert losses[name].__doc__, name
        assert "arXiv" in losses[name].__doc__ or "L = " in losses[name].__doc__ or "Z_i" in losses[name].__doc__, name


def test_things_that_are_taken_apart_and_joined_are_the_same():
    side = things().documents
    first, rest = torch.tensor([3, 0, 7]), torch.tensor([k for k in range(len(side)) if k not in (0, 3, 7)])
    again = joined([side.take(first), side.take(rest)]).take(torch.cat([first, rest]).argsort())
    for field in (*GRADED, "token_of", "teacher", "key", "modality"):
        assert torch.equal(getattr(again, field), getattr(side, field)), field
    assert len(again) == len(side)
    assert side.sparse.shape[1] == V
