"""What a run keeps for the one that goes on with it, and what it says of rows that were left out."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PillowImage

import mmembed
from mmembed.cli import main
from mmembed.errors import InputError, LoadError, SpecError
from mmembed.testing import tiny_embedder
from mmembed.train import checkpoints, learning, stamp
from mmembed.train.data import Column, Columns, InMemory
from mmembed.train.loop import Run, train
from mmembed.train.mining import mine
from mmembed.train.recipe import read_recipe
from mmembed.train.watch import read_log

from .runs import RECIPE, lay, trained, write_lines

PICTURES = RECIPE.replace('data = ["pairs", "pictures"]', 'data = ["pictures"]').replace("save_steps = 2\n", "")
HELD = """
[data.dev]
kind = "jsonl"
path = "dev.jsonl"
columns = { query = { text = "q" }, positive = { text = "p" } }
[held_out.dev]
data = "dev"
"""


def broken(folder, *numbers):
    for number in numbers:
        (folder / f"{number}.png").write_bytes(b"no picture")


def held(folder, recipe):
    path = lay(folder, recipe + HELD)
    write_lines(folder / "dev.jsonl", [{"q": f"thing {k}", "p": f"the {k}th of all things"} for k in range(40, 80)])
    return path


def stopped_behind(run, step):
    """Asked to stop once the checkpoint of a step is written: it ends with the next one."""
    save = learning.Learning.save

    def stopped(self):
        save(self)
        if self.step == step:
            run.stopping.set()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learning.Learning, "save", stopped)
        with pytest.raises(KeyboardInterrupt):
            run.train()


def test_rows_that_are_left_out_are_named_in_a_file_the_card_and_the_exit_code(tmp_path, capfd):
    recipe = lay(tmp_path, PICTURES)
    broken(tmp_path, 3, 8)
    output = tmp_path / "out"
    with pytest.raises(SystemExit) as ended:
        main(
            ["train", str(recipe), "--output", str(output), "--set", 'data.pictures.on_error="skip"', "--device", "cpu"]
        )
    err = capfd.readouterr().err
    assert ended.value.code == 3
    assert "2 of 12 rows of 'pictures' were left out: " in err
    told = read_log(output / "run" / "skipped.jsonl")
    assert sorted((each["data"], each["row"]) for each in told) == [("pictures", 3), ("pictures", 8)]
    assert all(each["reason"].startswith("'") and f"{each['row']}.png" in each["reason"] for each in told)
    assert "| pictures | 12 | 2 | Jsonl |" in (output / "README.md").read_text(encoding="utf-8")


def test_rows_that_were_left_out_before_a_run_went_on_are_still_named(tmp_path):
    skipping = PICTURES.replace('path = "pictures.jsonl"', 'path = "pictures.jsonl"\non_error = "skip"')
    recipe = lay(tmp_path, skipping)
    broken(tmp_path, *range(6))  # of twelve: a batch of eight meets some
    run = Run(read_recipe(recipe), tmp_path / "out", device="cpu")
    run.stopping.set()
    with pytest.raises(KeyboardInterrupt):
        run.train()
    told = tmp_path / "out" / "run" / "skipped.jsonl"
    before = told.read_text()
    lay(tmp_path, skipping)  # mended: nobody meets them again
    assert trained(recipe, tmp_path / "out", resume=True).skipped == {"pictures": len(read_log(told))}
    assert told.read_text() == before != ""


def test_mining_names_the_rows_that_it_leaves_out(tmp_path, capfd):
    recipe = lay(tmp_path, RECIPE.replace('path = "pictures.jsonl"', 'path = "pictures.jsonl"\non_error = "skip"'))
    broken(tmp_path, 5)
    examples = read_recipe(recipe).data["pictures"].open("pictures", tmp_path)
    mine(mmembed.load(tmp_path / "tiny", device="cpu"), examples, margin=-3.0)
    assert [*examples.skipped] == [5]
    with pytest.raises(SystemExit) as ended:
        main(
            ["mine", str(recipe), "pictures", "--output", str(tmp_path / "m.jsonl"), "--model", str(tmp_path / "tiny")]
        )
    assert ended.value.code == 3
    assert "row 5 is left out: " in capfd.readouterr().err


def test_a_run_that_is_stopped_behind_its_last_step_is_looked_at_when_it_goes_on(tmp_path):
    recipe = held(
        tmp_path, RECIPE.replace("save_steps = 2", "save_steps = 1\neval_steps = 3").replace("lr = 1e-3", "lr = 3e-2")
    )
    whole = trained(recipe, tmp_path / "whole")
    run = Run(read_recipe(recipe), tmp_path / "cut", device="cpu")
    stopped_behind(run, 5)
    assert checkpoints.found(tmp_path / "cut" / "run")[-1].name == "00000006.safetensors"
    assert [r["step"] for r in read_log(run.log) if "scores" in r] == [3]
    again = trained(recipe, tmp_path / "cut", resume=True)
    for folder in ("whole", "cut"):
        looks = [r for r in read_log(tmp_path / folder / "run" / "log.jsonl") if "scores" in r]
        assert [r["step"] for r in looks] == [3, 6]
        assert looks[-1]["scores"] == whole.scores == again.scores
    assert looks[0]["scores"] != looks[1]["scores"]


def test_a_row_that_cannot_be_read_costs_no_step_and_may_be_mended(tmp_path):
    recipe = lay(tmp_path, PICTURES)
    good = (tmp_path / "7.png").read_bytes()
    whole = trained(recipe, tmp_path / "whole")
    for output, mended in (("mended", True), ("skipped", False)):
        broken(tmp_path, 7)
        with pytest.raises(InputError, match="row 7"):
            trained(recipe, tmp_path / output)
        (kept,) = checkpoints.found(tmp_path / output / "run")
        steps = len(read_log(tmp_path / output / "run" / "log.jsonl"))
        assert 0 < steps == int(kept.stem)
        if mended:
            (tmp_path / "7.png").write_bytes(good)
            run = trained(recipe, tmp_path / output, resume=True)
            ours, theirs = run.embedder.model.state_dict(), whole.embedder.model.state_dict()
            assert all(torch.equal(own, theirs[name]) for name, own in ours.items())
        else:
            run = trained(recipe, tmp_path / output, 'data.pictures.on_error="skip"', resume=True)
            assert run.skipped == {"pictures": 1}
        assert run.begun == steps


def test_a_picture_of_a_folder_may_be_mended_and_a_run_may_lie_in_it(tmp_path):
    recipe = lay(tmp_path, PICTURES.replace('kind = "jsonl"\npath = "pictures.jsonl"', 'kind = "images"\npath = "."'))
    recipe.write_text(
        recipe.read_text().replace('text = "name"', 'text = "stem"').replace('image = "file"', 'image = "image"')
    )
    good = (tmp_path / "5.png").read_bytes()
    broken(tmp_path, 5)
    with pytest.raises(InputError, match=r"5\.png"):
        trained(recipe, tmp_path / "out")
    (tmp_path / "5.png").write_bytes(good)
    assert trained(recipe, tmp_path / "out", resume=True).begun > 0


def test_checkpoints_are_written_by_the_clock_where_a_stage_does_not_say_when(tmp_path, monkeypatch):
    recipe = lay(tmp_path, RECIPE.replace("save_steps = 2\n", ""))
    trained(recipe, tmp_path / "out")
    assert [path.stem for path in checkpoints.found(tmp_path / "out" / "run")] == ["00000006"]
    monkeypatch.setattr(learning, "EVERY", 0.0)
    trained(recipe, tmp_path / "often")
    assert [path.stem for path in checkpoints.found(tmp_path / "often" / "run")] == ["00000005", "00000006"]


def test_a_run_does_not_go_on_with_another_model_or_other_data(tmp_path):
    recipe = lay(tmp_path)
    run = Run(read_recipe(recipe), tmp_path / "out", device="cpu")
    run.stopping.set()
    with pytest.raises(KeyboardInterrupt):
        run.train()
    pairs, model = tmp_path / "pairs.jsonl", tmp_path / "tiny"
    text = pairs.read_text()
    pairs.write_text(text.replace("the 7th of", "the 8th of"))
    with pytest.raises(SpecError, match="data 'pairs' has changed since"):
        trained(recipe, tmp_path / "out", resume=True)
    pairs.write_text(text)
    kept = (model / "weights.safetensors").read_bytes()
    other = tiny_embedder(seed=5)
    other.save(model)
    with pytest.raises(SpecError, match=r"the model that it begins with \(tiny\) has changed since"):
        trained(recipe, tmp_path / "out", resume=True)
    (model / "weights.safetensors").write_bytes(kept)
    trained(recipe, tmp_path / "out", resume=True)


def test_a_checkpoint_of_an_earlier_version_is_told(tmp_path):
    recipe = lay(tmp_path)
    trained(recipe, tmp_path / "out", "stage.0.steps=2")
    (last,) = checkpoints.found(tmp_path / "out" / "run")
    tensors, state = checkpoints.load(last)
    checkpoints.save(last.parent, 2, tensors, {key: value for key, value in state.items() if key != "made_of"})
    with pytest.raises(LoadError, match="of an earlier version of mmembed"):
        trained(recipe, tmp_path / "out", "stage.0.steps=2", resume=True)


def test_going_on_where_nothing_lies_is_said(tmp_path, capfd):
    recipe = lay(tmp_path)
    arguments = ["train", str(recipe), "--output", str(tmp_path / "out"), "--set", "stage.0.steps=1", "--resume"]
    for said in ("no checkpoint lies there: it begins", "goes on behind step 1"):
        with pytest.raises(SystemExit) as ended:
            main([*arguments, "--device", "cpu"])
        assert not ended.value.code
        assert said in capfd.readouterr().err


def test_weights_that_no_gradient_reaches_do_not_decay(tmp_path):
    recipe = lay(tmp_path, RECIPE.replace('data = ["pairs", "pictures"]', 'data = ["pairs"]'))
    changes = ("stage.0.weight_decay=1.0", "stage.0.lr=0.01", 'stage.0.train=["tower", "backbone", "projector"]')
    run = trained(recipe, tmp_path / "out", *changes)
    before = mmembed.load(tmp_path / "tiny", device="cpu").model.state_dict()
    after = run.embedder.model.state_dict()
    moved = {name for name, own in before.items() if not torch.equal(after[name], own)}
    assert moved
    assert not any(name.startswith(("vision.", "projector.")) for name in moved)


def test_stamps_tell_files_and_weights_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(stamp, "WHOLE", 1000)
    monkeypatch.setattr(stamp, "PIECE", 100)
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_bytes(bytes(1000))
    large.write_bytes(bytes(100_000))
    seen = {
        stamp.of_files([small]),
        stamp.of_files([large]),
        stamp.of_files([small, large]),
        stamp.of_files([tmp_path]),
    }
    for path, place in ((small, 999), (large, 0), (large, 99_999)):
        data = bytearray(path.read_bytes())
        data[place] = 1
        path.write_bytes(data)
        seen.add(stamp.of_files([path]))
    PillowImage.new("RGB", (2, 2)).save(tmp_path / "a.png")
    seen.add(stamp.of_files([tmp_path]))
    assert len(seen) == 8
    assert stamp.of_files([large]) in seen


def test_a_picture_is_of_its_folder_wherever_the_other_files_lie(tmp_path, monkeypatch):
    """Folders may be labels; a recipe names some files from its own folder on and others from the root."""
    for name in ("cat/1.jpg", "cap/1.jpg", "dog/1.jpg"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    (tmp_path / "mined.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    mined = tmp_path / "mined.jsonl"
    one, other = ([Path(folder) / "1.jpg", Path("dog/1.jpg"), mined] for folder in ("cat", "cap"))
    assert stamp.of_files(one) != stamp.of_files(other)
    assert stamp.of_files(one) == stamp.of_files([*(tmp_path / path for path in one[:2]), Path("mined.jsonl")])
    one, two, other = (tiny_embedder(seed=seed) for seed in (1, 1, 2))
    assert stamp.of_model(one.model, one.spec) == stamp.of_model(two.model, two.spec)
    assert stamp.of_model(one.model, one.spec) != stamp.of_model(other.model, other.spec)
    assert stamp.of_model(one.model, one.spec) != stamp.of_model(one.model, one.respecified(max_length=8).spec)


def test_pictures_that_a_program_holds_are_trained_on_exported_and_resumed(tmp_path):
    recipe = read_recipe(lay(tmp_path, PICTURES))
    pixels = [np.full((32, 32, 3), 20 * k, np.uint8) for k in range(12)]
    columns = Columns(query=Column(image="seen"), positive=Column(text="name"))

    def held():
        rows = [{"seen": own, "name": f"shade {k}", "unused": np.zeros(3)} for k, own in enumerate(pixels)]
        return InMemory(table=rows, columns=columns)

    run = Run(dataclasses.replace(recipe, data={"pictures": held()}), tmp_path / "out", device="cpu")
    run.stopping.set()
    with pytest.raises(KeyboardInterrupt):
        run.train()
    pixels[3] += 1
    with pytest.raises(SpecError, match="data 'pictures' has changed since"):
        train(dataclasses.replace(recipe, data={"pictures": held()}), tmp_path / "out", device="cpu", resume=True)
    pixels[3] -= 1
    train(dataclasses.replace(recipe, data={"pictures": held()}), tmp_path / "out", device="cpu", resume=True)
    golden = json.loads((tmp_path / "out" / "golden.json").read_text())
    assert any("image" in entry["input"] for entry in golden)


def test_texts_that_are_cut_are_counted_in_the_log(tmp_path):
    recipe = lay(tmp_path, RECIPE.replace('data = ["pairs", "pictures"]', 'data = ["pairs"]'))
    run = trained(recipe, tmp_path / "out", "stage.0.steps=1")
    assert "truncated" not in read_log(run.log)[0]
    write_lines(
        tmp_path / "pairs.jsonl", [{"q": f"thing {k} " + "long " * (500 * (k < 2)), "p": f"{k}"} for k in range(8)]
    )
    run = trained(recipe, tmp_path / "long", "stage.0.steps=1")
    assert read_log(run.log)[0]["truncated"] == 2


def test_the_weights_of_the_best_look_are_what_stays(tmp_path):
    text = RECIPE.replace("save_steps = 2", "save_steps = 1\neval_steps = 1").replace("lr = 1e-3", "lr = 1e-1")
    recipe = held(tmp_path, text)
    keep = 'stage.0.keep_best="dev.MRR"'
    last, best = trained(recipe, tmp_path / "last"), trained(recipe, tmp_path / "best", keep)
    seen = [r["scores"]["dev"]["MRR"] for r in read_log(best.log) if "scores" in r]
    assert seen == [r["scores"]["dev"]["MRR"] for r in read_log(last.log) if "scores" in r]
    assert seen[-1] < max(seen), "the last look is not the best one"
    assert best.scores["dev"]["MRR"] == max(seen)
    assert last.scores["dev"]["MRR"] == seen[-1]
    run = Run(read_recipe(recipe, [keep]), tmp_path / "cut", device="cpu")
    stopped_behind(run, 4)
    again = trained(recipe, tmp_path / "cut", keep, resume=True).embedder.model.state_dict()
    assert all(torch.equal(own, again[name]) for name, own in best.embedder.model.state_dict().items())
    with pytest.raises(SpecError, match="looks once: eval_steps"):
        read_recipe(recipe, [keep, "stage.0.eval_steps=6"])
    with pytest.raises(SpecError, match=r"Did you mean 'dev\.MRR'"):
        read_recipe(recipe, ['stage.0.keep_best="dev.MMR"'])


def test_a_stage_ends_early_where_looks_get_no_better(tmp_path):
    text = RECIPE.replace("save_steps = 2", "save_steps = 1\neval_steps = 1").replace("lr = 1e-3", "lr = 1e-1")
    recipe = held(tmp_path, text.replace("steps = 6", "steps = 40"))
    patient = ('stage.0.keep_best="dev.MRR"', "stage.0.early_stopping_patience=2")
    whole = trained(recipe, tmp_path / "out", *patient)
    seen = [r["scores"]["dev"]["MRR"] for r in read_log(whole.log) if "scores" in r]
    best = seen.index(max(seen))
    (name,) = whole.learnt
    assert whole.learnt[name] == len(seen) == best + 3 < 40, "two looks behind the first best one"
    assert whole.scores["dev"]["MRR"] == max(seen)
    assert f"| {name} | {len(seen)} of 40 |" in (tmp_path / "out" / "README.md").read_text()
    run = Run(read_recipe(recipe, patient), tmp_path / "cut", device="cpu")
    stopped_behind(run, len(seen) - 1)
    again = trained(recipe, tmp_path / "cut", *patient, resume=True)
    assert again.learnt == {name: len(seen)}
    due = whole.embedder.model.state_dict()
    assert all(torch.equal(own, due[key]) for key, own in again.embedder.model.state_dict().items())
    assert trained(recipe, tmp_path / "cut", *patient, resume=True).learnt == {name: len(seen)}
    assert checkpoints.found(tmp_path / "cut" / "run")[-1].stem == f"{len(seen):08}"
    rare = trained(recipe, tmp_path / "rare", *patient, "stage.0.save_steps=1000")
    assert [path.stem for path in checkpoints.found(tmp_path / "rare" / "run")] == [f"{len(seen):08}"]
    assert rare.learnt == {name: len(seen)}
    with pytest.raises(SpecError, match="does not say what: keep_best"):
        read_recipe(recipe, ["stage.0.early_stopping_patience=2"])
