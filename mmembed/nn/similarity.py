"""Similarity of two lists of things, by the kind of what stands for them: vectors, sparse weights, or token vectors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import SpecError, check_known
from .precision import unit

BLOCK = 1 << 24
"""Token-to-token similarities that stand at once (64 MB in fp32)."""
MAXSIM = ("maxsim", "meanmaxsim")
"""MaxSim (ColBERT, arXiv 2004.12832), and the same over the number of query tokens (BGE-M3); sentence-transformers' names."""


def kind_of(given: Any) -> str:
    """ "dense" for an array of vectors or a list of such rows, "sparse" for a sparse matrix of scipy, "tokens" for a list of
    arrays (n, d).

    Raises:
        SpecError: none of these.
    """
    if hasattr(given, "tocsr"):
        return "sparse"
    if isinstance(given, (list, tuple)):
        shapes = {np.ndim(each) for each in given}
        if shapes == {2}:
            return "tokens"
        if shapes <= {0, 1} and len(shapes) <= 1:
            return "dense"
    elif np.ndim(given) in (1, 2):
        return "dense"
    raise SpecError(
        "similarity compares vectors (N, D), sparse weights (a scipy array (N, V)), or token vectors (a list of (n, d) "
        f"arrays), not {_shown(given)}"
    )


def are_rows(given: Any) -> bool:
    """Whether it is a list of arrays (1, d) alone, as vectors are that were encoded one by one."""
    return isinstance(given, (list, tuple)) and len(given) > 0 and {np.shape(each)[:-1] for each in given} == {(1,)}


@torch.autocast("cpu", enabled=False)  # a caller's own would round what is compared
def similarity(a: Any, b: Any, *, maxsim: str = "maxsim") -> Float[Tensor, "N M"]:
    """Every one of `a` with every one of `b`, in fp32: cosine of vectors, dot product of sparse weights, MaxSim of token
    vectors, where `a` are queries and `b` documents. One that was skipped has NaN throughout.

    Raises:
        SpecError: two kinds, or two widths. UnknownName: `maxsim` is none of `MAXSIM`.
    """
    check_known("similarity of token vectors", maxsim, MAXSIM)
    kinds = kind_of(a), kind_of(b)
    if kinds[0] != kinds[1]:
        raise SpecError(f"{kinds[0]} and {kinds[1]} are not compared: encode both sides the same way")
    if kinds[0] == "dense":
        left, right = (_rows(x) for x in (a, b))
        _same_width(left.shape[-1], right.shape[-1])
        return unit(left) @ unit(right).T
    if kinds[0] == "sparse":
        return dot(a, b)
    queries, documents = ([torch.as_tensor(x, device="cpu") for x in side] for side in (a, b))
    return max_similarity(queries, documents, mean=maxsim == "meanmaxsim")


def _rows(vectors: Any) -> Float[Tensor, "N D"]:
    """As a tensor on the host, of whatever layout, byte order or type they are."""
    if isinstance(vectors, Tensor):
        return torch.atleast_2d(vectors.detach().float().cpu())
    found = np.require(np.atleast_2d(vectors), np.float32, "C")
    return torch.from_numpy(
        found if found.flags.writeable else found.copy()
    )  # torch warns of a file that is mapped into memory


def dot(a: Any, b: Any) -> Float[Tensor, "N M"]:
    """Dot product of sparse rows (N, V) and (M, V) of scipy; a row that holds a NaN was skipped and gives NaN throughout."""
    _same_width(a.shape[1], b.shape[1])
    scores = (a.tocsr().astype(np.float32) @ b.tocsr().astype(np.float32).T).toarray()
    for rows, sparse in ((scores, a), (scores.T, b)):
        rows[np.isnan(np.asarray(sparse.sum(axis=1)).reshape(-1))] = np.nan
    return torch.from_numpy(scores)


def max_similarity(
    queries: Sequence[Float[Tensor, "n d"]], documents: Sequence[Float[Tensor, "m d"]], *, mean: bool = False
) -> Float[Tensor, "N M"]:
    """Sum over the tokens of a query of the greatest dot product with a token of the document; `mean`: over their number.

    Exact: nothing is padded, so no padding can be the greatest; in fp32, some blocks of documents at a time. A document
    without tokens lies at -inf from a query that has some; a query without tokens at 0 from everything.
    """
    _same_width(*({x.shape[1] for x in side} for side in (queries, documents)))
    out = torch.zeros(len(queries), len(documents), dtype=torch.float32, device="cpu")
    for first, last in _blocks([len(q) for q in queries], 1 << 10):
        asked, whose = _row(queries[first:last])
        counts = torch.bincount(whose, minlength=last - first)
        for begin, end in _blocks([len(d) for d in documents], max(1, BLOCK // max(len(asked), 1))):
            told, where = _row(documents[begin:end])
            best = told.new_full((end - begin, len(asked)), float("-inf"))
            best = best.scatter_reduce(0, where[:, None].expand(-1, len(asked)), told @ asked.T, "amax")
            score = told.new_zeros(last - first, end - begin).index_add(0, whose, best.T)
            out[first:last, begin:end] = score / counts.clamp(min=1)[:, None] if mean else score
    return out


def _row(many: Sequence[Tensor]) -> tuple[Float[Tensor, "T d"], Tensor]:
    """All of them as one packed row, and whose each token is."""
    row = torch.cat([each.float() for each in many])
    lengths = torch.tensor([len(each) for each in many], device=row.device)
    return row, torch.arange(len(many), device=row.device).repeat_interleave(lengths)


def _blocks(lengths: Sequence[int], budget: int) -> Iterator[tuple[int, int]]:
    """Runs of neighbours, first and past the last, of at most `budget` tokens or of one."""
    first, used = 0, 0
    for place, length in enumerate(lengths):
        if place > first and used + length > budget:
            yield first, place
            first, used = place, 0
        used += length
    if first < len(lengths):
        yield first, len(lengths)


def _same_width(a: Any, b: Any) -> None:
    widths = (a if isinstance(a, set) else {a}) | (b if isinstance(b, set) else {b})
    if len(widths) > 1:
        raise SpecError(f"widths differ: {sorted(widths)}; both sides must come from one model")


def _shown(given: Any) -> str:
    if isinstance(given, (list, tuple)):
        return f"a list of arrays of {sorted({np.ndim(each) for each in given})} axes"
    return f"{type(given).__name__} of {np.ndim(given)} axes"
