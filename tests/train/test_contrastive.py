"""Contrastive losses against sentence-transformers' own, their formulas written out, and points where they are known."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from sentence_transformers.sentence_transformer.losses import (
    GISTEmbedLoss,
    MultipleNegativesRankingLoss,
    MultipleNegativesSymmetricRankingLoss,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmembed.errors import SpecError, UnknownName
from mmembed.train.compared import Embedded, cosine
from mmembed.train.losses import build_loss

from .things import B, D, Given, K, columns, features, of_vectors, things

SAME = 1e-6
PARTS = {
    "query_to_document": "query_to_doc",
    "query_to_query": "query_to_query",
    "document_to_query": "doc_to_query",
    "document_to_document": "doc_to_doc",
}


def loss(compared, kind, **settings):
    return build_loss({"kind": kind, **settings})(compared)


def gap(a, b):
    a, b = (float(x.detach()) if isinstance(x, torch.Tensor) else x for x in (a, b))
    return abs(a - b) / max(1.0, abs(b))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"directions": ["query_to_document", "document_to_query"]},
        {"directions": ["query_to_document", "document_to_query"], "joint": False},
        {"directions": ["query_to_document", "query_to_query"]},
        {"directions": list(PARTS)},
        {"hardness": 3.0, "hardness_of": "in_batch"},
        {"hardness": 3.0, "hardness_of": "hard"},
        {"hardness": 3.0, "hardness_of": "all"},
        {"similarity": "dot"},
    ],
    ids=str,
)
@pytest.mark.parametrize("negatives", [0, K])
def test_infonce_is_that_of_sentence_transformers(settings, negatives):
    compared = things(negatives=negatives)
    mode = {"in_batch": "in_batch_negatives", "hard": "hard_negatives", "all": "all_negatives"}
    theirs = MultipleNegativesRankingLoss(
        Given(),
        scale=12.5,
        directions=tuple(PARTS[d] for d in settings.get("directions", ["query_to_document"])),
        partition_mode="joint" if settings.get("joint", True) else "per_direction",
        hardness_mode=mode.get(settings.get("hardness_of")),
        hardness_strength=settings.get("hardness", 0.0),
        **({"similarity_fct": lambda a, b: a @ b.T} if "similarity" in settings else {}),
    )
    due = theirs.compute_loss_from_embeddings(columns(compared), None)
    assert gap(loss(compared, "infonce", temperature=0.08, **settings), due) <= SAME


def test_symmetric_is_that_of_sentence_transformers():
    compared = things()
    due = MultipleNegativesSymmetricRankingLoss(Given(), scale=50.0)(features(compared), None)
    assert gap(loss(compared, "symmetric"), due) <= SAME


def test_gte_is_all_four_directions_of_sentence_transformers():
    compared = things()
    theirs = MultipleNegativesRankingLoss(Given(), scale=100.0, directions=tuple(PARTS.values()))
    assert gap(loss(compared, "gte"), theirs.compute_loss_from_embeddings(columns(compared), None)) <= SAME


class Guided(Given):
    """Model and guide in one: their loss only asks both for a tokenizer."""

    def __init__(self, key):
        super().__init__()
        self.key = key

    def forward(self, features):
        return {"sentence_embedding": features[self.key]}


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("queries", [True, False])
@pytest.mark.parametrize("positives", [True, False])
def test_gist_is_that_of_sentence_transformers(relative, queries, positives):
    compared = things(negatives=1, count=16)
    theirs = GISTEmbedLoss.__new__(GISTEmbedLoss)  # its __init__ wants tokenizers, which vectors need none of
    torch.nn.Module.__init__(theirs)
    theirs.model, theirs.guide, theirs.must_retokenize = Guided("vectors"), Guided("teacher"), False
    theirs.temperature, theirs.margin, theirs.gather_across_devices = 0.01, 0.1, False
    theirs.margin_strategy = "relative" if relative else "absolute"
    theirs.contrast_anchors, theirs.contrast_positives = queries, positives
    theirs.similarity_fct, theirs.cross_entropy_loss = torch.nn.CosineSimilarity(dim=-1), torch.nn.CrossEntropyLoss()
    both = zip(columns(compared), columns(compared, "teacher"), strict=True)
    due = theirs([{"vectors": own, "teacher": said} for own, said in both], None)
    told = loss(compared, "gist", margin=0.1, relative=relative, queries=queries, positives=positives)
    assert gap(told, due) <= SAME
    plain = loss(compared, "infonce", temperature=0.01)
    assert gap(told, plain) > 1e-3  # something was left out


def by_hand(compared, temperature, weight=lambda i, j, s: 0.0, stands=lambda i, j: True, more=lambda i: []):
    """-log of the share of the positive, a query at a time, with Python's own sums."""
    s = cosine(compared.queries, compared.documents).double()
    total = 0.0
    for i in range(B):
        terms = [
            math.exp(float(s[i, j]) / temperature + weight(i, j, float(s[i, j])))
            for j in range(s.shape[1])
            if j == i or stands(i, j)
        ]
        terms += [math.exp(x / temperature) for x in more(i)]
        total += math.log(sum(terms)) - float(s[i, i]) / temperature
    return total / B


def own(i, j):
    """Whether document j is a hard negative of query i."""
    return j >= B and j % B == i


def test_embeddinggemma_weighs_the_own_hard_negatives():
    compared = things()
    due = by_hand(
        compared,
        0.02,
        weight=lambda i, j, s: 5 * s if own(i, j) else 0.0,
        stands=lambda i, j: j < B or own(i, j),
    )
    assert gap(loss(compared, "embeddinggemma"), due) <= SAME


def test_llave_weighs_all_negatives_both_ways():
    compared = things(negatives=0)
    one = by_hand(compared, 0.02, weight=lambda i, j, s: 0.0 if i == j else 9 * s)
    turned = replace(compared, queries=compared.documents, documents=compared.queries)
    two = by_hand(turned, 0.02, weight=lambda i, j, s: 0.0 if i == j else 9 * s)
    assert gap(loss(compared, "llave"), (one + two) / 2) <= SAME


@pytest.mark.parametrize(("kind", "strength"), [("llave", 9.0), ("embeddinggemma", 5.0)])
def test_the_weight_of_a_negative_is_held_constant(kind, strength):
    compared = things(negatives=1 if kind == "embeddinggemma" else 0)
    vectors = compared.queries.vectors.requires_grad_(), compared.documents.vectors.requires_grad_()
    s = cosine(compared.queries, compared.documents)
    weighed = (
        ~torch.eye(B, dtype=torch.bool) if kind == "llave" else torch.cat([torch.zeros(B, B), torch.eye(B)], 1).bool()
    )
    logits = s / 0.02 + strength * s.detach() * weighed
    logits = logits.masked_fill(torch.cat([torch.zeros(B, B), 1 - torch.eye(B)], 1)[:, : s.shape[1]].bool(), -torch.inf)
    due = F.cross_entropy(logits, torch.arange(B))
    if kind == "llave":
        due = (due + F.cross_entropy(logits.T, torch.arange(B))) / 2
    told = loss(compared, kind)
    assert gap(told, due) <= SAME
    for mine, theirs in zip(torch.autograd.grad(told, vectors), torch.autograd.grad(due, vectors), strict=True):
        assert (mine - theirs).norm() <= 1e-5 * theirs.norm()


@pytest.mark.parametrize("same_tower", [True, False])
def test_qwen3_has_four_kinds_of_negatives_and_a_filter(same_tower):
    compared = things(seed=1)
    s, qq, dd = (
        cosine(a, b).double()
        for a, b in (
            (compared.queries, compared.documents),
            (compared.queries, compared.queries),
            (compared.documents, compared.documents),
        )
    )
    left_out = 0

    def kept(i, x):
        nonlocal left_out
        left_out += x > s[i, i] + 0.1
        return x <= s[i, i] + 0.1

    def more(i):
        own_tower = [float(x[i, j]) for x in (qq, dd) for j in range(B) if j != i and kept(i, x[i, j])]
        return own_tower if same_tower else []

    stands = lambda i, j: (j < B or own(i, j)) and kept(i, s[i, j])  # noqa: E731
    due = by_hand(compared, 0.01, stands=stands, more=more)
    assert gap(loss(compared, "qwen3", same_tower=same_tower), due) <= SAME
    assert left_out > 3


def test_positive_aware_leaves_out_what_the_teacher_finds_as_near():
    compared = things()
    said = F.normalize(compared.queries.teacher, dim=-1) @ F.normalize(compared.documents.teacher, dim=-1).T
    stands = lambda i, j: said[i, j] <= said[i, i] - 0.05 * abs(said[i, i])  # noqa: E731
    assert gap(loss(compared, "positive_aware"), by_hand(compared, 0.02, stands=stands)) <= SAME


def test_hardest_negatives_are_the_nearest_that_do_not_exceed_the_positive():
    compared = things()
    s = cosine(compared.queries, compared.documents)
    nearest = []
    for i in range(B):
        near = [(float(s[i, j]), j) for j in range(s.shape[1]) if j != i and s[i, j] <= s[i, i] + 0.1]
        nearest.append({j for _, j in sorted(near, reverse=True)[:2]})
    due = by_hand(compared, 0.02, stands=lambda i, j: j in nearest[i])
    assert gap(loss(compared, "hardest_negatives", most=2), due) <= SAME


def test_a_positive_competes_with_its_own_modality():
    compared = things()
    kinds = compared.documents.modality
    due = by_hand(compared, 0.02, stands=lambda i, j: kinds[i] == kinds[j])
    assert gap(loss(compared, "modality_aware"), due) <= SAME


def test_siglip_asks_every_pair():
    compared = things(negatives=0)
    s = cosine(compared.queries, compared.documents).double()
    z = 2 * torch.eye(B).double() - 1
    due = (
        -sum(math.log(1 / (1 + math.exp(-float(z[i, j] * (10 * s[i, j] - 10))))) for i in range(B) for j in range(B))
        / B
    )
    assert gap(loss(compared, "siglip"), due) <= SAME


def test_simcse_is_infonce_at_its_temperature():
    compared = things(negatives=0)
    assert gap(loss(compared, "simcse"), by_hand(compared, 0.05)) <= SAME


@pytest.mark.parametrize("similarity", ["maxsim", "meanmaxsim"])
def test_late_interaction_is_infonce_of_maxsim(similarity):
    compared = things()
    queries, documents = (
        [side.tokens[side.token_of == k] for k in range(len(side))] for side in (compared.queries, compared.documents)
    )
    scores = torch.stack([torch.stack([(q @ d.T).max(1).values.sum() for d in documents]) for q in queries])
    if similarity == "meanmaxsim":
        scores = scores / torch.tensor([len(q) for q in queries])[:, None]
    due = F.cross_entropy(scores / 0.02, torch.arange(B))
    assert gap(loss(compared, "late_interaction", similarity=similarity), due) <= SAME


# ------------------------------------------------------------------------------------------------ where they are known


@pytest.mark.parametrize("kind", ["infonce", "symmetric", "simcse", "llave"])
def test_of_zeros_every_document_is_as_near(kind):
    zeros = torch.zeros(B, D)
    assert gap(loss(of_vectors(zeros, zeros), kind), math.log(B)) <= SAME


def test_of_zeros_hard_negatives_are_further_documents():
    zeros = torch.zeros(B, D)
    compared = of_vectors(zeros, zeros, torch.zeros(B, K, D))
    for hard, count in {"all": B * (1 + K), "own": B + K, "none": B}.items():
        assert gap(loss(compared, "infonce", hard_negatives=hard), math.log(count)) <= SAME
    assert gap(loss(compared, "gte"), math.log(B * (1 + K) + B - 1 + B + (B - 1) * (1 + K))) <= SAME
    assert gap(loss(compared, "qwen3"), math.log(B + K + 2 * (B - 1))) <= SAME


def test_of_pairs_far_from_all_others_nothing_is_left():
    apart = torch.eye(B)
    assert loss(of_vectors(apart, apart), "infonce") <= 1e-6


def test_what_equals_a_positive_is_no_negative():
    zeros = torch.zeros(B, D)
    compared = of_vectors(zeros, zeros)
    twice = torch.tensor([0, 0, 1, 2, 3, 4])
    same_documents = replace(compared, documents=Embedded(vectors=zeros, key=twice))
    due = (4 * math.log(B) + 2 * math.log(B - 1)) / B
    assert gap(loss(same_documents, "infonce"), due) <= SAME
    same_queries = replace(compared, queries=Embedded(vectors=zeros, key=twice))
    assert gap(loss(same_queries, "infonce"), due) <= SAME
    assert gap(loss(same_documents, "symmetric"), due) <= SAME


def test_a_query_may_have_several_positives():
    """Each is found by itself; the others stand aside."""
    compared = things(negatives=1)
    every = replace(compared, positive=torch.ones(2 * B, dtype=torch.bool))
    s = cosine(compared.queries, compared.documents).double() / 0.02
    due = 0.0
    for j in range(2 * B):
        i = j % B
        others = [float(s[i, c]) for c in range(2 * B) if c % B != i or c == j]
        due += (math.log(sum(math.exp(x) for x in others)) - float(s[i, j])) / (2 * B)
    assert gap(loss(every, "infonce"), due) <= SAME


def test_of_graded_pairs_those_above_a_score_are_answers_and_the_others_negatives():
    compared = replace(things(negatives=0), score=torch.tensor([0.0, 1.0, 0.2, 0.9, 0.0, 0.6]))
    s = cosine(compared.queries, compared.documents).double() / 0.02
    due = sum(float(s[i].logsumexp(0) - s[i, i]) for i in (1, 3, 5)) / 3
    assert gap(loss(compared, "infonce", positive_above=0.5), due) <= SAME
    told = replace(compared, also=torch.tensor([[0, 2], [1, 2]]))  # of a query without an answer nothing else is one
    of_one = float(s[1][[0, 1, 3, 4, 5]].logsumexp(0) - s[1].logsumexp(0))
    assert gap(loss(told, "infonce", positive_above=0.5), due + of_one / 3) <= SAME
    assert loss(compared, "infonce", positive_above=1.0) == 0
    assert gap(loss(compared, "infonce", positive_above=-1.0), loss(compared, "infonce")) <= SAME
    total = {"kind": "sum", "losses": [{"kind": "cosent"}, {"kind": "infonce", "positive_above": 1.0}]}
    assert gap(build_loss(total)(compared), loss(compared, "cosent")) <= SAME


class Largest(TorchDispatchMode):
    """The most elements that a tensor had which was made inside."""

    most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **kwargs or {})
        self.most = max(self.most, *(x.numel() for x in tree_leaves(made) if isinstance(x, torch.Tensor)), 0)
        return made


@pytest.mark.parametrize("kind", ["infonce", "gte", "qwen3", "siglip"])
def test_no_table_of_all_queries_and_documents_stands_at_once(kind, monkeypatch):
    count = 256
    monkeypatch.setattr("mmembed.train.compared.BLOCK", 8 * count)
    compared = things(negatives=0, count=count)
    vectors = compared.queries.vectors.requires_grad_()
    with Largest() as largest:
        loss(compared, kind).backward()
    assert vectors.grad.abs().sum() > 0
    assert 0 < largest.most < count * count / 4


def test_a_large_batch_goes_block_by_block(monkeypatch):
    from mmembed.train import compared as module

    def measured():
        compared = things()
        vectors = compared.queries.vectors.requires_grad_()
        told = loss(compared, "gte") + loss(compared, "siglip") + loss(compared, "late_interaction")
        return told.detach(), torch.autograd.grad(told, vectors)[0]

    whole = measured()
    monkeypatch.setattr(module, "BLOCK", 40)
    parts = measured()
    assert gap(parts[0], whole[0]) <= SAME
    assert (parts[1] - whole[1]).abs().max() <= 1e-5


def test_a_temperature_is_learnt_with_the_model():
    compared = things()
    learnt = build_loss({"kind": "learnt_temperature", "loss": {"kind": "symmetric"}, "temperature": 0.05})
    assert gap(learnt(compared), loss(compared, "symmetric", temperature=0.05)) <= SAME
    learnt(compared).backward()
    step = 1e-3
    changed = [float(loss(compared, "symmetric", temperature=0.05 * math.exp(sign * step))) for sign in (1, -1)]
    assert abs(float(learnt.log_temperature.grad) - (changed[0] - changed[1]) / (2 * step)) <= 1e-2
    with pytest.raises(SpecError, match="takes no temperature"):
        build_loss({"kind": "learnt_temperature", "loss": {"kind": "siglip"}})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"kind": "infonc"}, "Did you mean 'infonce'"),
        ({"kind": "infonce", "temprature": 1}, "Did you mean 'temperature'"),
        ({"kind": "infonce", "similarity": "cosin"}, "Did you mean 'cosine'"),
        ({"kind": "infonce", "temperature": 0}, "above 0"),
        ({"kind": "infonce", "by": "techer"}, "Did you mean 'teacher'"),
        ({"kind": "infonce", "directions": ["query_to_query"]}, "hold no pair that could be found"),
        ({"kind": "infonce", "directions": ["query_to_document", "query_to_query"], "joint": False}, "joint=True"),
        ({"kind": "infonce", "by": "teacher"}, "how a margin is measured, and there is none"),
        ({"kind": "infonce", "relative": True}, "how a margin is measured, and there is none"),
        ({"kind": "learnt_temperature", "loss": {"kind": "infonce"}, "temperature": 0.005}, "begins below the least"),
        (
            {"kind": "learnt_temperature", "loss": {"kind": "infonce", "temperature": 0.05}},
            "say where it starts beside",
        ),
        ({"kind": "learnt_temperature", "loss": {"kind": "kl"}}, "takes no temperature that could be learnt"),
        ({"kind": "sum", "losses": [{"kind": "infonce", "temprature": 1}]}, "Did you mean 'temperature'"),
    ],
)
def test_a_wrong_setting_is_said_when_the_loss_is_built(settings, said):
    with pytest.raises((UnknownName, SpecError), match=said):
        build_loss(settings)


def test_a_loss_names_what_it_was_not_given():
    with pytest.raises(SpecError, match="'teacher'"):
        loss(of_vectors(torch.ones(2, D), torch.ones(2, D)), "gist")
