"""What an encode did: items, tokens, what was skipped and cut; the bar that shows how far it is, and what is said at its end."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .batch import Sample

PACKAGE = str(Path(__file__).parent) + os.sep


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
        batch_tokens: tokens of a batch at the end. halved: how often memory ran out, and they became half as many.
        resumed: rows that `encode_to` found done.
    """

    skipped: list[Skipped] = field(default_factory=list)
    truncated: list[int] = field(default_factory=list)
    items: int = 0
    tokens: int = 0
    images: int = 0
    seconds: float = 0.0
    batch_tokens: int = 0
    halved: int = 0
    resumed: int = 0

    def add(self, samples: Sequence[Sample], rows: Sequence[int], skipped: Sequence[Skipped]) -> None:
        """Count what came of neighbouring things: their samples, the rows that these belong to, and what was skipped."""
        bad = {each.row for each in skipped}
        kept = [(row, sample) for row, sample in zip(rows, samples, strict=True) if row not in bad]
        self.skipped += skipped
        self.truncated += sorted({row for row, sample in kept if sample.truncated})
        self.items += len({row for row, _ in kept})
        self.tokens += sum(len(sample) for _, sample in kept)
        self.images += sum(len(sample.images) for _, sample in kept)

    def halve(self, tokens: int) -> None:
        """Memory ran out at a batch of so many tokens."""
        self.batch_tokens = max(tokens // 2, 1)
        self.halved += 1
        if self.halved == 1:
            _warn(
                f"memory ran out at a batch of {tokens} tokens; going on with {self.batch_tokens}, or half of that again "
                f"(batch_tokens={self.batch_tokens} begins there, Report.batch_tokens says where it ended)"
            )


class Progress:
    """A bar in items whose time left is told by tokens, of which the work consists: long items come first in a batch, and not
    all windows are alike. A context.

    Args:
        total: items there are to do, where that is known.
    """

    def __init__(self, total: int | None, shown: bool):
        self._total = total
        self._shown = shown
        self._bar: Any = None
        self._known = self._tokens = self._done = 0
        self._window = 0, 0, 0, 0  # of the one at hand: items and tokens before it, items and tokens of it

    def __enter__(self) -> Progress:
        if self._shown:
            from tqdm.auto import tqdm

            left = "[{elapsed}<{remaining}, {rate_fmt}]" if self._total is not None else "[{elapsed}, {rate_fmt}]"
            bar = "{desc}: {percentage:3.0f}%|{bar}| {postfix} " if self._total is not None else "{desc}: {postfix} "
            self._bar = tqdm(desc="embedding", unit=" tokens", unit_scale=True, total=1, bar_format=bar + left)
            self._show()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()

    @property
    def expected(self) -> float | None:
        """Tokens in all: those of the things that were tokenised, and as many for each of the others."""
        if self._total is None or not self._known:
            return None
        return self._tokens * self._total / self._known

    @property
    def share(self) -> float | None:
        """Of the work, so much is done."""
        return None if not self.expected else min(self._done / self.expected, 1.0)

    def expect(self, items: int, tokens: int) -> None:
        """So many items more are known to take so many tokens."""
        self._window = self._known, self._done, items, tokens
        self._known += items
        self._tokens += tokens

    def done(self, tokens: int) -> None:
        """So many of them are embedded."""
        self._done += tokens
        if self._bar is not None:
            self._bar.total = None if self.expected is None else max(round(self.expected), self._done)
            self._bar.update(tokens)
            self._show()

    def _show(self) -> None:
        items, before, more, tokens = self._window
        items += min(more, round(more * (self._done - before) / tokens)) if tokens else more
        of = "" if self._total is None else f"/{self._total}"
        self._bar.set_postfix_str(f"{items}{of} items", refresh=False)


def warn(told: Report, before: tuple[int, int], asked: bool, longest: int) -> None:
    """Say what a caller who gave no report would otherwise not learn."""
    skipped, cut = told.skipped[before[0] :], told.truncated[before[1] :]
    if skipped and not asked:
        shown = "; ".join(f"item {s.row}: {s.reason}" for s in skipped[:3])
        _warn(f"{len(skipped)} items were skipped, their rows are NaN: {shown}")
    if cut and not asked:
        _warn(f"{len(cut)} items were longer than {longest} tokens and were cut (first: {cut[0]})")


def _warn(message: str) -> None:
    """Warn at the line outside the package that called into it: Python shows a warning once a line, and calls of other lines are
    to be told too."""
    frame, level = inspect.currentframe(), 1
    while frame is not None and frame.f_code.co_filename.startswith(PACKAGE):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)
