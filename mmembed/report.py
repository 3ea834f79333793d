"""What an encode did: items, tokens, what was skipped and cut; the bar that shows how far it is, and what is said at its end."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Skipped:
    """An item that was not embedded: its row in the caller's list, and why."""

    row: int
    reason: str


@dataclass
class Report:
    """What an `encode` did; give one to be told.

    Attributes:
        skipped: items left out under on_error="skip"; their rows are NaN. truncated: rows of texts cut short.
        items, tokens, images: how many were embedded. seconds: wall time.
    """

    skipped: list[Skipped] = field(default_factory=list)
    truncated: list[int] = field(default_factory=list)
    items: int = 0
    tokens: int = 0
    images: int = 0
    seconds: float = 0.0


def progress(things: object, shown: bool) -> Any:
    from tqdm.auto import tqdm

    total = len(things) if isinstance(things, Sequence) else None
    return tqdm(total=total, desc="embedding", unit="item", disable=not shown)


def warn(told: Report, before: tuple[int, int], asked: bool, longest: int) -> None:
    """Say what a caller who gave no report would otherwise not learn."""
    skipped, cut = told.skipped[before[0] :], told.truncated[before[1] :]
    if skipped and not asked:
        shown = "; ".join(f"item {s.row}: {s.reason}" for s in skipped[:3])
        warnings.warn(f"{len(skipped)} items were skipped, their rows are NaN: {shown}", stacklevel=4)
    if cut and not asked:
        warnings.warn(
            f"{len(cut)} items were longer than {longest} tokens and were cut (first: {cut[0]})", stacklevel=4
        )
