"""Token heads: the states of the counted tokens of an item become vectors, one a token; and clusters of such vectors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import SpecError
from ..registry import Registry
from .precision import unit

if TYPE_CHECKING:
    from numpy.typing import NDArray

Vectors = Float[Tensor, "C d"]

token_heads: Registry[Callable[..., nn.Module]] = Registry("token head")


def build_token_head(settings: Mapping[str, Any], width: int) -> nn.Module:
    """The head that `settings["kind"]` names, for states of `width`; its `.out` is the width of what it returns, and it
    takes the states (C, D) of the counted tokens."""
    return token_heads.build(settings, width=width)


@token_heads.register("states")
class States(nn.Module):
    """The states as they are, of unit length if asked for."""

    def __init__(self, width: int, *, normalize: bool = False):
        super().__init__()
        self.out, self.normalize = width, normalize

    def forward(self, states: Float[Tensor, "C D"]) -> Vectors:
        return unit(states.float()) if self.normalize else states.float()


@token_heads.register("dense")
class Dense(nn.Module):
    """W h + b of every token, of unit length (ColBERT, arXiv 2004.12832; BGE-M3, arXiv 2402.03216).

    `out` lists the widths of several layers one after the other, with nothing between them.
    """

    def __init__(self, width: int, *, out: int | list[int], bias: bool = True, normalize: bool = True):
        super().__init__()
        widths = [out] if isinstance(out, int) else list(out)
        self.out, self.normalize = widths[-1], normalize
        self.layers = nn.ModuleList(nn.Linear(a, b, bias=bias) for a, b in zip([width, *widths], widths, strict=False))

    def forward(self, states: Float[Tensor, "C D"]) -> Vectors:
        for layer in self.layers:
            states = layer(states.to(layer.weight.dtype))  # type: ignore[arg-type]
        return unit(states.float()) if self.normalize else states.float()


def pool_tokens(vectors: NDArray[np.float32], factor: float, *, protected: int = 0) -> NDArray[np.float32]:
    """Fewer vectors for a document: clusters of alike tokens, each its mean, of unit length.

    Ward clustering on the cosine distances of unit vectors, into n // factor clusters (at least one), as
    sentence-transformers 6 does it (arXiv 2409.14683). It is for documents, not for queries, and not idempotent.

    Args:
        vectors: (n, d), of unit length. factor: how many become one, on average; 1 leaves them.
        protected: so many at the front stay as they are (a CLS token).

    Returns:
        float32 (protected + clusters, d), clusters in the order of scipy's labels.
    """
    from scipy.cluster import hierarchy
    from scipy.spatial.distance import squareform

    if factor < 1:
        raise SpecError(f"factor={factor}: 1 leaves every token vector, 2 about half of them")
    front, rest = vectors[:protected], vectors[protected:]
    count = max(int(len(rest) // factor), 1)
    if count < len(rest) and np.isfinite(rest).all():
        distances = np.clip(1 - rest @ rest.T, 0, 2).astype(np.float32)
        tree = hierarchy.linkage(squareform(distances, checks=False), method="ward")
        labels = hierarchy.fcluster(tree, t=count, criterion="maxclust")
        _, cluster = np.unique(labels, return_inverse=True)
        sums = np.zeros((cluster.max() + 1, vectors.shape[1]), dtype=np.float32)
        np.add.at(sums, cluster, rest)
        rest = (sums / np.bincount(cluster)[:, None]).astype(np.float32)
    return unit(torch.from_numpy(np.concatenate([front, rest]))).numpy()
