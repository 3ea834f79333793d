"""A loss: a number for what was compared; the registry of losses, and how a formula becomes one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...errors import SpecError, UnknownName
from ...registry import Registry
from ..compared import SIMILARITIES, Compared

Formula = Callable[..., Float[Tensor, ""]]
"""formula(compared, *, settings) -> a number in fp32."""
PREDICTED = "predicted"
"""What a loss of a language head reads."""


class Loss(nn.Module):
    """What was compared -> one number in fp32, the less the better; it never runs a model.

    Attributes:
        needs: names of what it reads: fields of `Embedded`, "score", "predicted".
        alone: what is in a batch is measured one by one: no thing is another's negative, and equal ones may stand in it.
    """

    needs: frozenset[str] = frozenset()
    alone: bool = False

    def forward(self, compared: Compared) -> Float[Tensor, ""]:
        with torch.autocast(compared.owner.device.type, enabled=False):
            return self.measure(compared)

    def measure(self, compared: Compared) -> Float[Tensor, ""]:
        """The number; no product in it is made in less than fp32."""
        raise NotImplementedError


losses: Registry[Callable[..., Loss]] = Registry("loss")


class Plain(Loss):
    """A loss without weights: a formula with its settings."""

    def __init__(self, formula: Formula, settings: Mapping[str, Any], needs: Iterable[str]):
        super().__init__()
        self.formula, self.settings = formula, dict(settings)
        self.needs = frozenset(needs) | read_by(self.settings)

    def measure(self, compared: Compared) -> Float[Tensor, ""]:
        return self.formula(compared, **self.settings)

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value!r}" for key, value in self.settings.items())


def objective(name: str, *needs: str) -> Callable[[Formula], Formula]:
    """Register a formula under `name`; its keyword-only arguments are the settings.

    Args:
        needs: what it reads, besides what the settings `similarity` and `by` say.
    """

    def add(formula: Formula) -> Formula:
        own = [p for p in inspect.signature(formula).parameters.values() if p.kind is p.KEYWORD_ONLY]
        given = [inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD) for n in ("width", "teacher_width")]

        def make(width: int | None, teacher_width: int | None, **settings: Any) -> Loss:
            return Plain(formula, {p.name: settings.get(p.name, p.default) for p in own}, needs)

        make.__signature__ = inspect.Signature([*given, *own])  # type: ignore[attr-defined]
        make.__doc__, make.__wrapped__ = formula.__doc__, formula  # type: ignore[attr-defined]
        losses.register(name)(make)
        return formula

    return add


def build_loss(settings: Mapping[str, Any], *, width: int | None = None, teacher_width: int | None = None) -> Loss:
    """The loss that `settings["kind"]` names; its parameters, where it has some, are trained with the model's.

    Args:
        width: numbers of a vector of the model. teacher_width: of the teacher's.

    Raises:
        SpecError, UnknownName: as `Registry.build`, or a setting outside its range.
    """
    built: Loss = losses.build(settings, width=width, teacher_width=teacher_width)
    return built


def needs_of(settings: Mapping[str, Any]) -> frozenset[str]:
    """What the loss of these settings reads, of whatever model."""
    return build_loss({key: value for key, value in settings.items() if key != "weight"}).needs


def measures_alone(settings: Mapping[str, Any]) -> bool:
    """Whether the loss of these settings measures things one by one."""
    return build_loss({key: value for key, value in settings.items() if key != "weight"}).alone


def read_by(settings: Mapping[str, Any]) -> frozenset[str]:
    """What the settings `similarity` and `by` have a loss read.

    Raises:
        UnknownName, SpecError: no such similarity, filter or temperature.
    """
    needs = set()
    similarity, by = settings.get("similarity"), settings.get("by")
    if similarity is not None:
        if similarity not in SIMILARITIES:
            raise UnknownName("similarity", similarity, SIMILARITIES)
        needs.add(SIMILARITIES[similarity][1])
    if by is not None:
        if by not in ("self", "teacher"):
            raise UnknownName("source of scores", by, ("self", "teacher"))
        needs |= {"teacher"} if by == "teacher" else set()
    for name in ("temperature", "teacher_temperature", "scale"):
        value = settings.get(name)
        if isinstance(value, (int, float)) and not value > 0:
            raise SpecError(f"{name}={value!r} is no number above 0")
    return frozenset(needs)
