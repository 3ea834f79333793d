"""Losses over other losses: of vectors cut short, of models cut short, and of both."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ...errors import SpecError
from ..compared import Compared
from ..signatures import filled
from .objective import Above0, Count, Least0, Loss, Settings, build_loss, losses

Weighting = Literal["uniform", "linear", "log"]
"""Of a layer k, counted from 0: 1, 1 / (1 + k), 1 / (1 + ln(1 + k))."""


@losses.register("sum")
class Sum(Loss):
    """Several losses of the same things, each with its weight: L = w_1 * L_1 + w_2 * L_2 + ...

    AnglE's (arXiv 2309.12871) are "cosent", "angle" and "infonce" with `positive_above`. GritLM's, of vectors and of a language
    head (arXiv 2402.09906), are no sum of this kind but two tasks of one stage with together = true.

    Args:
        losses: settings of each. weights: of each; None: 1.
    """

    def __init__(
        self,
        width: int | None,
        teacher_width: int | None,
        *,
        losses: Annotated[Sequence[Settings], filled],
        weights: Sequence[Above0] | None = None,
    ):
        super().__init__()
        self.losses = nn.ModuleList(build_loss(each, width=width, teacher_width=teacher_width) for each in losses)
        self.weights = _weights(weights, len(losses), "losses")
        self.needs = frozenset().union(*(each.needs for each in self.losses))  # type: ignore[arg-type]
        self.alone = all(bool(each.alone) for each in self.losses)
        self.contrastive = any(bool(each.contrastive) for each in self.losses)

    def measure(self, compared: Compared) -> Float[Tensor, ""]:
        parts = [weight * loss(compared) for weight, loss in zip(self.weights, self.losses, strict=True)]
        return torch.stack(parts).sum()


class Over(Loss):
    """A loss over another one."""

    def __init__(self, width: int | None, teacher_width: int | None, loss: Mapping[str, Any], *needs: str):
        super().__init__()
        self.loss = build_loss(loss, width=width, teacher_width=teacher_width)
        self.needs, self.alone = self.loss.needs | set(needs), self.loss.alone
        self.contrastive = self.loss.contrastive


@losses.register("matryoshka")
class Matryoshka(Over):
    """L = sum over dimensions d of w_d * L(z[:d]) (arXiv 2205.13147).

    Args:
        loss: settings of the other. dimensions: the lengths; weights: of each, None: 1.
        per_step: so many of them are drawn each step, by the number of the step; None: all.

    Raises:
        SpecError: a dimension beyond the width of the vectors.
    """

    def __init__(
        self,
        width: int | None,
        teacher_width: int | None,
        *,
        loss: Settings,
        dimensions: Annotated[Sequence[Count], filled],
        weights: Sequence[Above0] | None = None,
        per_step: Count | None = None,
    ):
        super().__init__(width, teacher_width, loss)
        inner: Any = self.loss
        parts: list[tuple[Any, Any]] = (
            [*zip(loss["losses"], inner.losses, strict=True)] if isinstance(inner, Sum) else [(loss, inner)]
        )
        for said, own in parts:
            if "vectors" not in own.needs:
                raise SpecError(
                    f"{said['kind']!r} reads no vectors, of which dimensions={list(dimensions)} could be cut"
                )
        if width is not None and max(dimensions) > width:
            raise SpecError(f"dimensions={list(dimensions)}: each lies between 1 and the {width} numbers of a vector")
        self.dimensions = tuple(zip(dimensions, _weights(weights, len(dimensions), "dimensions"), strict=True))
        self.per_step = per_step

    def measure(self, compared: Compared) -> Float[Tensor, ""]:
        wide = compared.queries.of("vectors").shape[1]
        parts = []
        for k in _drawn(len(self.dimensions), self.per_step, compared.step, of=0):
            dimension, weight = self.dimensions[k]
            if dimension > wide:
                raise SpecError(f"a dimension of {dimension} is more than the {wide} numbers of a vector")
            parts.append(weight * self.loss(compared.shortened(dimension)))
        return torch.stack(parts).sum()


@losses.register("adaptive_layers")
class AdaptiveLayers(Over):
    """The model cut short behind some of its layers (2DMSE, arXiv 2402.14776, as sentence-transformers has it):

        L = last * L(z_n) + prior * mean over the drawn k of w_k * L(z_k)
            + sum over the drawn k of t * kl * KL(softmax(z_n / t) || softmax(z_k / t))

    2D-Matryoshka is this over "matryoshka" with per_step=1, see "matryoshka_2d".

    Args:
        loss: settings of the other. per_step: so many layers are drawn each step; None: all. last, prior: weights.
        kl, temperature: weight and t of the agreement with the last layer. weighting: w_k, one of `Weighting`.
    """

    def __init__(
        self,
        width: int | None,
        teacher_width: int | None,
        *,
        loss: Settings,
        per_step: Count | None = 1,
        last: Least0 = 1.0,
        prior: Least0 = 1.0,
        kl: Least0 = 1.0,
        temperature: Above0 = 0.3,
        weighting: Weighting = "uniform",
    ):
        super().__init__(width, teacher_width, loss, "vectors", "layers")
        self.per_step, self.last, self.prior = per_step, last, prior
        self.kl, self.temperature, self.weighting = kl, temperature, weighting

    def measure(self, compared: Compared) -> Float[Tensor, ""]:
        total = self.last * self.loss(compared)
        final = (_every(compared).detach() / self.temperature).softmax(-1)
        layers = _drawn(len(compared.queries.of("layers")) - 1, self.per_step, compared.step, of=1)
        for k in layers:
            short = compared.at_layer(k)
            weight = {"uniform": 1.0, "linear": 1 / (1 + k), "log": 1 / (1 + math.log(1 + k))}[self.weighting]
            total = total + self.prior * weight / len(layers) * self.loss(short)
            said = (_every(short) / self.temperature).log_softmax(-1)
            total = total + self.kl * self.temperature * F.kl_div(said, final, reduction="batchmean")
        return total


@losses.register("matryoshka_2d")
class Matryoshka2D(AdaptiveLayers):
    """`AdaptiveLayers` over `Matryoshka`: one layer and one dimension a step (2DMSE, arXiv 2402.14776).

    Args:
        dimensions: lengths. weights: of each; None: 1. The others as in `AdaptiveLayers`.
    """

    def __init__(
        self,
        width: int | None,
        teacher_width: int | None,
        *,
        loss: Settings,
        dimensions: Annotated[Sequence[Count], filled],
        weights: Sequence[Above0] | None = None,
        layers_per_step: Count | None = 1,
        dimensions_per_step: Count | None = 1,
        kl: Least0 = 1.0,
        temperature: Above0 = 0.3,
    ):
        over: dict[str, Any] = {"kind": "matryoshka", "loss": loss, "dimensions": dimensions}
        over |= {"weights": weights, "per_step": dimensions_per_step}
        super().__init__(width, teacher_width, loss=over, per_step=layers_per_step, kl=kl, temperature=temperature)


@losses.register("espresso")
class Espresso(Over):
    """Every layer learns to say in its first k numbers what it says in all (ESE, arXiv 2402.14776):

        L = L(z_n) + L(z_n[:k]) + D(z_n[:k], P(z_n))
            + 1 / (n - 1) * sum over layers i < n - 1 of (L(z_i[:k]) + D(z_i[:k], P(z_i))) / (1 + ln(1 + i))
        P(z) = z U S of the k greatest singular values of softmax(z^T z / sqrt(D)), without a gradient
        D(a, b) = mean squared difference + KL(softmax(b) || softmax(a))

    Each column of U has its largest number positive: singular vectors have no sign of their own.

    Args:
        loss: settings of the other. dimension: k.
    """

    def __init__(self, width: int | None, teacher_width: int | None, *, loss: Settings, dimension: Count = 128):
        super().__init__(width, teacher_width, loss, "vectors", "layers")
        if width is not None and dimension > width:
            raise SpecError(f"dimension={dimension}: it lies between 1 and the {width} numbers of a vector")
        self.dimension = dimension

    def measure(self, compared: Compared) -> Float[Tensor, ""]:
        total = self.loss(compared) + self._cut(compared)
        layers = len(compared.queries.of("layers"))
        for i in range(layers - 1):
            total = total + self._cut(compared.at_layer(i)) / (1 + math.log(1 + i)) / (layers - 1)
        return total

    def _cut(self, compared: Compared) -> Float[Tensor, ""]:
        whole = _every(compared)
        said, due = whole[:, : self.dimension], compressed(whole.detach(), self.dimension)
        agreement = F.mse_loss(said, due) + F.kl_div(said.log_softmax(-1), due.softmax(-1), reduction="batchmean")
        return self.loss(compared.shortened(self.dimension)) + agreement


def compressed(vectors: Float[Tensor, "N D"], dimension: int) -> Float[Tensor, "N k"]:
    """`P` of `Espresso`."""
    near = (vectors.T @ vectors / vectors.shape[1] ** 0.5).softmax(-1)
    axes, sizes, _ = torch.linalg.svd(near)
    axes = axes[:, :dimension]
    axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    return vectors @ axes * sizes[:dimension]


def _every(compared: Compared) -> Float[Tensor, "M D"]:
    return torch.cat([compared.queries.of("vectors"), compared.documents.of("vectors")])


def _drawn(count: int, wanted: int | None, step: int, of: int) -> list[int]:
    """Places of what a step takes: all, or `wanted` of them by chance, whatever is drawn `of` another kind beside."""
    if wanted is None or wanted >= count:
        return list(range(count))
    return sorted(np.random.default_rng([count, step, of]).choice(count, wanted, replace=False).tolist())


def _weights(weights: Sequence[float] | None, count: int, of: str) -> Sequence[float]:
    if weights is not None and len(weights) != count:
        raise SpecError(f"{len(weights)} weights for {count} {of}")
    return weights if weights is not None else [1.0] * count
