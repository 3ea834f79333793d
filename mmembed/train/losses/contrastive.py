"""Contrastive losses: a query finds its document among others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, get_args, get_type_hints

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ...errors import SpecError
from ..compared import Compared, Embedded, blockwise, cosine, paired, similarity_of, teacher_cosine
from ..signatures import Range
from .objective import (
    Above0,
    Count,
    Judge,
    Least0,
    Loss,
    Plain,
    Settings,
    Share,
    Similarity,
    build_loss,
    losses,
    objective,
)

Logits = Float[Tensor, "R M"]
Off = Bool[Tensor, "R M"]

Direction = Literal[
    "query_to_document",
    "query_to_query",
    "document_to_query",
    "document_to_document",
    "positive_to_positive",
]
"""A part of a denominator: which of the two of a pair is compared, and with what."""
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
BETWEEN: tuple[Direction, ...] = ("query_to_document", "document_to_query")
"""Those in which the pair itself stands."""
Hardness = Literal["in_batch", "hard", "all"]
"""Negatives that weigh by how near they are: those of other queries, the hard ones of the own, or both."""


def _together(settings: Mapping[str, Any]) -> None:
    """Raises: SpecError, directions that no pair is found by, or settings of a margin that there is not."""
    directions = settings["directions"]
    if "query_to_document" not in directions:
        raise SpecError("directions without 'query_to_document' hold no pair that could be found")
    if not settings["joint"] and not set(directions) <= set(BETWEEN):
        raise SpecError("only query_to_document and document_to_query have a share each: say joint=True")
    if settings["margin"] is None and (settings["relative"] or settings["by"] != "self"):
        raise SpecError("by and relative say how a margin is measured, and there is none: margin, or leave them out")


@objective("infonce", contrastive=True, check=_together)
def infonce(
    compared: Compared,
    *,
    temperature: Above0 | Tensor = 0.02,
    similarity: Similarity = "cosine",
    directions: Sequence[Direction] = ("query_to_document",),
    joint: bool = True,
    hard_negatives: Literal["all", "own", "none"] = "all",
    hardness: Least0 = 0.0,
    hardness_of: Hardness = "all",
    margin: float | None = None,
    relative: bool = False,
    by: Judge = "self",
    same_modality: bool = False,
    hardest: Count | None = None,
    positive_above: float | None = None,
) -> Float[Tensor, ""]:
    """Cross-entropy of picking the positive d of a query q among all documents, mean over the pairs (CPC, arXiv 1807.03748):

        L = mean over (q, d+) of  log Z - s(q, d+) / t,     Z = sum over c of exp(s(q, c) / t)

    What is known to answer q too (`Compared.known`) never stands in Z. The named losses of this file are this one.

    Args:
        directions: the parts of Z, of `DIRECTIONS`; within the own side a thing is not compared with itself, nor with
            what belongs to the same query. joint: one Z of all parts; else a Z a part, and the mean of their logarithms.
        hard_negatives: "all" in the batch stand in Z, or each query's "own", or "none".
        hardness: so many times its own similarity, held constant, is added to the logit of a negative, `hardness_of`
            of `Hardness`: w = exp(hardness * sg(s)).
        margin: a candidate whose similarity exceeds that of q and d+ by more is taken for one that answers too, and left
            out; `relative`: by more than so many times its size. by: the similarity of the model itself ("self") or of
            the "teacher". same_modality: candidates of another modality than d+ are left out (UNITE).
        hardest: so many of the nearest negatives stay, None: all.
        positive_above: of graded pairs those with a score above this are answers, the others' documents negatives; where a batch
            has no answer the loss is 0. None: all of them are answers, and no score is read.

    Raises:
        SpecError: settings that do not go together, no document is a positive, or scores are asked for and not said.
    """
    _together({"directions": directions, "joint": joint, "margin": margin, "relative": relative, "by": by})
    if positive_above is not None:
        compared = _answering(compared, positive_above)
    queries, documents = compared.queries, compared.documents
    positives = compared.positive.nonzero().flatten()
    if not len(positives):
        if positive_above is not None:  # by chance a batch has none
            return torch.zeros((), device=positives.device)
        raise SpecError("no document is a positive of its query: there is nothing to find")
    similar = similarity_of(similarity)
    every = torch.arange(len(documents), device=positives.device)

    def log_share(pairs: Int[Tensor, " R"]) -> Float[Tensor, " R"]:
        """log of the share of Z that each pair has, negative."""
        who = compared.owner[pairs]
        asked, told = queries.take(who), documents.take(pairs)
        right, own = every == pairs[:, None], compared.owner == who[:, None]
        known = compared.known(who)
        kept = {"all": None, "own": compared.positive | own, "none": compared.positive.expand_as(own)}[hard_negatives]
        beside = known if kept is None else known | ~kept
        me = torch.arange(len(queries), device=who.device) == who[:, None]
        no = torch.zeros_like(me)
        asks = {"query_to_query", "document_to_query"} & {*directions}
        answered = compared.known(torch.arange(len(queries), device=who.device), pairs).T if asks else no
        # of each part: its two sides, whether the second one asks, what is left out, where the pair itself stands
        sides: dict[str, tuple[Embedded, Embedded, bool, Off, Off]] = {
            "query_to_document": (asked, documents, False, beside & ~right, right),
            "query_to_query": (asked, queries, False, answered, no),
            "document_to_query": (told, queries, True, answered & ~me, me),
            "document_to_document": (told, documents, False, beside | own, torch.zeros_like(own)),
            "positive_to_positive": (told, documents, False, known | own | ~compared.positive, torch.zeros_like(own)),
        }
        parts, bar = [], None
        for direction in sorted(directions, key=DIRECTIONS.index):
            a, b, turned, off, pair = sides[direction]
            scores = similar(b, a).T if turned else similar(a, b)
            if margin is not None:
                judged = (scores if by == "self" else teacher_cosine(a, b)).detach()
                if bar is None:
                    near = judged.gather(1, pairs[:, None])
                    bar = near + margin * (near.abs() if relative else 1.0)
                off = off | (judged > bar) & ~pair
            if same_modality:
                mine = documents.of("modality")[pairs] if b is documents else queries.of("modality")[who]
                off = off | (b.of("modality") != mine[:, None])
            logits = scores / temperature
            if hardness and direction in BETWEEN:
                hard = own & ~compared.positive if b is documents else no
                weighed = {"in_batch": ~(own if b is documents else me), "hard": hard, "all": ~pair}[hardness_of]
                logits = logits + hardness * scores.detach() * weighed
            if hardest is not None:
                logits = _nearest(logits, off, pair, hardest)
            parts.append(logits.masked_fill(off, float("-inf")))
        right_logit = parts[0].gather(1, pairs[:, None])[:, 0]
        if joint:
            return right_logit - torch.cat(parts, dim=1).logsumexp(1)
        return right_logit - torch.stack([part.logsumexp(1) for part in parts]).mean(0)

    return -blockwise(log_share, positives, len(directions) * len(documents)).mean()


def _answering(compared: Compared, above: float) -> Compared:
    """The same, of whose pairs only those with a score `above` are answers, and so is what else answers their queries."""
    positive = compared.positive & (compared.scores > above)
    also = compared.also
    if also is not None:
        also = also[torch.isin(also[:, 0], compared.owner[positive])]
    return replace(compared, positive=positive, also=also)


def _nearest(logits: Logits, off: Off, pair: Off, most: int) -> Logits:
    """Logits, all but the pair's own and the `most` nearest of the others at -inf."""
    others = logits.detach().masked_fill(off | pair, float("-inf"))
    least = others.topk(min(most, others.shape[1]), dim=1).values[:, -1:]
    return logits.masked_fill(~pair & (others < least), float("-inf"))


@objective("symmetric", contrastive=True)
def symmetric(
    compared: Compared,
    *,
    temperature: Above0 | Tensor = 0.02,
    similarity: Similarity = "cosine",
    same_modality: bool = False,
) -> Float[Tensor, ""]:
    """InfoNCE of queries among documents and of documents among queries, the mean of both (CLIP, arXiv 2103.00020).

    Hard negatives stand among the documents only.
    """
    return infonce(
        compared,
        temperature=temperature,
        similarity=similarity,
        directions=BETWEEN,
        joint=False,
        same_modality=same_modality,
    )


@objective("simcse", "vectors", contrastive=True)
def simcse(compared: Compared, *, temperature: Above0 | Tensor = 0.05) -> Float[Tensor, ""]:
    """InfoNCE at 0.05 (SimCSE, arXiv 2104.08821; LLM2Vec's second step, arXiv 2404.05961): unsupervised, where the documents
    are the queries embedded once more under another dropout; supervised, where they are entailed and contradicted sentences."""
    return infonce(compared, temperature=temperature)


@objective("gte", contrastive=True)
def gte(
    compared: Compared, *, temperature: Above0 | Tensor = 0.01, similarity: Similarity = "cosine"
) -> Float[Tensor, ""]:
    """One denominator of all four kinds of pairs (GTE, arXiv 2308.03281):

    Z_i = sum_j e^s(q_i, d_j)/t + sum_{j != i} e^s(q_i, q_j)/t + sum_j e^s(q_j, d_i)/t + sum_{j != i} e^s(d_j, d_i)/t
    """
    return infonce(compared, temperature=temperature, similarity=similarity, directions=DIRECTIONS[:4])


@objective("qwen3", contrastive=True)
def qwen3(
    compared: Compared,
    *,
    temperature: Above0 | Tensor = 0.01,
    margin: float = 0.1,
    same_tower: bool = True,
    similarity: Similarity = "cosine",
) -> Float[Tensor, ""]:
    """Own hard negatives, other queries' positives, queries and positives of the own tower, less what looks like a false
    negative (Qwen3-Embedding, arXiv 2506.05176):

    Z_i = e^s(q_i, d_i)/t + sum_k m_ik e^s(q_i, d_ik-)/t + sum_{j != i} m_ij (e^s(q_i, q_j)/t + e^s(d_i, d_j)/t + e^s(q_i, d_j)/t)

    where m is 0 for s above s(q_i, d_i) + `margin` and for equal documents. `same_tower=False` leaves the q-q and d-d parts out
    (second stage of Qwen3-VL-Embedding).
    """
    return infonce(
        compared,
        temperature=temperature,
        similarity=similarity,
        directions=(DIRECTIONS[0], DIRECTIONS[1], DIRECTIONS[4]) if same_tower else DIRECTIONS[:1],
        hard_negatives="own",
        margin=margin,
    )


@objective("embeddinggemma", "vectors", contrastive=True)
def embeddinggemma(
    compared: Compared, *, temperature: Above0 | Tensor = 0.02, hardness: Least0 = 5.0
) -> Float[Tensor, ""]:
    """InfoNCE in which the own hard negative weighs w = exp(hardness * sg(s(q, d-))) (EmbeddingGemma, arXiv 2509.20354):

    Z_i = w_i e^s(q_i, d_i-)/t + sum_j e^s(q_i, d_j)/t, equal queries and documents left out.
    """
    return infonce(compared, temperature=temperature, hard_negatives="own", hardness=hardness, hardness_of="hard")


@objective("llave", "vectors", contrastive=True)
def llave(compared: Compared, *, temperature: Above0 | Tensor = 0.02, hardness: Least0 = 9.0) -> Float[Tensor, ""]:
    """Symmetric InfoNCE in which every negative weighs exp(hardness * sg(s)) (LLaVE, arXiv 2503.04812; its code defaults to
    0.5, its paper and README use 9)."""
    return infonce(
        compared, temperature=temperature, directions=BETWEEN, joint=False, hardness=hardness, hardness_of="all"
    )


@objective("gist", "vectors", "teacher", contrastive=True)
def gist(
    compared: Compared,
    *,
    temperature: Above0 | Tensor = 0.01,
    margin: float = 0.0,
    relative: bool = False,
    queries: bool = True,
    positives: bool = True,
) -> Float[Tensor, ""]:
    """InfoNCE against documents, other queries and other positives, less those that a guide finds as near to the query's side
    as its positive: g(a, c) > g(q, d+) - margin, or - margin * |g(q, d+)| (GISTEmbed, arXiv 2402.16829).

    Args:
        queries, positives: whether the q-q and d-d parts stand in the denominator.
    """
    directions = [DIRECTIONS[0], *(DIRECTIONS[1:2] if queries else ()), *(DIRECTIONS[4:] if positives else ())]
    return infonce(
        compared, temperature=temperature, directions=directions, margin=-margin, relative=relative, by="teacher"
    )


@objective("positive_aware", "vectors", "teacher", contrastive=True)
def positive_aware(
    compared: Compared, *, temperature: Above0 | Tensor = 0.02, share: Annotated[float, Range(above=0, most=1)] = 0.95
) -> Float[Tensor, ""]:
    """InfoNCE over the candidates that a teacher scores below `share` of the positive (TopK-PercPos of NV-Retriever,
    arXiv 2407.15831, in the batch)."""
    return infonce(compared, temperature=temperature, margin=share - 1, relative=True, by="teacher")


@objective("hardest_negatives", "vectors", contrastive=True)
def hardest_negatives(
    compared: Compared, *, temperature: Above0 | Tensor = 0.02, margin: float = 0.1, most: Count = 8
) -> Float[Tensor, ""]:
    """InfoNCE against the `most` nearest documents that do not exceed the positive by `margin` (UniME, arXiv 2504.17432)."""
    return infonce(compared, temperature=temperature, margin=margin, hardest=most)


@objective("modality_aware", "vectors", "modality", contrastive=True)
def modality_aware(compared: Compared, *, temperature: Above0 | Tensor = 0.02) -> Float[Tensor, ""]:
    """InfoNCE against the documents of the positive's own modality (UNITE's MAMCL, arXiv 2505.19650)."""
    return infonce(compared, temperature=temperature, same_modality=True)


@objective("late_interaction", contrastive=True)
def late_interaction(
    compared: Compared, *, temperature: Above0 | Tensor = 0.02, similarity: Similarity = "meanmaxsim"
) -> Float[Tensor, ""]:
    """InfoNCE of MaxSim (ColBERT, arXiv 2004.12832), over the number of a query's tokens as in colpali-engine's loss."""
    return infonce(compared, temperature=temperature, similarity=similarity)


@objective("late_interaction_pairwise", contrastive=True)
def late_interaction_pairwise(
    compared: Compared,
    *,
    temperature: Above0 = 0.02,
    similarity: Similarity = "meanmaxsim",
    in_batch: Share = 0.5,
) -> Float[Tensor, ""]:
    """Each hard negative against its positive, and InfoNCE (colpali-engine's losses with explicit negatives):

    L = (1 - in_batch) * mean over (q, d+, d-) of softplus((s(q, d-) - s(q, d+)) / t) + in_batch * InfoNCE over the positives

    Where no query has a hard negative, the nearest other document takes its place (ColPali, arXiv 2407.01449).
    """
    said = paired(compared, similarity)
    right, wrong = compared.positive.nonzero().flatten(), (~compared.positive).nonzero().flatten()
    pairs = (compared.owner[right, None] == compared.owner[wrong]).nonzero()
    if len(pairs):
        far, near = said[right[pairs[:, 0]]], said[wrong[pairs[:, 1]]]
    else:
        scores = similarity_of(similarity)(compared.queries, compared.documents)
        own = compared.known(torch.arange(len(scores), device=scores.device))
        far, near = said[right], scores.masked_fill(own, float("-inf")).amax(1)[compared.owner[right]]
    apart = F.softplus((near - far) / temperature).mean()
    if not in_batch:
        return apart
    among = infonce(compared, temperature=temperature, similarity=similarity, hard_negatives="none")
    return (1 - in_batch) * apart + in_batch * among


@losses.register("siglip")
class SigLIP(Loss):
    """Every pair by itself, yes or no (arXiv 2303.15343), with learnt scale and bias:

        L = -1/B sum over i, j of log sigmoid(z_ij (scale * cos(q_i, d_j) + bias)),     z = 1 where d_j answers q_i, else -1

    Args:
        scale, bias: where they start.
    """

    needs = frozenset({"vectors"})
    contrastive = True

    def __init__(self, width: int | None, teacher_width: int | None, *, scale: Above0 = 10.0, bias: float = -10.0):
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(scale).log())
        self.bias = nn.Parameter(torch.tensor(float(bias)))

    def measure(self, compared: Compared) -> Float[Tensor, ""]:
        def each(rows: Int[Tensor, " R"]) -> Float[Tensor, " R"]:
            cosines = cosine(compared.queries.take(rows), compared.documents)
            logits = cosines * self.log_scale.exp() + self.bias
            return F.logsigmoid(torch.where(compared.known(rows), logits, -logits)).sum(1)

        every = torch.arange(len(compared.queries), device=compared.owner.device)
        return -blockwise(each, every, len(compared.documents)).mean()


@losses.register("learnt_temperature")
class LearntTemperature(Loss):
    """Another loss whose temperature is learnt with the model (CLIP, arXiv 2103.00020).

    Args:
        loss: settings of a loss that takes a temperature. temperature: where it starts. least: what it never goes below.

    Raises:
        SpecError: the loss takes none, or says one of its own; it would start below `least`.
    """

    def __init__(
        self,
        width: int | None,
        teacher_width: int | None,
        *,
        loss: Settings,
        temperature: Above0 = 0.07,
        least: Above0 = 0.01,
    ):
        super().__init__()
        if temperature < least:
            raise SpecError(f"temperature={temperature} begins below the least that it may be: least={least}")
        inner = build_loss(loss, width=width, teacher_width=teacher_width)
        # By others' temperatures agreement with a teacher is measured: the loss falls by itself as they rise or fall.
        if not isinstance(inner, Plain) or Tensor not in get_args(get_type_hints(inner.formula).get("temperature")):
            raise SpecError(f"the loss {loss['kind']!r} takes no temperature that could be learnt")
        if "temperature" in loss:
            raise SpecError(
                f"the temperature of the loss {loss['kind']!r} is learnt: say where it starts beside `loss`, not in it"
            )
        self.loss, self.needs, self.contrastive, self.least = inner, inner.needs, inner.contrastive, least
        self.log_temperature = nn.Parameter(torch.tensor(temperature).log())

    def measure(self, compared: Compared) -> Float[Tensor, ""]:
        with torch.no_grad():  # kept there, where a clamped one would have no gradient and never come back
            self.log_temperature.clamp_(min=math.log(self.least))
        temperature = self.log_temperature.exp()
        return self.loss.formula(compared, **{**self.loss.settings, "temperature": temperature})
