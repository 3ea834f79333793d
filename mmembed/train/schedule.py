"""The rate of learning by step: it rises, then falls or stays."""

from __future__ import annotations

import math

from .recipe import Stage


def factor(step: int, stage: Stage) -> float:
    """What the highest rate is multiplied by at `step`, counted from 0: (step + 1) / warmup_steps while it rises, then
    from 1 down towards `min_lr_ratio`, which the step behind the last would have."""
    if step < stage.warmup_steps:
        return (step + 1) / stage.warmup_steps
    way = (step - stage.warmup_steps) / max(stage.steps - stage.warmup_steps, 1)
    if stage.schedule == "constant":
        return 1.0
    fall = 1 - way if stage.schedule == "linear" else (1 + math.cos(math.pi * way)) / 2
    return stage.min_lr_ratio + (1 - stage.min_lr_ratio) * fall
