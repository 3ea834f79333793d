"""What losses read: things as the model embedded them, and which of them belong together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..errors import SpecError, check_known
from ..nn.similarity import MAXSIM

BLOCK = 1 << 26
"""Scores that stand at once (256 MB in fp32); more are made block by block, and again in the backward pass."""

GRADED = ("vectors", "layers", "sparse", "tokens")
"""The fields of `Embedded` that a model makes and that have a gradient."""


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """N things as a model gave them, before shortening and unit length; None is what was not asked for.

    Attributes:
        vectors: (N, D). layers: (L, N, D), the vector that each layer would have given, the last as `vectors`.
        sparse: (N, V), weights of terms. tokens: (C, E), token vectors of all of them one behind the other, and
        token_of: (C,), whose each is, in order.
        teacher: (N, W), what another model, teacher or guide, says of the same things; never with a gradient. In
            multilingual and cross-modal distillation it says it of their source: the English text, the caption.
        key: (N,), equal for equal things; None: no two are known to be equal.
        modality: (N,), a number each kind.
    """

    vectors: Float[Tensor, "N D"] | None = None
    layers: Float[Tensor, "L N D"] | None = None
    sparse: Float[Tensor, "N V"] | None = None
    tokens: Float[Tensor, "C E"] | None = None
    token_of: Int[Tensor, " C"] | None = None
    teacher: Float[Tensor, "N W"] | None = None
    key: Int[Tensor, " N"] | None = None
    modality: Int[Tensor, " N"] | None = None
    count: int = -1

    def __post_init__(self) -> None:
        if self.count >= 0:
            return
        sized = [x.shape[0] for x in (self.vectors, self.sparse, self.teacher, self.key) if x is not None]
        if self.layers is not None:
            sized.append(self.layers.shape[1])
        if not sized:
            raise SpecError("things embedded as nothing but token vectors need their count=")
        object.__setattr__(self, "count", sized[0])

    def __len__(self) -> int:
        return self.count

    @property
    def device(self) -> torch.device:
        return next(
            x.device for x in (self.vectors, self.layers, self.sparse, self.tokens, self.teacher) if x is not None
        )

    def of(self, name: str) -> Tensor:
        """The field of that name in fp32 (float64 stays what it is).

        Raises:
            SpecError: it was not given.
        """
        value: Tensor | None = getattr(self, name)
        if value is None:
            raise SpecError(f"this loss reads {name!r}, which the things that are compared were not given")
        return precise(value) if value.is_floating_point() else value

    def take(self, index: Int[Tensor, " M"]) -> Embedded:
        """The things at these places, in this order."""
        kept = {
            f.name: getattr(self, f.name)[index]
            for f in fields(self)
            if f.name in ("vectors", "sparse", "teacher", "key", "modality") and getattr(self, f.name) is not None
        }
        if self.layers is not None:
            kept["layers"] = self.layers[:, index]
        if self.tokens is not None:
            assert self.token_of is not None
            sizes = torch.bincount(self.token_of, minlength=self.count)
            first, sizes = (sizes.cumsum(0) - sizes)[index], sizes[index]
            mine = torch.arange(len(index), device=index.device).repeat_interleave(sizes)
            inside = torch.arange(len(mine), device=index.device) - (sizes.cumsum(0) - sizes)[mine]
            kept |= {"tokens": self.tokens[first[mine] + inside], "token_of": mine}
        return Embedded(**kept, count=len(index))

    def shortened(self, dimension: int) -> Embedded:
        """Vectors, and those of layers, cut to their first numbers (Matryoshka)."""
        vectors, layers = (None if x is None else x[..., :dimension] for x in (self.vectors, self.layers))
        return replace(self, vectors=vectors, layers=layers)

    def at_layer(self, layer: int) -> Embedded:
        """As if the model ended behind `layer`, a row of `layers`."""
        return replace(self, vectors=self.of("layers")[layer])


def joined(parts: Sequence[Embedded]) -> Embedded:
    """All of them, one behind the other; every part was given the same fields."""
    together: dict[str, Tensor] = {}
    for name in (f.name for f in fields(Embedded) if f.name != "count"):
        values = [getattr(part, name) for part in parts]
        if all(x is None for x in values):
            continue
        if name == "token_of":
            firsts = torch.tensor([0, *(part.count for part in parts)]).cumsum(0).tolist()
            values = [x + first for x, first in zip(values, firsts, strict=False)]
        together[name] = torch.cat(values, dim=1 if name == "layers" else 0)
    return Embedded(**together, count=sum(part.count for part in parts))


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """Tokens that a language head predicts.

    Attributes:
        states: (M, D) from which a token each is predicted. targets: (M,), their ids. sample: (M,), whose they are.
        head: states (m, D) -> logits (m, V); called on some states at a time, (M, V) never stands as a whole.
    """

    states: Float[Tensor, "M D"]
    targets: Int[Tensor, " M"]
    sample: Int[Tensor, " M"]
    head: Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Compared:
    """B queries and N documents, each of which was given for one of the queries.

    Attributes:
        owner: (N,), the query that a document was given for. positive: (N,), whether it answers it or is a hard negative.
        score: (N,), how well it answers it, by people or by a teacher; None: not said.
        also: (P, 2), a query and a document that answers it too, though it was given for another: a positive of it that was not
            drawn this time.
        predicted: what a language head says beside it.
        classes: (B,), the number of each query's group among all groups of the data.
        step: the number of the step, from which a loss that draws or warms up takes its chances and its weight.
    """

    queries: Embedded
    documents: Embedded
    owner: Int[Tensor, " N"]
    positive: Bool[Tensor, " N"]
    score: Float[Tensor, " N"] | None = None
    also: Int[Tensor, "P 2"] | None = None
    predicted: Predicted | None = None
    classes: Int[Tensor, " B"] | None = None
    step: int = 0

    @property
    def scores(self) -> Float[Tensor, " N"]:
        """How well each document answers its query.

        Raises:
            SpecError: not said.
        """
        if self.score is None:
            raise SpecError("this loss reads scores of the pairs, and the data has none")
        return precise(self.score)

    def known(self, rows: Int[Tensor, " R"], columns: Int[Tensor, " M"] | None = None) -> Bool[Tensor, "R M"]:
        """Which documents (`columns`, or all) are known to answer which queries (`rows`): a query's own positives, drawn
        or not, and whatever equals them, also where an equal query brought them."""
        queries, documents = self._classes
        asked, row = queries[rows].unique(return_inverse=True)
        told, column = (documents if columns is None else documents[columns]).unique(return_inverse=True)
        brought, answers = queries[self.owner[self.positive]], documents[self.positive]
        if self.also is not None:
            asked_too, told_too = self.also.T
            brought, answers = torch.cat([brought, queries[asked_too]]), torch.cat([answers, documents[told_too]])
        r, c = torch.searchsorted(asked, brought), torch.searchsorted(told, answers)
        r, c = r.clamp(max=len(asked) - 1), c.clamp(max=len(told) - 1)
        here = (asked[r] == brought) & (told[c] == answers)
        table = torch.zeros(len(asked), len(told), dtype=torch.bool, device=self.owner.device)
        table[r[here], c[here]] = True
        return table[row][:, column]

    @cached_property
    def _classes(self) -> tuple[Int[Tensor, " B"], Int[Tensor, " N"]]:
        """A number for each query and each document, equal where they are."""
        device = self.owner.device
        q, d = (
            torch.arange(len(x), device=device) if x.key is None else x.key.unique(return_inverse=True)[1]
            for x in (self.queries, self.documents)
        )
        return q, d

    def shortened(self, dimension: int) -> Compared:
        """Both sides cut to their first numbers (Matryoshka)."""
        return replace(self, queries=self.queries.shortened(dimension), documents=self.documents.shortened(dimension))

    def at_layer(self, layer: int) -> Compared:
        """As if the model ended behind `layer`."""
        return replace(self, queries=self.queries.at_layer(layer), documents=self.documents.at_layer(layer))


def precise(x: Tensor) -> Tensor:
    """In fp32; float64 stays what it is."""
    return x if x.dtype == torch.float64 else x.float()


def cosine(a: Embedded, b: Embedded) -> Float[Tensor, "A B"]:
    """Cosine of vectors."""
    return F.normalize(a.of("vectors"), dim=-1) @ F.normalize(b.of("vectors"), dim=-1).T


def dot(a: Embedded, b: Embedded) -> Float[Tensor, "A B"]:
    """Dot product of vectors."""
    return a.of("vectors") @ b.of("vectors").T


def sparse(a: Embedded, b: Embedded) -> Float[Tensor, "A B"]:
    """Dot product of sparse weights."""
    return a.of("sparse") @ b.of("sparse").T


def maxsim(a: Embedded, b: Embedded) -> Float[Tensor, "A B"]:
    """Sum over the tokens of `a` of the greatest dot product with a token of `b` (ColBERT, arXiv 2004.12832); nothing is
    padded. Where `b` has no token it is 0: the -inf that `nn.similarity` gives it has no gradient."""
    asked, told = a.of("tokens"), b.of("tokens")
    whose, where = a.of("token_of"), b.of("token_of")

    def best(some: Tensor) -> Tensor:
        near = some @ told.T
        out = near.new_zeros(len(some), len(b))
        return out.scatter_reduce(1, where.expand(len(some), -1), near, "amax", include_self=False)

    greatest = blockwise(best, asked, max(len(told), 1))
    return greatest.new_zeros(len(a), len(b)).index_add(0, whose, greatest)


def mean_maxsim(a: Embedded, b: Embedded) -> Float[Tensor, "A B"]:
    """MaxSim over the number of the tokens of `a` (BGE-M3, arXiv 2402.03216)."""
    return maxsim(a, b) / torch.bincount(a.of("token_of"), minlength=len(a)).clamp(min=1)[:, None]


Similarity = Callable[[Embedded, Embedded], Float[Tensor, "A B"]]
SIMILARITIES: dict[str, tuple[Similarity, str]] = {
    "cosine": (cosine, "vectors"),
    "dot": (dot, "vectors"),
    "sparse": (sparse, "sparse"),
    "maxsim": (maxsim, "tokens"),
    "meanmaxsim": (mean_maxsim, "tokens"),
}
"""By name: how well every thing of one side answers every one of the other, and the field that it reads."""


def similarity_of(name: str) -> Similarity:
    """The similarity of that name.

    Raises:
        UnknownName: there is none.
    """
    check_known("similarity", name, SIMILARITIES)
    return SIMILARITIES[name][0]


def paired(compared: Compared, name: str) -> Float[Tensor, " N"]:
    """The similarity of each document and the query it was given for."""
    similarity = similarity_of(name)
    queries, documents = compared.queries, compared.documents
    if name in MAXSIM:  # of all, some of which are asked for
        return similarity(queries, documents)[
            compared.owner, torch.arange(len(documents), device=compared.owner.device)
        ]
    field = SIMILARITIES[name][1]
    a, b = queries.of(field)[compared.owner], documents.of(field)
    if name == "cosine":
        a, b = F.normalize(a, dim=-1), F.normalize(b, dim=-1)
    return (a * b).sum(-1)


def teacher_cosine(a: Embedded, b: Embedded) -> Float[Tensor, "A B"]:
    """Cosine of what the teacher says; without a gradient."""
    said = F.normalize(a.of("teacher").detach(), dim=-1), F.normalize(b.of("teacher").detach(), dim=-1)
    return said[0] @ said[1].T


def blockwise(make: Callable[[Tensor], Tensor], rows: Tensor, columns: int) -> Tensor:
    """`make` of all `rows`, of some at a time where (rows, columns) would not stand at once; a block is then made again in
    the backward pass."""
    step = max(1, BLOCK // max(columns, 1))
    if len(rows) <= step:
        return make(rows)
    return torch.cat([checkpoint(make, some, use_reentrant=False) for some in rows.split(step)])
