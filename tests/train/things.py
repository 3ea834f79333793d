"""Things to compare, drawn at random, and the losses of sentence-transformers over given vectors."""

from __future__ import annotations

import torch
from torch import nn

from mmembed.train.compared import Compared, Embedded, Predicted

B, K, D, W, V = 6, 2, 8, 5, 11
"""Queries, hard negatives of each, numbers of a vector, of a teacher's, terms."""


def side(count, generator, dtype=torch.float32):
    """Everything that a thing can have; vectors of layers end with `vectors`."""
    layers = torch.randn(3, count, D, generator=generator, dtype=dtype)
    sizes = torch.randint(1, 4, (count,), generator=generator)
    return Embedded(
        vectors=layers[-1].clone(),
        layers=layers,
        sparse=torch.randn(count, V, generator=generator, dtype=dtype).relu(),
        tokens=nn.functional.normalize(torch.randn(int(sizes.sum()), D, generator=generator, dtype=dtype), dim=-1),
        token_of=torch.arange(count).repeat_interleave(sizes),
        teacher=torch.randn(count, W, generator=generator, dtype=dtype),
        key=torch.arange(count),
        modality=torch.arange(count) % 2,
    )


def things(seed=0, dtype=torch.float32, negatives=K, count=B):
    """Pairs with hard negatives, scores and a language head's tokens: document i < B is the positive of query i, document
    B + k * B + i its k-th negative."""
    generator = torch.Generator().manual_seed(seed)
    head = nn.Linear(D, V, dtype=dtype)
    with torch.no_grad():
        head.weight.copy_(torch.randn(V, D, generator=generator, dtype=dtype))
        head.bias.copy_(torch.randn(V, generator=generator, dtype=dtype))
    return Compared(
        queries=side(count, generator, dtype),
        documents=side(count * (1 + negatives), generator, dtype),
        owner=torch.arange(count).repeat(1 + negatives),
        positive=torch.arange(count * (1 + negatives)) < count,
        score=torch.rand(count * (1 + negatives), generator=generator, dtype=dtype),
        predicted=Predicted(
            states=torch.randn(10, D, generator=generator, dtype=dtype),
            targets=torch.randint(V, (10,), generator=generator),
            sample=torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 2, 2]),
            head=head,
        ),
        classes=torch.arange(count) % 4,
        step=3,
    )


def of_vectors(queries, positives, negatives=None):
    """Pairs (B, D) and (B, D), or pairs with K hard negatives each, (B, K, D)."""
    count = len(queries)
    documents, owner = positives, torch.arange(count)
    if negatives is not None:
        documents = torch.cat([positives, negatives.flatten(0, 1)])
        owner = torch.cat([owner, owner.repeat_interleave(negatives.shape[1])])
    return Compared(
        queries=Embedded(vectors=queries),
        documents=Embedded(vectors=documents),
        owner=owner,
        positive=torch.arange(len(owner)) < count,
    )


class Given(nn.Module):
    """In the place of sentence-transformers' model: what it embeds is already embedded."""

    def __init__(self, width=D):
        super().__init__()
        self.width = width
        self.anything = nn.Parameter(torch.zeros(()))

    @property
    def device(self):
        return self.anything.device

    def forward(self, features):
        return {"sentence_embedding": features["vectors"]}

    def get_embedding_dimension(self):
        return self.width


def columns(compared, field="vectors"):
    """Queries, positives, and each rank of negatives, as sentence-transformers takes them."""
    documents = getattr(compared.documents, field)
    return [getattr(compared.queries, field), *documents.split(len(compared.queries))]


def features(compared, field="vectors"):
    return [{"vectors": column} for column in columns(compared, field)]
