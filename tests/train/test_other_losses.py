"""Grades, distillation, regularisers, shortened vectors, language heads, against sentence-transformers or their formulas."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sentence_transformers.sentence_transformer.losses import (
    AnglELoss,
    CoSENTLoss,
    DistillKLDivLoss,
    EmbedDistillLoss,
    GlobalOrthogonalRegularizationLoss,
    MarginMSELoss,
    MatryoshkaLoss,
    MultipleNegativesRankingLoss,
)
from sentence_transformers.sparse_encoder.losses import FlopsLoss, SparseMultipleNegativesRankingLoss, SpladeLoss
from torch import nn

from mmembed.errors import SpecError
from mmembed.train.compared import Embedded, Predicted
from mmembed.train.losses import build_loss
from mmembed.train.losses.language import mask_tokens
from mmembed.train.losses.shortened import _drawn

from .test_contrastive import SAME, gap, loss
from .things import B, D, Given, K, V, columns, features, of_vectors, things


def of_pairs(compared):
    """Each document and its query, as a pair of columns."""
    return [compared.queries.vectors[compared.owner], compared.documents.vectors]


def learning(compared):
    """The same, where what a model makes has a gradient."""
    for side in (compared.queries, compared.documents):
        for field in ("vectors", "layers", "sparse", "tokens"):
            getattr(side, field).requires_grad_()
    return compared


def held(told, due, compared, exact=SAME):
    """Equal numbers, and equal gradients: what is held constant in one is so in the other."""
    assert gap(told, due) <= exact
    made = [
        getattr(s, f) for s in (compared.queries, compared.documents) for f in ("vectors", "layers", "sparse", "tokens")
    ]
    both = [torch.autograd.grad(x, made, retain_graph=True, allow_unused=True) for x in (told, due)]
    for mine, theirs in zip(*both, strict=True):
        assert (mine is None) == (theirs is None)
        assert mine is None or (mine - theirs).norm() <= 1e-5 * theirs.norm().clamp(min=1e-6)


# ------------------------------------------------------------------------------------------------------- graded pairs


@pytest.mark.parametrize("scores", ["all different", "ties"])
@pytest.mark.parametrize(("kind", "theirs"), [("cosent", CoSENTLoss), ("angle", AnglELoss)])
def test_graded_pairs_are_ordered_as_by_sentence_transformers(kind, theirs, scores):
    compared = things()
    if scores == "ties":
        compared = replace(compared, score=(compared.score * 3).round())
    due = theirs(Given()).compute_loss_from_embeddings(of_pairs(compared), compared.score)
    assert gap(loss(compared, kind), due) <= SAME


def test_cosent_of_zeros_counts_the_ordered_pairs():
    zeros = torch.zeros(4, D)
    compared = replace(of_vectors(zeros, zeros), score=torch.tensor([0.0, 1.0, 1.0, 2.0]))
    assert gap(loss(compared, "cosent"), math.log(1 + 5)) <= SAME
    equal = replace(compared, score=torch.ones(4))
    assert loss(equal, "cosent") == 0


def test_angle_is_the_quotient_of_complex_numbers():
    compared = things()
    q, d = (x.double() for x in of_pairs(compared))
    z = torch.complex(*q.chunk(2, 1)) / torch.complex(*d.chunk(2, 1))
    # the authors divide by |d_k|^2 of the whole vector, not of each number; then by |q| / |d|
    weights = torch.complex(*d.chunk(2, 1)).abs().square() / d.square().sum(1, keepdim=True)
    parts = (z.real + z.imag) * weights / (q.norm(dim=1) / d.norm(dim=1))[:, None]
    s = parts.sum(1).abs() * 20
    y = compared.score
    total = sum(math.exp(float(s[j] - s[i])) for i in range(len(y)) for j in range(len(y)) if y[i] > y[j])
    assert gap(loss(compared, "angle"), math.log(1 + total)) <= SAME


# ------------------------------------------------------------------------------------------------------- distillation


def by_rank(score):
    return torch.stack(score.split(B), dim=1)


def test_margin_mse_is_that_of_sentence_transformers():
    compared = things()
    due = MarginMSELoss(Given()).compute_loss_from_embeddings(columns(compared), by_rank(compared.score))
    assert gap(loss(compared, "margin_mse"), due) <= SAME
    with pytest.raises(SpecError, match="no query has both"):
        loss(things(negatives=0), "margin_mse")


def test_a_distribution_over_one_document_is_refused():
    with pytest.raises(SpecError, match="needs several"):
        loss(things(negatives=0), "kl")


@pytest.mark.parametrize(("student", "teacher"), [(1.0, None), (2.0, 2.0), (1.0, 0.5)])
def test_kl_is_that_of_sentence_transformers(student, teacher):
    compared = things()
    theirs = DistillKLDivLoss(Given(), student_temperature=student, teacher_temperature=teacher or student)
    due = theirs.compute_loss_from_embeddings(columns(compared), by_rank(compared.score))
    assert gap(loss(compared, "kl", temperature=student, teacher_temperature=teacher), due) <= SAME


def test_kl_takes_queries_of_unequal_numbers_of_documents():
    compared = things()
    index = torch.tensor([0, 1, 2, 3, 4, 5, 6, 12, 13])  # query 0 has three documents, 1 has two, others one
    some = replace(
        compared,
        documents=compared.documents.take(index),
        owner=compared.owner[index],
        positive=compared.positive[index],
        score=compared.score[index],
    )
    due = 0.0
    for query in range(B):
        mine = some.owner == query
        said = (compared.queries.vectors[query] * some.documents.vectors[mine]).sum(1).log_softmax(0)
        due += float(F.kl_div(said, some.score[mine].softmax(0), reduction="sum")) / B
    assert gap(loss(some, "kl"), due) <= SAME


@pytest.mark.parametrize("metric", ["cosine", "mse", "l2"])
@pytest.mark.parametrize("projection", [True, False])
def test_embedding_matching_is_that_of_sentence_transformers(metric, projection):
    compared = things(negatives=0)
    wide = 5 if projection else D
    generator = torch.Generator().manual_seed(2)
    teacher = torch.randn(2 * B, wide, generator=generator)
    compared = replace(
        compared,
        queries=replace(compared.queries, teacher=teacher[:B]),
        documents=replace(compared.documents, teacher=teacher[B:]),
    )
    settings = {"kind": "embedding_matching", "metric": metric, "projection": projection}
    ours = build_loss(settings, width=D, teacher_width=wide)
    theirs = EmbedDistillLoss(Given(), distance_metric=metric, projection_dim=wide if projection else None)
    if projection:
        theirs.projection.load_state_dict(ours.projection.state_dict())
    due = theirs.compute_loss_from_embeddings(columns(compared), [teacher[:B], teacher[B:]])
    assert gap(ours(compared), due) <= SAME
    if not projection:
        with pytest.raises(SpecError, match="projection=true"):
            build_loss(settings, width=D, teacher_width=D + 1)


def test_embedding_matching_goes_with_matryoshka():
    compared = things()
    settings = {"kind": "matryoshka", "dimensions": [3], "loss": {"kind": "embedding_matching", "projection": True}}
    ours = build_loss(settings, width=D, teacher_width=5)
    psi = ours.loss.projection
    due = 0.0
    for side in (compared.queries, compared.documents):
        short = torch.cat([side.vectors[:, :3], torch.zeros(len(side), D - 3)], 1)
        due += (1 - F.cosine_similarity(psi(short), side.teacher, dim=-1)).mean() / 2
    assert gap(ours(compared), due) <= SAME


@pytest.mark.parametrize("between", ["sides", "queries", "documents"])
@pytest.mark.parametrize("metric", ["kl", "mse"])
def test_similarity_distillation_compares_rows_of_similarities(between, metric):
    compared = things()
    a, b = {
        "sides": (compared.queries, compared.documents),
        "queries": (compared.queries, compared.queries),
        "documents": (compared.documents, compared.documents),
    }[between]
    said = F.cosine_similarity(a.vectors[:, None], b.vectors[None], dim=-1) / 0.1
    told = F.cosine_similarity(a.teacher[:, None], b.teacher[None], dim=-1) / 0.2
    if between != "sides":  # each among the others
        others = ~torch.eye(len(said), dtype=torch.bool)
        said, told = (x[others].view(len(x), -1) for x in (said, told))
        assert (
            float(loss(compared, "similarity_distillation", between=between, metric=metric)) > 1e-3
        )  # at its defaults too
    if metric == "kl":
        due = F.kl_div(said.log_softmax(1), told.softmax(1), reduction="batchmean")
    else:
        due = F.mse_loss(said.softmax(1), told.softmax(1))
    given = {"temperature": 0.1, "teacher_temperature": 0.2, "between": between, "metric": metric}
    assert gap(loss(compared, "similarity_distillation", **given), due) <= SAME
    taught = replace(
        compared,
        queries=replace(compared.queries, teacher=compared.queries.vectors),
        documents=replace(compared.documents, teacher=compared.documents.vectors),
    )
    assert abs(loss(taught, "similarity_distillation", between=between, metric=metric)) <= SAME
    assert abs(loss(taught, "relational")) <= SAME


def test_relational_distances_are_shares_of_their_mean():
    compared = things()
    due = 0.0
    for side in (compared.queries, compared.documents):
        said, told = (1 - F.cosine_similarity(x[:, None], x[None], dim=-1) for x in (side.vectors, side.teacher))
        due += float((said / said.mean() - told / told.mean()).square().mean()) / 2
    assert gap(loss(compared, "relational"), due) <= 2 * SAME


def test_self_distillation_is_the_formula_of_bge_m3():
    compared = learning(things())
    queries, documents = compared.queries, compared.documents
    dense = F.cosine_similarity(queries.vectors[:, None], documents.vectors[None], dim=-1)
    terms = queries.sparse @ documents.sparse.T
    token_lists = [[side.tokens[side.token_of == k] for k in range(len(side))] for side in (queries, documents)]
    multi = torch.stack([torch.stack([(q @ d.T).max(1).values.mean() for d in token_lists[1]]) for q in token_lists[0]])
    dense, terms, multi = dense / 0.02, terms / 0.02, multi / 0.02
    every = dense + 0.3 * terms + multi
    label = torch.arange(B)
    first = (
        F.cross_entropy(dense, label)
        + F.cross_entropy(every, label)
        + 0.1 * F.cross_entropy(terms, label)
        + F.cross_entropy(multi, label)
    ) / 4
    target = every.detach().softmax(1)
    second = sum(w * F.cross_entropy(s, target) for w, s in ((1, dense), (0.1, terms), (1, multi))) / 3
    held(loss(compared, "self_distillation"), (first + second) / 2, compared)


# -------------------------------------------------------------------------------------------------------- regularisers


@pytest.mark.parametrize(("mean", "second", "beyond"), [(1.0, 1.0, True), (0.5, 2.0, True), (0.0, 1.0, True)])
def test_spread_out_is_the_orthogonal_regularization_of_sentence_transformers(mean, second, beyond):
    compared = things(negatives=0)
    theirs = GlobalOrthogonalRegularizationLoss(
        Given(), mean_weight=mean, second_moment_weight=second, aggregation="sum"
    ).compute_loss_from_embeddings(columns(compared))
    due = sum(theirs.values())
    assert gap(loss(compared, "spread_out", mean=mean, second=second, beyond=beyond), due) <= SAME


def test_spread_out_of_equal_vectors_is_one_a_side():
    ones = torch.ones(B, D)
    compared = of_vectors(ones, ones)
    assert gap(loss(compared, "spread_out"), 2.0) <= SAME
    assert abs(loss(of_vectors(torch.eye(B), torch.eye(B)), "spread_out")) <= SAME


def test_splade_is_that_of_sentence_transformers():
    compared = things()
    given = columns(compared, "sparse")
    ranking = SparseMultipleNegativesRankingLoss(Given(), scale=1.0)
    theirs = SpladeLoss(Given(), ranking, document_regularizer_weight=3e-2, query_regularizer_weight=5e-2)
    due = sum(theirs(features(compared, "sparse"), None).values())
    assert gap(loss(compared, "splade", queries=5e-2, documents=3e-2), due) <= SAME
    flops = [FlopsLoss(Given()).compute_loss_from_embeddings(x) for x in (given[0], torch.cat(given[1:]))]
    assert gap(loss(compared, "flops", queries=1.0, documents=0.5), flops[0] + 0.5 * flops[1]) <= SAME


def test_the_weight_of_flops_grows_with_the_square_of_the_step():
    compared = things()
    whole = loss(compared, "flops", queries=1.0)
    for step, share in ((0, 0.0), (25, 1 / 16), (50, 1 / 4), (100, 1.0), (300, 1.0)):
        told = loss(replace(compared, step=step), "flops", queries=1.0, warmup=100)
        assert gap(told, share * whole) <= SAME


@pytest.mark.parametrize("negatives", [0, K])
def test_pairwise_late_interaction_is_a_softplus_of_margins(negatives):
    compared = things(negatives=negatives)
    queries, documents = (
        [side.tokens[side.token_of == k] for k in range(len(side))] for side in (compared.queries, compared.documents)
    )
    scores = torch.stack([torch.stack([(q @ d.T).max(1).values.mean() for d in documents]) for q in queries]) / 0.02
    right = scores[:, :B].diagonal()
    if negatives:
        wrong = torch.stack([scores[:, B * (k + 1) : B * (k + 2)].diagonal() for k in range(K)], 1)
    else:
        wrong = (scores - torch.eye(B) * 1e6).max(1, keepdim=True).values
    pairwise = F.softplus(wrong - right[:, None]).mean()
    due = 0.5 * pairwise + 0.5 * F.cross_entropy(scores[:, :B], torch.arange(B))
    assert gap(loss(compared, "late_interaction_pairwise"), due) <= SAME
    assert gap(loss(compared, "late_interaction_pairwise", in_batch=0.0), pairwise) <= SAME


# --------------------------------------------------------------------------------------------------- shortened vectors


def test_matryoshka_is_that_of_sentence_transformers():
    compared = things()
    inner = MultipleNegativesRankingLoss(Given(), scale=20.0)
    theirs = MatryoshkaLoss(inner.model, inner, [D, 4, 2], [1.0, 0.5, 2.0])
    due = theirs(features(compared), None)
    settings = {"dimensions": [2, D, 4], "weights": [2.0, 1.0, 0.5]}
    assert gap(loss(compared, "matryoshka", loss={"kind": "infonce", "temperature": 0.05}, **settings), due) <= SAME


def test_a_step_draws_dimensions_by_its_number():
    compared = things()
    one = {"loss": {"kind": "simcse"}, "dimensions": [D, 4, 2]}
    each = [float(loss(compared, "matryoshka", loss=one["loss"], dimensions=[d])) for d in one["dimensions"]]
    drawn = [float(loss(replace(compared, step=s), "matryoshka", **one, per_step=1)) for s in range(20)]
    assert {min(range(3), key=lambda k: abs(each[k] - x)) for x in drawn} == {0, 1, 2}
    assert all(min(abs(x - e) for e in each) <= SAME for x in drawn)
    again = [float(loss(replace(compared, step=s), "matryoshka", **one, per_step=1)) for s in range(20)]
    assert again == drawn
    with pytest.raises(SpecError, match="each lies between 1 and the 8"):
        build_loss({"kind": "matryoshka", **one, "dimensions": [9]}, width=8)


def test_what_reads_no_vectors_is_not_cut():
    """Each dimension would have been the same loss once more."""
    late = {"kind": "late_interaction"}
    for inner in (late, {"kind": "sum", "losses": [{"kind": "infonce"}, late]}):
        with pytest.raises(SpecError, match="'late_interaction' reads no vectors"):
            build_loss({"kind": "matryoshka", "loss": inner, "dimensions": [4]}, width=8)


def test_2d_matryoshka_is_a_layer_and_a_dimension_beside_the_whole():
    compared = learning(things())
    inner = {"kind": "simcse"}
    given = {"loss": inner, "dimensions": [4], "layers_per_step": None}
    whole = torch.cat([compared.queries.vectors, compared.documents.vectors]).detach()
    due = loss(compared.shortened(4), "simcse")
    for k in range(2):
        short = compared.at_layer(k)
        vectors = torch.cat([short.queries.vectors, short.documents.vectors])
        kl = F.kl_div((vectors / 0.3).log_softmax(-1), (whole / 0.3).softmax(-1), reduction="batchmean")
        due += loss(short.shortened(4), "simcse") / 2 + 0.3 * kl
    held(loss(compared, "matryoshka_2d", **given), due, compared)


def test_adaptive_layers_weigh_layers_by_their_number():
    compared = things()
    for weighting, weights in (("linear", (1, 1 / 2)), ("log", (1, 1 / (1 + math.log(2))))):
        given = {"loss": {"kind": "simcse"}, "per_step": None, "kl": 0.0, "prior": 0.7, "weighting": weighting}
        due = loss(compared, "simcse") + sum(
            0.7 * w / 2 * loss(compared.at_layer(k), "simcse") for k, w in enumerate(weights)
        )
        assert gap(loss(compared, "adaptive_layers", **given), due) <= SAME


def test_espresso_is_its_formula():
    compared = learning(things())

    def cut(given):
        whole = torch.cat([given.queries.vectors, given.documents.vectors]).double()
        u, s, _ = torch.linalg.svd((whole.T @ whole / D**0.5).detach().softmax(-1))
        u = torch.stack([c * torch.sign(c[c.abs().argmax()]) for c in u.T[:3]], 1)
        target, said = (whole @ u @ torch.diag(s[:3])).detach(), whole[:, :3]
        kl = (target.softmax(1) * (target.log_softmax(1) - said.log_softmax(1))).sum(1).mean()
        return loss(given.shortened(3), "simcse") + ((said - target) ** 2).mean() + kl

    due = loss(compared, "simcse") + cut(compared)
    due += sum(cut(compared.at_layer(i)) / (1 + math.log(1 + i)) for i in range(2)) / 2
    held(loss(compared, "espresso", loss={"kind": "simcse"}, dimension=3), due, compared, exact=5 * SAME)


def test_a_sum_weighs_its_losses():
    compared = things()
    gritlm = {"losses": [{"kind": "infonce"}, {"kind": "language_modelling"}], "weights": [1.0, 0.5]}
    due = loss(compared, "infonce") + 0.5 * loss(compared, "language_modelling")
    assert gap(loss(compared, "sum", **gritlm), due) <= SAME
    with pytest.raises(SpecError, match="1 weights for 2 losses"):
        loss(compared, "sum", **{**gritlm, "weights": [1.0]})


# ------------------------------------------------------------------------------------------------------ language heads


def test_a_language_loss_is_cross_entropy_and_never_holds_all_logits():
    compared = things()
    found = compared.predicted
    whole = F.cross_entropy(found.head(found.states), found.targets)
    due = torch.autograd.grad(whole, [*found.head.parameters()])
    seen = []

    def head(states):
        seen.append(len(states))
        return found.head(states)

    given = replace(compared, predicted=replace(found, head=head))
    told = loss(given, "language_modelling", block=4)
    assert gap(told, whole) <= SAME
    for mine, theirs in zip(torch.autograd.grad(told, [*found.head.parameters()]), due, strict=True):
        assert (mine - theirs).abs().max() <= SAME
    assert max(seen) == 4
    assert torch.equal(loss(given, "mntp", block=4), told)


def test_a_language_loss_may_weigh_samples_alike():
    compared = things()
    found = compared.predicted
    each = F.cross_entropy(found.head(found.states), found.targets, reduction="none")
    due = (each[:5].mean() + each[5:8].mean() + each[8:].mean()) / 3
    assert gap(loss(compared, "language_modelling", over="samples"), due) <= SAME


def test_of_zero_logits_every_token_is_as_likely():
    head = nn.Linear(D, V)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    none = torch.zeros(0, D, requires_grad=True)
    predicted = Predicted(states=torch.randn(5, D), targets=torch.arange(5), sample=torch.zeros(5).long(), head=head)
    compared = replace(things(), predicted=predicted)
    assert gap(loss(compared, "language_modelling"), math.log(V)) <= SAME
    empty = replace(predicted, states=none, targets=torch.zeros(0).long(), sample=torch.zeros(0).long())
    assert loss(replace(compared, predicted=empty), "language_modelling") == 0


def test_masking_leaves_special_tokens_and_the_first_alone():
    ids = np.tile(np.arange(20), 500)
    given = {"mask": 99, "vocabulary": 20, "special": [3, 4], "share": 0.2}
    out, chosen = mask_tokens(ids, np.random.default_rng(0), **given)
    assert not chosen[0]
    assert not chosen[np.isin(ids, [3, 4])].any()
    assert (out[~chosen] == ids[~chosen]).all()
    assert abs(chosen.mean() / 0.9 - 0.2) <= 0.02
    assert abs((out[chosen] == 99).mean() - 0.8) <= 0.03
    assert abs((out[chosen] == ids[chosen]).mean() - 0.105) <= 0.03
    plain, _ = mask_tokens(ids, np.random.default_rng(0), mask=99, vocabulary=20, share=0.8, replaced=0.0, kept=0.0)
    assert abs((plain == 99).mean() - 0.8) <= 0.02


def test_things_of_nothing_but_tokens_say_how_many_they_are():
    with pytest.raises(SpecError, match="count="):
        Embedded(tokens=torch.zeros(3, D), token_of=torch.zeros(3).long())


def test_a_layer_and_a_length_are_drawn_apart():
    drawn = {(*_drawn(3, 1, step, of=0), *_drawn(3, 1, step, of=1)) for step in range(200)}
    assert len(drawn) == 9
