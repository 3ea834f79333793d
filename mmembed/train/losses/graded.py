"""Losses of graded pairs: what people score higher shall lie nearer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..compared import Compared, paired
from .objective import Above0, Similarity, objective


@objective("cosent", "score")
def cosent(compared: Compared, *, scale: Above0 = 20.0, similarity: Similarity = "cosine") -> Float[Tensor, ""]:
    """CoSENT (Su, 2022; doi 10.1109/TASLP.2024.3402087), over the pairs of a document and its query:

    L = log(1 + sum over i, j with y_i > y_j of exp(scale * (s_j - s_i)))
    """
    return _in_order(paired(compared, similarity) * scale, compared.scores)


@objective("angle", "score", "vectors")
def angle(compared: Compared, *, scale: Above0 = 20.0) -> Float[Tensor, ""]:
    """CoSENT over the angle of vectors read as complex numbers, the first half real (AnglE, arXiv 2309.12871):

    s = |sum over dimensions of Re and Im of q / d| * |d| / |q|,     which is |cos + sin| of both

    AnglE's total is this, 0.02 of it in its code, beside "cosent" and "infonce", whose `positive_above` says which pairs are
    answers.
    """
    a, b = compared.queries.of("vectors")[compared.owner], compared.documents.of("vectors")
    if a.shape[1] % 2:
        a, b = F.pad(a, (0, 1)), F.pad(b, (0, 1))
    (a, b), (c, d) = (F.normalize(x, dim=-1).chunk(2, dim=-1) for x in (a, b))
    turned = (a * c + b * d).sum(-1) + (b * c - a * d).sum(-1)
    return _in_order(turned.abs() * scale, compared.scores)


def _in_order(similarity: Float[Tensor, " N"], grade: Float[Tensor, " N"]) -> Float[Tensor, ""]:
    """log(1 + sum over i, j with y_i > y_j of exp(s_j - s_i)), by sorting: sums from behind hold all that is graded higher."""
    grade, order = grade.sort()
    similarity = similarity[order]
    none = similarity.new_full((1,), float("-inf"))
    behind = torch.cat([(-similarity).flip(0).logcumsumexp(0).flip(0), none])
    higher = torch.searchsorted(grade, grade, right=True)
    ranked = higher < len(grade)
    return torch.cat([similarity.new_zeros(1), similarity[ranked] + behind[higher[ranked]]]).logsumexp(0)
