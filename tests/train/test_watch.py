"""What else is told of a run: boards beside the log."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from mmembed.errors import MissingExtra
from mmembed.train.recipe import Watch
from mmembed.train.watch import Log, read_log

from .runs import lay, trained


def test_tensorboard_is_told_of_every_step(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe = lay(tmp_path)
    trained(recipe, tmp_path / "out", "stage.0.steps=4", "watch.tensorboard=true")
    found = EventAccumulator(str(tmp_path / "out" / "run" / "tensorboard"))
    found.Reload()
    due = [r["loss"] for r in read_log(tmp_path / "out" / "run" / "log.jsonl")]
    told = found.Scalars("loss")
    assert [each.step for each in told] == [1, 2, 3, 4]
    np.testing.assert_allclose([each.value for each in told], due, rtol=1e-6)


def test_wandb_is_told_of_every_step_and_a_run_that_goes_on_is_the_same_there(tmp_path, monkeypatch):
    begun, told = [], []

    def init(**asked):
        begun.append(asked)
        return SimpleNamespace(log=lambda values, step: told.append((step, values)), finish=lambda: told.append("end"))

    def run(step):
        log = Log(tmp_path, Watch(wandb="ours"), name="small", steps=3, step=step)
        log.step({"step": step + 1, "stage": "one", "loss": 0.5, "losses": {"infonce": 0.5}, "tokens": 9, "images": 0})
        log.scores(step + 1, "one", {"dev": {"MRR": 0.25}})
        log.close()

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    run(0)
    (_, values), (_, scores), end = told
    seconds = values.pop("seconds")
    assert seconds >= 0
    assert values == {"step": 1, "loss": 0.5, "losses/infonce": 0.5, "tokens": 9, "images": 0}
    assert (scores, end) == ({"step": 1, "scores/dev/MRR": 0.25}, "end")
    run(1)
    run(0)
    assert [each[0] for each in told if each != "end"] == [1, 1, 2, 2, 1, 1]
    first, resumed, anew = begun
    assert first == resumed == {"project": "ours", "name": "small", "id": first["id"], "resume": "allow"}
    assert anew["id"] != first["id"]
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtra, match="wandb"):
        run(0)


def test_a_record_ends_where_its_line_does(tmp_path):
    """What str.splitlines takes for an end stands in texts and paths as it is."""
    records = [{"reason": f"a{end}b"} for end in ("\u2028", "\x85", "\u2029", "\x1c")]
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    (tmp_path / "log.jsonl").write_text(lines + '{"cut off', encoding="utf-8")
    assert read_log(tmp_path / "log.jsonl") == records
