"""Distillation: what a teacher says of pairs, of things, or of how they lie to each other; and of a model by itself (BGE-M3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ...errors import SpecError
from ..compared import Compared, Embedded, blockwise, cosine, mean_maxsim, paired, sparse, teacher_cosine
from ..signatures import filled
from .objective import Above0, Least0, Loss, Similarity, losses, objective

Metric = Literal["cosine", "mse", "l2"]
Side = Literal["queries", "documents"]
SIDES: tuple[Side, ...] = get_args(Side)


@objective("margin_mse", "score")
def margin_mse(compared: Compared, *, similarity: Similarity = "dot") -> Float[Tensor, ""]:
    """Margins of the teacher between a positive and each hard negative of its query (arXiv 2010.02666):

    L = mean over (q, d+, d-) of ((s(q, d+) - s(q, d-)) - (t(q, d+) - t(q, d-)))^2
    """
    said, due = paired(compared, similarity), compared.scores
    right, wrong = compared.positive.nonzero().flatten(), (~compared.positive).nonzero().flatten()
    pairs = (compared.owner[right, None] == compared.owner[wrong]).nonzero()
    if not len(pairs):
        raise SpecError("margins are between a positive and hard negatives, and no query has both")
    right, wrong = right[pairs[:, 0]], wrong[pairs[:, 1]]
    return F.mse_loss(said[right] - said[wrong], due[right] - due[wrong])


@objective("kl", "score")
def kl(
    compared: Compared,
    *,
    temperature: Above0 = 1.0,
    teacher_temperature: Above0 | None = None,
    similarity: Similarity = "dot",
) -> Float[Tensor, ""]:
    """The teacher's distribution over the documents of each query (arXiv 2010.11386; in the last stage of Qwen3-VL-Embedding
    that of a reranker):

    L = t^2 * mean over q of KL(softmax(teacher / t') || softmax(s / t)),     t' = t where it is not said
    """
    place = _by_owner(compared)
    if place.shape[1] < 2:
        raise SpecError("a distribution over the documents of a query needs several, and no query has a hard negative")
    off = place < 0
    said, due = (x[place.clamp(min=0)] for x in (paired(compared, similarity), compared.scores))
    logits = (said / temperature).masked_fill(off, float("-inf"))
    target = (due / (teacher_temperature or temperature)).masked_fill(off, float("-inf"))
    return _divergence(logits, target, off).mean() * temperature**2


def _by_owner(compared: Compared) -> Int[Tensor, "Q K"]:
    """The documents of each query that has some, a row each, -1 where it has fewer than others."""
    counts = torch.bincount(compared.owner, minlength=len(compared.queries))
    order = compared.owner.argsort(stable=True)
    first = counts.cumsum(0) - counts
    rank = torch.arange(len(order), device=order.device) - first[compared.owner[order]]
    place = order.new_full((len(counts), int(counts.max())), -1)
    place[compared.owner[order], rank] = order
    return place[counts > 0]


def _divergence(
    logits: Float[Tensor, "R M"], target: Float[Tensor, "R M"], off: Tensor | None = None
) -> Float[Tensor, " R"]:
    """KL(softmax(target) || softmax(logits)) of each row; where `off`, both are -inf and nothing is added."""
    due, said = target.detach().log_softmax(1), logits.log_softmax(1)
    if off is not None:
        due, said = due.masked_fill(off, 0.0), said.masked_fill(off, 0.0)
        return (due.exp() * (due - said)).masked_fill(off, 0.0).sum(1)
    return (due.exp() * (due - said)).sum(1)


METRICS: dict[Metric, Callable[[Tensor, Tensor], Tensor]] = {
    "cosine": lambda a, b: 1 - F.cosine_similarity(a, b, dim=-1),
    "mse": lambda a, b: (a - b).square().mean(-1),
    "l2": lambda a, b: (a - b).norm(dim=-1),
}


@losses.register("embedding_matching")
class EmbeddingMatching(Loss):
    """The teacher's own vectors (EmbedDistill, arXiv 2301.12005; EmbeddingGemma, arXiv 2509.20354; jina-embeddings-v5):

        L = mean over the sides of the mean over their things of m(psi(z), z_teacher)

    Multilingual distillation (arXiv 2004.09813) is this with "mse", where the teacher says of a translation what it says of
    its source; cross-modal distillation is this where it says of a picture what it says of its caption.

    Args:
        metric: m, one of "cosine" (1 - cos), "mse", "l2". projection: psi is a learnt linear map to the teacher's width;
            else it is the identity, and under Matryoshka the first numbers of both are compared.
        sides: of "queries", "documents".
    """

    needs = frozenset({"vectors", "teacher"})
    alone = True

    def __init__(
        self,
        width: int | None,
        teacher_width: int | None,
        *,
        metric: Metric = "cosine",
        projection: bool = False,
        sides: Annotated[Sequence[Side], filled] = SIDES,
    ):
        super().__init__()
        self.metric, self.sides = METRICS[metric], tuple(sides)
        self.width = width
        self.projection: nn.Linear | None = None
        self.projected = projection
        if projection and width is not None and teacher_width is not None:
            self.projection = nn.Linear(width, teacher_width)
        elif not projection and None not in (width, teacher_width) and width != teacher_width:
            raise SpecError(f"vectors of {width} numbers, the teacher's of {teacher_width}: say projection=true")

    def measure(self, compared: Compared) -> Float[Tensor, ""]:
        if self.projected and self.projection is None:
            raise SpecError("a projection needs the widths of the model's vectors and of the teacher's")
        parts = []
        for name in self.sides:
            side: Embedded = getattr(compared, name)
            said, due = side.of("vectors"), side.of("teacher").detach()
            if self.projection is not None:
                # Vectors cut to their first numbers go through the same map, the others taken as 0.
                weight = self.projection.weight[:, : said.shape[1]]
                said = F.linear(said, weight.to(said.dtype), self.projection.bias.to(said.dtype))
            elif self.width is not None and said.shape[1] < self.width:
                due = due[:, : said.shape[1]]
            if said.shape != due.shape:
                raise SpecError(
                    f"vectors of {said.shape[1]} numbers, the teacher's of {due.shape[1]}: say projection=true"
                )
            parts.append(self.metric(said, due).mean())
        return torch.stack(parts).mean()


@objective("similarity_distillation", "vectors", "teacher")
def similarity_distillation(
    compared: Compared,
    *,
    temperature: Above0 = 0.02,
    teacher_temperature: Above0 | None = None,
    between: Literal["sides", "queries", "documents"] = "sides",
    metric: Literal["kl", "mse"] = "kl",
) -> Float[Tensor, ""]:
    """How the teacher ranks the things of a batch (UniME's first stage, arXiv 2504.17432; of pictures by what it says of their
    captions it is cross-modal distillation):

    L = mean over rows of KL(softmax(t / t') || softmax(s / t)), or of the mean squared difference of the two

    Args:
        between: "sides" ranks the documents for each query; "queries", "documents": the others of the own side.
        metric: "kl" or "mse".
    """
    asked = compared.documents if between == "documents" else compared.queries
    told = compared.queries if between == "queries" else compared.documents

    others = max(1, len(told) - (between != "sides"))

    def rows(index: Int[Tensor, " R"]) -> Float[Tensor, " R"]:
        some = asked.take(index)
        said = cosine(some, told) / temperature
        due = teacher_cosine(some, told) / (teacher_temperature or temperature)
        if between != "sides":  # a thing is most like itself, beside which the others hardly count
            itself = index[:, None] == torch.arange(len(told), device=index.device)
            said, due = (x.masked_fill(itself, torch.finfo(x.dtype).min) for x in (said, due))
        if metric == "kl":
            return _divergence(said, due)
        return (said.softmax(1) - due.softmax(1)).square().sum(1) / others

    return blockwise(rows, torch.arange(len(asked), device=compared.owner.device), len(told)).mean()


@objective("relational", "vectors", "teacher")
def relational(compared: Compared, *, sides: Annotated[Sequence[Side], filled] = SIDES) -> Float[Tensor, ""]:
    """Distances between the things of a side, as shares of their mean (RKD, arXiv 1904.05068, as jina-embeddings-v5 has it):

    L = mean over the sides of the mean over i, j of ((1 - cos_ij) / mu - (1 - cos'_ij) / mu')^2
    """
    parts = []
    for name in sides:
        side: Embedded = getattr(compared, name)
        said, due = 1 - cosine(side, side), 1 - teacher_cosine(side, side)
        off = 1 - torch.eye(len(side), device=said.device, dtype=said.dtype)
        said, due = (x * off / (x * off).mean().clamp(min=1e-6) for x in (said, due))
        parts.append((said - due).square().mean())
    return torch.stack(parts).mean()


@objective("self_distillation", "vectors", "sparse", "tokens", contrastive=True)
def self_distillation(
    compared: Compared, *, temperature: Above0 = 0.02, sparse_score: Least0 = 0.3, sparse_loss: Least0 = 0.1
) -> Float[Tensor, ""]:
    """Dense, sparse and multi-vector scores learn from their sum (BGE-M3, arXiv 2402.03216, and its code):

        e = dense + sparse_score * sparse + multi, each over the temperature
        L0 = (CE(dense) + CE(e) + sparse_loss * CE(sparse) + CE(multi)) / 4
        L1 = (H(e, dense) + sparse_loss * H(e, sparse) + H(e, multi)) / 3,     H(e, s) = -sum of softmax(e) * log softmax(s)
        L = (L0 + L1) / 2

    softmax over all documents, less what is known to answer too; softmax(e) held constant in L1.
    """
    positives = compared.positive.nonzero().flatten()
    every = torch.arange(len(compared.documents), device=positives.device)

    def rows(pairs: Int[Tensor, " R"]) -> Float[Tensor, " R"]:
        who = compared.owner[pairs]
        asked = compared.queries.take(who)
        off = compared.known(who) & (every != pairs[:, None])
        dense, terms, multi = (s(asked, compared.documents) / temperature for s in (cosine, sparse, mean_maxsim))
        four = dense, terms, multi, dense + sparse_score * terms + multi
        shares = [logits.masked_fill(off, float("-inf")).log_softmax(1) for logits in four]
        target = shares[3].detach().exp()
        found = [-share.gather(1, pairs[:, None])[:, 0] for share in shares]
        own = [-(target * share.masked_fill(off, 0.0)).sum(1) for share in shares[:3]]
        first = (found[0] + found[3] + sparse_loss * found[1] + found[2]) / 4
        return (first + (own[0] + sparse_loss * own[1] + own[2]) / 3) / 2

    return blockwise(rows, positives, 4 * len(compared.documents)).mean()
