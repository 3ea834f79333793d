"""The rate of learning at every step of a stage, worked out by hand."""

from __future__ import annotations

import pytest

from mmembed.train.recipe import Stage, Task
from mmembed.train.schedule import factor

WARM = [0.5, 1.0]
FALLS = {
    "constant": [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
    "linear": [1.0, 0.866667, 0.733333, 0.6, 0.466667, 0.333333, 0.2],
    "cosine": [1.0, 0.946410, 0.8, 0.6, 0.4, 0.253590, 0.2],
}
"""Behind two steps of warm-up, from 1 in six steps to 0.2: the last is of the step behind the last."""


@pytest.mark.parametrize("schedule", FALLS)
def test_the_rate_rises_and_falls_as_its_schedule_says(schedule):
    task = (Task(data=("x",), batch=2),)
    least = 0.0 if schedule == "constant" else 0.2
    said = {"name": "s", "task": task, "train": ("all",), "schedule": schedule, "min_lr_ratio": least}
    stage = Stage(steps=8, warmup_steps=2, **said)
    assert [factor(step, stage) for step in range(9)] == pytest.approx(WARM + FALLS[schedule], abs=1e-6)
    cold = Stage(steps=6, **said)
    assert [factor(step, cold) for step in range(7)] == pytest.approx(FALLS[schedule], abs=1e-6)
