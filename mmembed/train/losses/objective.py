"""A loss: a number for what was compared; the registry of losses, and how a formula becomes one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...errors import UnknownName
from ...registry import Registry
from ..compared import SIMILARITIES, Compared
from ..signatures import Place, Range, called

Formula = Callable[..., Float[Tensor, ""]]
"""formula(compared, *, settings) -> a number in fp32."""
PREDICTED = "predicted"
"""What a loss of a language head reads."""

Above0 = Annotated[float, Range(above=0)]
Least0 = Annotated[float, Range(least=0)]
Share = Annotated[float, Range(least=0, most=1)]
Count = Annotated[int, Range(least=1)]
Judge = Literal["self", "teacher"]
"""Whose vectors are gone by: the model's own or its teacher's."""


def _known(name: str, place: Place) -> None:
    if name not in SIMILARITIES:
        raise place.error(UnknownName("similarity", name, SIMILARITIES))


Similarity = Annotated[str, _known]
"""A name of `SIMILARITIES`."""


class Loss(nn.Module):
    """What was compared -> one number in fp32, the less the better; it never runs a model.

    Attributes:
        needs: names of what it reads: fields of `Embedded`, "score", "predicted".
        alone: what is in a batch is measured one by one: no thing is another's negative, and equal ones may stand in it.
        contrastive: a query's positive is to be told from others: a pair with none beside it teaches nothing of use, and one of
            a thing and itself only that others lie apart.
    """

    needs: frozenset[str] = frozenset()
    alone: bool = False
    contrastive: bool = False

    def forward(self, compared: Compared) -> Float[Tensor, ""]:
        with torch.autocast(compared.owner.device.type, enabled=False):
            return self.measure(compared)

    def measure(self, compared: Compared) -> Float[Tensor, ""]:
        """The number; no product in it is made in less than fp32."""
        raise NotImplementedError


losses: Registry[Callable[..., Loss]] = Registry("loss")


class Plain(Loss):
    """A loss without weights: a formula with its settings."""

    def __init__(self, formula: Formula, settings: Mapping[str, Any], needs: Iterable[str], contrastive: bool):
        super().__init__()
        self.contrastive = contrastive
        self.formula, self.settings = formula, dict(settings)
        self.needs = frozenset(needs) | _read_by(self.settings)

    def measure(self, compared: Compared) -> Float[Tensor, ""]:
        return self.formula(compared, **self.settings)

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value!r}" for key, value in self.settings.items())


def objective(
    name: str, *needs: str, contrastive: bool = False, check: Callable[[Mapping[str, Any]], None] | None = None
) -> Callable[[Formula], Formula]:
    """Register a formula under `name`; its keyword-only arguments are the settings.

    Args:
        needs: what it reads, besides what the settings `similarity`, `by` and `positive_above` say.
        contrastive: see `Loss`.
        check: is called with all settings as the loss is built, and raises those that do not go together.
    """

    def add(formula: Formula) -> Formula:
        own = [p for p in inspect.signature(formula).parameters.values() if p.kind is p.KEYWORD_ONLY]
        given = [inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD) for n in ("width", "teacher_width")]

        def make(width: int | None, teacher_width: int | None, **settings: Any) -> Loss:
            every = {p.name: settings.get(p.name, p.default) for p in own}
            if check is not None:
                check(every)
            return Plain(formula, every, needs, contrastive)

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
        UnknownName: no such loss, no such setting, or a name that is none.
        SpecError: a setting of another type or outside its range, or settings that do not go together.
    """
    place = Place("").at(f"the loss {settings['kind']!r}" if "kind" in settings else "a loss")
    built: Loss = called(losses, settings, place, width=width, teacher_width=teacher_width)
    return built


def check_loss(settings: Mapping[str, Any], place: Place) -> None:
    """Raises: SpecError, UnknownName, as `build_loss`; where settings stand in a file, with the line."""
    called(losses, settings, place, width=None, teacher_width=None)


Settings = Annotated[Mapping[str, Any], check_loss]
"""The settings of a loss, its kind among them."""


def needs_of(settings: Mapping[str, Any]) -> frozenset[str]:
    """What the loss of these settings reads, of whatever model."""
    return build_loss({key: value for key, value in settings.items() if key != "weight"}).needs


def measures_alone(settings: Mapping[str, Any]) -> bool:
    """Whether the loss of these settings measures things one by one."""
    return build_loss({key: value for key, value in settings.items() if key != "weight"}).alone


def is_contrastive(settings: Mapping[str, Any]) -> bool:
    """Whether the loss of these settings, or one within it, finds positives among others."""
    return build_loss({key: value for key, value in settings.items() if key != "weight"}).contrastive


def _read_by(settings: Mapping[str, Any]) -> frozenset[str]:
    """What the settings `similarity`, `by` and `positive_above` have a loss read."""
    needs = {SIMILARITIES[settings["similarity"]][1]} if "similarity" in settings else set()
    needs |= {"teacher"} if settings.get("by") == "teacher" else set()
    return frozenset(needs | ({"score"} if settings.get("positive_above") is not None else set()))
