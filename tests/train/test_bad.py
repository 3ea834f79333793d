"""Bad recipes and bad data by the command line: each is told in one line that names the place, and nothing is lost."""

from __future__ import annotations

import resource

import numpy as np
import pytest
import torch

import mmembed
from mmembed.cli import main
from mmembed.errors import InputError, SpecError, TrainingError
from mmembed.train import checkpoints
from mmembed.train.watch import read_log

from ..processes import started
from .runs import RECIPE, lay, trained, write_lines


def changed(old, new):
    def change(folder):
        path = folder / "recipe.toml"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return change


def written(name, data):
    def change(folder):
        (folder / name).write_bytes(data)

    return change


def alone_and(data, spoil):
    """One source alone is drawn, so that each of its rows has its turn."""

    def change(folder):
        changed('data = ["pairs", "pictures"]', f'data = ["{data}"]')(folder)
        spoil(folder)

    return change


BAD = {
    "a text for a number": (
        changed("steps = 6", 'steps = "six"'),
        2,
        "line 21: stage[0].steps must be a whole number, not 'six'",
    ),
    "a number for a list": (
        changed('train = ["backbone", "projector"]', "train = 1"),
        2,
        "train must be a list of texts, not 1",
    ),
    "true for a number": (changed("seed = 3", "seed = true"), 2, "line 3: seed must be a whole number, not True"),
    "an unknown key": (
        changed("save_steps = 2", "safe_steps = 2"),
        2,
        "no setting of stage[0] is called 'safe_steps'. Did you mean 'save_steps'?",
    ),
    "an unknown loss": (changed('"infonce"', '"infonse"'), 2, "no loss is called 'infonse'. Did you mean 'infonce'?"),
    "a setting of a loss": (changed("temperature = 0.05", "temprature = 0.05"), 2, "Did you mean 'temperature'?"),
    "a temperature of 0": (changed("temperature = 0.05", "temperature = 0.0"), 2, "is no number above 0"),
    "no TOML": (changed("seed = 3", "seed = = 3"), 2, "recipe.toml: no TOML: Invalid value (at line 3"),
    "no steps": (changed("steps = 6", "steps = 0"), 2, "stage 'first' needs at least one step"),
    "data that is not there": (changed('data = ["pairs", "pictures"]', 'data = ["pears"]'), 2, "Did you mean 'pairs'?"),
    "a file that is not there": (changed('"pairs.jsonl"', '"pears.jsonl"'), 2, "pears.jsonl: no such file or folder"),
    "a model that is not there": (
        changed('load = "tiny"', 'load = "tony"'),
        2,
        "no folder or bundled model is called 'tony'",
    ),
    "an empty file": (written("pairs.jsonl", b""), 2, "pairs.jsonl holds no rows"),
    "a column that is not there": (changed('text = "q"', 'text = "query"'), 1, "data 'pairs', row"),
    "no JSON in the middle": (written("pairs.jsonl", b'{"q": "a", "p": "b"}\nwords\n' * 20), 1, "no JSON"),
    "bytes that are no text": (written("pairs.jsonl", b'{"q": "\xff", "p": "b"}\n' * 20), 1, "data 'pairs', row"),
    "a broken picture": (
        alone_and("pictures", written("7.png", b"\x89PNG\r\n\x1a\n broken")),
        1,
        "data 'pictures', row 7: ",
    ),
    "a picture that is not there": (alone_and("pictures", lambda folder: (folder / "7.png").unlink()), 1, "7.png"),
    "rows that are all the same": (
        alone_and("pairs", written("pairs.jsonl", b'{"q": "a", "p": "b"}\n' * 20)),
        2,
        "too few rows that differ",
    ),
}


@pytest.mark.parametrize(("spoil", "code", "said"), BAD.values(), ids=BAD)
def test_what_is_bad_is_told_in_one_line(tmp_path, capfd, spoil, code, said):
    recipe = lay(tmp_path)
    spoil(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["train", str(recipe), "--output", str(tmp_path / "out"), "--device", "cpu"])
    err = capfd.readouterr().err
    assert ended.value.code == code, err
    assert said in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out" / "weights.safetensors").exists()


@pytest.mark.parametrize(
    ("lr", "told"), [(1e15, "step 2: loss nan (infonce nan), "), (1e38, "step 1: weight.")], ids=["loss", "weights"]
)
def test_what_grows_beyond_all_numbers_stops_a_run_and_gets_into_no_checkpoint(tmp_path, lr, told):
    recipe = lay(tmp_path)
    changes = ("stage.0.save_steps=1", f"stage.0.lr={lr}", 'stage.0.schedule="constant"')
    with pytest.raises(TrainingError) as caught:
        trained(recipe, tmp_path / "out", *changes)
    said = str(caught.value)
    assert told in said
    found = checkpoints.found(tmp_path / "out" / "run")
    for path in found:
        tensors, _ = checkpoints.load(path)
        assert all(tensor.isfinite().all() for tensor in tensors.values())
    last = f"{found[-1].name} is the last good checkpoint" if found else "no checkpoint was due before it"
    assert f"; {last}. A lower lr" in said


def _without_room(recipe, output, told, room):
    """Go on where no file may grow beyond so many bytes, as on a disk that is full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
    try:
        trained(recipe, output, resume=True)
    except TrainingError as error:
        told.write_text(str(error))


def test_a_disk_that_is_full_at_a_checkpoint_loses_nothing(tmp_path):
    recipe = lay(tmp_path)
    trained(recipe, tmp_path / "whole")
    run = tmp_path / "out" / "run"
    run.mkdir(parents=True)
    before = tmp_path / "whole" / "run" / "00000004.safetensors"
    (run / before.name).write_bytes(before.read_bytes())
    size = before.stat().st_size
    process = started(_without_room, recipe, tmp_path / "out", tmp_path / "told", size // 2)
    process.join(60)
    said = (tmp_path / "told").read_text()
    assert "the checkpoint of step 6 cannot be written to" in said
    assert (
        "File too large; 00000004.safetensors is there and whole. Make room and go on with resume=True (--resume)"
        in said
    )
    assert [path.name for path in checkpoints.found(run)] == [before.name]
    assert not list(run.glob(".*part"))
    checkpoints.load(run / before.name)
    trained(recipe, tmp_path / "out", resume=True)
    whole, out = (read_log(tmp_path / name / "run" / "log.jsonl") for name in ("whole", "out"))
    assert [r["loss"] for r in whole][4:] == [r["loss"] for r in out]


def test_bf16_makes_products_in_bf16_and_losses_in_fp32(tmp_path):
    recipe = lay(tmp_path)
    seen = []

    def hook(module, given, out):
        if isinstance(out, torch.Tensor):
            seen.append(out.dtype)

    handle = torch.nn.modules.module.register_module_forward_hook(hook)
    try:
        run = trained(recipe, tmp_path / "half", 'stage.0.precision="bf16"', "stage.0.steps=4")
    finally:
        handle.remove()
    trained(recipe, tmp_path / "whole", "stage.0.steps=4")
    assert torch.bfloat16 in seen
    assert {w.dtype for w in run.embedder.model.parameters()} == {torch.float32}
    half, whole = ([r["loss"] for r in read_log(tmp_path / name / "run" / "log.jsonl")] for name in ("half", "whole"))
    np.testing.assert_allclose(half, whole, rtol=0.05)
    assert half != whole


@pytest.mark.parametrize("name", ["tiny", "tiny/../tiny"])
def test_the_model_that_a_run_begins_with_is_not_written_over(tmp_path, name):
    recipe = lay(tmp_path)
    before = (tmp_path / "tiny" / "weights.safetensors").read_bytes()
    with pytest.raises(SpecError, match="would be written over"):
        trained(recipe, tmp_path / name)
    assert (tmp_path / "tiny" / "weights.safetensors").read_bytes() == before


def test_steps_whose_examples_were_all_left_out_change_nothing_and_say_no_loss(tmp_path):
    recipe = lay(tmp_path)
    for picture in tmp_path.glob("*.png"):
        picture.write_bytes(b"no picture")
    write_lines(tmp_path / "pictures.jsonl", [{"name": f"colour {k}", "file": f"{k % 12}.png"} for k in range(40)])
    recipe.write_text(RECIPE.replace('data = ["pairs", "pictures"]', 'data = ["pictures"]'))
    changes = ("stage.0.weight_decay=1.0", "stage.0.lr=0.1", "stage.0.steps=4", 'data.pictures.on_error="skip"')
    run = trained(recipe, tmp_path / "out", *changes)
    records = read_log(run.log)
    assert len(records) == 4
    assert all(not record["losses"] and "loss" not in record and record["skipped"] == 8 for record in records)
    assert run.skipped == {"pictures": 32}
    before = mmembed.load(tmp_path / "tiny", device="cpu").model.state_dict()
    after = run.embedder.model.state_dict()
    assert all(torch.equal(after[name], own) for name, own in before.items())
    with pytest.raises(InputError, match="none of the 40 rows of data 'pictures' gives an example; the last: "):
        trained(recipe, tmp_path / "on", *changes, "stage.0.steps=10")
    assert not (tmp_path / "on" / "weights.safetensors").exists()


def test_checkpointing_learns_what_is_learnt_without_it(tmp_path):
    recipe = lay(tmp_path)
    for name, changes in (("plain", ()), ("again", ("stage.0.gradient_checkpointing=true",))):
        trained(recipe, tmp_path / name, "stage.0.steps=4", *changes)
    plain, again = (
        [(r["loss"], r["grad_norm"]) for r in read_log(tmp_path / name / "run" / "log.jsonl")]
        for name in ("plain", "again")
    )
    np.testing.assert_allclose(again, plain, rtol=1e-5)


def test_a_saved_data_set_of_hugging_face_is_read_like_any_other(tmp_path):
    datasets = pytest.importorskip("datasets")
    recipe = lay(tmp_path)
    rows = [{"q": f"thing {k}", "p": f"the {k}th of all things"} for k in range(40)]
    write_lines(tmp_path / "pairs.jsonl", rows)
    datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)}).save_to_disk(tmp_path / "saved")
    pictures = [{"name": f"colour {k}", "file": str(tmp_path / f"{k}.png")} for k in range(12)]
    made = datasets.Dataset.from_list(pictures).cast_column("file", datasets.Image())
    made.save_to_disk(tmp_path / "shown")
    trained(recipe, tmp_path / "lines", "stage.0.steps=3")
    text = RECIPE.replace('kind = "jsonl"\npath = "pairs.jsonl"', 'kind = "datasets"\npath = "saved"\nsplit = "train"')
    text = text.replace('kind = "jsonl"\npath = "pictures.jsonl"', 'kind = "datasets"\npath = "shown"')
    (tmp_path / "sets.toml").write_text(text)
    trained(tmp_path / "sets.toml", tmp_path / "sets", "stage.0.steps=3")
    one, two = ([r["loss"] for r in read_log(tmp_path / n / "run" / "log.jsonl")] for n in ("lines", "sets"))
    np.testing.assert_allclose(two, one, rtol=1e-6)
