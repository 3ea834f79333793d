"""The rate of learning by step: it rises, then falls or stays."""

from __future__ import annotations

import math

from .recipe import Stage


def factor(step: int, stage: Stage) -> float:
    """What the highest rate is multiplied by at `step`, counted from 0: (step + 1) / warmup while it rises, then from 1 down
    towards `lowest`, which the step behind the last would have."""
    if step < stage.warmup:
        return (step + 1) / stage.warmup
    way = (step - stage.warmup) / max(stage.steps - stage.warmup, 1)
    if stage.schedule == "constant":
        return 1.0
    fall = 1 - way if stage.schedule == "linear" else (1 + math.cos(math.pi * way)) / 2
    return stage.lowest + (1 - stage.lowest) * fall
