"""A table of one vector a class, which things are to choose from: all classes are compared with at every step."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ...errors import SpecError
from ..compared import Compared
from .objective import Above0, Judge, Least0, Loss, losses


@losses.register("proxies")
class Proxies(Loss):
    """Cross-entropy of picking the proxy p of a query's group among those of all C groups, by cosine (arXiv 1811.12649):

        L = mean over q of  log sum_c exp(cos(q, p_c) / t) - cos(q, p) / t + pull * (1 - cos(q, p))

    Groups are the values of `columns.group`. Under Matryoshka the first numbers of both sides are compared.

    Args:
        temperature: t. start: data, by its name in the recipe, whose queries tell where proxies begin: each at the mean of the
            unit vectors that the model gives those of its group as the stage begins. None: at random.
        by: who gives these vectors: the model ("self"), or the task's "teacher", of what it reads in their place; a teacher's
            are as many numbers as the model's.
        learnt: proxies are trained with the model; else they stay where they began. pull: weight of the distance to the own
            one, which a cross-entropy that is already right forgets.
    """

    needs = frozenset({"vectors", "classes"})
    alone = True

    def __init__(
        self,
        width: int | None,
        teacher_width: int | None,
        *,
        temperature: Above0 = 0.05,
        start: str | None = None,
        by: Judge = "self",
        learnt: bool = True,
        pull: Least0 = 0.0,
    ):
        super().__init__()
        if by == "teacher" and start is None:
            raise SpecError("by = 'teacher' is about the data that proxies begin with: start = '...'")
        if by == "teacher" and None not in (width, teacher_width) and width != teacher_width:
            raise SpecError(f"proxies of {width} numbers cannot begin with a teacher's vectors of {teacher_width}")
        self.temperature, self.start, self.by, self.pull = temperature, start, by, pull
        self.table = nn.Parameter(torch.empty(0, width or 0), requires_grad=learnt)

    def begin(self, vectors: Float[Tensor, "C D"]) -> None:
        """Where the proxies are at first."""
        self.table.data = F.normalize(vectors.detach().float(), dim=-1).to(self.table.device)

    def measure(self, compared: Compared) -> Float[Tensor, ""]:
        if compared.classes is None or not len(self.table):
            raise SpecError("this loss reads which group each query is of, and none is known: columns.group")
        queries = compared.queries.of("vectors")
        own = compared.classes
        table = self.table.to(queries.dtype)[:, : queries.shape[1]]
        near = F.normalize(queries, dim=-1) @ F.normalize(table, dim=-1).T
        far = 1 - near.gather(1, own[:, None]).mean()
        return F.cross_entropy(near / self.temperature, own) + self.pull * far
